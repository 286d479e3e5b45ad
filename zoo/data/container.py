"""Opening films with PyAV: the first video stream, its rate, its orientation."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from zoo.errors import UserError

_MP4_SUFFIXES = (".mp4", ".mov", ".m4v")


def open_video(path: Path, *, threads: bool = False) -> tuple[InputContainer, VideoStream]:
    """Open a film's first video stream; the caller closes the container.

    Args:
        path: the film.
        threads: decode in as many threads as there are cores. Loaders don't: they run one decoder
            a worker, and without threads errors belong to the packet at hand.

    Raises:
        UserError: no such file, or nothing in it that can be decoded as a film.
    """
    if not path.is_file():
        raise UserError(f"there is no film at {path}; check the path")
    try:
        container = av.open(str(path), "r", metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        if path.suffix.lower() in _MP4_SUFFIXES and _index_is_missing(path):
            raise UserError(
                f"{path} was cut off: its index (the moov box, written last) is missing, so "
                "nothing in it can be decoded; copy the file again"
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} can't be read as a film ({reason}); remove or replace it"
        ) from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        container.close()
        raise UserError(f"{path} holds no film that can be decoded; remove or replace it")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO" if threads else "NONE"
    return container, stream


def _index_is_missing(path: Path) -> bool:
    """Whether the file starts like an mp4 and none of its boxes is the index (ISO 14496-12)."""
    kinds = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while file.tell() + 8 <= size:
            start = file.tell()
            length, kind = int.from_bytes(file.read(4)), file.read(4)
            if length == 1:
                length = int.from_bytes(file.read(8))
            kinds.append(kind)
            if length < 8:  # 0: to the end of the file; others: not an mp4 at all
                break
            file.seek(start + length)
    return bool(kinds) and kinds[0] == b"ftyp" and b"moov" not in kinds


def film_rate(stream: VideoStream) -> Fraction:
    """The rate the container announces, frames a second; 25 where it announces none."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def stamp_of(frame: VideoFrame) -> int | None:
    """A decoded frame's time stamp in its stream's time base, None where it has none."""
    stamp: int | None = frame.pts if frame.pts is not None else frame.dts
    return stamp


def orientation(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Signs of the display matrix: x' = a x + c y, y' = b x + d y (identity when there is none)."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(side, Buffer):
        return 1, 0, 0, 1
    matrix = np.frombuffer(bytes(side), dtype=np.int32)
    a, b, c, d = (int(np.sign(matrix[i])) for i in (0, 1, 3, 4))
    # Anything but the eight upright orientations (a sheared or empty matrix) is left alone.
    if (a and d and not b and not c) or (b and c and not a and not d):
        return a, b, c, d
    return 1, 0, 0, 1
