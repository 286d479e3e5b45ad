"""Captioned pictures: a WebDataset tar, or a folder with captions.jsonl."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.batch import Sample
from zoo.data.cache import Facts
from zoo.data.limits import DAMAGE, open_image
from zoo.data.pictures import IMAGE_SUFFIXES, to_rgb
from zoo.data.source import File, Source, local
from zoo.data.transforms import resize_short_side
from zoo.errors import UserError

CAPTIONS = "captions.jsonl"


class CaptionedPictures(Source):
    """Pictures with a caption each; an epoch holds every picture once.

    A tar has pairs NAME.png (or another picture) and NAME.json with `text`; a folder has pictures
    and a captions.jsonl with `file` and `text` a line. `style` and `category`, where given, make
    the caption "TEXT, STYLE" and can be selected.

    Args:
        root: a .tar, or a folder.
        size: see `Source`.
        short_side: see `Source`.
        train: see `Source`.
        drop: categories to leave out.
        drop_words: captions that hold one of these are left out ("skin tone").
        styles: what a style is called in the caption; None: as it is written.
        flip: see `Source`. Off by default: captions say left and right, and flags have letters.
        seed: see `Source`.
        max_broken: see `Source`.

    Raises:
        UserError: lines of captions.jsonl or members of the tar that can't be used (named), or no
            picture left.
    """

    suffixes = IMAGE_SUFFIXES

    def __init__(
        self,
        root: str,
        *,
        size: int = 64,
        short_side: int | None = None,
        train: bool = True,
        drop: list[str] | None = None,
        drop_words: list[str] | None = None,
        styles: dict[str, str] | None = None,
        flip: bool = False,
        seed: int = 0,
        max_broken: float = 0.1,
    ) -> None:
        super().__init__(
            root,
            size=size,
            short_side=short_side,
            train=train,
            flip=flip,
            seed=seed,
            max_broken=max_broken,
        )
        self.drop = drop or []
        self.drop_words = drop_words or []
        self.styles = styles or {}
        self._prompts: dict[str, str] = {}
        self._pictures: dict[str, Tensor] = {}
        self._members: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """As `Source`, with the caption as `prompt`."""
        sample = super().__getitem__(item)
        return sample._replace(prompt=self._prompts[sample.key])

    @property
    def prompts(self) -> list[str]:
        """The caption of every picture, in order."""
        return [self._prompts[file.key] for file in self.usable]

    def read_prompts(self) -> list[str]:
        """The captions alone, of all pictures that aren't dropped, without opening a picture."""
        return list(self.captions().values())

    def captions(self) -> dict[str, str]:
        """As `read_prompts`, by key: a file below the folder, or a name in the tar's pairs."""
        self._find()
        return dict(self._prompts)

    @property
    def fixed(self) -> bool:
        """Whether a picture is the same in every epoch, so that its latents can be kept."""
        return not self.train or not (self.flip or self.short_side != (self.size, self.size))

    def _find(self) -> dict[str, Path]:
        assert isinstance(self.root, str)
        place = local(self.root).absolute()
        if place.is_dir():
            rows = _folder_rows(place)
        elif place.is_file():
            rows, self._members = _tar_rows(place)
        else:
            raise UserError(f"there is no folder or tar at {place}; correct the root")
        kept = {key: row for key, row in rows.items() if self._wanted(row)}
        if not kept:
            raise UserError(
                f"{place} has no captioned picture left of {len(rows)} without the categories "
                f"{self.drop} and the words {self.drop_words}: drop fewer"
            )
        self._prompts = {key: self._caption(row) for key, row in kept.items()}
        return {key: place if self._members else place / key for key in kept}

    def _wanted(self, row: dict[str, Any]) -> bool:
        if row.get("category") in self.drop:
            return False
        return not any(word in row["text"] for word in self.drop_words)

    def _caption(self, row: dict[str, Any]) -> str:
        style = row.get("style")
        return f"{row['text']}, {self.styles.get(style, style)}" if style else str(row["text"])

    def _measure(self, found: dict[str, Path]) -> dict[str, Facts]:
        if not self._members:
            return super()._measure(found)
        facts: dict[str, Facts] = {}
        for key in found:
            try:
                with open_image(io.BytesIO(self._bytes(key, found[key]))) as image:
                    facts[key] = {"frames": 1, "width": image.width, "height": image.height}
            except UserError:
                raise
            except DAMAGE as error:
                facts[key] = {"error": str(error)}
        return facts

    def _probe(self, path: Path) -> Facts:
        with open_image(path) as image:
            return {"frames": 1, "width": image.width, "height": image.height}

    def _locate(self, index: int, rng: np.random.Generator | None) -> tuple[int, float]:
        return index, 0.0

    def _bytes(self, key: str, path: Path) -> bytes:
        if not self._members:
            return path.read_bytes()
        offset, size = self._members[key]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def _read(self, file: File, start: float) -> tuple[Tensor, str]:
        # decoded pictures of this size are few bytes, and decoding them costs more than a step's
        # other loading; larger ones are read again
        if file.key in self._pictures:
            return self._pictures[file.key], ""
        with open_image(io.BytesIO(self._bytes(file.key, file.path))) as image:
            rgb = np.array(to_rgb(image))
        video = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(1)
        video = resize_short_side(video, short_side=self.short_side[1])
        if video.numel() * len(self) <= 1 << 30:
            self._pictures[file.key] = video
        return video, ""


def _folder_rows(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / CAPTIONS
    if not path.is_file():
        raise UserError(f"{folder} has no {CAPTIONS}: write a line with file and text a picture")
    rows: dict[str, dict[str, Any]] = {}
    broken: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        fault, row = _row(line)
        if fault is None and not isinstance(row.get("file"), str):
            fault = "has no file"
        if fault is None and not (folder / row["file"]).is_file():
            fault = f"names {row['file']}, which isn't there"
        if fault is not None:
            broken.append(f"line {number} {fault}")
        else:
            rows[row["file"]] = row
    _refuse(path, broken)
    if not rows:
        raise UserError(f"{path} holds no caption: write a line with file and text a picture")
    return rows


def _tar_rows(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[int, int]]]:
    rows: dict[str, dict[str, Any]] = {}
    members: dict[str, tuple[int, int]] = {}
    broken: list[str] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                stem = str(name.with_suffix(""))
                if name.suffix.lower() in IMAGE_SUFFIXES:
                    members[stem] = member.offset_data, member.size
                elif name.suffix == ".json":
                    file = tar.extractfile(member)
                    fault, row = _row(b"" if file is None else file.read())
                    if fault is not None:
                        broken.append(f"{name} {fault}")
                    else:
                        rows[stem] = row
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} can't be read as an uncompressed tar ({error})") from error
    broken += [f"{stem}.json has no picture" for stem in sorted(rows.keys() - members.keys())]
    broken += [f"{stem} has no caption" for stem in sorted(members.keys() - rows.keys())]
    _refuse(path, broken)
    if not rows:
        raise UserError(f"{path} holds no captioned picture: pairs of NAME.png and NAME.json")
    return {stem: rows[stem] for stem in sorted(rows)}, members


def _row(line: bytes) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a caption's JSON, and its content."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return "is not UTF-8", {}
    except json.JSONDecodeError:
        return "is not JSON", {}
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        return "has no text", {}
    return None, row


def _refuse(path: Path, broken: list[str]) -> None:
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise UserError(f"{path} has broken captions: {'; '.join(broken[:5])}{more}; correct them")
