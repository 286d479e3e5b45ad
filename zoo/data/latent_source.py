"""Clips of latents that `zoo data encode` wrote, as a source like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.data.cache import Facts
from zoo.data.latents import FilmEntry, LatentFolder
from zoo.data.source import File, Source
from zoo.errors import UserError


class LatentClips(Source):
    """Clips of consecutive latents, `Sample.pixels` float32 [c,t,h,w].

    In training the films are weighted by their latents and the indices are spread evenly over
    them; in evaluation the clips are the films' successive windows. A film's first latent stands
    for one frame and its others for several: a clip's key, `FILM@FIRST`, says which it has.

    Args:
        root: a folder that `zoo data encode` wrote.
        latents: latents a clip, t.
        size: rows and columns to cut out, at a random place in training, else in the middle.
            None: the whole frame; then all films must have one size.
        normalize: subtract the net's `latent_mean` and divide by its `latent_std`.
        train: random places; else windows one after the other.
        clips_per_film: samples an epoch for each film, on average (training only).
        seed: with the epoch and the index it decides every draw.
        files: keys of films to keep. None: all.
        max_broken: share of films that may be broken before the run stops; films too short for a
            clip count as broken.
    """

    def __init__(
        self,
        root: str,
        *,
        latents: int = 5,
        size: int | None = None,
        normalize: bool = True,
        train: bool = True,
        clips_per_film: int = 4,
        seed: int = 0,
        files: list[str] | None = None,
        max_broken: float = 0.1,
    ) -> None:
        if latents < 1 or clips_per_film < 1 or (size is not None and size < 1):
            raise UserError(
                f"latents={latents}, clips_per_film={clips_per_film} and size={size} must be over 0"
            )
        super().__init__(
            root,
            size=size or 1,
            train=train,
            flip=False,
            seed=seed,
            files=files,
            max_broken=max_broken,
        )
        self.latents = latents
        self.cut = size
        self.normalize = normalize
        self.clips_per_film = clips_per_film
        self._films: dict[str, FilmEntry] = {}
        # film i owns the places [ends[i - 1], ends[i]): starts in training, windows in evaluation
        self._ends = np.zeros(0, dtype=np.int64)

    @property
    def stored(self) -> LatentFolder:
        """The folder, once it is found."""
        return self._folder

    def __len__(self) -> int:
        return self.clips_per_film * len(self.usable) if self.train else int(self._ends[-1])

    def _find(self) -> dict[str, Path]:
        assert isinstance(self.root, str)
        self._folder = LatentFolder(Path(self.root).expanduser())
        self._films = {film.key: film for film in self._folder.films}
        wanted = list(self._films) if self.files is None else self.files
        missing = [key for key in wanted if key not in self._films]
        if missing:
            raise UserError(f"{self.root} has no film {missing[0]}; correct the list of files")
        settings = self._folder.settings
        self._mean, self._std = (
            torch.tensor(v)[:, None, None, None]
            for v in (settings.latent_mean, settings.latent_std)
        )
        return dict.fromkeys(wanted, self._folder.folder)

    def _measure(self, found: dict[str, Path]) -> dict[str, Facts]:
        return {key: {"latents": self._films[key].latents} for key in found}

    def _probe(self, path: Path) -> Facts:
        raise AssertionError("the folder's index says all there is to know")

    def _objection(self, facts: Facts) -> str | None:
        _, count, height, width = facts["latents"]
        if count < self.latents:
            return f"too short for {self.latents} latents ({count})"
        if self.cut is not None and min(height, width) < self.cut:
            return f"too small for {self.cut}x{self.cut} latents ({height}x{width})"
        return None

    def _arrange(self) -> None:
        sizes = {tuple(file.facts["latents"][2:]) for file in self.usable}
        if self.cut is None and len(sizes) > 1:
            some = ", ".join(f"{h}x{w}" for h, w in sorted(sizes)[:3])
            raise UserError(f"{self.root} holds latents of several sizes ({some}): give a size")
        counts = [file.facts["latents"][1] for file in self.usable]
        self._ends = np.cumsum(
            [n - self.latents + 1 if self.train else n // self.latents for n in counts],
            dtype=np.int64,
        )

    def _locate(self, index: int, rng: np.random.Generator | None) -> tuple[int, float]:
        if rng is None:
            place = index
        else:
            # evenly spread with a random offset each: all films get their share in every epoch
            share = (index + rng.random()) / len(self)
            place = min(int(share * float(self._ends[-1])), int(self._ends[-1]) - 1)
        number = int(np.searchsorted(self._ends, place, side="right"))
        place -= int(self._ends[number - 1]) if number else 0
        return number, place if rng is not None else place * self.latents

    def _read(self, file: File, start: float) -> tuple[Tensor, str]:
        stored = self._folder.read(self._films[file.key], int(start), self.latents)
        return stored.float(), f"@{int(start)}"

    def _transform(self, video: Tensor, rng: np.random.Generator | None) -> Tensor:
        if self.cut is not None:
            spare = [side - self.cut for side in video.shape[2:]]
            top, left = (n // 2 if rng is None else int(rng.integers(n + 1)) for n in spare)
            video = video[..., top : top + self.cut, left : left + self.cut]
        if self.normalize:
            video = (video - self._mean) / self._std
        return video.contiguous()
