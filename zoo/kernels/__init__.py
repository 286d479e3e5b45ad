"""Attention kernels shared by all families; each has a readable reference."""

from zoo.kernels.linear_attention import linear_attention

__all__ = ["linear_attention"]
