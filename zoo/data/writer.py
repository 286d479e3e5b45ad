"""Exact film writing: every frame written is in the file, at the rate and size asked for."""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from zoo.data.container import SCALER, matrix_for
from zoo.errors import RunError, UserError

WRITER_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")

_LIMITED = 1  # AVCOL_RANGE_MPEG
_BT709, _SMPTE170M = 1, 6  # the same numbers for matrix, primaries and transfer curve


class VideoWriter:
    """Write an h264 film frame by frame; a context manager.

    The film is written under a temporary name in the same folder and gets its own name when the
    block ends without an exception; otherwise nothing is left behind.

    Args:
        path: the film to write: .mp4, .mov, .m4v or .mkv; an old file there is replaced at the end.
        width: pixels.
        height: pixels.
        rate: frames a second, exact (`Fraction(30000, 1001)`).
        quality: x264's constant rate factor, 0 (best) to 51.
        lossless: keep every RGB value exactly (RGB h264: large, and not every player shows it).

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
    ) -> None:
        self.path = Path(path)
        self.frames = 0
        if self.path.suffix.lower() not in WRITER_SUFFIXES:
            known = ", ".join(WRITER_SUFFIXES)
            raise UserError(f"{self.path} can't be written as a film; end its name in {known}")
        if not self.path.parent.is_dir():
            raise UserError(f"the folder {self.path.parent} doesn't exist; create it first")
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; name a film inside it")
        if width < 1 or height < 1:
            raise UserError(f"a film of {width}x{height} pixels can't be written; use at least 1x1")
        if rate <= 0:
            raise UserError(f"a rate of {rate} frames a second can't be written; use more than 0")
        if not 0 <= quality <= 51:
            raise UserError(f"quality {quality} is outside 0 (best) to 51; 16 looks lossless")
        self._shape = (height, width, 3)
        # The suffix stays last so that the container is recognised; the dot hides it from folders.
        self._part = self.path.with_name(f".{self.path.stem}.part{self.path.suffix}")
        self._matrix = matrix_for(height)
        self._scaler = VideoReformatter()
        self._format = "rgb24" if lossless else "yuv444p" if width % 2 or height % 2 else "yuv420p"
        self._rate = Fraction(rate)
        self._open(self._rate, quality=0 if lossless else quality)

    def _open(self, rate: Fraction, *, quality: int) -> None:
        height, width, _ = self._shape
        lossless = self._format == "rgb24"
        try:
            self._part.open("wb").close()
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror}); choose another folder"
            ) from error
        self._container = av.open(str(self._part), "w")
        try:
            stream = self._container.add_stream(
                "libx264rgb" if lossless else "libx264",
                rate=rate,
                options={"crf": str(quality)},
                width=width,
                height=height,
                time_base=1 / rate,
            )
            stream.pix_fmt = self._format
            if not lossless:
                context = stream.codec_context
                tag = _BT709 if self._matrix == Colorspace.ITU709 else _SMPTE170M
                context.colorspace = context.color_primaries = context.color_trc = tag
                context.color_range = _LIMITED
            self._stream = stream
            # Writing the header opens the encoder: impossible settings show up now.
            self._container.start_encoding()
        except (av.FFmpegError, ValueError, OverflowError) as error:
            self._discard()
            raise UserError(
                f"h264 can't hold {width}x{height} pixels at {rate} frames a second ({error}); "
                "choose another size or rate"
            ) from error

    def __enter__(self) -> Self:
        return self

    def write(self, rgb: NDArray[np.uint8]) -> None:
        """Append one frame.

        Args:
            rgb: uint8 [H, W, 3], H and W as given to the writer.

        Raises:
            RunError: the disk is full or gone.
        """
        assert rgb.dtype == np.uint8, f"a frame must be uint8, got {rgb.dtype}"
        assert rgb.shape == self._shape, f"a frame must be {self._shape}, got {rgb.shape}"
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        if self._format != "rgb24":
            frame = self._scaler.reformat(
                frame,
                format=self._format,
                dst_colorspace=self._matrix,
                dst_color_range=ColorRange.MPEG,
                interpolation=SCALER,
                threads=1,
            )
        frame.pts = self.frames
        frame.time_base = 1 / self._rate
        frame.duration = 1  # the last frame has no successor that would say how long it is shown
        self._encode(frame)
        self.frames += 1

    def _encode(self, frame: VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
            if frame is None:
                self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise RunError(f"{self.path} can't be written any further ({error})") from error

    def close(self) -> None:
        """Finish the film and give it its name.

        Raises:
            UserError: no frame was written.
            RunError: the disk is full or gone.
        """
        try:
            if not self.frames:
                raise UserError(f"{self.path} would be a film without frames; give it at least one")
            self._encode(None)
            os.replace(self._part, self.path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        with suppress(av.FFmpegError, OSError):  # the unfinished film is deleted anyway
            self._container.close()
        self._part.unlink(missing_ok=True)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self._discard()
