"""CDT's linear attention (arXiv 2503.03708): the reference formula, our specification for it."""

from __future__ import annotations

from torch import Tensor


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention with both softmaxes and the scale inside.

    out = softmax_channels(q) D^-1/2 @ (softmax_tokens(k)^T @ v): a D x D summary of all tokens,
    read by each; cost grows with N, not N squared.

    Args:
        q, k, v: [B,H,N,D] (batch, heads, tokens, channels of a head).

    Returns:
        [B,H,N,D], in the dtype of `v`.
    """
    dtype = v.dtype
    # softmax over thousands of tokens and the sum over them need more than half precision holds
    q = q.float().softmax(dim=-1) if dtype.itemsize < 4 else q.softmax(dim=-1)
    k = k.float().softmax(dim=-2) if dtype.itemsize < 4 else k.softmax(dim=-2)
    summary = k.transpose(-2, -1) @ v.to(k.dtype)
    out: Tensor = (q * q.shape[-1] ** -0.5) @ summary
    return out.to(dtype)
