"""Prompts and the real pictures that generated ones are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.benchmark.clips import Item
from zoo.benchmark.data import open_data
from zoo.benchmark.protocol import Protocol, protocol
from zoo.benchmark.runner import Survey
from zoo.data.captioned import CAPTIONS, CaptionedPictures
from zoo.data.captions import read_captions
from zoo.errors import UserError


def open_prompts(
    path: Path, *, styles: dict[str, str] | None = None, drop: Sequence[str] = ()
) -> list[str]:
    """The prompts of a file (`read_captions`), or of captioned pictures: a tar, or a folder.

    Args:
        path: where they are.
        styles: of captioned pictures, what a style is called in the prompt: as in training.
        drop: categories of captioned pictures to leave out.

    Raises:
        UserError: broken lines, no prompt, or categories of a file that has none.
    """
    if path.suffix == ".tar" or path.is_dir():
        return CaptionedPictures(str(path), styles=styles, drop=list(drop)).read_prompts()
    if drop or styles:
        raise UserError(
            f"--drop and --styles are for captioned pictures, {path} is a file of prompts: leave "
            "them out, or give the tar or folder"
        )
    return read_captions(path)


def open_reference(text: str, *, size: int, drop: Sequence[str] = ()) -> Survey:
    """The real pictures, each scaled and cut to `size` pixels; not read yet.

    Args:
        text: a folder of pictures, or a shard.
        size: pixels of both sides.
        drop: categories to leave out, where the pictures have captions.

    Raises:
        UserError: there is none, or it holds films.
    """

    def rules(**changes: Any) -> Protocol:
        return protocol("zoo", **{**changes, "size": size})

    data = open_data(text, rules, limit=None)
    if data.protocol.frames != 1:
        raise UserError(f"--reference {text} holds films: give a folder or a shard of pictures")
    place = Path(text).expanduser()
    if drop and (place.suffix == ".tar" or (place / CAPTIONS).is_file()):
        kept = set(CaptionedPictures(text, drop=list(drop)).captions())
        items, shard = data.items, place.suffix == ".tar"

        def wanted() -> Iterator[Item]:
            for item in items():
                # a shard's items bear its name in front, its captions have no suffix
                name = item.key.partition("/")[2] if shard else item.key
                if (str(PurePosixPath(name).with_suffix("")) if shard else name) in kept:
                    yield item

        data.items = wanted
        data.description += f" without {', '.join(drop)}"
    return Survey(data)
