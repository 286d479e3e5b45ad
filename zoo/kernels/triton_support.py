"""Whether Triton kernels can run here, and why not. Triton itself is imported by the kernels."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

_INSTALLED = find_spec("triton") is not None


def interpreting() -> bool:
    """TRITON_INTERPRET=1, set before Triton is imported, runs kernels on a CPU (slowly: tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_no_triton(device: torch.device) -> str | None:
    """Why a Triton kernel can't take tensors of `device`; None when it can."""
    if not (device.type == "cuda" or (device.type == "cpu" and interpreting())):
        return f"it runs on CUDA, not on {device.type} (TRITON_INTERPRET=1 emulates it: slow)"
    if not _INSTALLED:
        return "triton is not installed: pip install triton"
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0):
            return f"it needs compute capability 8.0, the device has {capability}"
    return None


def product_precision() -> str:
    """How products of float32 operands are rounded on CUDA: as torch's own are set to be."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
