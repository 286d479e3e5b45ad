"""Which precision is fast here, and leaving autocast for a few lines."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Literal

import torch


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


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast on `device`; tensors without data ("meta") know no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
