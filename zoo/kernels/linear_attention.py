"""CDT's linear attention (arXiv 2503.03708): the reference formula and what computes it.

`reference` is the specification. On a CPU, linear_attention_cpu.py walks through cache-sized
blocks; on CUDA, linear_attention_triton.py is a fused kernel; `reference` serves the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.kernels.precision import full_precision

BACKENDS = ("triton", "blocks", "reference")


def reference(q: Tensor, k: Tensor, v: Tensor, *, project: Tensor | None = None) -> Tensor:
    """The formula, with float32 (or wider) softmaxes and sums; arguments of `linear_attention`."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(dtype).softmax(dim=-1), k.to(dtype).softmax(dim=-2)
    summary = k.transpose(-2, -1) @ v.to(dtype)
    if project is not None:
        summary = summary @ project.to(dtype)
    out: Tensor = (q * q.shape[-1] ** -0.5) @ summary
    return out.to(v.dtype)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, project: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Linear attention with both softmaxes and the scale inside.

    out = softmax_channels(q) D^-1/2 @ (softmax_tokens(k)^T @ v): a D x D summary of all tokens,
    read by each; cost grows with N, not N squared. All backends sum in float32 or wider and save
    nothing of size N x D for the backward pass but their inputs (triton: and the output).

    Args:
        q, k: [B,H,N,D] (batch, heads, tokens, channels of a head), any strides.
        v: [B,H,N,E].
        project: [E,F]: what `linear_attention(q, k, v @ project)` gives, but the product is done on
            the summary (D rows) in place of v (N rows): linear layers before v and after the
            output cost next to nothing.
        backend: "triton" (CUDA), "blocks" (CPU), "reference", or "auto": the first that serves.

    Returns:
        [B,H,N,E] (or F), in the dtype of `v`.

    Raises:
        UserError: shapes, dtypes or devices that don't fit, an unknown backend, or one that can't
            serve this call.
    """
    _check(q, k, v, project)
    if backend == "auto" and torch.compiler.is_exporting():
        backend = "reference"  # another runtime knows no operators of ours
    elif backend == "auto":
        backend = next(name for name in BACKENDS if why_not(name, q, k, v) is None)
    elif reason := why_not(backend, q, k, v):
        raise UserError(f"linear_attention backend '{backend}' can't serve this call: {reason}")
    if backend == "reference":
        return reference(q, k, v, project=project)
    if backend == "triton":
        from zoo.kernels import linear_attention_triton as kernels

        summarize, read = kernels.summarize, kernels.read
    else:
        from zoo.kernels import linear_attention_cpu as cpu

        summarize, read = cpu.summarize, cpu.read
    summary, _ = summarize(k.flatten(0, 1), v.flatten(0, 1))
    with full_precision(q.device):
        if project is not None:
            summary = summary @ project.to(summary.dtype)
        summary = summary * q.shape[-1] ** -0.5
    out: Tensor = read(q.flatten(0, 1), summary)
    return out.view(*q.shape[:3], -1)


def why_not(backend: str, q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why `backend` can't serve a call, in words; None when it can."""
    if backend == "reference":
        return None
    if backend == "blocks":
        return None if q.device.type == "cpu" else f"it runs on a CPU, not on {q.device.type}"
    if backend != "triton":
        raise UserError(f"unknown linear_attention backend '{backend}': {', '.join(BACKENDS)}")
    from zoo.kernels.triton_support import why_no_triton

    if q.dtype == torch.float64:
        return "its sums are float32, the inputs float64"
    return why_no_triton(q.device)


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    # only for an error: a compiler with sizes left open can't make words of them
    return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"


def _check(q: Tensor, k: Tensor, v: Tensor, project: Tensor | None) -> None:
    if q.ndim != 4 or q.shape != k.shape or v.ndim != 4 or q.shape[:3] != v.shape[:3]:
        raise UserError(
            "linear_attention takes q and k of one shape [B,H,N,D] and v [B,H,N,E], not "
            f"{_shapes(q, k, v)}"
        )
    if 0 in q.shape or 0 in v.shape:
        raise UserError(
            f"linear_attention needs at least one token and channel, not {_shapes(q, k, v)}"
        )
    if project is not None and (project.ndim != 2 or project.shape[0] != v.shape[3]):
        raise UserError(
            f"project must be [{v.shape[3]},F] for v {tuple(v.shape)}, not {tuple(project.shape)}"
        )
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise UserError(
            f"linear_attention takes one floating dtype, not q {q.dtype}, k {k.dtype}, v {v.dtype}"
        )
    if not q.device == k.device == v.device:
        raise UserError(
            f"linear_attention takes one device, not q {q.device}, k {k.device}, v {v.device}"
        )
