"""What reading and writing films share: opening, colour matrices, orientation, scaler flags."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream

from zoo.errors import UserError

# Without the accurate flags swscale takes short cuts that shift colours by some levels.
SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_HD_HEIGHT = 720


def matrix_for(height: int) -> Colorspace:
    """The colour matrix an untagged film of this height has by convention: BT.709 from 720 on."""
    return Colorspace.ITU709 if height >= _HD_HEIGHT else Colorspace.ITU601


def open_film(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open a film's first video stream; the caller closes the container.

    Raises:
        UserError: no such file, or nothing in it that can be decoded as a film.
    """
    if not path.is_file():
        raise UserError(f"there is no film at {path}; check the path")
    try:
        container = av.open(str(path), "r", metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} can't be read as a film ({reason}); remove or replace it"
        ) from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        container.close()
        raise UserError(f"{path} holds no film that can be decoded; remove or replace it")
    stream = container.streams.video[0]
    # One thread: loaders run one decoder a worker, and errors then belong to the packet at hand.
    stream.thread_type = "NONE"
    return container, stream


def film_rate(stream: VideoStream) -> Fraction:
    """The rate the container announces, frames a second; 25 where it announces none."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


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
