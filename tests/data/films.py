"""Frames that say which they are: frame i of a test film is grey of level 12 + 5 * i."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

MakeFilm = Callable[..., Path]


def level(index: int) -> int:
    return 12 + 5 * index


def index_of(grey: float) -> int:
    """Which frame has this mean level, 0..255."""
    return round((grey - 12) / 5)
