"""Shipped tokenizers with int8 weights, for the benchmark:

    python tools/benchmark.py reconstruction --data package-clips --out runs/int8 \\
        --models cdt_tiny.clips tests/scripts/int8_models.py:cdt_tiny
"""

from __future__ import annotations

import torch
from torch import nn

import zoo
from zoo.int8 import quantize_int8


def _quantised(name: str) -> nn.Module:
    return quantize_int8(zoo.load(name, dtype=torch.float32))


def cdt_tiny() -> nn.Module:
    """cdt_tiny.clips."""
    return _quantised("cdt_tiny.clips")


def klvae_video_tiny() -> nn.Module:
    """klvae_video_tiny.clips."""
    return _quantised("klvae_video_tiny.clips")


def klvae_image_tiny() -> nn.Module:
    """klvae_image_tiny.pictures."""
    return _quantised("klvae_image_tiny.pictures")
