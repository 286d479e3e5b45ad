"""Sheets of pictures, written whole."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import RunError


def grid(pictures: Sequence[Any], columns: int) -> Any:
    """One PIL picture of many of one size, row by row, two pixels of white between."""
    from PIL import Image

    width, height = pictures[0].size
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + 2) - 2, rows * (height + 2) - 2)
    sheet = Image.new("RGB", size, "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + 2), i // columns * (height + 2)))
    return sheet


def save_png(picture: Any, path: Path) -> None:
    """Write a PIL picture; it appears whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        picture.save(part, format="PNG")
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path} can't be written ({error.strerror or error})") from error
    finally:
        part.unlink(missing_ok=True)
