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
import numpy as np
from numpy.typing import NDArray

from zoo.data.container import Encoded, demux, film_rate, open_video
from zoo.data.film import FilmInfo
from zoo.data.reader import FrameReader
from zoo.data.video import VideoInfo, probe
from zoo.data.writer import VideoWriter
from zoo.errors import RunError, UserError

_STRETCH = 2  # clips up to so many times as long as asked for are copied rather than encoded anew
_SLACK = 1e-4  # seconds
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
    last_shown_for, whole = 0, True
    with container:
        base = stream.time_base or Fraction(1, 90_000)
        rate = film_rate(stream)
        try:
            with demux(container, stream) as found:
                for packet in found:
                    if packet.size and not packet.is_discard:
                        stamp = packet.pts if packet.pts is not None else packet.dts
                        whole = whole and packet.pts is not None and not packet.is_corrupt
                        packets += [] if stamp is None else [(stamp, packet.is_keyframe)]
                        last_shown_for = packet.duration or last_shown_for
        except av.FFmpegError:
            whole = False  # a reader steps over what is damaged; a copy would keep it
    if not packets:
        raise UserError(f"{path} holds no packet with a time: remove or replace it")
    stamps = np.unique([stamp for stamp, _ in packets])
    times = (stamps - stamps[0]) * float(base)
    length = float(times[-1]) + (float(last_shown_for * base) or 1 / float(rate))
    if not whole or not packets[0][1] or len(stamps) < len(packets):
        return _even_pieces(times, 0.0, length, seconds)
    marks = [int(stamps[0])]
    for key in _possible_cuts(packets):
        if float((key - marks[-1]) * base) >= seconds - 1e-6:
            marks.append(key)
    ends = [float((mark - stamps[0]) * base) for mark in marks] + [length]
    if len(marks) > 1 and ends[-1] - ends[-2] < seconds / 2:  # a short rest joins what is before
        del marks[-1], ends[-2]
    pieces: list[Piece] = []
    for number, (start, stop) in enumerate(pairwise(ends)):
        if stop - start > _STRETCH * seconds:
            pieces += _even_pieces(times, start, stop, seconds)
        else:
            begin = marks[number] if number else None
            behind = marks[number + 1] if number + 1 < len(marks) else None
            pieces.append(Piece(begin, behind, start, stop - start, copied=True))
    return pieces


def _even_pieces(
    times: NDArray[np.float64], start: float, stop: float, seconds: float
) -> list[Piece]:
    """Pieces to be encoded anew; they meet halfway between two frames, so that none is doubted."""
    inside = times[(times >= start - _SLACK) & (times < stop - _SLACK)]
    count = min(max(1, round((stop - start) / seconds)), len(inside))
    firsts = [int(i) for i in np.linspace(0, len(inside), count, endpoint=False)]
    # the neighbours' pieces begin or end exactly at key frames, half a gap away
    ends = [float(inside[i - 1] + inside[i]) / 2 if i else start - _SLACK for i in firsts]
    ends.append(stop - _SLACK if stop <= times[-1] else stop + 1)
    return [
        Piece(None, None, max(0.0, a), b - max(0.0, a), copied=False) for a, b in pairwise(ends)
    ]


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
        packets = _packets(container, stream, piece)
        shown = sorted(packet.pts for packet in packets)
        # Matroska has no decoding times: in order, and no frame decoded after it is shown
        delay = max(order - packet.pts for order, packet in zip(shown, packets, strict=True))
        for order, packet in zip(shown, packets, strict=True):
            packet.dts = order - delay - shown[0]
            packet.pts -= shown[0]
            packet.stream = written
            target.mux(packet)
    data = out.getvalue()
    info = probe(Encoded(f"a clip of {path}", data))
    if info.frames != len(packets):
        raise UserError(f"a clip of {path} has {info.frames} frames where {len(packets)} were cut")
    return CutFilm(data, kind, info, copied=True)


def _packets(container: Any, stream: Any, piece: Piece) -> list[Any]:
    """The packets of a piece; found by a seek, or from the film's beginning on where that fails."""
    for target in [piece.first, None]:
        if target is not None:
            container.seek(target, stream=stream)
        elif piece.first is not None:
            container.seek(0)
        inside: list[Any] = []
        with demux(container, stream) as packets:
            for packet in packets:
                if not packet.size or packet.is_discard:
                    continue
                edge = packet.pts if packet.is_keyframe else None
                if inside and piece.end is not None and edge == piece.end:
                    return inside
                if inside or piece.first is None or edge == piece.first:
                    inside.append(packet)
        if inside and piece.end is None:
            return inside
    raise RunError(f"the key frames to cut {container.name} at are gone: the film has changed")


def _encode(path: Path, piece: Piece) -> CutFilm:
    with (
        tempfile.TemporaryDirectory() as scratch,
        closing(
            FrameReader(path, start=piece.start, duration=piece.seconds, threads=False)
        ) as reader,
    ):
        target = Path(scratch) / "clip.mp4"
        writer, first = None, 0.0
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
                first = frame.time
            writer.write(frame.rgb, frame.time - first)
        if writer is None:
            raise UserError(f"{path} has no frame that can be decoded from {piece.start:.1f} s on")
        writer.close()
        data = target.read_bytes()
    return CutFilm(data, "mp4", probe(Encoded(f"a clip of {path}", data)), copied=False)
