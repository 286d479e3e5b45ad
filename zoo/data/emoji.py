"""Captioned emoji pictures, 64x64 on white: 4,772 to train on, 513 of other emoji to look at.

Two packages: Fluent emoji 3D (256x256, the file's name is its code points) and Noto emoji through
emoji-datasource (64x64), whose emoji.json gives names and categories of both. Pictures of Noto come
without skin tones.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from zoo.assets import cache_root, fetch_group
from zoo.data.latents import tar_member
from zoo.data.limits import DAMAGE, open_image
from zoo.errors import UserError

SIZE = 64
_DRAWN = """
1f004 1f0cf 1f194 1f1ea 1f1ec 1f1fa 1f1fb 1f201 1f30d 1f313 1f31b 1f31c 1f33d 1f350 1f353
1f36d 1f38a 1f390 1f3c7 1f3ca 1f3cf 1f3d0 1f415 1f41a 1f435 1f463 1f46e 1f475 1f476 1f47b
1f481 1f483 1f489 1f48e 1f492 1f493 1f4ad 1f4af 1f4c8 1f4da 1f4db 1f4e5 1f4e7 1f4ff 1f517
1f51e 1f522 1f52a 1f561 1f567 1f58b 1f596 1f5b2 1f5c2 1f605 1f627 1f62d 1f642 1f646 1f647
1f64c 1f686 1f6a7 1f6aa 1f6bf 1f6e9 1f6f4 1f6f6 1f7e4 1f90c 1f91c 1f934 1f939 1f945 1f956
1f95e 1f964 1f96c 1f979 1f990 1f992 1f994 1f99e 1f9a9 1f9b6 1f9c0 1f9d5 1f9dc 1f9f5 1fa75
1fa7c 1fa81 1faa0 1faa3 1faa5 1fab0 1fab2 1fab4 1fab5 1fab9 1fad2 1fad5 1fadc 1faf4 2603
261d 2626 2640 2649 2663 267f 26a0 26f1 2716 2755 27a1 27bf 2b05 2b07
"""
VAL = frozenset(_DRAWN.split())
"""First code points of what is kept for validation, drawn once: an emoji is in one split in all
its styles and skin tones, standing and moving."""
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
_DAMAGE: tuple[type[Exception], ...] = (*DAMAGE, tarfile.TarError)
_FACTS = "package/emoji.json"
_NOTO = "package/img/google/64"

Row = tuple[str, str]
"""An emoji's name and category."""


def prepare_emoji(folder: Path | None = None) -> list[Path]:
    """The tars emoji-train.tar and emoji-val.tar, made first where they aren't there.

    They hold pairs STYLE_CODE.png and STYLE_CODE.json (text, style, category), as
    `zoo.data.captioned.CaptionedPictures` reads them.

    Args:
        folder: where they go; None: data/emoji in the zoo's cache.

    Raises:
        UserError: a file can't be fetched or read, or the disk is full.
    """
    root = cache_root() / "data" / "emoji" if folder is None else folder
    make_once(root, "emoji", write_pictures)
    return [root / f"emoji-{split}.tar" for split in ("train", "val")]


def make_once(root: Path, group: str, write: Callable[..., None]) -> None:
    """Fetch a group of assets and make a folder of them, which appears whole or not at all.

    Args:
        root: the folder; nothing is done where it is.
        group: key of `zoo.assets.GROUPS`.
        write: called with the assets' paths and an empty folder.

    Raises:
        UserError: a file can't be fetched or read, or the disk is full.
    """
    if root.is_dir():
        return
    files = list(fetch_group(group).values())
    part = root.with_name(f".{root.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        write(*files, part)
        try:
            os.replace(part, root)
        except OSError:
            if not root.is_dir():  # another process was first
                raise
    except UserError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(
                f"{root} can't be written ({error.strerror}): free space, or set ZOO_CACHE to "
                "another folder"
            ) from error
        raise UserError(
            f"{' or '.join(map(str, files))} isn't the package expected ({error}): delete it, so "
            "that it is fetched anew"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_pictures(fluent: Path, noto: Path, folder: Path) -> None:
    """Every picture of the two packages that has a name, as tars of pairs, sorted by name.

    Args:
        fluent: the package of Fluent emoji, .tgz.
        noto: emoji-datasource of Noto emoji, .tgz.
        folder: gets emoji-train.tar and emoji-val.tar.
    """
    with tarfile.open(noto) as tar:
        file = tar.extractfile(_FACTS)
        if file is None:
            raise KeyError(f"{_FACTS} is no file")
        facts = json.load(file)
    names = emoji_rows(facts)
    plain = {emoji["image"] for emoji in facts}
    made: dict[str, tuple[bytes, Row]] = {}
    for path, content in _members(fluent, ".webp"):
        if path.stem in names:
            made[f"fluent3d_{path.stem}"] = png(content), names[path.stem]
    for path, content in _members(noto, ".png"):
        if str(path.parent) == _NOTO and path.name in plain:
            made[f"noto_{path.stem}"] = png(content), names[path.stem]
    for split in ("train", "val"):
        with tarfile.open(folder / f"emoji-{split}.tar", "w") as tar:
            for name, (picture, (text, category)) in sorted(made.items()):
                style, code = name.split("_")
                if (code.split("-")[0] in VAL) == (split == "val"):
                    row = {"text": text, "style": style, "category": category}
                    tar.addfile(*tar_member(f"{name}.png", picture))
                    tar.addfile(*tar_member(f"{name}.json", json.dumps(row).encode()))


def emoji_rows(facts: list[dict[str, Any]]) -> dict[str, Row]:
    """Names and categories by code points ("1f3c7-1f3fb"): "horse racing, light skin tone".

    Args:
        facts: emoji.json of emoji-datasource.
    """
    rows: dict[str, Row] = {}
    for emoji in facts:
        name, category = emoji["name"].lower(), emoji["category"]
        for code in (emoji["unified"], emoji.get("non_qualified")):
            if code:
                rows[code.lower()] = name, category
        for tones, variation in emoji.get("skin_variations", {}).items():
            # two people of one tone: said once
            words = " and ".join(dict.fromkeys(TONES[tone] for tone in tones.split("-")))
            rows[variation["unified"].lower()] = f"{name}, {words}", category
    return rows


def png(content: bytes) -> bytes:
    """A picture as PNG, RGB [SIZE, SIZE, 3] on white."""
    with open_image(io.BytesIO(content)) as image:
        file = io.BytesIO()
        small = on_white(image).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        small.save(file, "PNG", optimize=True)
    return file.getvalue()


def on_white(image: Image.Image) -> Image.Image:
    """The picture as RGB, what is transparent over white."""
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def _members(archive: Path, suffix: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Path and content of every file of an archive that ends so, read one after the other."""
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(suffix) else None
            if file is not None:
                yield PurePosixPath(member.name), file.read()
