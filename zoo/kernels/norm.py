"""Layer norm over the channels of each position [+ ReLU], for channels-last data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError
from zoo.kernels.triton_support import why_no_triton

BACKENDS = ("triton", "torch", "reference")
_WIDEST = 4096  # channels a Triton program holds at once


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, relu: bool = False
) -> Tensor:
    """The formula, with float32 (or wider) statistics; arguments of `channel_norm`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dim=1, keepdim=True)
    unit = centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + eps)
    shape = (-1, *(1,) * (x.ndim - 2))
    out = unit * weight.view(shape) + bias.view(shape)
    return (out.relu() if relu else out).to(x.dtype)


def channel_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Layer norm over dimension 1, then ReLU where asked.

    Args:
        x: [B,C,...]. Channels-last memory is read and written as it is; other memory is copied.
        weight, bias: [C].
        backend: "triton" (CUDA: the ReLU costs nothing), "torch" (layer_norm, ReLU in place),
            "reference", or "auto": triton where it serves and a ReLU follows, else torch.

    Returns:
        [B,C,...] in channels-last memory, in the dtype of `x` (float32 under autocast).

    Raises:
        UserError: shapes that don't fit, an unknown backend, or one that can't serve this call.
    """
    if x.ndim < 2 or not weight.shape == bias.shape == x.shape[1:2] or 0 in x.shape[1:]:
        raise UserError(
            f"channel_norm takes x [B,C,...] with weight and bias [C], not x {tuple(x.shape)}, "
            f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}"
        )
    if backend == "auto":
        ours = relu and not torch.compiler.is_exporting() and why_not("triton", x) is None
        backend = "triton" if ours else "torch"
    elif reason := why_not(backend, x):
        raise UserError(f"channel_norm backend '{backend}' can't serve this call: {reason}")
    if backend == "reference":
        return reference(x, weight, bias, eps=eps, relu=relu)
    rows = x.movedim(1, -1)
    if backend == "triton":
        from zoo.kernels.norm_triton import norm_last

        if torch.is_autocast_enabled(x.device.type):
            rows = rows.float()  # as torch's layer_norm does
        flat = rows.reshape(-1, x.shape[1]).contiguous()
        return norm_last(flat, weight, bias, eps, relu=relu).view(rows.shape).movedim(-1, 1)
    out = F.layer_norm(rows, weight.shape, weight, bias, eps)
    # layer_norm keeps its input for the backward pass, not its output: this may overwrite it
    return (out.relu_() if relu else out).movedim(-1, 1)


def why_not(backend: str, x: Tensor) -> str | None:
    """Why `backend` can't serve a call, in words; None when it can."""
    if backend in ("torch", "reference"):
        return None
    if backend != "triton":
        raise UserError(f"unknown channel_norm backend '{backend}': {', '.join(BACKENDS)}")
    if x.dtype == torch.float64:
        return "its statistics are float32, the input float64"
    if x.shape[1] > _WIDEST:
        return f"a program holds {_WIDEST} channels, the input has {x.shape[1]}"
    return why_no_triton(x.device)
