"""Anything that moves, as one thing to read: films, GIFs, images, folders of images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from zoo.data.colour import Colour
from zoo.data.container import demux, film_rate, open_video
from zoo.data.pictures import IMAGE_SUFFIXES, RATE, PictureReader
from zoo.data.reader import Frame, FrameReader
from zoo.data.video import probe
from zoo.errors import UserError

_HEAD = 256  # packets looked at where the container has no full index
_EVEN = 1e-3  # seconds by which the gaps of a constant rate differ, because containers round


@dataclass(frozen=True)
class FilmInfo:
    """What comes out of an `open_film`, and what a writer needs to keep it (`like`).

    Attributes:
        width: pixels, after rotation and `size`.
        height: pixels, after rotation and `size`.
        rate: frames a second, on average; exact where `variable` is false and the header right.
        frames: how many will come, by the header; None where it doesn't say. An estimate: count
            what comes.
        duration: seconds they last, by the header; None where it doesn't say.
        colour: matrix and range of the source, or what is usual at this height for RGB.
        time_base: seconds the frames' times are counted in.
        pixel_aspect: width of a pixel over its height, after `size`.
        variable: whether the gaps between frames differ (in a container without a full index: the
            first 256 of them).
        has_audio: whether there is sound.
    """

    width: int
    height: int
    rate: Fraction
    frames: int | None = None
    duration: float | None = None
    colour: Colour = field(default_factory=Colour)
    time_base: Fraction = Fraction(1, 90_000)
    pixel_aspect: Fraction = Fraction(1)
    variable: bool = False
    has_audio: bool = False


class Film(Iterator[Frame]):
    """The iterator and context manager `open_film` returns.

    Attributes:
        path: the file or folder.
        info: what comes out.
    """

    def __init__(
        self, path: Path, info: FilmInfo, first: Frame, rest: FrameReader | PictureReader
    ) -> None:
        self.path = path
        self.info = info
        self._reader = rest
        self._frames: Iterator[Frame] = chain([first], rest)

    @property
    def broken(self) -> int:
        """Frames (or unreadable stretches) that couldn't be decoded so far."""
        return self._reader.broken

    @property
    def truncated(self) -> bool:
        """Whether the file ended before its header says; known once it was read to there."""
        return self._reader.truncated

    def __next__(self) -> Frame:
        return next(self._frames)

    def close(self) -> None:
        """Close the file; reading on afterwards ends the iteration."""
        self._frames = iter(())
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_film(
    path: str | Path,
    *,
    start: float = 0.0,
    duration: float | None = None,
    fps: Fraction | float | None = None,
    size: tuple[int, int] | None = None,
) -> Film:
    """Open a film, a GIF, an image or a folder of images as frames in constant memory.

    Frames are upright (display matrix, EXIF) and full-range RGB (matrix and range are undone);
    transparency lies over black. Animated PNG and WebP keep their times; a single image is a film
    of one frame; images in a folder come in natural order, must have one size, and have no time
    of their own: `fps` sets it. Files that aren't images are left out of a folder. Frames that
    can't be decoded are skipped and counted.

    Args:
        path: the file or folder.
        start: seconds from the first frame; frames before it are left out.
        duration: seconds; frames at or after `start + duration` are left out. None: to the end.
        fps: frames a second to resample to, by the nearest frame. None: the film's own frames.
        size: (width, height) in pixels to scale to. None: the film's own.

    Returns:
        An iterator of `Frame`, its first frame already decoded; a context manager.

    Raises:
        UserError: nothing there, not a film, no frame that can be decoded, `start` behind the
            film's end, or an argument out of range.
    """
    path = Path(path)
    if not (math.isfinite(start) and start >= 0):
        raise UserError(f"a start of {start} s isn't possible; use 0 or more")
    if duration is not None and not duration > 0:
        raise UserError(f"a duration of {duration} s holds no frame; use more than 0")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UserError(f"{fps} frames a second aren't possible; use more than 0")
    if size is not None and min(size) < 1:
        raise UserError(f"frames of {size[0]}x{size[1]} pixels aren't possible; use at least 1x1")
    rate = None if fps is None else Fraction(fps).limit_denominator(100_000)
    reader: FrameReader | PictureReader
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        if not path.exists():
            raise UserError(f"there is no image at {path}; check the path")
        reader = PictureReader(path, start=start, duration=duration, rate=rate, size=size)
        info = _of_pictures(reader)
    else:
        info = _of_header(path)
        reader = FrameReader(
            path, start=start, duration=duration, rate=rate, size=size, threads=True
        )
    first = next(reader, None)
    if isinstance(reader, FrameReader) and first is not None and reader.odd and start > 0:
        # Times that had to be made up are only right when they're counted from the beginning.
        reader.close()
        reader = FrameReader(
            path, start=start, duration=duration, rate=rate, size=size, seek=False, threads=True
        )
        first = next(reader, None)
    if first is None:
        reader.close()
        raise _nothing(path, reader, start=start, duration=duration)
    assert reader.colour is not None
    height, width, _ = first.rgb.shape
    full_width, full_height = reader.full_size
    aspect = reader.pixel_aspect if isinstance(reader, FrameReader) else Fraction(1)
    info = replace(
        info,
        width=width,
        height=height,
        colour=reader.colour,
        # The picture keeps its shape on the screen, whatever the pixels' number.
        pixel_aspect=aspect * Fraction(full_width * height, full_height * width),
    )
    return Film(path, _cut(info, start=start, duration=duration, rate=rate), first, reader)


