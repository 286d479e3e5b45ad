"""How much one file may ask for before anything is allocated for it.

A few kilobytes can describe a picture of many gigabytes (a decompression bomb). Sizes stand in the
headers, so that they are compared with these limits first.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import IO

from PIL import Image

from zoo.errors import UserError

MAX_PIXELS = 2**27
"""Of an image or a frame: 134 million, 11,585 squared; 8K films have 33 million."""

MAX_MEMBER_BYTES = 2**31
"""Of one file in a shard, which is read into memory whole."""

MAX_TEXT_BYTES = 2**20
"""Of a caption or of a sample's JSON."""

# PIL knows more formats: those that start other programs or are rarely kept in repair stay out.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")

DAMAGE: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, EOFError, LookupError)
DAMAGE += (struct.error, zlib.error, Image.DecompressionBombError)
"""What PIL raises on a damaged image. A `UserError` is a ValueError: catch it before."""


def check_pixels(width: int, height: int, name: object) -> None:
    """Refuse a picture that is larger than `MAX_PIXELS`.

    Args:
        width: pixels.
        height: pixels.
        name: what the message calls it.

    Raises:
        UserError: it is.
    """
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name} says it has {width}x{height} pixels, more than the {MAX_PIXELS:,} that are "
            "read: scale it down if it is genuine"
        )


def open_image(source: Path | IO[bytes], name: object = None) -> Image.Image:
    """PIL's image, not decoded yet, with its size checked; every reader of images opens it here.

    Args:
        source: the file.
        name: what messages call it. None: `source`.

    Returns:
        The image, a context manager.

    Raises:
        UserError: it is larger than `MAX_PIXELS`.
        OSError: it isn't an image.
    """
    name = source if name is None else name
    try:
        image = Image.open(source, formats=_FORMATS)
    except Image.DecompressionBombError as error:  # PIL looks at the size too, with another limit
        raise UserError(
            f"{name} says it has more pixels than the {MAX_PIXELS:,} that are read: scale it down "
            "if it is genuine"
        ) from error
    try:
        check_pixels(*image.size, name)
    except UserError:
        image.close()
        raise
    return image
