"""Captioned films, and latents of captioned films, as sources like any other.

Captions are in a captions.jsonl, a line with `file` and `text` a film, or are the films' names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np

from zoo.data.batch import Sample
from zoo.data.captioned import CAPTIONS
from zoo.data.latent_source import LatentClips
from zoo.data.source import Source
from zoo.data.sources import VideoFolder
from zoo.errors import UserError

NAMES = "names"


def captions_of(keys: Iterable[str], folder: Path, captions: str | None) -> dict[str, str]:
    """The caption of every film.

    Args:
        keys: of the films.
        folder: where the films are (or were).
        captions: a captions.jsonl, "names" (`playing_guitar.mp4` is "playing guitar"), or None: the
            folder's captions.jsonl.

    Raises:
        UserError: no such file, broken lines, or films without a caption (named).
    """
    if captions == NAMES:
        return {key: _spoken(key) for key in keys}
    path = folder / CAPTIONS if captions is None else Path(captions).expanduser()
    if not path.is_file():
        raise UserError(
            f"there are no captions at {path}: write a line with file and text a film, or set "
            "captions to 'names' to take the films' names"
        )
    texts = _read_lines(path)
    missing = [key for key in keys if key not in texts]
    if missing:
        raise UserError(f"{path} has no caption for {len(missing)} films, such as {missing[0]}")
    return {key: texts[key] for key in keys}


def _read_lines(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file, text = row["file"], row["text"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"line {number} of {path} isn't JSON with file and text") from None
        if not (isinstance(file, str) and isinstance(text, str) and text.strip()):
            raise UserError(f"line {number} of {path} has no text: describe {file}")
        texts[file] = text
    return texts


def _spoken(key: str) -> str:
    return re.sub(r"[\W_]+", " ", PurePosixPath(key).stem).strip() or key


def film_of(sample_key: str) -> tuple[str, bool]:
    """A sample's film, and whether the sample is its beginning; keys are FILM@START."""
    film, _, start = sample_key.rpartition("@")
    return film, float(start) == 0.0


class Captioned(Source):
    """What sources of captioned clips share: prompts, and how often films begin.

    Attributes:
        captions: see `captions_of`.
        beginnings: share of training clips that begin with their film: its first latent stands for
            one frame, and everything generated starts with one.
    """

    captions: str | None = None
    beginnings: float = 0.3
    _prompts: dict[str, str]

    def _set(self, captions: str | None, beginnings: float) -> None:
        if not 0 <= beginnings <= 1:
            raise UserError(f"beginnings = {beginnings}: give a share of clips in [0, 1]")
        self.captions, self.beginnings, self._prompts = captions, beginnings, {}

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """As the source without captions, with the film's caption as `prompt`."""
        sample = super().__getitem__(item)
        return sample._replace(prompt=self._prompts[film_of(sample.key)[0]])

    @property
    def prompts(self) -> list[str]:
        """The caption of every film, in order."""
        return [self._prompts[file.key] for file in self.usable]

    @property
    def film_rate(self) -> float:
        """Frames a second of the first film."""
        raise NotImplementedError

    def _locate(self, index: int, rng: np.random.Generator | None) -> tuple[int, float]:
        number, start = super()._locate(index, rng)  # type: ignore[safe-super]
        return number, 0.0 if rng is not None and rng.random() < self.beginnings else start


class CaptionedLatents(Captioned, LatentClips):
    """Clips of latents with their film's caption, always normalised.

    Args:
        root: see `LatentClips`.
        captions: see `captions_of`; None: captions.jsonl beside the latents, or else where the
            films were encoded from.
        beginnings: see `Captioned`.
        latents: see `LatentClips`.
        size: see `LatentClips`.
        train: see `LatentClips`.
        clips_per_film: see `LatentClips`.
        seed: see `LatentClips`.
        files: see `LatentClips`.
        max_broken: see `LatentClips`.
    """

    def __init__(
        self,
        root: str,
        *,
        captions: str | None = None,
        beginnings: float = 0.3,
        latents: int = 5,
        size: int | None = None,
        train: bool = True,
        clips_per_film: int = 4,
        seed: int = 0,
        files: list[str] | None = None,
        max_broken: float = 0.1,
    ) -> None:
        LatentClips.__init__(
            self,
            root,
            latents=latents,
            size=size,
            train=train,
            clips_per_film=clips_per_film,
            seed=seed,
            files=files,
            max_broken=max_broken,
        )
        self._set(captions, beginnings)

    @property
    def film_rate(self) -> float:
        """Frames a second of the first film."""
        return float(self.stored.films[0].fraction)

    def _find(self) -> dict[str, Path]:
        found = super()._find()
        folder = self.stored.folder
        if self.captions is None and not (folder / CAPTIONS).is_file():
            film = self.stored.films[0]
            folder = Path(*Path(film.source).parts[: -len(PurePosixPath(film.key).parts)])
        self._prompts = captions_of(found, folder, self.captions)
        return found


class CaptionedFilms(Captioned, VideoFolder):
    """Clips of films with their film's caption, never mirrored: captions say left and right.

    Args:
        root: one folder, see `Source`.
        captions: see `captions_of`.
        beginnings: see `Captioned`.
        frames: see `VideoFolder`.
        size: see `Source`.
        short_side: see `Source`.
        train: see `Source`.
        clips_per_film: see `VideoFolder`.
        seed: see `Source`.
        files: see `Source`.
        max_broken: see `VideoFolder`.
    """

    def __init__(
        self,
        root: str,
        *,
        captions: str | None = None,
        beginnings: float = 0.3,
        frames: int = 17,
        size: int = 64,
        short_side: int | None = None,
        train: bool = True,
        clips_per_film: int = 4,
        seed: int = 0,
        files: list[str] | None = None,
        max_broken: float = 0.1,
    ) -> None:
        VideoFolder.__init__(
            self,
            root,
            frames=frames,
            size=size,
            short_side=short_side,
            train=train,
            clips_per_film=clips_per_film,
            flip=False,
            seed=seed,
            files=files,
            max_broken=max_broken,
        )
        self._set(captions, beginnings)

    @property
    def film_rate(self) -> float:
        """Frames a second of the first film."""
        return float(Fraction(self.usable[0].facts["rate"]))

    def _find(self) -> dict[str, Path]:
        found = super()._find()
        assert isinstance(self.root, str)
        self._prompts = captions_of(found, Path(self.root).expanduser(), self.captions)
        return found
