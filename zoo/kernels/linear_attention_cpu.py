"""Linear attention on a CPU: cache-sized blocks, so that no softmax is ever written to memory.

Two halves, each an operator with its own backward pass:

    summarize(k, v) = softmax_tokens(k)^T v        [G,N,D], [G,N,E] -> [G,D,E]
    read(q, summary) = softmax_channels(q) summary  [G,N,D], [G,D,E] -> [G,N,E]

The plain formula writes both softmaxes (and what autograd keeps of them) and reads them again; on a
CPU that costs more than the products when D is small. Sums run in float32 (float64 stays float64).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.precision import bfloat16_of_cpu

_LOG2_E = math.log2(math.e)
_BLOCK_ELEMENTS = 2**18  # 1 MB of float32: keys, values and weights share the cache


def _dtypes(dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of sums and that of the operands of products, for inputs of `dtype`."""
    if dtype == torch.float64:
        return dtype, dtype
    fast = dtype == torch.bfloat16 and bfloat16_of_cpu() != "slow"
    return torch.float32, dtype if fast else torch.float32


def _sizes(tokens: int, width: int) -> tuple[int, int]:
    """How many groups and how many of their tokens make a block."""
    return max(1, _BLOCK_ELEMENTS // (tokens * width)), max(1, _BLOCK_ELEMENTS // width)


def _blocks(groups: int, tokens: int, width: int) -> Iterator[tuple[slice, list[slice]]]:
    """Which groups to take at once, and in which steps to walk through their tokens."""
    together, step = _sizes(tokens, width)
    for group in range(0, groups, together):
        steps = [slice(start, start + step) for start in range(0, tokens, step)]
        yield slice(group, group + together), steps


class _Scratch:
    """Memory for one block, used again and again: fresh pages cost more than many operations."""

    def __init__(self, x: Tensor, dtype: torch.dtype) -> None:
        groups, tokens, width = x.shape
        together, step = _sizes(tokens, width)
        size = min(groups, together) * min(tokens, step) * width
        self.memory = x.new_empty(size, dtype=dtype)

    def like(self, x: Tensor) -> Tensor:
        """A contiguous tensor of the shape of `x`; what the last one held is lost."""
        return self.memory[: x.numel()].view(x.shape)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; for one group as plain matrices: half-precision bmm copies a transposed operand."""
    return (a[0] @ b[0])[None] if len(a) == 1 else a @ b


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, summed in the dtype of `total`."""
    if a.dtype == total.dtype:
        total.baddbmm_(a, b)
    else:
        total += _product(a, b)


def _exponential(x: Tensor, shift: Tensor, out: Tensor) -> Tensor:
    """exp(x - shift) in `out`: by exp2, which is four times as fast as exp here.

    Two passes for three numbers: x * log2(e) is added to the shift by one operation.
    """
    if x.dtype != out.dtype:
        x = out.copy_(x)  # an operation on two dtypes is slower than both passes
    return torch.add(shift * -_LOG2_E, x, alpha=_LOG2_E, out=out).exp2_()


@torch.library.custom_op("zoo::summarize_cpu", mutates_args=(), device_types="cpu")
def summarize(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(softmax_tokens(k)^T v, log of each softmax's denominator): [G,D,E], [G,D]."""
    groups, tokens, width = k.shape
    sums, factors = _dtypes(k.dtype)
    summary = k.new_zeros(groups, width, v.shape[2], dtype=sums)
    log_total = k.new_empty(groups, width, dtype=sums)
    scratch = _Scratch(k, sums)
    for some, steps in _blocks(groups, tokens, width):
        keys, values, partial = k[some], v[some], summary[some]
        peak = partial.new_full((len(partial), 1, width), -math.inf)
        total = torch.zeros_like(peak)
        for step in steps:
            x = keys[:, step]
            p = scratch.like(x)
            if x.dtype != sums:
                x = p.copy_(x)
            highest = torch.maximum(peak, x.amax(dim=1, keepdim=True))
            if step.start:  # what is summed so far is relative to a lower peak
                fade = _exponential(peak, highest, peak)
                total *= fade
                partial *= fade.mT
            peak = highest
            _exponential(x, peak, p)
            total += p.sum(dim=1, keepdim=True)
            _add_product(partial, p.to(factors).mT, values[:, step].to(factors))
        partial /= total.mT
        log_total[some] = (peak + total.log())[:, 0]
    return summary, log_total


@torch.library.custom_op("zoo::summarize_backward_cpu", mutates_args=(), device_types="cpu")
def _summarize_backward(
    grad: Tensor, k: Tensor, v: Tensor, summary: Tensor, log_total: Tensor
) -> tuple[Tensor, Tensor]:
    groups, tokens, width = k.shape
    sums, factors = _dtypes(k.dtype)
    scratch = _Scratch(k, sums)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    # sum over tokens of softmax(k) * d softmax(k), from the small matrices alone
    mean = (summary * grad).sum(dim=-1)[:, None]
    grad = grad.to(factors)
    for some, steps in _blocks(groups, tokens, width):
        for step in steps:
            p = _exponential(k[some, step], log_total[some, None], scratch.like(k[some, step]))
            dv[some, step] = _product(p.to(factors), grad[some])
            dp = _product(v[some, step].to(factors), grad[some].mT)
            dk[some, step] = p.mul_(dp - mean[some])
    return dk, dv


@torch.library.custom_op("zoo::read_cpu", mutates_args=(), device_types="cpu")
def read(q: Tensor, summary: Tensor) -> Tensor:
    """softmax_channels(q) summary, in the dtype of q: [G,N,E]."""
    groups, tokens, width = q.shape
    _, factors = _dtypes(q.dtype)
    out = q.new_empty(groups, tokens, summary.shape[2])
    summary = summary.to(factors)
    scratch = _Scratch(q, factors)
    for some, steps in _blocks(groups, tokens, width):
        for step in steps:
            # copied first: torch's softmax would copy what isn't contiguous, to fresh memory
            p = scratch.like(q[some, step]).copy_(q[some, step])
            # it works row by row, so in place, and in float32 whatever it reads and writes
            torch.softmax(p, dim=-1, out=p)
            if factors == out.dtype:
                torch.matmul(p, summary[some], out=out[some, step])
            else:
                out[some, step] = _product(p, summary[some])
    return out


@torch.library.custom_op("zoo::read_backward_cpu", mutates_args=(), device_types="cpu")
def _read_backward(grad: Tensor, q: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
    groups, tokens, width = q.shape
    sums, factors = _dtypes(q.dtype)
    dq, dsummary = torch.empty_like(q), torch.zeros_like(summary)
    summary = summary.to(factors)
    for some, steps in _blocks(groups, tokens, width):
        for step in steps:
            p = q[some, step].softmax(dim=-1, dtype=sums)
            above = grad[some, step].to(factors)
            _add_product(dsummary[some], p.to(factors).mT, above)
            dp = _product(above, summary[some].mT)
            dq[some, step] = p * (dp - (p * dp).sum(dim=-1, keepdim=True))
    return dq, dsummary


@summarize.register_fake
def _(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    sums = _dtypes(k.dtype)[0]
    shape = (k.shape[0], k.shape[2])
    return k.new_empty(*shape, v.shape[2], dtype=sums), k.new_empty(shape, dtype=sums)


@_summarize_backward.register_fake
def _(
    grad: Tensor, k: Tensor, v: Tensor, summary: Tensor, log_total: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(k), torch.empty_like(v)


@read.register_fake
def _(q: Tensor, summary: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:2], summary.shape[2])


@_read_backward.register_fake
def _(grad: Tensor, q: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(summary)


def _keep_summarize(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _keep_read(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


summarize.register_autograd(
    lambda ctx, grad, _: _summarize_backward(grad, *ctx.saved_tensors),
    setup_context=_keep_summarize,
)
read.register_autograd(
    lambda ctx, grad: _read_backward(grad, *ctx.saved_tensors), setup_context=_keep_read
)
