"""Films in and out through PyAV: probing, constant-memory reading, clips by time, exact writing.

Times are seconds from the film's first frame. Frames come out upright (the container's display
matrix is applied) and in full-range RGB (the stream's colour matrix and range are undone). HDR
transfer curves aren't tone mapped and non-square pixels aren't stretched.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from zoo.data.container import SCALER, film_rate, matrix_for, open_film, orientation
from zoo.data.writer import VideoWriter as VideoWriter
from zoo.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")

# Containers round time stamps (Matroska to 1 ms), so "at or after `start`" needs this much slack.
TIME_SLACK = 1e-3
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_DEMUX_RETRIES = 16


class Frame(NamedTuple):
    """One decoded frame: `rgb` uint8 [H, W, 3], `time` in seconds from the first frame."""

    rgb: NDArray[np.uint8]
    time: float


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


def probe(path: str | Path) -> VideoInfo:
    """Count a film's frames and measure it; reads the whole file but decodes only one frame.

    Raises:
        UserError: no such file, not a film, or a film without a single readable frame.
    """
    return probe_times(path)[0]


def probe_times(path: str | Path) -> tuple[VideoInfo, NDArray[np.float64]]:
    """`probe` with the sorted times of all frames: float64 [frames], seconds, the first one 0.

    Raises:
        UserError: as `probe`.
    """
    container, stream = open_film(Path(path))
    with container:
        base = stream.time_base or Fraction(1, 90000)
        rate = film_rate(stream)
        # The header's count is wrong for truncated files and absent in MPEG-PS, TS and WebM.
        packets = []
        with suppress(av.FFmpegError):  # a damaged tail: what came before it counts
            for packet in container.demux(stream):
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


class FrameReader(Iterator[Frame]):
    """The iterator `read_frames` returns; holds one open file and one frame at a time.

    Attributes:
        broken: frames (or unreadable stretches) skipped so far.
        odd: whether a time stamp was missing or out of order and had to be made up.
        origin: the first frame's time stamp in the stream's time base; None: it has none.
        gap: seconds a frame is shown for, on average.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        start: float = 0.0,
        duration: float | None = None,
        size: tuple[int, int] | None = None,
        short_side: int | None = None,
        lead: bool = False,
        seek: bool = True,
    ) -> None:
        self.path = Path(path)
        self.broken = 0
        self.odd = False
        self.origin: int | None = None
        self._start = start
        self._end = math.inf if duration is None else start + duration
        self._size = size
        self._short_side = short_side
        self._lead = lead
        self._seek = seek
        self._scaler = VideoReformatter()
        self._container, self._stream = open_film(self.path)
        self.gap = 1.0 / float(film_rate(self._stream))
        self._frames: Generator[Frame] = self._read()

    def __next__(self) -> Frame:
        return next(self._frames)

    def close(self) -> None:
        """Close the file; reading on afterwards ends the iteration."""
        self._frames.close()
        self._container.close()

    def _read(self) -> Generator[Frame]:
        slack = min(TIME_SLACK, self.gap / 4)
        held: VideoFrame | None = None
        held_time = 0.0
        try:
            for frame, time in self._located():
                if time >= self._end - slack:
                    return
                if time >= self._start - slack:
                    if held is not None:
                        yield Frame(self._to_rgb(held), held_time)
                        held = None
                    yield Frame(self._to_rgb(frame), time)
                elif self._lead:
                    held, held_time = frame, time
            if held is not None:
                yield Frame(self._to_rgb(held), held_time)
        finally:
            self._container.close()

    def _located(self) -> Iterator[tuple[VideoFrame, float]]:
        """Decoded frames with times, from a key frame surely before `start` on."""
        # The margin also steps over frames that lean on a key frame we didn't read (open GOPs).
        margin = max(0.5, 8 * self.gap)
        while self._seek and self._start > 2 * margin:
            decoded = self._decode(seek_to=self._start - margin)
            head = next(decoded, None)
            if head is not None and head[1] <= self._start and not self.odd:
                yield head
                yield from decoded
                return
            # The seek landed too late or nowhere: back off, in the end to the film's beginning.
            margin *= 4
            self._reopen()
        yield from self._decode(seek_to=None)

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = open_film(self.path)
        self.broken, self.odd = 0, False

    def _decode(self, *, seek_to: float | None) -> Iterator[tuple[VideoFrame, float]]:
        base = self._stream.time_base or Fraction(1, 90000)
        frames = self._packets()
        head = next(frames, None)
        if head is None:
            return
        # Times count from the first frame that decodes: headers announce other starts.
        self.origin = _stamp(head)
        if seek_to is None:
            frames = chain([head], frames)
        elif self.origin is not None:
            self.broken = 0
            try:
                self._container.seek(self.origin + int(seek_to / base), stream=self._stream)
            except av.FFmpegError:
                return
            frames = self._packets()
        else:
            return
        previous: float | None = None
        for frame in frames:
            stamp = _stamp(frame)
            time = None
            if stamp is not None and self.origin is not None:
                time = float((stamp - self.origin) * base)
            if time is None or (previous is not None and time <= previous):
                self.odd = True
                time = 0.0 if previous is None else previous + self.gap
            previous = time
            yield frame, time

    def _packets(self) -> Iterator[VideoFrame]:
        failures = 0
        while failures <= _DEMUX_RETRIES:
            try:
                for packet in self._container.demux(self._stream):
                    failures = 0
                    try:  # decoding may fail for this packet and work for the next one
                        frames = packet.decode()
                    except av.FFmpegError:
                        self.broken += 1
                        continue
                    for frame in frames:
                        if frame.is_corrupt:
                            self.broken += 1
                        else:
                            yield frame
                return
            except av.FFmpegError:  # a new demuxing loop goes on behind the unreadable stretch
                self.broken += failures == 0
                failures += 1

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        a, b, c, d = orientation(frame)
        turned = a == 0
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        if self._short_side is not None:
            width, height = short_side_size(width, height, short_side=self._short_side)
        elif self._size is not None:
            width, height = self._size
        # Scaling while converting is 2-14 times faster than converting at full size.
        rgb = self._scaler.reformat(
            frame,
            width=height if turned else width,
            height=width if turned else height,
            format="rgb24",
            src_colorspace=matrix_for(frame.height) if frame.colorspace == _UNSPECIFIED else None,
            interpolation=SCALER,
            threads=1,
        ).to_ndarray()
        if turned:
            rgb = rgb.transpose(1, 0, 2)
        if (c if turned else a) < 0:
            rgb = rgb[:, ::-1]
        if (b if turned else d) < 0:
            rgb = rgb[::-1]
        return np.ascontiguousarray(rgb, dtype=np.uint8)


