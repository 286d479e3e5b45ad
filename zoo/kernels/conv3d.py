"""3D convolution that is causal in time, moves little memory and never overflows an index."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from zoo.kernels import winograd, winograd_time
from zoo.kernels.precision import full_precision, learns_in_float32

Edge = Literal["zeros", "replicate"]

INDEX_LIMIT = 2**31 - 1
"""Elements a tensor may have for kernels that index with 32 bits (cuDNN's and torch's own)."""


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
    before: int = 0,
    still: bool = False,
    limit: int = INDEX_LIMIT,
) -> Tensor:
    """`F.conv3d`, in pieces of the batch and of time where input or output pass `limit` elements.

    Kernels of 3x3 pixels or of 3 frames go through winograd.py or winograd_time.py where that is
    faster (inference on a CPU in float32 or bfloat16).

    Args:
        x: [B,C,T,H,W].
        weight: [C',C,kt,kh,kw].
        bias: [C'].
        stride, padding: time, height, width; time can't be padded where pieces are needed.
        before: frames of zeros in front of the first.
        still: whether the frames that the first output sees are one and the same.
        limit: elements above which the work is split.

    Returns:
        [B,C',T',H',W'], equal to the convolution in one piece up to rounding.
    """
    exporting = torch.compiler.is_exporting()  # another runtime has tricks of its own
    if not exporting and winograd.pays(x, weight, stride, padding, before=before):
        return winograd.conv(x, weight, bias, padding=padding[1:], before=before)
    if before:
        x = F.pad(x, (0, 0, 0, 0, before, 0))
    if exporting:
        return F.conv3d(x, weight, bias, stride, padding)
    if winograd_time.pays(x, weight, stride, padding):
        return winograd_time.conv(x, weight, bias, padding=padding[1:], still=still)
    if x.device.type == "cpu" and len(weight) < 8 and weight.shape[4] > 3 and stride[2] == 1:
        return _narrow(x, weight, bias, stride, padding, still, limit)
    kernel = weight.shape[2:]
    size = [
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(x.shape[2:], padding, kernel, stride, strict=True)
    ]
    # what one output frame of one clip costs, in and out
    frame = max(x[0, :, 0].numel() * stride[0], weight.shape[0] * size[1] * size[2])
    if x.shape[0] * max(x[0].numel(), frame * size[0]) <= limit:
        return plain_conv3d(x, weight, bias, stride=stride, padding=padding)
    if x.shape[0] > 1:
        pieces = [
            conv3d(clip[None], weight, bias, stride=stride, padding=padding, limit=limit)
            for clip in x
        ]
        return torch.cat(pieces)
    assert not padding[0], "padded time can't be cut into pieces"
    overlap = (kernel[0] - stride[0]) * x[0, :, 0].numel()
    count = max(1, (limit - max(0, overlap)) // frame)
    pieces = []
    for first in range(0, size[0], count):
        last = min(first + count, size[0]) - 1
        piece = x[:, :, first * stride[0] : last * stride[0] + kernel[0]]
        pieces.append(plain_conv3d(piece, weight, bias, stride=stride, padding=padding))
    return torch.cat(pieces, dim=2)


def plain_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, ...] = (1, 1, 1),
    padding: tuple[int, ...] = (0, 0, 0),
) -> Tensor:
    """`F.conv3d`, in float32 where the weight's gradient would be wrong in bfloat16.

    Args:
        x: [B,C,T,H,W].
        weight: [C',C,kt,kh,kw].
        bias: [C'].
        stride, padding: time, height, width.

    Returns:
        [B,C',T',H',W'].
    """
    if not learns_in_float32(x, weight):
        return F.conv3d(x, weight, bias, stride, padding)
    bias = None if bias is None else bias.float()
    with full_precision(x.device):
        return F.conv3d(x.float(), weight.float(), bias, stride, padding).bfloat16()


def _narrow(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    still: bool,
    limit: int,
) -> Tensor:
    """`conv3d` to a few channels: the columns of the kernel as channels, summed afterwards.

    oneDNN computes channels by 16 and throws away what was not asked for: 13 of a head's 16.
    """
    out_channels, _, _, _, columns = weight.shape
    x = F.pad(x, (padding[2], padding[2])) if padding[2] else x
    apart = weight.movedim(4, 0).flatten(0, 1)[..., None]
    y = conv3d(x, apart, stride=stride, padding=(*padding[:2], 0), still=still, limit=limit)
    width = y.shape[4] - columns + 1
    # half-precision parts are summed in float32
    total = torch.zeros((), device=y.device, dtype=torch.promote_types(y.dtype, torch.float32))
    for column, part in enumerate(torch.split(y, out_channels, dim=1)):
        total = total + part[..., column : column + width]
    if bias is not None:
        total = total + bias[:, None, None, None]
    return total.to(y.dtype)


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    front: Tensor | None = None,
    edge: Edge = "zeros",
    space_stride: int = 1,
    limit: int = INDEX_LIMIT,
) -> Tensor:
    """A convolution that sees the present and the past.

    Frames are padded in front only, space on both sides. Space is padded with zeros inside the
    convolution; all else takes one copy of the clip in its own memory format.

    Args:
        x: [B,C,T,H,W].
        weight: [C',C,kt,kh,kw], kh and kw odd.
        bias: [C'].
        front: the kt - 1 frames before `x`, [B,C,kt-1,H,W]; None at the start of a stream: zeros,
            or the first frame again, as `edge` says.
        edge: what lies beyond the border of a frame and before the first.
        space_stride: of height and width.
        limit: of `conv3d`.

    Returns:
        [B,C',T,H',W'] with H' = ceil(H / space_stride).
    """
    kt, kh, kw = weight.shape[2:]
    stride = (1, space_stride, space_stride)
    inside = (0, kh // 2, kw // 2)
    before, still = 0, False
    if front is not None:
        x = join(front, x)
    elif kt > 1:
        before = kt - 1
    if edge == "replicate":
        # one call for time and space: half the copies of one after the other
        around = (kw // 2, kw // 2, kh // 2, kh // 2, before, 0)
        x = F.pad(x, around, mode="replicate") if any(around) else x
        inside, before, still = (0, 0, 0), 0, before > 0
    return conv3d(
        x, weight, bias, stride=stride, padding=inside, before=before, still=still, limit=limit
    )


def nearest_then_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, edge: Edge = "zeros"
) -> Tensor:
    """Nearest x2 in height and width, then a 1x5x5 convolution that keeps the size.

    Each of the four outputs of a pixel sees its 3x3 neighbours alone: of five taps, two and two
    fall on one pixel. So a 3x3 convolution at the low resolution gives all four: 9 products in
    place of 25, up to rounding.

    Args:
        x: [B,C,T,H,W].
        weight: [C',C,1,5,5].
        bias: [C'].
        edge: what lies beyond the border of a frame; both kinds are the same before the upsampling
            and after it.

    Returns:
        [B,C',T,2H,2W] in channels-last memory.
    """
    # [s,r,C',C,1,3,3] -> [(r s C'),C,1,3,3]
    folded = _onto_pixels(_onto_pixels(weight, 3), 5).transpose(0, 1).flatten(0, 2)
    y = causal_conv3d(x, folded, None if bias is None else bias.repeat(4), edge=edge)
    y = rearrange(y.movedim(1, -1), "b t h w (r s c) -> b t (h r) (w s) c", r=2, s=2)
    return y.movedim(-1, 1)


def _onto_pixels(weight: Tensor, dim: int) -> Tensor:
    """Five taps of an upsampled row on the three pixels below them, for both phases: [2,...]."""
    a, b, c, d, e = weight.unbind(dim)
    return torch.stack([torch.stack(p, dim) for p in ((a + b, c + d, e), (a, b + c, d + e))])


def join(front: Tensor, x: Tensor) -> Tensor:
    """`torch.cat` in time that keeps the memory format of `x`.

    With formats mixed, torch takes the plain one: slow to write and again to convolve.
    """
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        front = front.contiguous(memory_format=torch.channels_last_3d)
    return torch.cat([front, x], dim=2)
