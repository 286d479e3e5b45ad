"""The samples of many shards in columns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from zoo.data.limits import MAX_TEXT_BYTES
from zoo.data.pictures import IMAGE_SUFFIXES
from zoo.data.shards import MEDIA, Member, Shard, ShardIndex
from zoo.data.source import File

IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
"""Endings of pictures, the first of `MEDIA`."""


class Table:
    """All samples in columns: lists of objects would be copied into every worker by reading them.

    Args:
        indices: of the shards.
        names: of the shards, for keys.
    """

    def __init__(self, indices: Sequence[ShardIndex], names: Sequence[str] = ()) -> None:
        rows: list[tuple[float, ...]] = []
        keys: list[str] = []
        for number, index in enumerate(indices):
            for sample in index.samples:
                if sample.media is None:
                    continue
                # `zoo data shard` writes captions as text; its json is about the source
                kinds = ("txt",) if index.sha256 else ("txt", "json")
                text = next((kind for kind in kinds if kind in sample.members), None)
                caption = sample.members[text] if text else None
                if caption is not None and caption.size > MAX_TEXT_BYTES:
                    caption = text = None
                facts = (sample.facts.get(k, 0) for k in ("frames", "width", "height", "duration"))
                rows.append(
                    (
                        number,
                        MEDIA.index(sample.media),
                        *_packed(sample.members[sample.media]),
                        -1 if text is None else text == "json",
                        *_packed(caption or Member(0, 0)),
                        *facts,
                    )
                )
                keys.append(f"{names[number]}/{sample.key}")
        # float64 is exact up to 2**53, which sizes are held to
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 13)
        self.columns = table
        self.keys = np.array(keys, dtype=np.str_)
        self._index_columns()

    def _index_columns(self) -> None:
        table = self.columns
        self.shard = table[:, 0].astype(np.int64)
        self.is_image = table[:, 1] < len(IMAGES)
        self.frames, self.width, self.height = (table[:, i].astype(np.int64) for i in (9, 10, 11))
        self.duration = table[:, 12]

    def __len__(self) -> int:
        return len(self.columns)

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Drop the others."""
        self.columns, self.keys = self.columns[rows], self.keys[rows]
        self._index_columns()

    def key(self, number: int | np.int64) -> str:
        """SHARD/KEY."""
        return str(self.keys[number])

    def kind(self, number: int) -> str:
        """The ending of the picture or film."""
        return MEDIA[int(self.columns[number, 1])]

    def media(self, number: int) -> Member:
        """Where the picture or film is."""
        return _unpacked(self.columns[number, 2:5])

    def text(self, number: int) -> tuple[str, Member | None]:
        """Ending and place of the caption."""
        kind = int(self.columns[number, 5])
        if kind < 0:
            return "", None
        return ("txt", "json")[kind], _unpacked(self.columns[number, 6:9])

    def sides(self, number: int) -> tuple[int, int]:
        """Width and height in pixels."""
        return int(self.width[number]), int(self.height[number])

    def span(self, shard: int) -> tuple[int, int]:
        """First sample of a shard, and the one behind its last."""
        first, end = np.searchsorted(self.shard, (shard, shard + 1))
        return int(first), int(end)

    def clips(self, frames: int, rate: float | None) -> NDArray[np.int64]:
        """How many clips of `frames` frames follow one another in each sample, at this rate."""
        if rate is None:
            return self.frames // frames
        # at a rate, a picture is still one frame
        moments = np.floor(self.duration * rate + 1e-6).astype(np.int64)
        return np.where(self.is_image, self.frames, moments) // frames


def _packed(member: Member) -> tuple[int, int, int]:
    return member.offset, member.size, -1 if member.crc is None else member.crc


def _unpacked(row: NDArray[np.float64]) -> Member:
    offset, size, crc = (int(value) for value in row)
    return Member(offset, size, None if crc < 0 else crc)


class Files(Sequence[File]):
    """The samples as files, made when asked for."""

    def __init__(self, table: Table, shards: list[Shard]) -> None:
        self._table, self._shards = table, shards

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, number: int) -> File: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[File]: ...

    def __getitem__(self, number: int | slice) -> File | Sequence[File]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        table = self._table
        width, height = table.sides(number)
        facts = {
            "frames": int(table.frames[number]),
            "width": width,
            "height": height,
            "duration": float(table.duration[number]),
        }
        place = Path(os.fspath(self._shards[int(table.shard[number])].address))
        return File(table.key(number), place, facts)
