"""Captions without pictures, as a source: what distillation trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.data.batch import Sample
from zoo.data.cache import Facts
from zoo.data.captioned import CaptionedPictures
from zoo.data.captions import read_captions
from zoo.data.source import File, Source, local


class Captions(Source):
    """Captions; an epoch holds each once. `Sample.pixels` is empty.

    Args:
        root: a text file with one caption a line, a .jsonl (see `read_captions`), or what
            `CaptionedPictures` takes, of which only the captions are read.
        train: ignored: captions have nothing random.
        drop: categories to leave out, of captioned pictures.
        styles: see `CaptionedPictures`.
        limit: the first so many; None: all.

    Raises:
        UserError: the file has broken lines (named) or no caption.
    """

    suffixes = (".txt", ".jsonl", ".tar")

    def __init__(
        self,
        root: str,
        *,
        train: bool = True,
        drop: list[str] | None = None,
        styles: dict[str, str] | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(root, size=1, train=train, flip=False)
        self.drop, self.styles, self.limit = drop, styles, limit
        self.prompts: list[str] = []

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """A caption; `item` as in `Source`."""
        index = item[1] if isinstance(item, tuple) else item
        if not 0 <= index < len(self):
            raise IndexError(f"caption {index} of {len(self)}")
        return Sample(torch.zeros(0), self.prompts[index], f"caption {index + 1}")

    def prepare(self) -> None:
        """Read them."""
        if self.prepared:
            return
        assert isinstance(self.root, str)
        path = local(self.root)
        if path.is_dir() or path.suffix == ".tar":
            pictures = CaptionedPictures(self.root, drop=self.drop, styles=self.styles)
            prompts = pictures.read_prompts()
        else:
            prompts = read_captions(path)
        self.prompts = prompts[: self.limit]
        self._usable = []

    def _probe(self, path: Path) -> Facts:
        raise AssertionError("captions have no files to probe")

    def _locate(self, index: int, rng: np.random.Generator | None) -> tuple[int, float]:
        raise AssertionError("captions have no pixels")

    def _read(self, file: File, start: float) -> tuple[Tensor, str]:
        raise AssertionError("captions have no pixels")
