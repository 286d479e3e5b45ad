"""Attention kernels shared by all families; each has a readable reference."""

from zoo.kernels.attention import attention
from zoo.kernels.linear_attention import linear_attention

__all__ = ["attention", "linear_attention"]
