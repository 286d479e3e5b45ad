"""Three-frame convolutions with two thirds of the multiplications, by Winograd's F(2, 3) in time.

Two output frames of a 3 x kh x kw kernel take four convolutions of frames in place of six:

    y0 = m0 + m1 + m2        m0 = (x0 - x2) * g0        m1 = (x1 + x2) * (g0 + g1 + g2) / 2
    y1 = m1 - m2 - m3        m3 = (x1 - x3) * g2        m2 = (x2 - x1) * (g0 - g1 + g2) / 2

(arXiv 1509.09308, there for rows of a picture.) It is for bfloat16 on a CPU, where winograd.py's
larger tiles lose their digits and direct convolutions run at the peak of the multipliers. A CPU
that is slow in bfloat16 is better off with winograd.py in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels.precision import bfloat16_of_cpu

_PAIRS = 2  # output pairs at once: their temporaries stay small


def pays(
    x: Tensor, weight: Tensor, stride: tuple[int, int, int], padding: tuple[int, int, int]
) -> bool:
    """Whether `conv` serves a call and is faster there than a direct convolution.

    Measured: 1.15 to 1.4 times as fast; less than 1 below 100 pixels, no gain for 3 frames. A CPU
    with tiles multiplies faster than this could read.
    """
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    if bfloat16_of_cpu() != "vectors":
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    if weight.shape[2] != 3 or min(weight.shape[:2]) < 64 or torch.compiler.is_compiling():
        return False
    if stride != (1, 1, 1) or padding[0] or min(weight.shape[3:]) < 3:
        return False
    return x.shape[2] >= 9 and x.shape[3] * x.shape[4] >= 256


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """`F.conv3d` for kernels of three frames.

    Rounding is that of its precision, 2.3 times a direct call's in bfloat16: inputs and weights
    are rounded once more, sums are not.

    Args:
        x: [B,C,T,H,W], T >= 3.
        weight: [C',C,3,kh,kw].
        bias: [C'].
        padding: zeros around height and width.

    Returns:
        [B,C',T-2,H',W'] in channels-last memory.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    first, middle, last = weight.to(wide).unbind(2)
    around, odd = (first + last) / 2, middle / 2
    taps = [
        tap.to(x.dtype).contiguous(memory_format=torch.channels_last)
        for tap in (first, around + odd, around - odd, last)
    ]
    clips = x.movedim(1, -1).contiguous()  # [B,T,H,W,C]
    frames = x.shape[2] - 2
    height, width = (
        n + 2 * p - k + 1 for n, p, k in zip(x.shape[3:], padding, weight.shape[3:], strict=True)
    )
    out = x.new_empty(len(x), frames, height, width, len(weight))
    for clip, result in zip(clips, out, strict=True):
        for start in range(0, frames - 1, 2 * _PAIRS):
            stop = min(start + 2 * _PAIRS, frames - frames % 2)
            x0, x1, x2, x3 = (clip[start + i : stop + i : 2] for i in range(4))
            m0, m1, m2, m3 = (
                # the second product is part of both frames, and so its bias is
                F.conv2d(part.movedim(-1, 1), tap, bias if tap is taps[1] else None, 1, padding)
                for part, tap in zip((x0 - x2, x1 + x2, x2 - x1, x1 - x3), taps, strict=True)
            )
            shared = m1.to(wide, copy=True)
            even, uneven = (shared + m2).add_(m0), shared.sub_(m2).sub_(m3)
            result[start:stop:2] = even.movedim(1, -1)
            result[start + 1 : stop : 2] = uneven.movedim(1, -1)
        if frames % 2:
            single = F.conv3d(clip[None, -3:].movedim(-1, 1), weight, bias, 1, (0, *padding))
            result[-1] = single[0, :, 0].movedim(0, -1)
    return out.movedim(-1, 1)
