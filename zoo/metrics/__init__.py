"""Measures of reconstruction and of latents."""
