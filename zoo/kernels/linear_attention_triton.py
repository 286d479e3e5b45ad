"""Linear attention in Triton, forward and backward (specification: linear_attention.reference).

Three kernels make all six passes. With x the logits whose softmax is meant, p = exp(x - s) that
softmax with its statistic s (a log of sums, per channel for keys, per token for queries):

    _over_tokens     M[d,e] = sum_n p[n,d] y[n,e]            summary; gradient of the summary
    _over_channels   y[n,e] = sum_d p[n,d] M[d,e]            output; gradient of v
    _to_logits       g[n,d] = p[n,d] (sum_e y[n,e] M[d,e] - r)   gradients of k and q

Forward passes find s on the way (ONLINE: running maximum and sum, rescaling); backward passes are
given it. Token sums are split over programs and joined after, so that few groups still fill a GPU:
the join works on splits x D x E numbers. Nothing of size N x D is written but the results.
Operands of products are bfloat16 for bfloat16 inputs, else float32 (rounded as torch.backends.cuda
.matmul says; tf32 for float16, whose range a gradient summed over tokens leaves); sums are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from zoo.kernels.triton_support import interpreting, product_precision


@triton.jit
def _over_tokens(
    X, Y, STAT, OUT, PEAK, TOTAL,
    tokens, width, columns, splits, span,
    xg, xn, xd, yg, yn, ye,
    ONLINE: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """M[d,e] over one span of tokens. ONLINE: p = exp(x - running maximum of channel d), which is
    written with the sums; else p = exp(x - STAT[token])."""
    part = tl.program_id(0).to(tl.int64)
    group, split = part // splits, part % splits
    d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(tl.int64)
    e = (tl.program_id(2) * BE + tl.arange(0, BE)).to(tl.int64)
    x_at = X + group * xg + d[None, :] * xd
    y_at = Y + group * yg + e[None, :] * ye
    peak = tl.full([BD], float("-inf"), tl.float32)
    total = tl.zeros([BD], tl.float32)
    acc = tl.zeros([BD, BE], tl.float32)
    begin = split * span
    for start in range(begin, tl.minimum(begin + span, tokens), BN):
        n = (start + tl.arange(0, BN)).to(tl.int64)
        live = n < tokens
        x = tl.load(x_at + n[:, None] * xn, live[:, None] & (d < width)[None, :], 0.0)
        x = tl.where(live[:, None], x.to(tl.float32), float("-inf"))
        y = tl.load(y_at + n[:, None] * yn, live[:, None] & (e < columns)[None, :], 0.0)
        if ONLINE:
            new = tl.maximum(peak, tl.max(x, axis=0))
            # a channel that has seen only -inf: exp(-inf - -inf) would not be a number
            shift = tl.where(new == float("-inf"), 0.0, new)
            scale = tl.exp(peak - shift)
            p = tl.exp(x - shift[None, :])
            total = total * scale + tl.sum(p, axis=0)
            acc = acc * scale[:, None]
            peak = new
        else:
            stat = tl.load(STAT + group * tokens + n, live, 0.0)
            p = tl.exp(x - stat[:, None])
        if HALF:
            acc = tl.dot(tl.trans(p.to(tl.bfloat16)), y, acc)
        else:
            acc = tl.dot(tl.trans(p), y.to(tl.float32), acc, input_precision=PRECISION)
    at = (part * width + d[:, None]) * columns + e[None, :]
    tl.store(OUT + at, acc, (d < width)[:, None] & (e < columns)[None, :])
    if ONLINE and tl.program_id(2) == 0:
        tl.store(PEAK + part * width + d, peak, d < width)
        tl.store(TOTAL + part * width + d, total, d < width)


@triton.jit
def _over_channels(
    X, M, STAT, OUT, LOG_TOTAL,
    tokens, width, columns, blocks,
    xg, xn, xd,
    ONLINE: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """y[n,e] for one block of tokens. ONLINE: p is a softmax over d, whose log of sums is written;
    else p = exp(x - STAT[channel])."""
    group = (tl.program_id(0) // blocks).to(tl.int64)
    n = ((tl.program_id(0) % blocks) * BN + tl.arange(0, BN)).to(tl.int64)
    e = (tl.program_id(1) * BE + tl.arange(0, BE)).to(tl.int64)
    live = n < tokens
    peak = tl.full([BN], float("-inf"), tl.float32)
    total = tl.zeros([BN], tl.float32)
    acc = tl.zeros([BN, BE], tl.float32)
    for start in range(0, width, BD):
        d = (start + tl.arange(0, BD)).to(tl.int64)
        mask = live[:, None] & (d < width)[None, :]
        x = tl.load(X + group * xg + n[:, None] * xn + d[None, :] * xd, mask, 0.0)
        x = tl.where((d < width)[None, :], x.to(tl.float32), float("-inf"))
        if ONLINE:
            new = tl.maximum(peak, tl.max(x, axis=1))
            shift = tl.where(new == float("-inf"), 0.0, new)
            scale = tl.exp(peak - shift)
            p = tl.exp(x - shift[:, None])
            total = total * scale + tl.sum(p, axis=1)
            acc = acc * scale[:, None]
            peak = new
        else:
            stat = tl.load(STAT + group * width + d, d < width, 0.0)
            p = tl.exp(x - stat[None, :])
        at = (group * width + d[:, None]) * columns + e[None, :]
        m = tl.load(M + at, (d < width)[:, None] & (e < columns)[None, :], 0.0)
        if HALF:
            acc = tl.dot(p.to(tl.bfloat16), m.to(tl.bfloat16), acc)
        else:
            acc = tl.dot(p, m, acc, input_precision=PRECISION)
    if ONLINE:
        acc = acc / total[:, None]
        if tl.program_id(1) == 0:
            tl.store(LOG_TOTAL + group * tokens + n, peak + tl.log(total), live)
    at = (group * tokens + n[:, None]) * columns + e[None, :]
    mask = live[:, None] & (e < columns)[None, :]
    tl.store(OUT + at, acc.to(OUT.dtype.element_ty), mask)


@triton.jit
def _to_logits(
    X, Y, M, STAT, MEAN, RESULT, OUT,
    tokens, width, columns, blocks,
    xg, xn, xd, yg, yn, ye,
    KEYS: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """g[n,d] for one block of tokens. KEYS: STAT and r = MEAN are per channel; else STAT is per
    token and r = sum_e y[n,e] RESULT[n,e]: that times p is the softmax's own gradient."""
    group = (tl.program_id(0) // blocks).to(tl.int64)
    n = ((tl.program_id(0) % blocks) * BN + tl.arange(0, BN)).to(tl.int64)
    d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(tl.int64)
    live = n < tokens
    here = live[:, None] & (d < width)[None, :]
    acc = tl.zeros([BN, BD], tl.float32)
    token_mean = tl.zeros([BN], tl.float32)
    for start in range(0, columns, BE):
        e = (start + tl.arange(0, BE)).to(tl.int64)
        mask = live[:, None] & (e < columns)[None, :]
        y = tl.load(Y + group * yg + n[:, None] * yn + e[None, :] * ye, mask, 0.0)
        at = (group * width + d[:, None]) * columns + e[None, :]
        m = tl.load(M + at, (d < width)[:, None] & (e < columns)[None, :], 0.0)
        if HALF:
            acc = tl.dot(y, tl.trans(m.to(tl.bfloat16)), acc)
        else:
            acc = tl.dot(y.to(tl.float32), tl.trans(m), acc, input_precision=PRECISION)
        if not KEYS:
            at = (group * tokens + n[:, None]) * columns + e[None, :]
            result = tl.load(RESULT + at, mask, 0.0)
            token_mean += tl.sum(y.to(tl.float32) * result.to(tl.float32), axis=1)
    x = tl.load(X + group * xg + n[:, None] * xn + d[None, :] * xd, here, 0.0).to(tl.float32)
    if KEYS:
        p = tl.exp(x - tl.load(STAT + group * width + d, d < width, 0.0)[None, :])
        g = p * (acc - tl.load(MEAN + group * width + d, d < width, 0.0)[None, :])
    else:
        p = tl.exp(x - tl.load(STAT + group * tokens + n, live, 0.0)[:, None])
        g = p * (acc - token_mean[:, None])
    at = (group * tokens + n[:, None]) * width + d[None, :]
    tl.store(OUT + at, g.to(OUT.dtype.element_ty), here)


def block_sizes(dtype: torch.dtype, width: int, columns: int) -> dict[str, Any]:
    """Compile-time arguments for inputs of `dtype`: tiles fit registers and shared memory."""
    widest = 128 if dtype.itemsize == 2 else 64
    bd = min(widest, max(16, triton.next_power_of_2(width)))
    be = min(widest, max(16, triton.next_power_of_2(columns)))
    precision = "tf32" if dtype == torch.float16 else product_precision()
    return {
        # the interpreter multiplies the bits of bfloat16 numbers as if they were integers
        "HALF": dtype == torch.bfloat16 and not interpreting(),
        "PRECISION": precision,
        "BN": 64,
        "BD": bd,
        "BE": be,
        "num_warps": 8 if bd * be > 64 * 64 else 4,
    }


def _splits(groups: int, tokens: int, width: int, columns: int, tile: dict[str, Any]) -> int:
    """Programs a group's token sum is split over: some 1,000 in all, 1,024 tokens or more each."""
    tiles = triton.cdiv(width, tile["BD"]) * triton.cdiv(columns, tile["BE"])
    wanted: int = triton.cdiv(1024, groups * tiles)
    return max(1, min(wanted, tokens // 1024, 64))


@triton_op("zoo::summarize_triton", mutates_args=())
def summarize(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """As linear_attention_cpu.summarize."""
    groups, tokens, width = k.shape
    columns = v.shape[2]
    tile = block_sizes(k.dtype, width, columns)
    splits = _splits(groups, tokens, width, columns, tile)
    span = triton.cdiv(triton.cdiv(tokens, splits), tile["BN"]) * tile["BN"]
    partial = k.new_empty(groups, splits, width, columns, dtype=torch.float32)
    peak = k.new_empty(groups, splits, width, dtype=torch.float32)
    total = torch.empty_like(peak)
    grid = (groups * splits, triton.cdiv(width, tile["BD"]), triton.cdiv(columns, tile["BE"]))
    wrap_triton(_over_tokens)[grid](
        k, v, peak, partial, peak, total,
        tokens, width, columns, splits, span,
        *k.stride(), *v.stride(), ONLINE=True, **tile,
    )  # fmt: skip
    log_total = torch.logsumexp(peak + total.log(), dim=1)
    weight = (peak - log_total[:, None]).exp()
    return partial.mul_(weight[..., None]).sum(dim=1), log_total


@triton_op("zoo::read_triton", mutates_args=())
def _read(q: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
    groups, tokens, width = q.shape
    columns = summary.shape[2]
    tile = block_sizes(q.dtype, width, columns)
    summary = summary.contiguous()
    out = q.new_empty(groups, tokens, columns)
    log_total = q.new_empty(groups, tokens, dtype=torch.float32)
    blocks = triton.cdiv(tokens, tile["BN"])
    grid = (groups * blocks, triton.cdiv(columns, tile["BE"]))
    wrap_triton(_over_channels)[grid](
        q, summary, log_total, out, log_total,
        tokens, width, columns, blocks,
        *q.stride(), ONLINE=True, **tile,
    )  # fmt: skip
    return out, log_total


@triton_op("zoo::summarize_backward_triton", mutates_args=())
def _summarize_backward(
    grad: Tensor, k: Tensor, v: Tensor, summary: Tensor, log_total: Tensor
) -> tuple[Tensor, Tensor]:
    groups, tokens, width = k.shape
    columns = v.shape[2]
    tile = block_sizes(k.dtype, width, columns)
    grad = grad.contiguous()
    mean = (summary * grad).sum(dim=-1)
    dk = k.new_empty(groups, tokens, width)
    dv = v.new_empty(groups, tokens, columns)
    blocks = triton.cdiv(tokens, tile["BN"])
    wrap_triton(_over_channels)[(groups * blocks, triton.cdiv(columns, tile["BE"]))](
        k, grad, log_total, dv, log_total,
        tokens, width, columns, blocks,
        *k.stride(), ONLINE=False, **tile,
    )  # fmt: skip
    wrap_triton(_to_logits)[(groups * blocks, triton.cdiv(width, tile["BD"]))](
        k, v, grad, log_total, mean, v, dk,
        tokens, width, columns, blocks,
        *k.stride(), *v.stride(), KEYS=True, **tile,
    )  # fmt: skip
    return dk, dv


@triton_op("zoo::read_backward_triton", mutates_args=())
def _read_backward(
    grad: Tensor, q: Tensor, summary: Tensor, out: Tensor, log_total: Tensor
) -> tuple[Tensor, Tensor]:
    groups, tokens, width = q.shape
    columns = summary.shape[2]
    tile = block_sizes(q.dtype, width, columns)
    summary = summary.contiguous()
    dq = q.new_empty(groups, tokens, width)
    blocks = triton.cdiv(tokens, tile["BN"])
    wrap_triton(_to_logits)[(groups * blocks, triton.cdiv(width, tile["BD"]))](
        q, grad, summary, log_total, log_total, out, dq,
        tokens, width, columns, blocks,
        *q.stride(), *grad.stride(), KEYS=False, **tile,
    )  # fmt: skip
    splits = _splits(groups, tokens, width, columns, tile)
    span = triton.cdiv(triton.cdiv(tokens, splits), tile["BN"]) * tile["BN"]
    partial = q.new_empty(groups, splits, width, columns, dtype=torch.float32)
    grid = (groups * splits, triton.cdiv(width, tile["BD"]), triton.cdiv(columns, tile["BE"]))
    wrap_triton(_over_tokens)[grid](
        q, grad, log_total, partial, partial, partial,
        tokens, width, columns, splits, span,
        *q.stride(), *grad.stride(), ONLINE=False, **tile,
    )  # fmt: skip
    return dq, partial.sum(dim=1)


def read(q: Tensor, summary: Tensor) -> Tensor:
    """As linear_attention_cpu.read."""
    out: Tensor = _read(q, summary)[0]
    return out


def _keep_summarize(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _keep_read(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


summarize.register_autograd(
    lambda ctx, grad, _: _summarize_backward(grad, *ctx.saved_tensors),
    setup_context=_keep_summarize,
)
_read.register_autograd(
    lambda ctx, grad, _: _read_backward(grad, *ctx.saved_tensors), setup_context=_keep_read
)
