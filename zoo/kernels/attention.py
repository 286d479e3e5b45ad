"""Softmax attention: one call for all families, on a backend chosen on purpose.

`reference` is the specification. Backends: torch's fused attention with its own choice of kernel
("sdpa") or one of its kernels by name, xformers, flex attention (always compiled: as plain calls it
writes the whole score matrix), and the formula itself ("math"). What can serve a call, and why not,
is in providers.py; `python tools/doctor.py` shows it for the shapes of the zoo's nets.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.errors import UserError
from zoo.kernels import providers
from zoo.kernels.providers import Call

_SDPA_KINDS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
BACKENDS = ("auto", "sdpa", *_SDPA_KINDS, "xformers", "flex", "math")
OVERRIDE = "ZOO_ATTENTION"
"""Environment variable: the backend that calls with backend="auto" take."""


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
        backend: one of BACKENDS; "auto" takes the one that ZOO_ATTENTION names, else the rules of
            `choose`.

    Returns:
        [B,H,N,D], the dtype of `q`.

    Raises:
        UserError: unknown backend, one that can't serve this call (with its reason), empty
            sequences, or shapes, dtypes or devices that don't fit (both are named).
    """
    _check(q, k, v, mask)
    backend = resolve(Call(q, k, v, mask, scale), backend)
    if backend == "math":
        return reference(q, k, v, mask=mask, scale=scale)
    if backend == "xformers":
        return providers.xformers_attention(q, k, v, mask=mask, scale=scale)
    if backend == "flex":
        return providers.flex_attention(q, k, v, mask=mask, scale=scale)
    if mask is not None and mask.dtype not in (torch.bool, q.dtype):
        mask = mask.to(q.dtype)
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    with sdpa_kernel(_SDPA_KINDS[backend]):
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


def resolve(call: Call, backend: str = "auto") -> str:
    """The backend that `attention` takes for a call; UserError where it can't serve it."""
    named = f"attention backend '{backend}'"
    if backend == "auto":
        backend = os.environ.get(OVERRIDE) or "auto"
        if backend == "auto":
            return choose(call)
        named = f"attention backend '{backend}' (from {OVERRIDE})"
    if backend not in BACKENDS:
        raise UserError(f"unknown {named}: use one of {', '.join(BACKENDS)}")
    if reason := why_not(backend, call):
        raise UserError(f"{named} can't serve this call: {reason}")
    return backend


def choose(call: Call) -> str:
    """The rules of "auto"; `doctor --bench` times them against the other backends."""
    if call.device.type == "cuda" and call.q.dtype == torch.float64:
        return "math"
    if call.device.type == "cuda" and call.q.shape[-1] > 256:
        # a KL-VAE's one-head, 512-wide middle block: flash and cuDNN stop at 256
        return "sdpa" if why_not("sdpa-efficient", call) else "sdpa-efficient"
    return "sdpa"


def why_not(backend: str, call: Call) -> str | None:
    """Why `backend` can't serve a call, in words; None when it can.

    Rules first, which cost microseconds; then, once a process and kind of call, a small call is
    compared with the formula: a backend that is broken here says so and is never silently wrong.
    """
    if backend in ("auto", "sdpa", "math"):
        return None
    rule = providers.RULES[backend]
    if reason := rule(call):
        return reason
    if torch.compiler.is_compiling():
        return None  # a probe can't run inside a graph; the eager call before it has
    return probe(backend, call.device, call.q.dtype)


_PROBED: dict[tuple[str, torch.device, torch.dtype], str | None] = {}


def probe(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Run a backend once a process on a small call; what went wrong, or None."""
    key = (backend, device, dtype)
    if key not in _PROBED:
        _PROBED[key] = _probe(backend, device, dtype)
    return _PROBED[key]


def _probe(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 32, 32, generator=generator).to(device, dtype) for _ in range(3))
    run: Callable[..., Tensor]
    if backend == "xformers":
        run = providers.xformers_attention
    elif backend == "flex":
        run = providers.flex_attention
    else:

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(_SDPA_KINDS[backend]):
                return F.scaled_dot_product_attention(q, k, v)

    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            error = (run(q, k, v).double() - reference(q.double(), k.double(), v.double())).abs()
    except Exception as failure:  # noqa: BLE001  whatever a foreign kernel raises is the finding
        return f"its probe failed with {type(failure).__name__}: {providers.summary(failure)}"
    if not error.max() < 0.05:
        return f"its probe is off by {error.max().item():.2g} from the formula"
    return None


def _shapes(*tensors: Tensor) -> str:
    # only for an error: a compiler with sizes left open can't make words of them
    return ", ".join(str(tuple(each.shape)) for each in tensors)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    if not (
        q.ndim == k.ndim == v.ndim == 4
        and k.shape[:3] == v.shape[:3]
        and q.shape[:2] == k.shape[:2]
        and q.shape[-1] == k.shape[-1] == v.shape[-1] > 0
    ):
        shapes = _shapes(q, k, v)
        raise UserError(f"q, k, v of shapes {shapes} don't fit: give [B,H,N,D], [B,H,M,D] twice")
    if 0 in q.shape or 0 in k.shape:
        shapes = _shapes(q, k, v)
        raise UserError(f"q, k, v of shapes {shapes}: an empty sequence has nothing to attend to")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise UserError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: give one floating dtype")
    if not q.device == k.device == v.device:
        raise UserError(f"q, k, v are on {q.device}, {k.device}, {v.device}: give one device")
    if mask is not None:
        wanted = (*q.shape[:3], k.shape[2])
        fits = mask.ndim <= 4 and all(
            m in (1, w) for m, w in zip(mask.shape[::-1], wanted[::-1], strict=False)
        )
        if not fits:
            raise UserError(f"a mask of shape {tuple(mask.shape)} doesn't broadcast to {wanted}")
