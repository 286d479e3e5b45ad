"""The one transform code of training and evaluation; with no generator it is the evaluation's."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from zoo.data.reader import short_side_size


def resize(video: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resize: uint8 [3, T, H, W] to uint8 [3, T, *size], size = (H, W)."""
    if video.shape[-2:] == size:
        return video
    scaled = functional.interpolate(
        video.transpose(0, 1), size=size, mode="bicubic", antialias=True, align_corners=False
    )
    return scaled.transpose(0, 1)


def resize_short_side(video: Tensor, *, short_side: int) -> Tensor:
    """Scale uint8 [3, T, H, W] so that its shorter side is `short_side` pixels."""
    height, width = video.shape[-2:]
    width, height = short_side_size(width, height, short_side=short_side)
    return resize(video, size=(height, width))


def crop(
    video: Tensor, *, size: int | tuple[int, int], rng: np.random.Generator | None = None
) -> Tensor:
    """Cut a rectangle out of [3, T, H, W]: a view [3, T, *size].

    Args:
        video: any dtype; no side is smaller than `size`.
        size: pixels, (height, width); one number: a square.
        rng: draws the place; None takes the centre.
    """
    high, wide = (size, size) if isinstance(size, int) else size
    height, width = video.shape[-2:]
    fits = height >= high and width >= wide
    assert fits, f"can't cut {wide}x{high} out of {width}x{height}"
    if rng is None:
        top, left = (height - high) // 2, (width - wide) // 2
    else:
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    return video[..., top : top + high, left : left + wide]


def to_float(video: Tensor) -> Tensor:
    """Pixels uint8 0..255 to float32 in [-1, 1], any shape; contiguous."""
    pixels = video.to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.div_(127.5).sub_(1.0)


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels float in [-1, 1] (clamped) to uint8 0..255, any shape; undoes `to_float` exactly."""
    return pixels.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Pictures [B, 3, H, W] in [-1, 1] as PIL's."""
    return [Image.fromarray(x) for x in to_uint8(pixels).movedim(1, -1).cpu().numpy()]


def to_pixels(
    video: Tensor,
    *,
    size: int,
    short_side: tuple[int, int],
    flip: bool = False,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Crop, scale and flip a clip into a sample's pixels.

    Args:
        video: uint8 [3, T, H, W] whose shorter side is `short_side[1]` pixels.
        size: pixels of both sides of the result.
        short_side: (lowest, highest) shorter side the clip is scaled to; lowest >= size. The
            crop is cut first and only then scaled, so that few pixels are touched.
        flip: mirror left and right every other time.
        rng: draws scale, place and mirroring; None takes the highest scale, the centre, no mirror.

    Returns:
        float32 [3, T, size, size] in [-1, 1].
    """
    lowest, highest = short_side
    scale = highest if rng is None else int(rng.integers(lowest, highest + 1))
    cut = crop(video, size=min(highest, round(size * highest / scale)), rng=rng)
    if cut.shape[-2:] != (size, size):
        cut = resize(cut.contiguous(), size=(size, size))
    if flip and rng is not None and rng.random() < 0.5:
        cut = cut.flip(-1)
    return to_float(cut)
