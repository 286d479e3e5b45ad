"""A clip out of a film that is in memory, by PyAV or, where it can be imported, torchcodec.

Both give the same frames at the same size; their scalers differ by 1 to 3 levels of 255.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zoo.data.colour import HD_HEIGHT
from zoo.data.container import Encoded, demux, open_video
from zoo.data.reader import short_side_size
from zoo.data.transforms import resize
from zoo.data.video import read_clip, select_frames
from zoo.errors import UserError

Decoder = Literal["auto", "pyav", "torchcodec"]

_PLAIN_FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12")


@cache
def why_not_torchcodec() -> str:
    """Why torchcodec can't be imported; empty where it can."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # it finds no FFmpeg, or another torch
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0][:160] if lines else type(error).__name__
    return ""


def check_decoder(decoder: Decoder) -> None:
    """Refuse torchcodec where it can't be imported.

    Raises:
        UserError: it can't; the reason is given.
    """
    if decoder == "torchcodec" and (why := why_not_torchcodec()):
        raise UserError(f"decoder torchcodec can't be imported ({why}): use pyav or auto")


def decode_clip(
    film: Encoded,
    *,
    frames: int,
    start: float,
    rate: float | None,
    short_side: int,
    decoder: Decoder = "auto",
    device: str = "cpu",
) -> Tensor:
    """Read a clip by time; the frames are those of `zoo.data.video.read_clip`.

    Args:
        film: the film.
        frames: number of frames T.
        start: seconds from the film's first frame.
        rate: frames a second; None: consecutive frames.
        short_side: pixels to scale the shorter side to.
        decoder: "auto" is torchcodec where it can be imported, else PyAV.
        device: where torchcodec decodes: "cuda" is NVDEC. PyAV decodes on the CPU.

    Returns:
        uint8 [3, T, H, W] on `device`.

    Raises:
        UserError: not a film, or it ends before the clip does.
    """
    check_decoder(decoder)
    if decoder == "pyav" or why_not_torchcodec():
        return read_clip(film, frames=frames, start=start, rate=rate, short_side=short_side)
    return _by_torchcodec(
        film, frames=frames, start=start, rate=rate, short_side=short_side, device=device
    )


def _by_torchcodec(
    film: Encoded,
    *,
    frames: int,
    start: float,
    rate: float | None,
    short_side: int,
    device: str,
) -> Tensor:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    def by_pyav() -> Tensor:
        return read_clip(film, frames=frames, start=start, rate=rate, short_side=short_side)

    times = _frame_times(film)
    if times is None:
        return by_pyav()
    try:
        header: Any = VideoDecoder(film.data, seek_mode="approximate").metadata
        untagged_hd = header.color_space is None and header.height >= HD_HEIGHT
        # torchcodec takes untagged films for BT.601 whatever their height, and lays nothing upright
        if untagged_hd or header.rotation or header.pixel_format not in _PLAIN_FORMATS:
            return by_pyav()
        width, height = short_side_size(header.width, header.height, short_side=short_side)
        scaled = (height, width) != (header.height, header.width)
        on_cpu = device == "cpu"
        decoder: Any = VideoDecoder(
            film.data,
            device=device,
            transforms=[Resize((height, width))] if scaled and on_cpu else None,
        )
        if len(decoder) != len(times):
            return by_pyav()  # damaged, or edited: frames are counted differently
        gap = float(times[-1] - times[0]) / max(1, len(times) - 1) or 1 / 25
        picked = select_frames(times, frames=frames, start=start, rate=rate, gap=gap)
        if len(picked) < frames:
            return by_pyav()  # which says what is wrong
        video: Tensor = decoder.get_frames_at(picked.tolist()).data
    except (RuntimeError, ValueError, IndexError):
        return by_pyav()  # it skips what is damaged, and knows more formats
    video = video.transpose(0, 1)
    return video if on_cpu or not scaled else resize(video, size=(height, width))


def _frame_times(film: Encoded) -> NDArray[np.float64] | None:
    """Sorted times of all frames, float64 [N] in seconds from the first; None: not all have one."""
    container, stream = open_video(film)
    with container:
        base = float(stream.time_base or Fraction(1, 90_000))
        try:
            with demux(container, stream) as found:
                packets = [p for p in found if p.size and not p.is_discard]
        except av.FFmpegError:
            return None
        stamps = [packet.pts for packet in packets if packet.pts is not None]
    if not stamps or len(stamps) < len(packets) or len(set(stamps)) < len(stamps):
        return None
    times = np.sort(np.array(stamps, dtype=np.int64))
    seconds: NDArray[np.float64] = (times - times[0]) * base
    return seconds
