"""Comparing text-to-image models on the same prompts and noise."""
