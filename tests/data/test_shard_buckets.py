"""Batches of one shape from shards of many."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from films import MakeFilm
from shard_sets import opened, picture

from zoo.data.batch import Batch
from zoo.data.buckets import Buckets
from zoo.data.datamodule import ZooDataModule
from zoo.data.shard_writer import ShardSettings, shard_folder
from zoo.errors import UserError


def test_buckets_of_aspects_and_lengths(tmp_path: Path, make_film: MakeFilm) -> None:
    for number in range(9):
        size = [(48, 32), (32, 48), (40, 40)][number % 3]
        picture(tmp_path / "data" / f"p{number}.png", number, size)
    for number in range(6):
        make_film(tmp_path / "data" / f"f{number}.mp4", frames=9 if number % 2 else 20)
    shard_folder(tmp_path / "data", tmp_path / "out", ShardSettings(shard_mb=0.01))
    buckets = Buckets(32, frames=(1, 5, 17), ratios=(2 / 3, 1, 3 / 2), multiple=8)
    assert set(buckets.shapes) == {
        (t, *side) for t in (1, 5, 17) for side in ((40, 24), (32, 32), (24, 40))
    }
    source = opened(tmp_path / "out", buckets=buckets)
    data = ZooDataModule(source, batch_size=3, num_workers=1)
    batches: list[Batch] = list(data.train_dataloader())
    shapes = Counter(tuple(batch.pixels.shape[2:]) for batch in batches)
    assert shapes == {
        (1, 24, 40): 1,
        (1, 40, 24): 1,
        (1, 32, 32): 1,
        (5, 24, 40): 1,
        (17, 24, 40): 1,
    }
    keys = [key.partition("@")[0] for batch in batches for key in batch.key]
    assert len(keys) == len(set(keys)) == 15
    for batch in batches:
        assert batch.pixels.abs().max() <= 1


def test_bucket_batches_over_ranks(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "data" / f"p{number}.png", number, (48, 32) if number % 5 else (32, 48))
    shard_folder(tmp_path / "data", tmp_path / "out", ShardSettings(shard_mb=0.002))
    source = opened(tmp_path / "out", buckets=Buckets(32, frames=(1,), multiple=8))
    chunk = 6
    order = source.order(np.random.default_rng(0), chunk=chunk, ranks=2)
    assert len(order) == source.length(chunk) == 36
    assert len(set(order.tolist())) == 36
    for batch in order.reshape(-1, chunk):
        assert len(set(source._bucket[batch].tolist())) == 1


@pytest.mark.parametrize("resample", [None, 40])
def test_bucket_batches_over_passes(tmp_path: Path, resample: int | None) -> None:
    """Every batch of all ranks has one shape, in each pass and after a stop, by whatever batch."""
    for number in range(40):
        picture(tmp_path / "data" / f"p{number}.png", number, (48, 32) if number % 5 else (32, 48))
    shard_folder(tmp_path / "data", tmp_path / "out", ShardSettings(shard_mb=0.002))
    buckets = Buckets(32, frames=(1,), multiple=8)
    source = opened(tmp_path / "out", buckets=buckets, resample=resample)
    assert source.in_chunks
    parts = []
    for rank in range(2):
        data = ZooDataModule(source, batch_size=3, seed=3)
        data._ranks = lambda rank=rank: (rank, 2)  # type: ignore[method-assign, misc]
        loader = data.train_dataloader()
        part: list[Batch] = []
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            part += loader
        parts.append(part)
    assert len(parts[0]) == len(parts[1]) == 3 * 6
    for both in zip(*parts, strict=True):
        assert len({tuple(batch.pixels.shape) for batch in both}) == 1
    if resample is None:
        for begin in range(0, 18, 6):
            keys = [k for part in parts for batch in part[begin : begin + 6] for k in batch.key]
            assert len(set(keys)) == len(keys) == 36
    assert len({tuple(batch.pixels.shape) for batch in parts[0]}) == 2


def test_buckets_resumed_with_another_batch_size(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "data" / f"p{number}.png", number, (48, 32) if number % 5 else (32, 48))
    shard_folder(tmp_path / "data", tmp_path / "out", ShardSettings(shard_mb=0.002))
    source = opened(tmp_path / "out", buckets=Buckets(32, frames=(1,), multiple=8))
    data = ZooDataModule(source, batch_size=4)
    progress = SimpleNamespace(total=SimpleNamespace(processed=3))
    epochs = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(fit_loop=epochs, global_rank=0, world_size=1)  # type: ignore[assignment]
    data.load_state_dict({"used": 9})  # three batches of 3
    loader = data.train_dataloader()
    assert data.state_dict() == {"used": 8}
    assert [len(batch.key) for batch in loader] == [4] * 10  # batches of one shape, else no stack


def test_mistakes_of_buckets(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    for settings, said in (
        ({"frames": ()}, "frames="),
        ({"ratios": (0.0,)}, "ratios="),
        ({"multiple": 64}, "multiple=64"),
    ):
        with pytest.raises(UserError, match=said):
            Buckets(32, **settings)  # type: ignore[arg-type]
    source = opened(pictures, buckets=Buckets(32, frames=(1,), multiple=8))
    assert source.length(50) == 0
    assert "never fill a batch of 50" in caplog.text
    for path in pictures.glob("*.json"):
        path.unlink()
    with pytest.raises(UserError, match="nobody measured"):
        opened(pictures, buckets=Buckets(32, frames=(1,), multiple=8))
