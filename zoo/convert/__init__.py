"""Weights of other projects, in and out: one strict two-way adapter per family."""
