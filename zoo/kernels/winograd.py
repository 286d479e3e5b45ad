"""3x3 convolutions with a quarter of the multiplications, by Winograd's F(4x4, 3x3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). A 6x6 tile
of the input gives 4x4 outputs from 36 products of channels in place of 144:

    Y = A^T [ (G g G^T) * (B^T d B) ] A        d: 6x6 input, g: 3x3 weight, Y: 4x4 output

oneDNN has it for neither 3D nor AVX-512, and direct convolutions already run at the peak of a CPU's
multipliers, so it is what is left to gain there. Frames of a 3D kernel are summed product by
product: the transforms, the smaller part, are shared by all of them.
"""

from __future__ import annotations

from functools import cache
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.kernels.precision import bfloat16_of_cpu

_TILE, _OUT = 6, 4
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
_BLOCK = 2**21  # elements of a transformed block: 8 MB stay in the last-level cache


@cache
def _transforms() -> tuple[list[list[float]], ...]:
    """(B^T, G, A^T) for both axes at once: 36x36, 36x9, 16x36.

    A product of polynomials is evaluated at five points and at infinity; its transpose is the
    convolution (Toom-Cook). Rows of B^T are scaled to a sum of 1, which keeps float32 accurate.
    """

    def evaluate(count: int) -> NDArray[np.float64]:
        powers = np.power.outer(np.array(_POINTS), np.arange(count))
        return np.concatenate([powers, np.eye(count)[-1:]])

    back = np.linalg.inv(evaluate(_TILE)).T
    scale = np.abs(back).sum(axis=1, keepdims=True)
    one_axis = back / scale, evaluate(3) * scale, evaluate(_OUT).T
    return tuple(np.kron(matrix, matrix).tolist() for matrix in one_axis)


def pays(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    *,
    before: int = 0,
) -> bool:
    """Whether `conv` serves a call and is faster there than a direct convolution.

    Measured on a CPU with AVX-512: 1.35 times as fast at 64 channels, 1.7 to 2.2 times from 128 on;
    below about 1,000 outputs a channel the weights' own transform costs more than it saves. Where
    a CPU is slow in bfloat16, so are its direct convolutions: 2.3 to 3.8 times slower than this.
    """
    if type(x) is not Tensor:
        return False  # fake tensors, which stand for shapes alone, would walk through every strip
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    slow = x.dtype == torch.bfloat16 and bfloat16_of_cpu() == "slow"
    if not slow and x.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    if weight.shape[3:] != (3, 3) or min(weight.shape[:2]) < 64 or torch.compiler.is_compiling():
        return False
    if stride != (1, 1, 1) or padding[0]:
        return False
    height, width = (n + 2 * p - 2 for n, p in zip(x.shape[3:], padding[1:], strict=True))
    outputs = x.shape[0] * (before + x.shape[2] - weight.shape[2] + 1) * height * width
    wasted = _OUT**2 * ceil(height / _OUT) * ceil(width / _OUT) / max(1, height * width)
    return outputs >= 1024 and wasted <= 1.25


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: tuple[int, int] = (0, 0),
    before: int = 0,
) -> Tensor:
    """`F.conv3d` for kernels of 3x3 in space, up to rounding (about 1e-5 of unit outputs).

    Half precision is computed in float32, strip by strip; outputs are rounded once.

    Args:
        x: [B,C,T,H,W]; channels-last memory is read as it is where nothing must be padded.
        weight: [C',C,kt,3,3].
        bias: [C'].
        padding: zeros around height and width.
        before: frames of zeros in front of the first.

    Returns:
        [B,C',before+T-kt+1,H',W'] in channels-last memory.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    b_t, g, a_t = (torch.tensor(m, dtype=wide, device=x.device) for m in _transforms())
    weight = weight.to(wide)
    channels, kt = weight.shape[1:3]
    # [36, kt, C', C]
    taps = (g @ weight.movedim(2, 0).reshape(-1, 9).mT).view(_TILE**2, kt, -1, channels)
    height, width = (n + 2 * p - 2 for n, p in zip(x.shape[3:], padding, strict=True))
    down, across = ceil(height / _OUT), ceil(width / _OUT)
    clips = _padded(x, padding, before, _OUT * down + 2, _OUT * across + 2)
    frames = before + x.shape[2]
    count = frames - kt + 1
    out = x.new_empty(len(x), count, _OUT * down, _OUT * across, len(weight))
    rows = max(1, min(down, _BLOCK // (_TILE**2 * frames * across * max(weight.shape[:2]))))
    for clip, result in zip(clips, out, strict=True):
        frame, line, column, _ = clip.stride()
        for top in range(0, down, rows):
            high = min(rows, down - top)
            tiles = clip[:, _OUT * top :].as_strided(
                (_TILE, _TILE, frames, high, across, channels),
                (line, column, frame, _OUT * line, _OUT * column, 1),
            )
            data = (b_t @ tiles.reshape(_TILE**2, -1).to(wide)).view(_TILE**2, -1, channels)
            of_frame = high * across
            total = torch.bmm(data[:, : count * of_frame], taps[:, 0].mT)
            for tap in range(1, kt):
                seen = data[:, tap * of_frame : (tap + count) * of_frame]
                total.baddbmm_(seen, taps[:, tap].mT)
            if bias is not None:
                # the product at the point (1, 1) reaches all outputs with factor 1
                total[_TILE + 1] += bias
            pixels = (a_t @ total.flatten(1)).view(_OUT, _OUT, count, high, across, -1)
            place = result[:, _OUT * top : _OUT * (top + high)]
            # [T, rows, 4, columns, 4, C']
            place = place.unflatten(1, (-1, _OUT)).unflatten(3, (-1, _OUT))
            place.copy_(pixels.permute(2, 3, 0, 4, 1, 5))
    return out[:, :, :height, :width].movedim(-1, 1)


def _padded(x: Tensor, padding: tuple[int, int], before: int, height: int, width: int) -> Tensor:
    """`x` as [B,before+T,height,width,C], zeros around it; no copy where nothing is to be done."""
    rows = x.movedim(1, -1)
    if not before and rows.shape[2:4] == (height, width):
        return rows.contiguous()
    out = rows.new_zeros(len(rows), before + rows.shape[1], height, width, rows.shape[4])
    (top, left), (down, across) = padding, rows.shape[2:4]
    out[:, before:, top : top + down, left : left + across] = rows
    return out
