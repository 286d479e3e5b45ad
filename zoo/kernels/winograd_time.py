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
_LEAST = 9_000  # products for a pixel and frame: 32 channels to 32, 3x3
_STRIP = 2**18  # elements of a frame whose sums are made at once, 1 MB in float32


def pays(
    x: Tensor, weight: Tensor, stride: tuple[int, int, int], padding: tuple[int, int, int]
) -> bool:
    """Whether `conv` serves a call and is faster there than a direct convolution.

    Measured: 1.1 to 1.4 times as fast from 5 frames on; 1.0 for 3 frames or half of `_LEAST`, .7
    below 100 pixels. A CPU with tiles multiplies faster than this could read.
    """
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return False
    if bfloat16_of_cpu() != "vectors":
        return False
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return False
    if weight.shape[2] != 3 or torch.compiler.is_compiling():
        return False
    if stride != (1, 1, 1) or padding[0] or weight[0, 0, 0].numel() < 7:
        return False
    work = weight[:, :, 0].numel()
    return work >= _LEAST and x.shape[2] >= 7 and x.shape[3] * x.shape[4] >= 256


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: tuple[int, int] = (0, 0),
    still: bool = False,
) -> Tensor:
    """`F.conv3d` for kernels of three frames.

    Rounding is that of its precision, 2.3 times a direct call's in bfloat16: inputs and weights
    are rounded once more, sums are not.

    Args:
        x: [B,C,T,H,W], T >= 3.
        weight: [C',C,3,kh,kw].
        bias: [C'].
        padding: zeros around height and width.
        still: the first three frames are one and the same: the first output takes one product.

    Returns:
        [B,C',T-2,H',W'] in channels-last memory.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    first, middle, last = weight.movedim(1, -1).movedim(1, 0).contiguous()  # [C',kh,kw,C] each
    around, odd = (first.to(wide) + last.to(wide)).div_(2), middle.to(wide).div_(2)
    inner = (around + odd).to(x.dtype), around.sub_(odd).to(x.dtype)
    taps = [tap.movedim(-1, 1) for tap in (first, *inner, last)]
    clips = x.movedim(1, -1).contiguous()  # [B,T,H,W,C]
    frames = x.shape[2] - 2
    height, width = (
        n + 2 * p - k + 1 for n, p, k in zip(x.shape[3:], padding, weight.shape[3:], strict=True)
    )
    out = x.new_empty(len(x), frames, height, width, len(weight))
    sums = x.new_empty(3, min(out[0, 0].numel(), _STRIP), dtype=wide)
    begin = frames % 2 if still else 0
    end = frames - (frames - begin) % 2
    for clip, result in zip(clips, out, strict=True):
        if begin:
            # taps[1] is half of the sum of all three
            single = F.conv2d(2 * clip[:1].movedim(-1, 1), taps[1], bias, 1, padding)
            result[0] = single[0].movedim(0, -1)
        for start in range(begin, end, 2 * _PAIRS):
            stop = min(start + 2 * _PAIRS, end)
            x0, x1, x2, x3 = (clip[start + i : stop + i : 2] for i in range(4))
            products = [
                # the second product is part of both frames, and so its bias is
                F.conv2d(part.movedim(-1, 1), tap, bias if tap is taps[1] else None, 1, padding)
                for part, tap in zip((x0 - x2, x1 + x2, x2 - x1, x1 - x3), taps, strict=True)
            ]
            pairs = zip(*(m.movedim(1, -1) for m in products), strict=True)
            for first_of_pair, pair in zip(range(start, stop, 2), pairs, strict=True):
                _combine(pair, result[first_of_pair], result[first_of_pair + 1], sums)
        if end < frames:
            single = F.conv3d(clip[None, -3:].movedim(-1, 1), weight, bias, 1, (0, *padding))
            result[-1] = single[0, :, 0].movedim(0, -1)
    return out.movedim(-1, 1)


def _combine(products: tuple[Tensor, ...], even: Tensor, uneven: Tensor, sums: Tensor) -> None:
    """Write two frames [H,W,C'] from their four products, in strips whose sums stay in the cache.

    `sums` [3,strip] is used again and again: fresh memory costs more than the additions.
    """
    strips = (torch.split(part.reshape(-1), sums.shape[1]) for part in (*products, even, uneven))
    for m0, m1, m2, m3, y0, y1 in zip(*strips, strict=True):
        a, b, c = sums[:, : len(m0)]
        c.copy_(m0)
        y0.copy_(c.add_(a.copy_(m1)).add_(b.copy_(m2)))
        y1.copy_(a.sub_(b).sub_(c.copy_(m3)))
