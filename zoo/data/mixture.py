"""Films and images in one training run: each batch is of one source, so that shapes agree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from zoo.data.batch import Sample
from zoo.data.source import Source
from zoo.errors import UserError


class Mixture(Dataset[Sample]):
    """Several sources, each with its own frames and size, mixed batch by batch.

    An epoch holds the first source once and as much of the others as their shares ask for: a
    small one several times (with other draws each time), a large one in parts that go on in the
    next epoch. As with a single source, a sample is a function of (seed, epoch, index).

    Args:
        sources: the first one sets the length of an epoch, and PCA and latents are measured on it.
        shares: of the batches, one number a source; scaled to sum to 1.
    """

    def __init__(self, sources: list[Source], *, shares: list[float]) -> None:
        if not sources or len(sources) != len(shares) or min(shares) <= 0:
            raise UserError(
                f"{len(sources)} sources with shares {shares}: give each source a share above 0"
            )
        self.sources = sources
        self.shares = [share / sum(shares) for share in shares]

    def prepare(self) -> None:
        """Find and probe the files of all sources; see `Source.prepare`."""
        for source in self.sources:
            source.prepare()

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has run."""
        return all(source.prepared for source in self.sources)

    @property
    def root(self) -> str:
        """The roots of all sources, for messages."""
        return " and ".join(str(source.root) for source in self.sources)

    @property
    def broken(self) -> dict[str, str]:
        """Files set aside in any source; see `Source.broken`."""
        return {key: why for source in self.sources for key, why in source.broken.items()}

    def check(self) -> None:
        """Stop the run when too many files of a source are broken; see `Source.check`."""
        for source in self.sources:
            source.check()

    def spread(self, count: int) -> Iterator[Sample]:
        """`count` samples spread evenly over the first source."""
        return self.sources[0].spread(count)

    def counts(self) -> list[int]:
        """Samples of each source in an epoch."""
        total = len(self.sources[0]) / self.shares[0]
        return [max(1, round(total * share)) for share in self.shares]

    def __len__(self) -> int:
        return sum(self.counts())

    def length(self, chunk: int) -> int:
        """Samples of an epoch that fill whole chunks."""
        return sum(count - count % chunk for count in self.counts())

    @property
    def in_chunks(self) -> bool:
        """See `Source.in_chunks`."""
        return True

    def order(self, rng: np.random.Generator, *, chunk: int, ranks: int = 1) -> NDArray[np.int64]:
        """The indices of an epoch, shuffled; each `chunk` in a row are of one source."""
        chunks, start = [], 0
        for count in self.counts():
            mine = start + rng.permutation(count)[: count - count % chunk]
            chunks += list(mine.reshape(-1, chunk))
            start += count
        return np.concatenate([chunks[i] for i in rng.permutation(len(chunks))])

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        """A sample; see `Source.__getitem__`."""
        epoch, index = item if isinstance(item, tuple) else (0, item)
        for source, count in zip(self.sources, self.counts(), strict=True):
            if index < count:
                # counted over all epochs: passes over the source follow one another
                return source[divmod(epoch * count + index, len(source))]
            index -= count
        raise IndexError(f"sample {item} of {len(self)}")
