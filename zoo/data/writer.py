"""Exact film writing: every frame written is in the file, at the time and size asked for."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from zoo.data.audio import AudioCopy, sound_of, warn_lost
from zoo.data.colour import Colour
from zoo.data.frame_writer import FrameWriter
from zoo.data.picture_writers import IMAGE_FORMATS, FolderWriter, GifWriter, ImageWriter
from zoo.errors import UserError

if TYPE_CHECKING:
    from zoo.data.film import FilmInfo

WRITER_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")


def open_writer(
    path: str | Path,
    *,
    width: int,
    height: int,
    rate: Fraction,
    like: FilmInfo | None = None,
    audio_from: str | Path | None = None,
    start: float = 0.0,
    duration: float | None = None,
    lossless: bool = False,
    quality: int = 16,
) -> FrameWriter:
    """The writer for what `path` names.

    | name | what it is |
    |---|---|
    | .mp4 .mov .m4v .mkv | an h264 film, with sound |
    | .gif | an animated GIF: 256 colours a frame, at most 50 frames a second |
    | .png .jpg .jpeg .webp .bmp .tif .tiff | one image: a second frame is refused |
    | no suffix, or an empty folder | a folder of PNGs, 000001.png and on |

    Args:
        path: what to write; an old file there is replaced at the end, a folder that holds
            anything is refused.
        width: pixels.
        height: pixels.
        rate: frames a second, exact; frames written with a time don't need it to be right.
        like: the film the frames came from: its colour matrix, range, pixel aspect and time base
            are kept. None: what is usual at this height, counted in frames.
        audio_from: a film whose sound is copied, packet by packet, cut to where the frames are.
        start: seconds; where in that film the frames begin (frames with a time are more exact).
        duration: seconds of sound. None: to its end.
        lossless: every RGB value is kept exactly; formats that can't are refused.
        quality: of h264: x264's constant rate factor, 0 (best) to 51.

    Raises:
        UserError: it can't be written there or so; nothing was left behind.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in WRITER_SUFFIXES and not path.is_dir():
        return VideoWriter(
            path,
            width=width,
            height=height,
            rate=rate,
            quality=quality,
            lossless=lossless,
            like=like,
            audio_from=audio_from,
            start=start,
            duration=duration,
        )
    writer: FrameWriter
    if suffix == ".gif":
        writer = GifWriter(path, width=width, height=height, rate=rate, lossless=lossless)
    elif suffix in IMAGE_FORMATS:
        writer = ImageWriter(path, width=width, height=height, rate=rate, lossless=lossless)
    elif not suffix or path.is_dir():
        writer = FolderWriter(path, width=width, height=height, rate=rate)
    else:
        raise UserError(
            f"{path} can't be written: end its name in one of {', '.join(WRITER_SUFFIXES)} "
            f"(a film), .gif, {', '.join(IMAGE_FORMATS)} (one image), or in none (a folder)"
        )
    codecs = [] if audio_from is None else sound_of(Path(audio_from))
    if audio_from is not None and codecs:
        warn_lost(path, Path(audio_from), codecs)
    return writer


class VideoWriter(FrameWriter):
    """Write an h264 film frame by frame, with the sound of another one.

    Args:
        path: the film to write: .mp4, .mov, .m4v or .mkv; an old file there is replaced at the end.
        width: pixels.
        height: pixels.
        rate: frames a second, exact (`Fraction(30000, 1001)`).
        quality: x264's constant rate factor, 0 (best) to 51.
        lossless: keep every RGB value exactly (RGB h264: large, and not every player shows it).
        like: see `open_writer`.
        audio_from: see `open_writer`.
        start: see `open_writer`.
        duration: see `open_writer`.

    Raises:
        UserError: before any frame is asked for, when the film can't be written there or so.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        width: int,
        height: int,
        rate: Fraction,
        quality: int = 16,
        lossless: bool = False,
        like: FilmInfo | None = None,
        audio_from: str | Path | None = None,
        start: float = 0.0,
        duration: float | None = None,
    ) -> None:
        if Path(path).suffix.lower() not in WRITER_SUFFIXES:
            known = ", ".join(WRITER_SUFFIXES)
            raise UserError(f"{path} can't be written as a film; end its name in {known}")
        if not 0 <= quality <= 51:
            raise UserError(f"quality {quality} is outside 0 (best) to 51; 16 looks lossless")
        base = (
            like.time_base if like is not None else 1 / Fraction(rate) if rate > 0 else Fraction(1)
        )
        super().__init__(path, width=width, height=height, rate=rate, base=base)
        self._touch()
        self._colour = like.colour if like is not None else Colour.standard(height)
        self._aspect = like.pixel_aspect if like is not None else Fraction(1)
        self._scaler = VideoReformatter()
        self._format = "rgb24" if lossless else "yuv444p" if width % 2 or height % 2 else "yuv420p"
        self._start = start
        source = None if audio_from is None else Path(audio_from)
        try:
            self._open(quality=0 if lossless else quality, source=source, duration=duration)
        except BaseException:
            self.discard()
            raise

    def _open(self, *, quality: int, source: Path | None, duration: float | None) -> None:
        height, width, _ = self._shape
        lossless = self._format == "rgb24"
        self._audio: AudioCopy | None = None
        self._container = av.open(str(self._part.absolute()), "w")
        try:
            stream = self._container.add_stream(
                "libx264rgb" if lossless else "libx264",
                rate=self._rate,
                # a fifth less work than x264's default, in as many bytes and within 0.1 dB
                options={"crf": str(quality), "preset": "fast"},
                width=width,
                height=height,
                time_base=self._base,
            )
            stream.pix_fmt = self._format
            context = stream.codec_context
            context.sample_aspect_ratio = self._aspect
            context.color_primaries = self._colour.primaries
            context.color_trc = self._colour.transfer
            if not lossless:
                context.colorspace = self._colour.matrix
                context.color_range = 2 if self._colour.full else 1
            self._stream = stream
            if source is not None:
                self._audio = AudioCopy(
                    source,
                    self._container,
                    path=self.path,
                    start=self._start,
                    duration=duration,
                )
            # Writing the header opens the encoder: impossible settings show up now.
            self._container.start_encoding()
        except UserError:
            raise
        except (av.FFmpegError, ValueError, OverflowError) as error:
            if source is not None and self._audio:
                # The header may refuse what the container's list of codecs promised.
                warn_lost(self.path, source, self._audio.codecs)
                self._abandon()
                return self._open(quality=quality, source=None, duration=duration)
            raise UserError(
                f"h264 can't hold {width}x{height} pixels at {self._rate} frames a second "
                f"({error}); choose another size or rate"
            ) from error

    def _append(self, rgb: NDArray[np.uint8], stamp: int) -> None:
        if self._format == "rgb24":
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        else:
            frame = self._colour.from_rgb(rgb, self._scaler, format=self._format)
        frame.pts = stamp
        frame.time_base = self._base
        # The last frame has no successor that would say how long it is shown.
        frame.duration = self._gap
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        if self._audio is not None:
            begin = self._first or self._start  # the frames' own clock is the more exact one
            if not self.frames:
                self._audio.begin(begin)
            self._audio.feed(begin + float(stamp * self._base))

    def _finish(self) -> None:
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        if self._audio is not None:
            self._audio.feed(float("inf"))
            self._audio.close()
        self._container.close()

    def _drop(self) -> None:
        self._abandon()
        super()._drop()

    def _abandon(self) -> None:
        with suppress(av.FFmpegError, OSError):  # the unfinished film is deleted anyway
            self._container.close()
        if self._audio is not None:
            self._audio.close()
