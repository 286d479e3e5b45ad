"""Images as films: single files, folders in natural order, animated PNGs and WebPs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zoo.data.colour import Colour, over_black
from zoo.data.limits import DAMAGE, open_image
from zoo.data.reader import Frame, nearest
from zoo.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
RATE = Fraction(25)  # of images without a time of their own

_PLAIN_MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_WIDE_MODES = {"I;16", "I;16L", "I;16B", "I;16N"}
_SLACK = 1e-6


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] of an image, upright by its EXIF tag, transparency over black.

    Grey of 16 bits is rounded to 8; PIL gives colour of 16 bits by its upper 8. Colour profiles
    aren't applied.

    Raises:
        UserError: numbers without a known white (32-bit integers, floats).
        OSError: the file is damaged.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_MODES:
        grey = np.asarray(image).astype(np.uint32)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return over_black(np.asarray(image.convert("RGBA"), dtype=np.uint8))
    if image.mode not in _PLAIN_MODES:
        raise UserError(
            f"pixels of PIL's mode {image.mode} have no known white; save it with 8 or 16 bits"
        )
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A sort key that puts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts] + [(0, path.name)]


class PictureReader(Iterator[Frame]):
    """An iterator over the frames of images; only the frames that come out are decoded.

    Args:
        path: an image, or a folder whose images are the frames, in natural order.
        start: as in `FrameReader`.
        duration: as in `FrameReader`.
        rate: frames a second. Images with a time of their own (animations) are resampled to it;
            others are shown at it. None: the animation's own times, 25 frames a second for others.
        size: as in `FrameReader`.

    Attributes:
        broken: images that couldn't be decoded so far.
        reason: what was wrong with the last of them.
        truncated: whether an animation ended early.
        colour: what is usual at this height.
        full_size: (width, height) before scaling, upright.
        times: float64 [N], seconds each frame of the whole begins at.
        timed: whether the times are the file's own.
        end: seconds; the end of the last frame.

    Raises:
        UserError: no image there, or images of different sizes.
    """

    def __init__(
        self,
        path: Path,
        *,
        start: float = 0.0,
        duration: float | None = None,
        rate: Fraction | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.path = path
        self.broken = 0
        self.reason = ""
        self.truncated = False
        self.timed = False
        self._size = size
        self._image: Image.Image | None = None
        self._files = [path]
        if path.is_dir():
            found = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
            self._files = sorted((f for f in found if f.name[0] != "."), key=natural_order)
            if not self._files:
                raise UserError(f"the folder {path} holds no images; name a film or such a folder")
        self.full_size = self._common_size()
        self.colour = Colour.standard(self.full_size[1])
        frames = len(self._files) if path.is_dir() else self._animate()
        if not self.timed:
            self.times = np.arange(frames) / float(rate or RATE)
            self.end = frames / float(rate or RATE)
        last = math.inf if duration is None else start + duration
        items = zip(range(len(self.times)), self.times.tolist(), strict=True)
        if self.timed and rate is not None:
            # The frame shown at `start` begins before it: nearest needs them all, which is cheap.
            gap = self.end - float(self.times[-1])
            self._picked = nearest(items, start=start, rate=rate, end=last, gap=lambda: gap)
        else:
            chosen = (i for i in items if start - _SLACK <= i[1] < last - _SLACK)
            self._picked = iter(list(chosen))
        self._latest: tuple[int, NDArray[np.uint8]] | None = None

    def __next__(self) -> Frame:
        for index, time in self._picked:
            if self._latest is not None and self._latest[0] == index:
                return Frame(self._latest[1], time)
            try:
                rgb = self._load(index)
            except UserError:
                raise
            except DAMAGE as error:
                self.broken += 1
                self.reason = str(error)
                if self._image is not None:  # an animation's frames lean on the ones before
                    self.truncated = True
                    break
                continue
            self._latest = index, rgb
            return Frame(rgb, time)
        raise StopIteration

    def close(self) -> None:
        """Close the file; reading on afterwards ends the iteration."""
        self._picked = iter(())
        if self._image is not None:
            self._image.close()

    def _load(self, index: int) -> NDArray[np.uint8]:
        file = self.path if self._image is not None else self._files[index]
        try:
            if self._image is not None:
                self._image.seek(index)
                rgb = to_rgb(self._image)
            else:
                with open_image(file) as image:
                    rgb = to_rgb(image)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        height, width, _ = rgb.shape
        if (width, height) != self.full_size:
            raise self._odd_one(file, width, height)
        if self._size is not None and self._size != (width, height):
            scaled = Image.fromarray(rgb).resize(self._size, Image.Resampling.BICUBIC)
            rgb = np.asarray(scaled, dtype=np.uint8)
        return rgb

    def _odd_one(self, file: Path, width: int, height: int) -> UserError:
        return UserError(
            f"{file} has {width}x{height} pixels and the frames before it "
            f"{self.full_size[0]}x{self.full_size[1]}: one film needs one size"
        )

    def _common_size(self) -> tuple[int, int]:
        size: tuple[int, int] | None = None
        for file in self._files:
            try:
                with open_image(file) as image:
                    this = _upright_size(image)
            except UserError:
                raise
            except DAMAGE as error:
                self.reason = str(error)
                continue  # counted as broken when its turn comes
            if size is None:
                size = self.full_size = this
            elif this != size:
                raise self._odd_one(file, *this)
        if size is None:
            raise UserError(f"{self.path} can't be read as an image ({self.reason}); replace it")
        return size

    def _animate(self) -> int:
        """Open the file; when it has several frames keep it open and learn their times."""
        image = open_image(self.path)
        frames = int(getattr(image, "n_frames", 1))
        # A phone's JPEG may carry a second picture (a depth map): that isn't a second frame.
        if frames == 1 or image.format in ("JPEG", "MPO"):
            image.close()
            return 1
        self._image = image
        times, clock = [], 0.0
        for index in range(frames):
            try:
                image.seek(index)
                image.load()  # WebP tells the time of a frame only once it is decoded
            except DAMAGE:
                self.truncated = True
                break
            times.append(clock)
            clock += float(image.info.get("duration", 0.0)) / 1000
        self._image = open_image(self.path)  # some formats don't go back to a frame after an error
        image.close()
        if clock > 0 and all(b > a for a, b in pairwise(times)):
            self.timed = True
            self.times = np.array(times)
            self.end = max(clock, times[-1] + 1e-3)
        return len(times)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    # PIL decodes a whole PNG to look for a tag behind its pixels; none is there in practice.
    tagged = image.format != "PNG" or "exif" in image.info
    turned = tagged and image.getexif().get(0x0112, 1) >= 5
    return (height, width) if turned else (width, height)
