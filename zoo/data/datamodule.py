"""The one data module: loaders whose order is a function of (seed, epoch), resumable anywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from zoo.data.batch import Batch, Sample, collate
from zoo.data.mixture import Mixture
from zoo.data.source import Source
from zoo.errors import UserError
from zoo.kernels.allocator import return_memory

_LOG = logging.getLogger(__name__)


class EpochSampler(DistributedSampler[Sample]):
    """Yields (pass, index) pairs, disjoint between ranks.

    In training the passes over the source follow one another without a gap: what doesn't fill the
    last chunk of a pass opens the next, so no sample is lost and every batch is whole. A Lightning
    epoch is as many chunks as a pass fills; where it begins is a position in that endless sequence,
    the sampler's only state.

    The pass travels with the index, so worker processes need no message when it changes. Being
    a `DistributedSampler` keeps Lightning from wrapping it.

    Args:
        length: number of samples of the source.
        chunk: samples all ranks together take at a time (training only).
        shuffle: draw a new order each pass and go on for ever; else count upwards, once, as pass 0.
            A rank beyond the last sample then repeats one, so that no rank has none.
        seed: with the pass it decides the order.
        rank: this process's number.
        ranks: number of processes.
        used: says how many samples all ranks together have taken when an epoch begins (training
            only). None: those of whole epochs.
        order: the order of a pass, instead of a plain shuffle; gives at least `length` indices.
    """

    def __init__(
        self,
        length: int,
        *,
        chunk: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        used: Callable[[], int] | None = None,
        order: Callable[[np.random.Generator], NDArray[np.int64]] | None = None,
    ) -> None:
        # The base class's own set-up wants a data set and a process group; neither is needed.
        self.length = length
        self.epoch_length = length - length % chunk
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.num_replicas = ranks
        self.epoch = 0
        self.used = used
        self.order = order

    def __len__(self) -> int:
        if self.shuffle:
            return self.epoch_length // self.num_replicas
        return len(self._validation())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._training() if self.shuffle else self._validation())

    def _validation(self) -> list[tuple[int, int]]:
        own = range(self.rank, self.length, self.num_replicas)
        return [(0, i) for i in own or [self.rank % self.length]]

    def _training(self) -> list[tuple[int, int]]:
        start = self.epoch * self.epoch_length if self.used is None else self.used()
        stop = start + self.epoch_length
        pairs: list[tuple[int, int]] = []
        for number in range(start // self.length, -(-stop // self.length)):
            rng = np.random.default_rng((self.seed, number))
            order = rng.permutation(self.length) if self.order is None else self.order(rng)
            first = number * self.length
            part = order[max(0, start - first) : min(self.length, stop - first)]
            pairs += [(number, int(index)) for index in part]
        return pairs[self.rank :: self.num_replicas]


class ZooDataModule(LightningDataModule):
    """Training and validation data.

    Args:
        train: what to train on: a source, or several mixed batch by batch.
        val: what to validate on; None: nothing.
        batch_size: samples a step and rank.
        val_batch_size: samples a validation step and rank. None: `batch_size`.
        num_workers: loading processes for each loader; 0 loads between the steps, which with the
            sources' frame cache costs little and leaves a small machine's cores to training.
        seed: with the epoch it decides the order.
    """

    def __init__(
        self,
        train: Source | Mixture,
        *,
        val: Source | None = None,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (val_batch_size is not None and val_batch_size < 1):
            raise UserError(f"batch sizes {batch_size} and {val_batch_size} must be above 0")
        if num_workers < 0:
            raise UserError(f"num_workers={num_workers} must be 0 or more")
        self.train = train
        self.val = val
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._used = 0  # samples, of all ranks together, when this session's training began
        self._begun: int | None = None  # steps of earlier sessions
        self._old: dict[str, int] = {}

    def prepare_data(self) -> None:
        """Fetch assets and index folders, once a machine; other ranks then find them done."""
        self.train.prepare()
        if self.val is not None:
            self.val.prepare()

    def setup(self, stage: str) -> None:
        """Read the indices.

        Args:
            stage: Lightning's "fit", "validate", "test" or "predict".
        """
        self.prepare_data()

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches of pixels float [B, 3, T, size, size] in [-1, 1]; the last is never smaller."""
        rank, ranks = self._ranks()
        chunk = self.batch_size * ranks
        length = self.train.length(chunk)
        if length < chunk:
            raise UserError(
                f"an epoch of {self.train.root} has {len(self.train)} samples, too few for a batch "
                f"of {self.batch_size} on each of {ranks} processes; lower batch_size"
            )
        if self.trainer is not None:
            if self._old:
                whole = self._old["epoch"] * (length // chunk)
                self._used = (whole + self._old["batches"]) * chunk
                self._old = {}
            if self._begun is None:
                if self.train.in_chunks:  # after a run with another batch size
                    self._used -= self._used % chunk
                self._begun = self._steps()
        sampler = EpochSampler(
            length,
            chunk=chunk,
            shuffle=True,
            seed=self.seed,
            rank=rank,
            ranks=ranks,
            used=None if self.trainer is None else self._position,
            order=partial(self.train.order, chunk=chunk, ranks=ranks),
        )
        return self._loader(self.train, sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """All validation samples once, in their order; an empty list without a source."""
        if self.val is None:
            return []
        rank, ranks = self._ranks()
        sampler = EpochSampler(len(self.val), rank=rank, ranks=ranks)
        return self._loader(self.val, sampler, self.val_batch_size)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Stop, in the main process, once workers have met too many broken files."""
        self.train.check()
        if self.val is not None:
            self.val.check()
        return batch

    def teardown(self, stage: str) -> None:
        """List the broken files.

        Args:
            stage: Lightning's "fit", "validate", "test" or "predict".
        """
        for source in (self.train, self.val):
            if source is not None and source.prepared and (broken := source.broken):
                named = "; ".join(f"{key}: {reason}" for key, reason in broken.items())
                _LOG.warning("%d files of %s were skipped: %s", len(broken), source.root, named)

    def state_dict(self) -> dict[str, Any]:
        """Where training goes on: samples `used` by all ranks together since the beginning."""
        return {"used": self._position()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with any batch size and number of ranks.

        The order of a `Mixture` depends on batch size times ranks: with another product its pass
        goes on in another order.
        """
        # checkpoints of version 0.1.0 count in epochs
        self._old = {} if "used" in state_dict else state_dict
        self._used = state_dict.get("used", 0)
        self._begun = None  # Lightning restores its counters later

    def _position(self) -> int:
        if self._begun is None:
            return self._used
        return self._used + (self._steps() - self._begun) * self.batch_size * self._ranks()[1]

    def _steps(self) -> int:
        # Lightning's counter, not the sampler's: workers are ahead of the training step. The total,
        # because the counters within an epoch jump when a run is resumed at the end of one.
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.total
        steps: int = cast(Any, progress).processed
        return steps

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(
        self, source: Source | Mixture, sampler: EpochSampler, size: int
    ) -> DataLoader[Sample]:
        return DataLoader(
            source,
            batch_size=size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=_begin_worker,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _begin_worker(worker: int) -> None:
    # As many workers as cores are started; torch would give each of them all cores again.
    torch.set_num_threads(1)
    return_memory()
