"""Measures of reconstruction."""
