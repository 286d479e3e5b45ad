"""Which precision is fast here, and leaving autocast for a few lines."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor


@cache
def bfloat16_of_cpu() -> Literal["tiles", "vectors", "slow"]:
    """How this CPU multiplies bfloat16: "tiles" (AMX), "vectors" (twice float32's rate) or "slow".

    AMD's AVX-512 doubles its rate in bfloat16. Intel's without AMX halves it (154 GFLOP/s in
    float32, 82 in bfloat16 for products of 1024x1024), and a CPU without such instructions emulates
    them, 170 times slower than float32.
    """
    if torch.cpu._is_amx_tile_supported():
        return "tiles"
    try:
        facts = Path("/proc/cpuinfo").read_text()
    except OSError:
        facts = ""
    doubled = torch.cpu._is_avx512_bf16_supported() and "AuthenticAMD" in facts
    return "vectors" if doubled else "slow"


def learns_in_float32(x: Tensor, weight: Tensor) -> bool:
    """Whether a 3D convolution of `x` needs float32, for its weight's gradient to be right here.

    oneDNN's AMX code (torch 2.14) writes past its buffers in bfloat16: from about 64x64 pixels on
    gradients are off by a quarter, or the process hangs or crashes; transposed convolutions too. 2D
    convolutions, values and the gradient of the input are right, and so is AVX-512's code.
    """
    learns = weight.requires_grad and torch.is_grad_enabled()
    if not learns or x.device.type != "cpu" or bfloat16_of_cpu() != "tiles":
        return False
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast on `device`; tensors without data ("meta") know no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
