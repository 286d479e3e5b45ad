"""Files of captions: one a line, as text or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from zoo.errors import UserError

_KEYS = ("prompt", "text", "caption")


def read_captions(path: str | Path) -> list[str]:
    """The captions of a file, in order.

    Args:
        path: a text file with one caption a line (blank lines are skipped), or a .jsonl file whose
            lines are strings or objects with `prompt`, `text` or `caption`.

    Raises:
        UserError: no such file, no caption in it, or broken lines (named, with the reason).
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} can't be read as captions ({error.strerror})") from error
    captions: list[str] = []
    broken: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                continue
            captions.append(_caption(json.loads(text)) if path.suffix == ".jsonl" else text)
        except UnicodeDecodeError:
            broken.append(f"line {number} is not UTF-8")
        except json.JSONDecodeError:
            broken.append(f"line {number} is not JSON")
        except _NoCaptionError:
            broken.append(f"line {number} has no text in {', '.join(_KEYS)}")
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise UserError(f"{path} has broken lines: {'; '.join(broken[:5])}{more}")
    if not captions:
        raise UserError(f"{path} holds no caption: write one a line")
    return captions


class _NoCaptionError(Exception):
    """A JSON line without a caption."""


def _caption(value: object) -> str:
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
    if not isinstance(value, str) or not value.strip():
        raise _NoCaptionError
    return value.strip()
