"""Films for data sets: counted, measured, and read as clips by time.

Times are seconds from the film's first frame; frames come as `FrameReader` makes them.
"""

from __future__ import annotations

import math
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.data.container import Encoded, demux, film_rate, open_video
from zoo.data.reader import TIME_SLACK, nearest
from zoo.data.reader import FrameReader as FrameReader
from zoo.data.writer import VideoWriter as VideoWriter
from zoo.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")


@dataclass(frozen=True)
class VideoInfo:
    """What a film holds.

    Attributes:
        frames: number of frames, counted, never taken from the header.
        duration: seconds from the first frame to the end of the last one.
        rate: mean frames a second.
        width: pixels, after rotation.
        height: pixels, after rotation.
    """

    frames: int
    duration: float
    rate: Fraction
    width: int
    height: int


def probe(path: str | Path | Encoded) -> VideoInfo:
    """Count a film's frames and measure it; reads the whole file but decodes only one frame.

    Raises:
        UserError: no such file, not a film, or a film without a single readable frame.
    """
    return probe_times(path)[0]


def probe_times(path: str | Path | Encoded) -> tuple[VideoInfo, NDArray[np.float64]]:
    """`probe` with the sorted times of all frames: float64 [frames], seconds, the first one 0.

    Raises:
        UserError: as `probe`.
    """
    container, stream = open_video(path if isinstance(path, Encoded) else Path(path))
    with container:
        base = stream.time_base or Fraction(1, 90000)
        rate = film_rate(stream)
        # The header's count is wrong for truncated files and absent in MPEG-PS, TS and WebM.
        packets = []
        # A damaged tail: what came before it counts.
        with suppress(av.FFmpegError), demux(container, stream) as found:
            for packet in found:
                if packet.size and not packet.is_discard:
                    packets.append((packet.pts, packet.duration or 0))
    with closing(FrameReader(path)) as reader:
        first = next(reader, None)
        origin = reader.origin
    if first is None or not packets:
        raise UserError(f"{path} holds no frame that can be decoded; remove or replace the file")
    stamps = sorted(pts for pts, _ in packets if pts is not None)
    if origin is not None and len(stamps) == len(packets) == len(set(stamps)):
        # Frames before the first that decodes lean on what was cut off.
        stamps = [pts for pts in stamps if pts >= origin]
        times = np.array([float((pts - origin) * base) for pts in stamps])
        last = max(packets, key=lambda item: item[0] or 0)[1] * base or 1 / rate
        span = (stamps[-1] - origin) * base + last
        # The header's rate is a guess in WebM, TS and in files with a variable rate.
        if abs(float(rate * span) - len(times)) > 0.5:
            rate = (len(times) / span).limit_denominator(100_000)
    else:
        times = np.arange(len(packets)) / float(rate)
        span = len(times) / rate
    height, width, _ = first.rgb.shape
    return VideoInfo(len(times), float(span), rate, width, height), times


def read_frames(
    path: str | Path,
    *,
    start: float = 0.0,
    duration: float | None = None,
    size: tuple[int, int] | None = None,
) -> FrameReader:
    """Iterate over a film's frames in constant memory.

    Args:
        path: the film.
        start: seconds; frames before it are left out.
        duration: seconds; frames at or after `start + duration` are left out. None: to the end.
        size: (width, height) in pixels to scale to, after rotation. None: the film's own.

    Returns:
        An iterator of `Frame` whose `broken` counts the frames skipped because they can't be
        decoded; `close()` it when leaving early.

    Raises:
        UserError: no such file, or not a film.
    """
    return FrameReader(path, start=start, duration=duration, size=size)


def read_clip(
    path: str | Path | Encoded,
    *,
    frames: int,
    start: float = 0.0,
    rate: float | None = None,
    short_side: int | None = None,
) -> Tensor:
    """Read a clip by time.

    Args:
        path: the film.
        frames: number of frames T.
        start: seconds from the film's first frame.
        rate: frames a second to sample at: frame i is the one nearest to `start + i / rate`.
            None: consecutive frames from the first one at or after `start`.
        short_side: pixels to scale the shorter side to. None: the film's own size.

    Returns:
        uint8 [3, T, H, W].

    Raises:
        UserError: no such file, not a film, or the film ends before the clip does.
    """
    for seek in (True, False):
        reader = FrameReader(
            path, start=start, short_side=short_side, lead=rate is not None, seek=seek
        )
        picked = _pick(reader, frames=frames, start=start, rate=rate)
        # Made-up times are only right when they're counted from the film's beginning.
        if not reader.odd or start <= 0:
            break
    if len(picked) < frames:
        at = "" if rate is None else f" at {rate:g} frames a second"
        raise UserError(
            f"{path} ends {frames - len(picked)} frames too early for {frames} frames from "
            f"{start:.3f} s on{at}; ask for fewer frames or an earlier start"
        )
    colours_first = [rgb.transpose(2, 0, 1) for rgb in picked]
    return torch.from_numpy(np.stack(colours_first, axis=1)).contiguous()


def _pick(
    reader: FrameReader, *, frames: int, start: float, rate: float | None
) -> list[NDArray[np.uint8]]:
    with closing(reader):
        picked = (
            iter(reader)
            if rate is None
            else nearest(reader, start=start, rate=rate, end=math.inf, gap=lambda: reader.gap)
        )
        return [rgb for rgb, _ in islice(picked, frames)]


def select_frames(
    times: NDArray[np.float64], *, frames: int, start: float, rate: float | None, gap: float
) -> NDArray[np.int64]:
    """Indices of the frames `read_clip` takes from a film with these frame times.

    Args:
        times: float64 [N], seconds, increasing.
        frames: number of frames T.
        start: seconds.
        rate: as in `read_clip`.
        gap: seconds the last frame is shown for.

    Returns:
        int64 [T], or fewer where the film ends too early.
    """
    if rate is None:
        first = int(np.searchsorted(times, start - min(TIME_SLACK, gap / 4)))
        return np.arange(first, min(first + frames, len(times)), dtype=np.int64)
    wanted = start + np.arange(frames) / rate
    wanted = wanted[wanted < times[-1] + gap]
    nearest: NDArray[np.int64] = np.searchsorted((times[:-1] + times[1:]) / 2, wanted)
    return nearest