def _stamp(frame: VideoFrame) -> int | None:
    stamp: int | None = frame.pts if frame.pts is not None else frame.dts
    return stamp


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
    path: str | Path,
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
    return torch.from_numpy(np.stack(picked)).permute(3, 0, 1, 2).contiguous()


def _pick(
    reader: FrameReader, *, frames: int, start: float, rate: float | None
) -> list[NDArray[np.uint8]]:
    picked: list[NDArray[np.uint8]] = []
    with closing(reader):
        if rate is None:
            for frame, _ in zip(reader, range(frames), strict=False):
                picked.append(frame.rgb)
            return picked
        previous: Frame | None = None
        for frame in reader:
            while previous is not None and len(picked) < frames:
                if start + len(picked) / rate > (previous.time + frame.time) / 2:
                    break
                picked.append(previous.rgb)
            if len(picked) == frames:
                return picked
            previous = frame
        # The last frame is shown for one frame's time and stands for no moment after that.
        while previous is not None and len(picked) < frames:
            if start + len(picked) / rate >= previous.time + reader.gap:
                break
            picked.append(previous.rgb)
    return picked


def short_side_size(width: int, height: int, *, short_side: int) -> tuple[int, int]:
    """The (width, height) with the same shape whose shorter side is `short_side` pixels."""
    scale = short_side / min(width, height)
    return max(short_side, round(width * scale)), max(short_side, round(height * scale))


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
