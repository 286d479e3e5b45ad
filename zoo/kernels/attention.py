"""Softmax attention: one call for all families, over a readable reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("auto", "sdpa", "math")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(q k^T * scale + mask) v.

    Args:
        q: queries [B,H,N,D].
        k, v: keys and values [B,H,M,D], the dtype of `q`.
        mask: broadcastable to [B,H,N,M]; bool (True: attend) or a float that is added.
        scale: D^-1/2 when None.
        backend: "sdpa" is torch's fused attention, "math" the formula, "auto" takes sdpa.

    Returns:
        [B,H,N,D], the dtype of `q`.

    Raises:
        ValueError: unknown backend, or shapes or dtypes that don't fit (both are named).
    """
    _check(q, k, v, backend)
    if backend == "math":
        return reference(q, k, v, mask=mask, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The formula, our specification; softmax and sums in float32 or better."""
    wide = q.dtype if q.dtype.itemsize >= 4 else torch.float32
    scores = q.to(wide) @ k.to(wide).transpose(-2, -1)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, float("-inf"))
        else:
            scores = scores + mask
    return (scores.softmax(dim=-1) @ v.to(wide)).to(q.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend '{backend}': use one of {', '.join(BACKENDS)}")
    shapes = ", ".join(str(tuple(each.shape)) for each in (q, k, v))
    if not (
        q.ndim == k.ndim == v.ndim == 4
        and k.shape[:3] == v.shape[:3]
        and q.shape[:2] == k.shape[:2]
        and q.shape[-1] == k.shape[-1] > 0
    ):
        raise ValueError(f"q, k, v of shapes {shapes} don't fit: give [B,H,N,D], [B,H,M,D] twice")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: give one dtype")
