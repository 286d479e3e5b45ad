"""Clips without files, and the noise of a batch that several processes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from zoo.data.batch import Sample
from zoo.data.captioned_video import Captioned
from zoo.data.source import Source


class Waves(Source):
    """Clips made of (pass, index) alone, without files."""

    suffixes = ()

    def __init__(self, count: int, *, frames: int = 5, size: int = 16, bad: int | None = None):
        super().__init__("waves", size=size)
        self.count, self.frames, self.bad = count, frames, bad
        self._usable = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        number, index = item if isinstance(item, tuple) else (0, item)
        rng = np.random.default_rng((number, index))
        coarse = torch.from_numpy(rng.uniform(-1, 1, (3, self.frames, 4, 4)).astype(np.float32))
        scale = self.size // 4
        pixels = coarse.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        if index == self.bad:
            pixels = pixels * torch.nan
        return Sample(pixels, "", f"{number}/{index}")

    def _probe(self, path: Path) -> dict[str, Any]:
        raise NotImplementedError

    _locate = _read = _probe  # type: ignore[assignment]


class NamedWaves(Waves):
    """With a caption each; for text to image of one frame."""

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        index = item[1] if isinstance(item, tuple) else item
        return super().__getitem__(item)._replace(prompt=self.prompts[index])

    @property
    def prompts(self) -> list[str]:
        return [f"wave {index}" for index in range(self.count)]


class FilmWaves(NamedWaves, Captioned):
    """As clips of captioned films, every third from its film's beginning."""

    film_rate = 25.0  # type: ignore[assignment]

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        index = item[1] if isinstance(item, tuple) else item
        sample = super().__getitem__(item)
        return sample._replace(key=f"{sample.key}@{index % 3}.0")


class GlobalNoise(TorchFunctionMode):
    """Noise of the whole batch, of which a process gets the rows of its clips.

    So two processes draw what one does: what then differs is not the noise. Before the first
    `seed` nothing is changed: nets are made of numbers that all processes draw alike.
    """

    DRAWS = (torch.rand, torch.randn, torch.randint, torch.randn_like, torch.rand_like)

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.rank, self.ranks = rank, ranks
        self.generator = torch.Generator()
        self.seeded = False

    def seed(self, number: int) -> None:
        """Draw from here on what `number` decides, whatever the rank."""
        self.generator.manual_seed(number)
        self.seeded = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = kwargs.get("generator") is not None
        if func not in self.DRAWS or given or not self.seeded:
            return func(*args, **kwargs)
        drawn: torch.Tensor
        kind = func
        if func in (torch.randn_like, torch.rand_like):
            kind = torch.randn if func is torch.randn_like else torch.rand
            args, kwargs = (args[0].shape,), {"dtype": args[0].dtype}
        # numbers to draw between come before the shape, which may be given one by one
        place = len(args) - 1 if func is torch.randint else 0
        sizes = args[place:]
        shape = list(sizes[0] if isinstance(sizes[0], tuple | list | torch.Size) else sizes)
        shape[0] *= self.ranks
        drawn = kind(*args[:place], shape, **(kwargs | {"generator": self.generator}))
        return drawn[self.rank :: self.ranks].contiguous()
