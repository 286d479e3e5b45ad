"""Layer norm over the last dimension [+ ReLU] in Triton: one read and one write each way."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

_ROWS_A_PROGRAM = 512  # of the backward pass: each writes one partial sum of the weights' gradients


@triton.jit
def _forward(
    X, WEIGHT, BIAS, OUT, MEAN, RSTD, rows, width, eps,
    RELU: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BC)
    mask = (n < rows)[:, None] & (c < width)[None, :]
    x = tl.load(X + n[:, None] * width + c[None, :], mask, 0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / width
    centred = tl.where(mask, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / width + eps)
    weight = tl.load(WEIGHT + c, c < width, 0.0).to(tl.float32)
    bias = tl.load(BIAS + c, c < width, 0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    if RELU:
        y = tl.maximum(y, 0.0)
    tl.store(OUT + n[:, None] * width + c[None, :], y.to(OUT.dtype.element_ty), mask)
    tl.store(MEAN + n, mean, n < rows)
    tl.store(RSTD + n, rstd, n < rows)


@triton.jit
def _backward(
    GRAD, X, WEIGHT, BIAS, MEAN, RSTD, DX, DWEIGHT, DBIAS, rows, width,
    RELU: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    weight = tl.load(WEIGHT + c, c < width, 0.0).to(tl.float32)
    bias = tl.load(BIAS + c, c < width, 0.0).to(tl.float32)
    dweight = tl.zeros([BC], tl.float32)
    dbias = tl.zeros([BC], tl.float32)
    for step in range(STEPS):
        n = (part * STEPS + step) * ROWS + tl.arange(0, ROWS)
        mask = (n < rows)[:, None] & (c < width)[None, :]
        x = tl.load(X + n[:, None] * width + c[None, :], mask, 0.0).to(tl.float32)
        grad = tl.load(GRAD + n[:, None] * width + c[None, :], mask, 0.0).to(tl.float32)
        rstd = tl.load(RSTD + n, n < rows, 0.0)[:, None]
        unit = tl.where(mask, (x - tl.load(MEAN + n, n < rows, 0.0)[:, None]) * rstd, 0.0)
        if RELU:
            grad = tl.where(unit * weight[None, :] + bias[None, :] > 0, grad, 0.0)
        dweight += tl.sum(grad * unit, axis=0)
        dbias += tl.sum(grad, axis=0)
        grad = grad * weight[None, :]
        along = tl.sum(grad * unit, axis=1) / width
        dx = (grad - tl.sum(grad, axis=1)[:, None] / width - unit * along[:, None]) * rstd
        tl.store(DX + n[:, None] * width + c[None, :], dx.to(DX.dtype.element_ty), mask)
    tl.store(DWEIGHT + part * width + c, dweight, c < width)
    tl.store(DBIAS + part * width + c, dbias, c < width)


def block_sizes(width: int) -> dict[str, Any]:
    """Compile-time arguments: rows a step, so that a tile is some 4,096 numbers."""
    columns = triton.next_power_of_2(width)
    return {"ROWS": max(1, 4096 // columns), "BC": columns, "num_warps": 4}


@triton_op("zoo::channel_norm_triton", mutates_args=())
def _norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = x.shape
    tile = block_sizes(width)
    out = torch.empty_like(x)
    mean = x.new_empty(rows, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    wrap_triton(_forward)[(triton.cdiv(rows, tile["ROWS"]),)](
        x, weight, bias, out, mean, rstd, rows, width, eps, RELU=relu, **tile
    )
    return out, mean, rstd


@triton_op("zoo::channel_norm_backward_triton", mutates_args=())
def _norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = x.shape
    tile = block_sizes(width)
    steps = max(1, _ROWS_A_PROGRAM // tile["ROWS"])
    parts = triton.cdiv(rows, tile["ROWS"] * steps)
    dx = torch.empty_like(x)
    dweight = x.new_empty(parts, width, dtype=torch.float32)
    dbias = torch.empty_like(dweight)
    wrap_triton(_backward)[(parts,)](
        grad.contiguous(), x, weight, bias, mean, rstd, dx, dweight, dbias, rows, width,
        RELU=relu, STEPS=steps, **tile,
    )  # fmt: skip
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(bias.dtype)


def norm_last(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, relu: bool) -> Tensor:
    """Layer norm of the rows of a contiguous [N,C], then ReLU where asked."""
    out: Tensor = _norm(x, weight, bias, eps, relu)[0]
    return out


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, ctx.relu = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


_norm.register_autograd(
    lambda ctx, grad, *_: (*_norm_backward(grad, *ctx.saved_tensors, ctx.relu), None, None),
    setup_context=_keep,
)
