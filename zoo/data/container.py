"""Opening films with PyAV: the first video stream, its rate, its orientation."""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from zoo.data.limits import MAX_PIXELS, check_pixels
from zoo.errors import UserError

_MP4_SUFFIXES = (".mp4", ".mov", ".m4v")
# What FFmpeg may take a file for. Its other formats name further files or addresses and open them
# (playlists, concat, sdp), speak to devices or the network, or are rarely kept in repair.
_FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "asf", "ogg"),
    *("mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc", "av1", "obu", "ivf", "nut", "mxf"),
    *("dv", "gif", "apng", "yuv4mpegpipe", "wav", "mp3", "aac", "flac"),
)
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(_FORMATS),
    "max_pixels": str(MAX_PIXELS),  # FFmpeg may decode a frame only to know its format
}


@dataclass(frozen=True)
class Encoded:
    """A film in memory: its bytes, and what messages call it."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


def open_container(source: Path | Encoded) -> InputContainer:
    """FFmpeg's view of a film, held to formats and sizes that can do no harm.

    Raises:
        OSError, av.FFmpegError: it can't be opened.
    """
    # absolute: a relative name such as concat:a.mp4 would be an address to FFmpeg
    place: Any = io.BytesIO(source.data) if isinstance(source, Encoded) else str(source.absolute())
    container: InputContainer = av.open(place, "r", metadata_errors="ignore", options=_OPTIONS)
    return container


def open_video(
    path: Path | Encoded, *, threads: bool = False
) -> tuple[InputContainer, VideoStream]:
    """Open a film's first video stream; the caller closes the container.

    Args:
        path: the film.
        threads: decode in as many threads as there are cores. Loaders don't: they run one decoder
            a worker, and without threads errors belong to the packet at hand.

    Raises:
        UserError: no such file, or nothing in it that can be decoded as a film.
    """
    if isinstance(path, Path) and not path.is_file():
        raise UserError(f"there is no film at {path}; check the path")
    try:
        container = open_container(path)
    except (av.FFmpegError, OSError) as error:
        if Path(str(path)).suffix.lower() in _MP4_SUFFIXES and _index_is_missing(path):
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
    try:
        check_pixels(stream.codec_context.width, stream.codec_context.height, path)
    except UserError:
        container.close()
        raise
    # frames later on may be larger than the header says
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    stream.thread_type = "AUTO" if threads else "NONE"
    return container, stream


def demux(container: InputContainer, *streams: Stream) -> closing[Generator[Packet[Stream]]]:
    """A film's packets, closed at the end of a `with`.

    PyAV 18 frees a loop's packet when its generator ends or is closed, not when it is dropped (nor
    does its `container.decode` close it): 170 bytes a loop that is left early, so scattered that a
    loader's heap grew by 6 kB a clip.

    Args:
        container: an open film.
        streams: whose packets; none: all.
    """
    packets: Any = container.demux(*streams)
    return closing(packets)


def _index_is_missing(source: Path | Encoded) -> bool:
    """Whether the file starts like an mp4 and none of its boxes is the index (ISO 14496-12)."""
    kinds = []
    opened = io.BytesIO(source.data) if isinstance(source, Encoded) else source.open("rb")
    with opened as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
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
    # not frame.side_data: in PyAV 18 frame and side data then wait for the garbage collector
    collected: Any = SideDataContainer
    side = collected(frame).get("DISPLAYMATRIX")
    if not isinstance(side, Buffer):
        return 1, 0, 0, 1
    matrix = np.frombuffer(bytes(side), dtype=np.int32)
    a, b, c, d = (int(np.sign(matrix[i])) for i in (0, 1, 3, 4))
    # Anything but the eight upright orientations (a sheared or empty matrix) is left alone.
    if (a and d and not b and not c) or (b and c and not a and not d):
        return a, b, c, d
    return 1, 0, 0, 1
