"""Files of captions: one a line, as text or as JSON, or the JSON files of a WebDataset shard."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from zoo.errors import UserError

_KEYS = ("prompt", "text", "caption")


def read_captions(path: str | Path) -> list[str]:
    """The captions of a file, in order.

    Args:
        path: a text file with one caption a line (blank lines are skipped), a .jsonl file whose
            lines are strings or objects with `prompt`, `text` or `caption`, or a .tar shard whose
            .json members are such objects.

    Raises:
        UserError: no such file, no caption in it, or broken lines (named, with the reason).
    """
    path = Path(path)
    try:
        parts = _members(path) if path.suffix == ".tar" else _lines(path)
    except (OSError, tarfile.TarError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be read as captions ({why})") from error
    captions: list[str] = []
    broken: list[str] = []
    for where, line in parts:
        try:
            text = line.decode("utf-8-sig").strip()
            if not text:
                continue
            json_lines = path.suffix in (".jsonl", ".tar")
            captions.append(_caption(json.loads(text)) if json_lines else text)
        except UnicodeDecodeError:
            broken.append(f"{where} is not UTF-8")
        except json.JSONDecodeError:
            broken.append(f"{where} is not JSON")
        except _NoCaptionError:
            broken.append(f"{where} has no text in {', '.join(_KEYS)}")
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise UserError(f"{path} has broken lines: {'; '.join(broken[:5])}{more}")
    if not captions:
        kind = "give one with .json members" if path.suffix == ".tar" else "write one a line"
        raise UserError(f"{path} holds no caption: {kind}")
    return captions


def _lines(path: Path) -> list[tuple[str, bytes]]:
    lines = path.read_bytes().splitlines()
    return [(f"line {number}", line) for number, line in enumerate(lines, start=1)]


def _members(path: Path) -> list[tuple[str, bytes]]:
    found = []
    with tarfile.open(path) as box:
        for member in box:
            if member.isfile() and member.name.endswith(".json"):
                file = box.extractfile(member)
                assert file is not None
                found.append((member.name, file.read()))
    return found


class _NoCaptionError(Exception):
    """A JSON line without a caption."""


def _caption(value: object) -> str:
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
    if not isinstance(value, str) or not value.strip():
        raise _NoCaptionError
    return value.strip()
