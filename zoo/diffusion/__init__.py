"""Diffusion maths: schedules and samplers, pure functions without nets."""
