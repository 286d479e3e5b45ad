"""A picture or film as samples of a shard: the files of each, and what is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from zoo.data.captions import read_captions
from zoo.data.cutting import Piece, cut
from zoo.data.limits import DAMAGE, MAX_MEMBER_BYTES, MAX_TEXT_BYTES, open_image
from zoo.data.pictures import to_rgb
from zoo.errors import UserError

CAPTIONS = "captions.jsonl"

Raw = tuple[str, dict[str, bytes], dict[str, float]]


def samples_of(
    path: Path, name: str, *, number: int, first: int = 0, pieces: Sequence[Piece] = ()
) -> Iterator[tuple[Raw, bool | None]]:
    """Key, files and facts of each sample; and whether it was copied (None: a picture).

    Args:
        path: a picture or film.
        name: what its samples' json calls it.
        number: the first part of their keys.
        first: number of the first piece among the film's.
        pieces: of the film that are wanted; none for a picture.

    Raises:
        UserError: the file is broken; the samples before are whole.
    """
    caption = _caption(path)
    if not pieces:
        try:
            data = path.read_bytes()
            with open_image(path) as image:
                height, width, _ = to_rgb(image).shape
        except DAMAGE as error:
            raise UserError(f"it can't be read as an image ({error})") from error
        facts: dict[str, float] = {"frames": 1, "width": width, "height": height, "duration": 0}
        kind = path.suffix.lower()[1:]
        yield (f"{number:06d}", _files(kind, data, caption, {"source": name}), facts), None
        return
    for i, (piece, clip) in enumerate(zip(pieces, cut(path, list(pieces)), strict=True), first):
        info = clip.info
        if len(clip.data) > MAX_MEMBER_BYTES:
            raise UserError(f"a clip has {len(clip.data):,} bytes: cut it into shorter ones")
        facts = {
            "frames": info.frames,
            "width": info.width,
            "height": info.height,
            "duration": round(info.duration, 6),
        }
        about = {"source": name, "start": round(piece.start, 6), "copied": clip.copied}
        files = _files(clip.kind, clip.data, caption, about)
        yield (f"{number:06d}-{i:05d}", files, facts), clip.copied


def _files(kind: str, data: bytes, caption: str, about: dict[str, Any]) -> dict[str, bytes]:
    files = {kind: data, "json": json.dumps(about, ensure_ascii=False).encode()}
    return files | ({"txt": caption.encode()} if caption else {})


def _caption(path: Path) -> str:
    """What NAME.txt beside the file says, or its line of the folder's captions.jsonl."""
    beside = path.with_suffix(".txt")
    if beside.is_file() and beside.stat().st_size <= MAX_TEXT_BYTES:
        return " ".join(read_captions(beside))
    return _captions_of(path.parent).get(path.name, "")


@lru_cache(maxsize=64)
def _captions_of(folder: Path) -> dict[str, str]:
    """Captions by file name of a folder's captions.jsonl, whose lines have `file` and `text`."""
    listed = folder / CAPTIONS
    if not listed.is_file():
        return {}
    captions: dict[str, str] = {}
    for number, line in enumerate(listed.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            captions[str(row["file"])] = str(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"line {number} of {listed} is no object with `file` and `text`: correct it"
            ) from error
    return captions
