"""What all sources share: finding files, setting broken ones aside, reproducible draws.

Building a source touches no disk; `prepare` (the data module calls it) lists and probes the files.
A training sample is a pure function of (seed, epoch, index), so neither workers, ranks, restarts
nor the frame cache change what is drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from zoo.assets import GROUPS, cache_root, fetch, fetch_group
from zoo.data.batch import Sample
from zoo.data.cache import Facts, index_files
from zoo.data.transforms import to_pixels
from zoo.errors import RunError, UserError

_ATTEMPTS = 16  # other samples tried in the place of one that can't be read
_ASSET = "asset:"
_PREPARED = "prepared:"


@dataclass(frozen=True)
class File:
    """A usable file: its name in the source, its place and what the index says about it."""

    key: str
    path: Path
    facts: Facts


class Source(Dataset[Sample], ABC):
    """Base of all sources: finds files, sets broken ones aside, replaces what can't be read.

    Args:
        root: a folder (searched with its subfolders), a file, `asset:NAME` or `asset:GROUP`,
            `prepared:NAME/...` (what `zoo data prepare NAME` has made), or
            a list of these.
        size: pixels of both sides of a sample.
        short_side: pixels the shorter side is scaled to before cropping, at least `size`; in
            training also a pair (lowest, highest) to draw from. None: `size`.
        train: random place, scale and mirroring; else the centre.
        flip: mirror left and right every other time (training only).
        seed: with the epoch and the index it decides every draw.
        files: names below the root to keep. None: all.
        max_broken: share of files that may be broken before the run stops.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        root: str | list[str],
        *,
        size: int = 64,
        short_side: int | tuple[int, int] | None = None,
        train: bool = True,
        flip: bool = True,
        seed: int = 0,
        files: list[str] | None = None,
        max_broken: float = 0.1,
    ) -> None:
        pair = size if short_side is None else short_side
        self.short_side = (pair, pair) if isinstance(pair, int) else (pair[0], pair[1])
        lowest, highest = self.short_side
        if not 1 <= size <= lowest <= highest:
            raise UserError(
                f"short_side {short_side} doesn't fit size {size}; give a number, or a pair "
                f"(lowest, highest), of at least {size}"
            )
        if lowest != highest and not train:
            raise UserError(f"short_side {short_side} is a pair; with train=False give one number")
        self.root = root
        self.size = size
        self.train = train
        self.flip = flip
        self.seed = seed
        self.files = files
        self.max_broken = max_broken
        self._usable: Sequence[File] | None = None
        self._broken: dict[str, str] = {}  # set aside before the first sample
        self._reasons: dict[int, str] = {}  # of this process's failures, by number
        self._failed = torch.zeros(0, dtype=torch.uint8)

    def prepare(self) -> None:
        """Find and probe the files; does nothing the second time.

        Raises:
            UserError: the root is missing, holds no file of this kind, or none as large as `size`.
            RunError: more than `max_broken` of the files are broken.
        """
        if self._usable is not None:
            return
        found = self._find()
        facts = self._measure(found)
        usable = []
        for key, path in found.items():
            reason = facts[key].get("error") or self._objection(facts[key])
            if reason:
                self._broken[key] = reason
            else:
                usable.append(File(key, path, facts[key]))
        self._usable = usable
        # Shared memory: workers mark here what they couldn't read, the main process looks.
        self._failed = torch.zeros(len(usable), dtype=torch.uint8)
        self._failed.share_memory_()  # type: ignore[no-untyped-call]
        self.check()
        sides = [min(f.facts["width"], f.facts["height"]) for f in usable if "width" in f.facts]
        if sides and max(sides) < self.size:
            raise UserError(
                f"size {self.size} is larger than everything in {self.root}, whose shorter sides "
                f"have at most {max(sides)} pixels: lower size"
            )
        self._arrange()

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has run."""
        return self._usable is not None

    @property
    def usable(self) -> Sequence[File]:
        """The files samples are drawn from."""
        assert self._usable is not None, "call prepare() before using a source"
        return self._usable

    @property
    def broken(self) -> dict[str, str]:
        """Why files are set aside (or failed when read, in any worker), by key."""
        numbers = [int(i) for i in self._failed.nonzero()]
        late = {self.usable[i].key: self._reasons.get(i, "failed when read") for i in numbers}
        return late | self._broken

    def check(self) -> None:
        """Stop the run when too many files are broken.

        Raises:
            RunError: more than `max_broken` of the files are.
        """
        count = len(self._broken) + int(self._failed.sum())
        total = len(self._broken) + len(self.usable)
        if count > self.max_broken * total:
            some = "; ".join(f"{key}: {reason}" for key, reason in list(self.broken.items())[:3])
            raise RunError(
                f"{count} of {total} files in {self.root} are broken, more than "
                f"max_broken={self.max_broken:g} allows ({some})"
            )

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """A sample.

        Args:
            item: the index, or (epoch, index); an index alone means epoch 0.

        Returns:
            A `Sample` with pixels float [3, T, size, size] in [-1, 1] (or what the source says).

        Raises:
            IndexError: there is no such index.
            RunError: neither this sample nor those tried in its place can be read.
        """
        epoch, index = item if isinstance(item, tuple) else (0, item)
        if not 0 <= index < self._places():
            raise IndexError(f"sample {index} of {self._places()}")
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng((self.seed, epoch, index, attempt))
            # What can't be read is replaced by a draw that is again a function of these numbers.
            place = int(rng.integers(self._places())) if attempt else index
            number, start = self._locate(place, rng if self.train else None)
            file = self.usable[number]
            try:
                return self._sample(number, start, rng if self.train else None)
            except (UserError, RunError, OSError) as error:
                self._failed[number] = 1
                self._reasons[number] = str(error)
        raise RunError(f"{_ATTEMPTS} samples of {self.root} in a row can't be read; see {file.key}")

    def spread(self, count: int) -> Iterator[Sample]:
        """`count` samples spread evenly over the source: of later epochs when it has fewer."""
        epochs = -(-count // len(self))
        for number in range(count):
            place = number * epochs * len(self) // count
            yield self[divmod(place, len(self))]

    def _places(self) -> int:
        """How many indices there are; an epoch may have fewer samples, or some several times."""
        return len(self)

    def length(self, chunk: int) -> int:
        """Samples of an epoch that batches of `chunk`, all ranks together, can be made of."""
        return len(self)

    @property
    def in_chunks(self) -> bool:
        """Whether `order` gives samples chunk by chunk, which an epoch may then not cut in two."""
        return False

    def order(self, rng: np.random.Generator, *, chunk: int, ranks: int = 1) -> NDArray[np.int64]:
        """The indices of an epoch in the order they are drawn; `ranks` take turns.

        Args:
            rng: draws the order.
            chunk: samples a batch on all ranks together.
            ranks: number of processes.
        """
        return rng.permutation(len(self))

    def _sample(self, number: int, start: float, rng: np.random.Generator | None) -> Sample:
        """Read file `number` from `start` on and make it a sample; no `rng`: as for evaluation."""
        file = self.usable[number]
        video, suffix = self._read(file, start)
        return Sample(self._transform(video, rng), "", file.key + suffix)

    def _measure(self, found: dict[str, Path]) -> dict[str, Facts]:
        """Facts about every file, by key."""
        facts = index_files(list(found.values()), name=self._index_name(), probe=self._probe)
        return {key: facts[path] for key, path in found.items()}

    def _transform(self, video: Tensor, rng: np.random.Generator | None) -> Tensor:
        """What was read as it leaves the source; without `rng`, as for evaluation."""
        return to_pixels(video, size=self.size, short_side=self.short_side, flip=self.flip, rng=rng)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _probe(self, path: Path) -> Facts:
        """Measure a file for the index; raises UserError or OSError where it is broken."""

    def _objection(self, facts: Facts) -> str | None:
        """Why a readable file is of no use with these settings."""
        return None

    def _arrange(self) -> None:
        """Work out the samples once the usable files are known."""

    @abstractmethod
    def _locate(self, index: int, rng: np.random.Generator | None) -> tuple[int, float]:
        """The number of the file and the start in seconds of a sample."""

    @abstractmethod
    def _read(self, file: File, start: float) -> tuple[Tensor, str]:
        """uint8 [3, T, H, W] at the highest short side, and what the key ends in."""

    def _index_name(self) -> str:
        roots = [self.root] if isinstance(self.root, str) else self.root
        names = [root if root.startswith(_ASSET) else str(local(root).resolve()) for root in roots]
        return " ".join([type(self).__name__, *names])

    def _find(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for root in [self.root] if isinstance(self.root, str) else self.root:
            for place in _places(root):
                for path in self._list(place):
                    key = path.relative_to(place).as_posix() if path != place else path.name
                    found[key if key not in found else str(path)] = path
        if self.files is None:
            return found
        missing = [name for name in self.files if name not in found]
        if missing:
            raise UserError(f"{self.root} has no file {missing[0]}; correct the list of files")
        return {name: found[name] for name in self.files}

    def _list(self, place: Path) -> list[Path]:
        if place.is_file():
            return [place]
        if not place.is_dir():
            raise UserError(f"there is no folder or file at {place}; correct the root")
        files = sorted(
            path
            for path in place.rglob("*")
            if path.suffix.lower() in self.suffixes and not path.name.startswith(".")
        )
        if not files:
            known = ", ".join(self.suffixes)
            raise UserError(f"{place} holds no file whose name ends in {known}; correct the root")
        return files


def local(root: str) -> Path:
    """A path as configs write it: `~` is the home, `prepared:` what `zoo data prepare` has made.

    Raises:
        UserError: it isn't prepared.
    """
    if not root.startswith(_PREPARED):
        return Path(root).expanduser()
    name = root.removeprefix(_PREPARED)
    place = cache_root() / "data" / name
    if not place.exists():
        dataset = name.partition("/")[0]
        raise UserError(
            f"{root} isn't at {place}: run python tools/data.py prepare {dataset}, or give another"
        )
    return place


def _places(root: str) -> list[Path]:
    if not root.startswith(_ASSET):
        return [local(root).absolute()]
    name = root.removeprefix(_ASSET)
    if name in GROUPS:
        return [path.absolute() for path in fetch_group(name).values()]
    return [fetch(name).absolute()]
