"""Films written as GIFs, as folders of PNGs and, when they have one frame, as an image."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from zoo.data.frame_writer import FrameWriter
from zoo.errors import UserError

# How PIL writes each: JPEG keeps its full colour resolution; PNG trades a few bytes for speed.
IMAGE_FORMATS: dict[str, tuple[str, dict[str, int]]] = {
    ".png": ("PNG", {"compress_level": 3}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}
_TICK = Fraction(1, 100)  # GIFs count in hundredths of a second
_GIF_RATE = 50  # viewers slow down what is faster


class GifWriter(FrameWriter):
    """An animated GIF whose every frame has its own 256 colours; see `open_writer`."""

    def __init__(
        self, path: str | Path, *, width: int, height: int, rate: Fraction, lossless: bool = False
    ) -> None:
        if lossless:
            raise UserError(
                f"{path}: a GIF holds 256 colours a frame and can't be lossless; "
                "name a .mkv or a folder"
            )
        if rate > _GIF_RATE:
            raise UserError(
                f"{path}: a GIF can't show {float(rate):g} frames a second; ask for at most "
                f"{_GIF_RATE}"
            )
        super().__init__(path, width=width, height=height, rate=rate, base=_TICK)
        self._least = 2  # viewers slow down a frame that is shown for a single tick
        self._touch()
        self._container = av.open(str(self._part.absolute()), "w")
        try:
            stream = self._container.add_stream(
                "gif", rate=self._rate, width=width, height=height, time_base=_TICK
            )
            stream.pix_fmt = "pal8"
            self._stream = stream
            self._graph = _palette_graph(width, height)
            self._container.start_encoding()
        except (av.FFmpegError, ValueError, OverflowError) as error:
            self.discard()
            raise UserError(
                f"a GIF can't hold {width}x{height} pixels ({error}); choose another size"
            ) from error

    def _append(self, rgb: NDArray[np.uint8], stamp: int) -> None:
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame.pts, frame.time_base, frame.duration = stamp, _TICK, self._gap
        self._graph.push(frame)
        self._drain()

    def _finish(self) -> None:
        self._graph.push(None)
        self._drain()
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()

    def _drain(self) -> None:
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            assert isinstance(frame, VideoFrame)
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    def _drop(self) -> None:
        with suppress(av.FFmpegError, OSError):  # the unfinished film is deleted anyway
            self._container.close()
        super()._drop()


def _palette_graph(width: int, height: int) -> Graph:
    """FFmpeg filters: choose 256 colours for each frame, then spread the error of using them."""
    graph = Graph()
    source = graph.add_buffer(
        width=width, height=height, format=VideoFormat("rgb24"), time_base=_TICK
    )
    split = graph.add("split")
    choose = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(choose, 0, 0)
    split.link_to(use, 1, 0)
    choose.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


class ImageWriter(FrameWriter):
    """One image; see `open_writer`."""

    def __init__(
        self, path: str | Path, *, width: int, height: int, rate: Fraction, lossless: bool = False
    ) -> None:
        self._kind, self._options = IMAGE_FORMATS[Path(path).suffix.lower()]
        if lossless and self._kind == "JPEG":
            raise UserError(f"{path}: a JPEG can't be lossless; name a .png")
        if lossless and self._kind == "WEBP":
            self._options = {"lossless": 1}
        super().__init__(path, width=width, height=height, rate=rate, base=1 / Fraction(rate or 1))
        self._touch()

    def _append(self, rgb: NDArray[np.uint8], stamp: int) -> None:
        if self.frames:
            raise UserError(
                f"{self.path} holds one frame and the film has more; name a film (.mp4), a .gif "
                "or a folder"
            )
        Image.fromarray(rgb).save(self._part, self._kind, **self._options)


class FolderWriter(FrameWriter):
    """A folder of PNGs, 000001.png and on; see `open_writer`."""

    def __init__(self, path: str | Path, *, width: int, height: int, rate: Fraction) -> None:
        super().__init__(path, width=width, height=height, rate=rate, base=1 / Fraction(rate or 1))
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; name a folder, or a film such as .mp4")
        try:
            if self.path.is_dir() and any(self.path.iterdir()):
                raise UserError(f"the folder {self.path} isn't empty; name a new one")
            if self._part.exists():  # of a run that was killed
                shutil.rmtree(self._part)
            self._part.mkdir()
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror}); choose another folder"
            ) from error

    def _append(self, rgb: NDArray[np.uint8], stamp: int) -> None:
        kind, options = IMAGE_FORMATS[".png"]
        file = self._part / f"{self.frames + 1:06d}.png"
        Image.fromarray(rgb).save(file, kind, **options)

    def _publish(self) -> None:
        if self.path.is_dir():
            self.path.rmdir()  # not every system renames over an empty folder
        os.replace(self._part, self.path)

    def _drop(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
