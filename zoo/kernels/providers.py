"""What serves softmax attention: rules with reasons, and the calls of foreign libraries."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda as cuda_backends

XFORMERS_MODULES = ("xformers.ops", "mslk.attention.fmha")
"""Where memory_efficient_attention is looked for: xformers, and its successor on CUDA, mslk."""


class Call(NamedTuple):
    """The arguments of an `attention` call."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    scale: float | None = None

    @property
    def device(self) -> torch.device:
        """Of all tensors."""
        return self.q.device

    @property
    def grad(self) -> bool:
        """Whether autograd will ask for gradients of q, k or v."""
        return torch.is_grad_enabled() and any(x.requires_grad for x in self[:3])


def _flash(call: Call) -> str | None:
    if call.device.type == "cpu":
        if call.mask is not None and call.grad and call.mask.requires_grad:
            return "it gives no gradient to a mask"
        return None
    return _cuda_kernel(call, "flash", cuda_backends.can_use_flash_attention)


def _cudnn(call: Call) -> str | None:
    return _cuda_kernel(call, "cuDNN", cuda_backends.can_use_cudnn_attention)


def _efficient(call: Call) -> str | None:
    return _cuda_kernel(call, "efficient", cuda_backends.can_use_efficient_attention)


def _cuda_kernel(call: Call, name: str, can_use: Callable[..., bool]) -> str | None:
    """Ask torch itself; its reasons are warnings."""
    if call.device.type != "cuda":
        return f"the {name} kernel runs on CUDA, the tensors are on {call.device.type}"
    if torch.compiler.is_compiling():
        return None  # torch's answer is for real tensors; an impossible choice fails loudly there
    mask = call.mask
    if mask is not None and mask.dtype not in (torch.bool, call.q.dtype):
        mask = mask.to(call.q.dtype)
    params = cuda_backends.SDPAParams(call.q, call.k, call.v, mask, 0.0, False, False)
    if can_use(params, False):
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        can_use(params, True)
    reasons = [str(w.message).split(" (Triggered")[0].strip() for w in caught]
    return "; ".join(r.rstrip(".") for r in reasons if r) or "torch refuses it without a reason"


def _xformers(call: Call) -> str | None:
    if call.device.type != "cuda":
        return f"xformers' kernels run on CUDA, the tensors are on {call.device.type}" + (
            f"; besides, {why_no_xformers()}" if why_no_xformers() else ""
        )
    if call.q.dtype == torch.float64:
        return "xformers' kernels take float32, float16 and bfloat16, not float64"
    return why_no_xformers() or _ask_xformers(call)


_XFORMERS_SAID: dict[tuple[object, ...], str | None] = {}


def _ask_xformers(call: Call) -> str | None:
    """Its own dispatch's reasons; asked once a shape, as asking takes longer than a small call."""
    q, k, v, mask, scale = call
    key = (q.device, q.dtype, q.shape, k.shape, mask is None, call.grad)
    if key in _XFORMERS_SAID or torch.compiler.is_compiling():
        return _XFORMERS_SAID.get(key)
    found, _ = _find_xformers()
    fmha: Any = sys.modules.get(getattr(found, "__module__", ""))
    if hasattr(fmha, "_dispatch_fw") and hasattr(fmha, "Inputs"):
        query, key_, value = (x.transpose(1, 2) for x in (q, k, v))
        bias = None if mask is None else _bias_in_eights(q, k, mask)
        inputs = fmha.Inputs(query=query, key=key_, value=value, attn_bias=bias, scale=scale)
        try:
            fmha._dispatch_fw(inputs, call.grad)
            _XFORMERS_SAID[key] = None
        except NotImplementedError as refusal:
            _XFORMERS_SAID[key] = summary(refusal)
    return _XFORMERS_SAID.get(key)


def summary(failure: BaseException) -> str:
    """The text of an error on one line, at most 300 characters."""
    lines = str(failure).splitlines()
    # xformers repeats the call before it says which of its kernels refuses and why
    reasons = [i for i, line in enumerate(lines) if line.endswith("not supported because:")]
    text = " ".join(" ".join(lines[reasons[0] if reasons else 0 :]).split()) or "no message"
    return text if len(text) <= 300 else f"{text[:297]}..."


def _flex(call: Call) -> str | None:
    if call.device.type not in ("cpu", "cuda"):
        return f"flex attention is compiled for CPU and CUDA, not for {call.device.type}"
    if call.device.type == "cpu" and call.grad:
        return "flex attention has no backward pass on a CPU"
    if call.mask is not None and call.mask.requires_grad and call.grad:
        return "it gives no gradient to a mask"
    if call.q.dtype == torch.float64:
        return "compiled flex attention takes float32, float16 and bfloat16, not float64"
    return None


RULES: dict[str, Callable[[Call], str | None]] = {
    "sdpa-flash": _flash,
    "sdpa-cudnn": _cudnn,
    "sdpa-efficient": _efficient,
    "sdpa-math": lambda call: None,
    "xformers": _xformers,
    "flex": _flex,
}
"""Why a backend can't serve a call, without running it; None when the rules have no objection."""


@cache
def _find_xformers() -> tuple[Callable[..., Tensor] | None, str]:
    """(memory_efficient_attention, where from), or (None, why not). Imported when first asked."""
    failures = []
    # at import it logs at length what it can't load; the probe says what matters of that
    logging.getLogger("xformers").setLevel(logging.ERROR)
    for name in XFORMERS_MODULES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module: Any = importlib.import_module(name)
            return module.memory_efficient_attention, name
        except ModuleNotFoundError as error:
            if error.name and name.startswith(error.name):
                failures.append(f"{name.partition('.')[0]} is not installed")
            else:
                failures.append(f"importing {name} failed: {error}")
        except Exception as error:  # noqa: BLE001  built for another torch: any error at import
            failures.append(f"importing {name} failed: {summary(error)}")
    return None, f"{', '.join(failures)} (pip install 'generative-vision-zoo[xformers]')"


def why_no_xformers() -> str | None:
    """Why neither xformers nor mslk can be called; None when one can."""
    found, why = _find_xformers()
    return why if found is None else None


def xformers_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`attention` on xformers' memory_efficient_attention, which takes [B,N,H,D]."""
    found, why = _find_xformers()
    assert found is not None, why
    bias = None if mask is None else _bias_in_eights(q, k, mask)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return found(q, k, v, attn_bias=bias, scale=scale).transpose(1, 2)


def _bias_in_eights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """A mask as xformers' kernels read it: added, whole, in rows of a multiple of 8 numbers."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    columns = k.shape[2]
    whole = mask.to(q.dtype).expand(*q.shape[:3], columns)
    return F.pad(whole, (0, -columns % 8)).contiguous()[..., :columns]


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention as flex

    compiled: Callable[..., Tensor] = torch.compile(flex)
    return compiled


def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`attention` on compiled flex attention: the mask becomes a change of each score."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    run: Any = flex if torch.compiler.is_compiling() else _compiled_flex()
    if mask is None:
        plain: Tensor = run(q, k, v, scale=scale)
        return plain
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))
    bias = mask.expand(*q.shape[:3], k.shape[2])

    def add(score: Tensor, b: Tensor, h: Tensor, n: Tensor, m: Tensor) -> Tensor:
        return score + bias[b, h, n, m]

    masked: Tensor = run(q, k, v, score_mod=add, scale=scale)
    return masked
