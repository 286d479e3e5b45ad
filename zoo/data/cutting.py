"""Cutting films into clips: packets are copied where a cut is possible, and encoded anew elsewhere.

A cut needs a key frame that nothing behind it looks past. Sound is left out.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.packet import Packet

from zoo.data.container import Encoded, open_video
from zoo.data.film import FilmInfo
from zoo.data.reader import FrameReader
from zoo.data.video import VideoInfo, probe
from zoo.data.writer import VideoWriter
from zoo.errors import RunError, UserError

_STRETCH = 2  # clips up to so many times as long as asked for are copied rather than encoded anew
_IN_MP4 = {"h264", "hevc", "av1", "mpeg4"}


class Piece(NamedTuple):
    """A part of a film.

    Attributes:
        first, end: time stamps [first, end) in the stream's time base; a copied piece has the
            packets from `first`'s on, in the order of decoding, up to `end`'s. None: the film's
            own beginning or end.
        start: seconds from the first frame.
        seconds: how long it is.
        copied: whether its packets are copied.
    """

    first: int | None
    end: int | None
    start: float
    seconds: float
    copied: bool


@dataclass(frozen=True)
class CutFilm:
    """A clip that was cut out: the file, its ending, and what it holds."""

    data: bytes
    kind: str
    info: VideoInfo
    copied: bool


def plan(path: Path, *, seconds: float) -> list[Piece]:
    """Where to cut a film into clips of about `seconds`; reads it once and decodes nothing.

    Raises:
        UserError: not a film, or no packet in it.
    """
    container, stream = open_video(path)
    packets: list[tuple[int, bool]] = []
    end = 0
    even = True
    with container:
        base = stream.time_base or Fraction(1, 90_000)
        try:
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                if packet.pts is None or packet.dts is None:
                    even = False
                    continue
                packets.append((packet.pts, packet.is_keyframe))
                end = max(end, packet.pts + (packet.duration or 0))
        except av.FFmpegError:
            even = False  # the reader steps over what is damaged; copying would keep it
    if not packets:
        raise UserError(f"{path} holds no packet with a time: remove or replace it")
    origin = min(pts for pts, _ in packets)
    length = float((end - origin) * base)
    if not even or not packets[0][1]:
        return _even_pieces(0.0, length, seconds)
    cuts = _possible_cuts(packets)
    marks: list[int] = [origin]
    for cut in cuts:
        if float((cut - marks[-1]) * base) >= seconds - 1e-6:
            marks.append(cut)
    pieces: list[Piece] = []
    for number, (first, behind) in enumerate(pairwise([*marks, None])):
        assert first is not None
        start = float((first - origin) * base)
        stop = length if behind is None else float((behind - origin) * base)
        if stop - start > _STRETCH * seconds:
            pieces += _even_pieces(start, stop, seconds)
        else:
            begin = None if number == 0 else first
            pieces.append(Piece(begin, behind, start, stop - start, copied=True))
    # a short rest belongs to the clip before it
    if len(pieces) > 1 and pieces[-1].seconds < seconds / 2:
        last, before = pieces[-1], pieces[-2]
        if last.copied and before.copied and last.seconds + before.seconds <= _STRETCH * seconds:
            both = before.seconds + last.seconds
            pieces[-2:] = [Piece(before.first, last.end, before.start, both, copied=True)]
    return pieces


def _even_pieces(start: float, stop: float, seconds: float) -> list[Piece]:
    count = max(1, round((stop - start) / seconds))
    each = (stop - start) / count
    return [Piece(None, None, start + i * each, each, copied=False) for i in range(count)]


def _possible_cuts(packets: list[tuple[int, bool]]) -> list[int]:
    """Time stamps of key frames that all frames stored after them are shown after."""
    cuts = []
    latest = max(pts for pts, _ in packets) + 1
    for pts, key in reversed(packets):
        if key and pts < latest:
            cuts.append(pts)
        latest = min(latest, pts)
    first = packets[0][0]
    return [pts for pts in reversed(cuts) if pts > first]


def cut(path: Path, pieces: list[Piece]) -> Iterator[CutFilm]:
    """The clips of successive pieces of a film, one after the other.

    Raises:
        UserError: the film can't be read, or a piece holds no frame that can be decoded.
        RunError: it has changed since the pieces were planned.
    """
    for piece in pieces:
        made = None
        if piece.copied:
            try:
                made = _copy(path, piece)
            except (av.FFmpegError, ValueError, UserError):
                made = None  # the container can't hold it, or it doesn't decode on its own
        yield made or _encode(path, piece)


def _copy(path: Path, piece: Piece) -> CutFilm:
    container, stream = open_video(path)
    out = io.BytesIO()
    kind, muxer = ("mp4", "mp4") if stream.codec.name in _IN_MP4 else ("mkv", "matroska")
    with container, av.open(out, "w", format=muxer) as target:
        written: Any = target.add_stream_from_template(stream)
        for packet in _packets(container, stream, piece):
            shift = piece.first
            if shift is not None:
                assert packet.pts is not None and packet.dts is not None
                packet.pts -= shift
                packet.dts -= shift
            packet.stream = written
            target.mux(packet)
    data = out.getvalue()
    info = probe(Encoded(f"a clip of {path}", data))
    return CutFilm(data, kind, info, copied=True)


def _packets(container: Any, stream: Any, piece: Piece) -> Iterator[Packet[Any]]:
    for attempt in ("seek", "from the beginning"):
        if piece.first is not None and attempt == "seek":
            container.seek(piece.first, stream=stream)
        elif piece.first is not None:
            container.seek(0)
        inside = False
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            starts = piece.first is None or (packet.is_keyframe and packet.pts == piece.first)
            if not inside and starts:
                inside = True
            elif not inside and packet.pts > piece.first + 10 / stream.time_base:
                break  # the seek went too far
            if inside and piece.end is not None and packet.is_keyframe and packet.pts == piece.end:
                return
            if inside:
                yield packet
        if inside:
            return
    raise RunError("the key frame to cut at is gone: the film has changed")


def _encode(path: Path, piece: Piece) -> CutFilm:
    with (
        tempfile.TemporaryDirectory() as scratch,
        closing(
            FrameReader(path, start=piece.start, duration=piece.seconds, threads=False)
        ) as reader,
    ):
        target = Path(scratch) / "clip.mp4"
        writer = None
        for frame in reader:
            if writer is None:
                height, width, _ = frame.rgb.shape
                rate = Fraction(1 / reader.gap).limit_denominator(1001)
                assert reader.colour is not None
                like = FilmInfo(
                    width,
                    height,
                    rate,
                    colour=reader.colour,
                    pixel_aspect=reader.pixel_aspect,
                    time_base=Fraction(1, 90_000),
                )
                writer = VideoWriter(target, width=width, height=height, rate=rate, like=like)
            writer.write(frame.rgb, frame.time - piece.start)
        if writer is None:
            raise UserError(f"{path} has no frame that can be decoded from {piece.start:.1f} s on")
        writer.close()
        data = target.read_bytes()
    return CutFilm(data, "mp4", probe(Encoded(f"a clip of {path}", data)), copied=False)
