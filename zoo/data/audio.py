"""Sound that goes along: packets copied as they are, cut and shifted with the frames."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

from zoo.data.container import demux, open_container
from zoo.data.reader import FrameReader

_LOG = logging.getLogger(__name__)

# Encoders put samples before time zero that players skip: they belong to a film's beginning.
_PRIMING = 0.2
_SEEKABLE = {"mov", "mp4", "matroska", "webm"}
_SEEK_MARGIN = 2.0


def sound_of(path: Path) -> list[str]:
    """Names of the codecs of a film's sound tracks; empty for images, folders and silent films."""
    try:
        with open_container(path) as container:
            return [_codec(stream) for stream in container.streams.audio]
    except (av.FFmpegError, OSError):
        return []  # an image or a folder: FFmpeg has nothing to say about them


class AudioCopy:
    """Copies a film's sound into another one, packet by packet, without decoding it.

    Tracks the new container can't hold are left out with a warning.

    Args:
        source: the film with the sound.
        target: the container to write; its header isn't written yet.
        path: what the new film is called, for warnings.
        start: seconds; where in the source the new film begins, roughly (`begin` is exact).
        duration: seconds; sound at or after `start + duration` is left out. None: to the end.
    """

    def __init__(
        self,
        source: Path,
        target: OutputContainer,
        *,
        path: Path,
        start: float,
        duration: float | None,
    ) -> None:
        self._target = target
        self._source = source
        self._start = start
        self._end = math.inf if duration is None else start + duration
        self._first = 0.0
        self._held: tuple[Packet[Stream], float] | None = None
        self._streams: dict[int, AudioStream] = {}
        self._shift: dict[int, int] = {}
        self._input: InputContainer | None = None
        self._packets: Generator[tuple[Packet[Stream], float]] | None = None
        if not sound_of(source):
            return
        self._input = open_container(source)
        for stream in self._input.streams.audio:
            try:
                self._streams[stream.index] = target.add_stream_from_template(stream)
            except (ValueError, av.FFmpegError):
                warn_lost(path, source, [_codec(stream)])
        with closing(FrameReader(source)) as reader:
            next(reader, None)
            base = self._input.streams.video[0].time_base or Fraction(1)
            self._origin = (reader.origin or 0) * base

    def __bool__(self) -> bool:
        return bool(self._streams)

    @property
    def codecs(self) -> list[str]:
        """Names of the codecs that are copied."""
        return [_codec(stream) for stream in self._streams.values()]

    def begin(self, first: float) -> None:
        """Say which moment of the source, in seconds, is the new film's beginning."""
        if self._input is None or not self._streams:
            return
        self._first = first
        for stream in self._input.streams.audio:
            base = stream.time_base or Fraction(1)
            self._shift[stream.index] = round((self._origin + Fraction(first)) / base)
        self._packets = self._read(self._input)

    def feed(self, until: float) -> None:
        """Write the packets that begin before `until`, seconds of the source.

        Raises:
            OSError: (or FFmpeg's own) the target can't be written.
        """
        if self._packets is None:
            return
        while True:
            self._held = self._held or next(self._packets, None)
            if self._held is None or self._held[1] >= until:
                return
            packet, time = self._held
            self._held = None
            index = packet.stream_index
            if self._wanted(time):
                shift = self._shift[index]
                packet.pts = None if packet.pts is None else packet.pts - shift
                packet.dts = None if packet.dts is None else packet.dts - shift
                packet.stream = self._streams[index]
                self._target.mux(packet)

    def close(self) -> None:
        """Close the source."""
        if self._packets is not None:
            self._packets.close()
        if self._input is not None:
            self._input.close()

    def _wanted(self, time: float) -> bool:
        first = -_PRIMING if self._first <= 0 else self._first - 1e-6
        return first <= time < self._end

    def _read(self, source: InputContainer) -> Generator[tuple[Packet[Stream], float]]:
        if self._start > _SEEK_MARGIN and _SEEKABLE & set(source.format.name.split(",")):
            source.seek(int((float(self._origin) + self._start - _SEEK_MARGIN) * av.time_base))
        ends: dict[int, int] = {}
        streams = (s for s in source.streams.audio if s.index in self._streams)
        try:
            with demux(source, *streams) as packets:
                for packet in packets:
                    if not packet.size:
                        continue
                    if packet.pts is None:  # some demuxers stamp only the first packet of several
                        packet.pts = packet.dts = ends.get(packet.stream_index)
                    if packet.pts is None:
                        continue
                    ends[packet.stream_index] = packet.pts + (packet.duration or 0)
                    yield packet, float(packet.pts * packet.time_base - self._origin)
        except av.FFmpegError as error:
            _LOG.warning("the sound of %s ends early (%s)", self._source, error)


def warn_lost(path: Path, source: Path, codecs: list[str]) -> None:
    """Log that `path` goes without the sound of `source`, and what would keep it."""
    remedy = "" if path.suffix.lower() == ".mkv" else "; a name that ends in .mkv keeps it"
    _LOG.warning(
        "%s can't hold the sound (%s) of %s and goes without it%s",
        path,
        ", ".join(codecs),
        source,
        remedy,
    )


def _codec(stream: AudioStream) -> str:
    return stream.codec_context.name if stream.codec_context is not None else "unknown codec"