def _cut(
    info: FilmInfo, *, start: float, duration: float | None, rate: Fraction | None
) -> FilmInfo:
    """What is left of a film between `start` and `start + duration` at another rate."""
    whole = info.duration
    if whole is not None and (start > 0 or duration is not None):
        left = max(0.0, whole - start)
        left = left if duration is None else min(left, duration)
        info = replace(info, duration=left, frames=max(1, round(left * info.rate)))
    if rate is not None:
        frames = None if info.duration is None else max(1, math.ceil(info.duration * rate - 1e-6))
        info = replace(info, rate=rate, frames=frames, time_base=1 / rate, variable=False)
    return info


def _of_pictures(reader: PictureReader) -> FilmInfo:
    frames = len(reader.times)
    gaps = np.diff(reader.times)
    rate = RATE if not frames else Fraction(frames / reader.end).limit_denominator(1001)
    return FilmInfo(
        0,
        0,
        rate,
        frames=frames,
        duration=reader.end,
        time_base=Fraction(1, 1000) if reader.timed else 1 / rate,
        variable=bool(reader.timed and len(gaps) and np.ptp(gaps) > _EVEN + 1e-9),
    )


def _of_header(path: Path) -> FilmInfo:
    container, stream = open_video(path)
    with container:
        base = stream.time_base or Fraction(1, 90_000)
        rate = film_rate(stream)
        duration = None
        if stream.duration:
            duration = float(stream.duration * base)
        elif container.duration:
            duration = container.duration / av.time_base
        has_audio = bool(container.streams.audio)
        stamps, whole = _stamps(container, stream)
        counted = stream.frames > 0
        frames = len(stamps) if whole else stream.frames or None
    gaps = np.diff(stamps)
    variable = bool(len(gaps) and np.ptp(gaps) * float(base) > max(_EVEN, float(base)) + 1e-9)
    if len(gaps) and (variable or not counted):
        # Headers without a frame count guess the rate; some name the finest one, not the mean.
        mean = float(gaps.mean() * base)
        # damaged films may show every frame at once: such times say nothing
        if mean > 0 and abs(mean * float(rate) - 1) > max(0.01, float(base / (len(gaps) * mean))):
            rate = Fraction(1 / mean).limit_denominator(1001)
    if frames is None and duration is not None:
        frames = max(1, round(duration * rate))
    return FilmInfo(
        0,
        0,
        rate,
        frames=frames,
        duration=duration,
        time_base=base,
        variable=variable,
        has_audio=has_audio,
    )


def _stamps(container: InputContainer, stream: VideoStream) -> tuple[list[int], bool]:
    """Sorted time stamps of the frames, and whether they're all there (else the first few)."""
    index = stream.index_entries
    if stream.frames and len(index) == stream.frames:
        return sorted(entry.timestamp for entry in index if not entry.is_discard), True
    stamps = []
    with demux(container, stream) as found:
        packets = (packet for packet in found if packet.size)
        try:
            for packet in islice(packets, _HEAD):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is not None and not packet.is_discard:
                    stamps.append(stamp)
            whole = next(packets, None) is None
        except av.FFmpegError:
            whole = False
    # Frames are stored out of order: those around the cut have gaps that aren't there.
    return (sorted(stamps), True) if whole else (sorted(stamps)[: _HEAD - 16], False)


def _nothing(
    path: Path, reader: FrameReader | PictureReader, *, start: float, duration: float | None
) -> UserError:
    """Why not a single frame came."""
    if isinstance(reader, PictureReader):
        end, some = reader.end, reader.broken == 0
        reason = f" ({reader.reason})" if reader.reason else ""
    else:
        end, some, reason = probe(path).duration, True, ""
    if not some or (start == 0 and duration is None):
        return UserError(f"{path} holds no frame that can be decoded{reason}; replace the file")
    if start >= end - 1e-3:
        return UserError(
            f"a start of {start:g} s is behind the end of {path}: it lasts {end:.2f} s"
        )
    if duration is None:
        return UserError(f"{path} has no frame from {start:g} s on; ask for an earlier start")
    return UserError(
        f"{path} has no frame from {start:g} s on for {duration:g} s; ask for a longer duration"
    )
