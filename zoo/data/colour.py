"""How a film's numbers stand for colours, and the way to RGB and back (ITU-T H.273)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

from zoo.errors import UserError

# Without the accurate flags swscale takes short cuts that shift colours by some levels.
SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
HD_HEIGHT = 720

# Numbers of ITU-T H.273; for these two the matrix, the primaries and the transfer curve share one.
_BT709, _BT601 = 1, 6
_RGB, _UNSPECIFIED, _RESERVED = 0, 2, 3
_FULL = 2
# What swscale knows: BT.709, FCC, BT.601 (625 and 525 lines), SMPTE 240M, BT.2020.
_MATRICES = {1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020"}


@dataclass(frozen=True)
class Colour:
    """What the Y, Cb and Cr of a film mean.

    Attributes:
        matrix: ITU-T H.273 number of the matrix: 1 is BT.709, 5 and 6 are BT.601.
        full: whether black and white are 0 and 255 (full range) and not 16 and 235 (limited).
        primaries: H.273 number of the primaries; carried through, never converted.
        transfer: H.273 number of the transfer curve; carried through, never converted.
    """

    matrix: int = _BT709
    full: bool = False
    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED

    @classmethod
    def standard(cls, height: int) -> Self:
        """What an untagged film of this height means by convention: BT.709 from 720 lines on."""
        tag = _BT709 if height >= HD_HEIGHT else _BT601
        return cls(tag, False, tag, tag)

    @classmethod
    def of(cls, frame: VideoFrame) -> Self:
        """What a decoded frame means; what it doesn't say is taken from `standard`.

        A frame that already is RGB gets the `standard` of its height: what to write it in.

        Raises:
            UserError: a matrix that can't be undone.
        """
        usual = cls.standard(frame.height)
        if _is_rgb(frame):
            return usual
        full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
        if frame.colorspace in (_RGB, _UNSPECIFIED, _RESERVED):
            return cls(usual.matrix, full, usual.primaries, usual.transfer)
        if frame.colorspace not in _MATRICES:
            raise UserError(
                f"colour matrix {frame.colorspace} of ITU-T H.273 can't be undone; convert the "
                "film to BT.709 first (ffmpeg -vf zscale=matrix=709)"
            )
        return cls(frame.colorspace, full, frame.color_primaries, frame.color_trc)

    @property
    def name(self) -> str:
        """For people: "BT.709, limited range"."""
        return f"{_MATRICES[self.matrix]}, {'full' if self.full else 'limited'} range"

    @property
    def _swscale(self) -> int:
        return 5 if self.matrix == _BT601 else self.matrix  # swscale has one number for BT.601

    @property
    def _range(self) -> ColorRange:
        return ColorRange.JPEG if self.full else ColorRange.MPEG

    def to_rgb(
        self, frame: VideoFrame, scaler: VideoReformatter, *, width: int, height: int
    ) -> NDArray[np.uint8]:
        """Full-range RGB uint8 [height, width, 3] of a decoded frame; transparency over black.

        Not always contiguous: colours that come as YUV lie one after the other, [3, height, width].
        """
        alpha = any(part.is_alpha for part in frame.format.components) or frame.format.has_palette
        yuv = not _is_rgb(frame)
        # Colours that lie apart: the same bits in half the time, as swscale has no vector code that
        # makes packed pixels with SCALER's exact flags.
        # Scaling while converting is 2-14 times faster than converting at full size.
        picture = scaler.reformat(
            frame,
            width=width,
            height=height,
            format="rgba" if alpha else "gbrp" if yuv else "rgb24",
            src_colorspace=self._swscale if yuv else None,
            src_color_range=self._range if yuv else None,
            interpolation=SCALER,
            threads=1,
        )
        if yuv and not alpha:
            return _planes(picture)
        pixels = np.asarray(picture.to_ndarray(), dtype=np.uint8)
        return over_black(pixels) if alpha else pixels

    def from_rgb(
        self, rgb: NDArray[np.uint8], scaler: VideoReformatter, *, format: str
    ) -> VideoFrame:
        """A frame of the YUV pixel format `format` from full-range RGB uint8 [H, W, 3].

        Films' frames and nets' pictures are views of [3, ...]: their colours are copied by lines.
        """
        if rgb.strides[1] == 1:
            frame = VideoFrame.from_ndarray(rgb, format="gbrp")
        else:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        return scaler.reformat(
            frame,
            format=format,
            dst_colorspace=self._swscale,
            dst_color_range=self._range,
            interpolation=SCALER,
            threads=1,
        )


def _is_rgb(frame: VideoFrame) -> bool:
    return frame.format.is_rgb or frame.format.has_palette


def _planes(frame: VideoFrame) -> NDArray[np.uint8]:
    """A frame of pixel format gbrp as RGB [H, W, 3]: a view of [3, H, W]."""
    rgb = np.empty((3, frame.height, frame.width), dtype=np.uint8)
    planes: Any = frame.planes  # green, blue, red
    for colour, plane in zip((1, 2, 0), planes, strict=True):
        lines = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
        rgb[colour] = lines[: frame.height, : frame.width]
    return rgb.transpose(1, 2, 0)


def over_black(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGBA uint8 [H, W, 4] with straight alpha, laid over black: RGB uint8 [H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if int(alpha.min()) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    scaled: NDArray[np.uint8] = ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)
    return scaled
