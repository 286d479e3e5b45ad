"""Decoding a film's frames in constant memory: upright, in RGB, from any moment on, at any rate.

Times are seconds from the film's first frame. Frames come out upright (the container's display
matrix is applied) and in full-range RGB (the stream's colour matrix and range are undone). HDR
transfer curves aren't tone mapped and non-square pixels aren't stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from zoo.data.colour import Colour
from zoo.data.container import (
    Encoded,
    demux,
    film_rate,
    open_video,
    orientation,
    stamp_of,
)
from zoo.errors import UserError

# Containers round time stamps (Matroska to 1 ms), so "at or after `start`" needs this much slack.
TIME_SLACK = 1e-3
_DEMUX_RETRIES = 16
# Containers whose header says how long the film is; others are measured by their last packet.
_DECLARED = {"mov", "mp4", "matroska", "webm", "avi"}
_LOSS_SLACK = 0.2  # seconds a declared length may be off in a whole file

T = TypeVar("T")


class Frame(NamedTuple):
    """One decoded frame: `rgb` uint8 [H, W, 3], `time` in seconds from the first frame.

    `rgb` is not always contiguous: a film's is a view of [3, H, W].
    """

    rgb: NDArray[np.uint8]
    time: float


def nearest(
    items: Iterable[tuple[T, float]],
    *,
    start: float,
    rate: Fraction | float,
    end: float,
    gap: Callable[[], float],
) -> Iterator[tuple[T, float]]:
    """Resample in time: for every moment `start + i / rate` before `end` the nearest item.

    Args:
        items: things with the seconds they begin at, increasing.
        start: seconds.
        rate: moments a second.
        end: seconds, or infinity.
        gap: seconds the last item is shown for, asked for at the end.

    Yields:
        (item, moment); an item may come several times or never.
    """
    count = 0
    moment = start
    previous: tuple[T, float] | None = None
    for item in items:
        while previous is not None and moment < end and moment <= (previous[1] + item[1]) / 2:
            yield previous[0], moment
            count += 1
            moment = start + count / float(rate)
        if moment >= end:
            return
        previous = item
    # The last item is shown for its gap and stands for no moment after that.
    while previous is not None and moment < min(end, previous[1] + gap()):
        yield previous[0], moment
        count += 1
        moment = start + count / float(rate)


class FrameReader(Iterator[Frame]):
    """An iterator over a film's frames; holds one open file and a few frames at a time.

    Args:
        path: the film, as a file or in memory.
        start: seconds; frames before it are left out.
        duration: seconds; frames at or after `start + duration` are left out. None: to the end.
        rate: frames a second to resample to (see `nearest`). None: the film's own frames.
        size: (width, height) in pixels to scale to, after rotation. None: the film's own.
        short_side: pixels to scale the shorter side to, in place of `size`.
        lead: also yield the frame before the first one (if any).
        seek: whether to seek; without it frames are counted from the film's beginning.
        threads: decode in several threads.

    Attributes:
        broken: frames (or unreadable stretches) skipped so far.
        truncated: whether the file ended before its header says; known once it was read to there.
        odd: whether a time stamp was missing or out of order and had to be made up.
        origin: the first frame's time stamp in the stream's time base; None: it has none.
        gap: seconds a frame is shown for, on average.
        colour: what the film's numbers mean, known with the first frame.
        full_size: (width, height) before scaling, after rotation; known with the first frame.
        pixel_aspect: width of such a pixel over its height; known with the first frame.
    """

    def __init__(
        self,
        path: str | Path | Encoded,
        *,
        start: float = 0.0,
        duration: float | None = None,
        rate: Fraction | None = None,
        size: tuple[int, int] | None = None,
        short_side: int | None = None,
        lead: bool = False,
        seek: bool = True,
        threads: bool = False,
    ) -> None:
        self.path = path if isinstance(path, Encoded) else Path(path)
        self.broken = 0
        self.truncated = False
        self.odd = False
        self.origin: int | None = None
        self.colour: Colour | None = None
        self.full_size = (0, 0)
        self.pixel_aspect = Fraction(1)
        self._start = start
        self._end = math.inf if duration is None else start + duration
        self._rate = rate
        self._size = size
        self._short_side = short_side
        self._lead = lead or rate is not None
        self._seek = seek
        self._threads = threads
        self._skimming = False
        self._scaler = VideoReformatter()
        self._latest: tuple[VideoFrame, NDArray[np.uint8]] | None = None
        self._container, self._stream = open_video(self.path, threads=threads)
        # asked for once: PyAV makes a new Fraction every time, which costs a tenth of a small clip
        self._base = self._stream.time_base or Fraction(1, 90_000)
        self.gap = 1.0 / float(film_rate(self._stream))
        self._frames: Generator[Frame] = self._read()

    def __next__(self) -> Frame:
        return next(self._frames)

    def close(self) -> None:
        """Close the file; reading on afterwards ends the iteration."""
        self._frames.close()
        self._container.close()

    def _read(self) -> Generator[Frame]:
        wanted = self._wanted()
        if self._rate is not None:
            gap = self.gap
            wanted = nearest(
                wanted, start=self._start, rate=self._rate, end=self._end, gap=lambda: gap
            )
        try:
            for frame, time in wanted:
                yield Frame(self._to_rgb(frame), time)
        finally:
            self._container.close()

    def _wanted(self) -> Iterator[tuple[VideoFrame, float]]:
        slack = min(TIME_SLACK, self.gap / 4)
        # What is nearest to the last moment may begin after the end.
        end = self._end if self._rate is None else math.inf
        held: tuple[VideoFrame, float] | None = None
        for frame, time in self._located():
            if time >= end - slack:
                return
            if time >= self._start - slack:
                if held is not None:
                    yield held
                    held = None
                yield frame, time
            elif self._lead:
                held = frame, time
        if held is not None:
            yield held

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
        self._container, self._stream = open_video(self.path, threads=self._threads)
        self.broken, self.odd, self.truncated = 0, False, False
        self._skimming = False

    def _decode(self, *, seek_to: float | None) -> Iterator[tuple[VideoFrame, float]]:
        frames = self._packets()
        head = next(frames, None)
        if head is None:
            return
        # Times count from the first frame that decodes: headers announce other starts.
        self.origin = stamp_of(head)
        if seek_to is None:
            frames = chain([head], frames)
        elif self.origin is not None:
            self.broken = 0
            try:
                self._container.seek(self.origin + int(seek_to / self._base), stream=self._stream)
            except av.FFmpegError:
                return
            frames = self._packets()
        else:
            return
        previous: float | None = None
        for frame in frames:
            stamp = stamp_of(frame)
            time = None
            if stamp is not None and self.origin is not None:
                time = _seconds(stamp - self.origin, self._base)
            if time is None or (previous is not None and time <= previous):
                self.odd = True
                time = 0.0 if previous is None else previous + self.gap
            previous = time
            yield frame, time

    def _packets(self) -> Iterator[VideoFrame]:
        failures = 0
        # container time that packets came to: seconds of other streams, time stamps of this one
        reached, last = 0.0, 0
        while failures <= _DEMUX_RETRIES:
            try:
                with demux(self._container) as packets:
                    for packet in packets:
                        failures = 0
                        # the packets that end each stream only know their stream, not its number
                        if packet.stream.index != self._stream.index:
                            reached = max(reached, _seconds(_end_of(packet), packet.time_base))
                            continue
                        last = max(last, _end_of(packet))
                        if packet.is_corrupt and packet.size:  # the file ends in the middle of it
                            self.truncated = self.truncated or self._ends_within(packet)
                        yield from self._decoded(packet)
                break
            except av.FFmpegError:  # a new demuxing loop goes on behind the unreadable stretch
                self.broken += failures == 0
                failures += 1
        reached = max(reached, _seconds(last, self._base))
        self.truncated = self.truncated or self._ended_early(reached)

    def _decoded(self, packet: Packet[Stream]) -> Iterator[VideoFrame]:
        self._skim(packet)
        try:  # decoding may fail for this packet and work for the next one
            frames = packet.decode()
        except av.FFmpegError:
            self.broken += 1
            return
        for frame in frames:
            if not isinstance(frame, VideoFrame):
                continue
            if frame.is_corrupt:
                self.broken += 1
            else:
                yield frame

    def _skim(self, packet: Packet[Stream]) -> None:
        """Leave out what nothing else is decoded from, up to shortly before `start`.

        The frames from `start` on stay the same bit for bit.
        """
        # with `lead`, the frame before `start` is wanted, however long before it begins
        if self._start <= 0 or self._lead or self._threads:
            return
        early = False
        if packet.pts is not None and self.origin is not None:
            time = _seconds(packet.pts - self.origin, self._base)
            early = time < self._start - 4 * self.gap - TIME_SLACK
        if early != self._skimming:
            self._stream.codec_context.skip_frame = "NONREF" if early else "DEFAULT"
            self._skimming = early

    def _ends_within(self, packet: Packet[Stream]) -> bool:
        return packet.pos is not None and packet.pos + packet.size >= self._container.size

    def _ended_early(self, reached: float) -> bool:
        """Whether the header speaks of more than there was."""
        size = self._container.size
        for stream in self._container.streams:
            index = stream.index_entries
            if len(index) and index[-1].pos + index[-1].size > size > 0:
                return True
        declared = self._container.duration
        if declared is None or not _DECLARED & set(self._container.format.name.split(",")):
            return False
        end = ((self._container.start_time or 0) + declared) / av.time_base
        return reached < end - max(_LOSS_SLACK, 3 * self.gap)

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        if self._latest is not None and self._latest[0] is frame:  # resampled to a higher rate
            return self._latest[1]
        a, b, c, d = orientation(frame)
        turned = a == 0
        try:
            colour = Colour.of(frame)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        if self._short_side is not None:
            width, height = short_side_size(width, height, short_side=self._short_side)
        elif self._size is not None:
            width, height = self._size
        if self.colour is None:
            self.colour = colour
            aspect = self._stream.sample_aspect_ratio or Fraction(1)
            self.pixel_aspect = 1 / aspect if turned else aspect
            self.full_size = (frame.height, frame.width) if turned else (frame.width, frame.height)
            self._size = width, height  # the few films that change their size keep the first one
            self._short_side = None
        rgb = colour.to_rgb(
            frame,
            self._scaler,
            width=height if turned else width,
            height=width if turned else height,
        )
        if turned:
            rgb = rgb.transpose(1, 0, 2)
        if (c if turned else a) < 0:
            rgb = rgb[:, ::-1]
        if (b if turned else d) < 0:
            rgb = rgb[::-1]
        rgb = np.ascontiguousarray(rgb.transpose(2, 0, 1)).transpose(1, 2, 0)
        self._latest = frame, rgb
        return rgb


def _end_of(packet: Packet[Stream]) -> int:
    stamp = packet.pts if packet.pts is not None else packet.dts
    if stamp is None or not packet.size:
        return 0
    return stamp + (packet.duration or 0)


def _seconds(stamp: int, base: Fraction) -> float:
    """What float(stamp * base) gives, without making a Fraction of each packet's time."""
    return stamp * base.numerator / base.denominator


def short_side_size(width: int, height: int, *, short_side: int) -> tuple[int, int]:
    """The (width, height) with the same shape whose shorter side is `short_side` pixels."""
    scale = short_side / min(width, height)
    return max(short_side, round(width * scale)), max(short_side, round(height * scale))
