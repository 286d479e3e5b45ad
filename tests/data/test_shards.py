"""Shards from the writer to the loader: what goes in comes out, once."""

from __future__ import annotations

import gc
import io
import tarfile
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset
from films import MakeFilm
from PIL import Image
from shard_sets import opened

from zoo.data.datamodule import EpochSampler, ZooDataModule
from zoo.data.shard_source import ShardSource
from zoo.data.storage import Patience
from zoo.errors import RunError, UserError


def keys_of_epoch(
    source: ShardSource, *, epoch: int, rank: int, ranks: int, workers: int, batch: int = 2
) -> list[str]:
    data = ZooDataModule(source, batch_size=batch, num_workers=workers, seed=3)
    data._ranks = lambda: (rank, ranks)  # type: ignore[method-assign]
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    return [key for one in loader for key in one.key]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 2), (3, 0), (5, 1)])
def test_no_sample_is_lost_or_doubled(pictures: Path, ranks: int, workers: int) -> None:
    """Counted over ranks x workers x epochs; what fills no batch on all ranks opens the next."""
    source = opened(pictures)
    steps = 37 // (2 * ranks)
    drawn: list[str] = []
    for epoch in range(4):
        parts = [
            keys_of_epoch(source, epoch=epoch, rank=rank, ranks=ranks, workers=workers)
            for rank in range(ranks)
        ]
        assert {len(part) for part in parts} == {2 * steps}, "all ranks take as many steps"
        drawn += [key for turn in zip(*parts, strict=True) for key in turn]
    passes = [drawn[start : start + 37] for start in range(0, len(drawn), 37)]
    assert len(passes) == 4
    assert len(passes[-1]) == 4 * 2 * ranks * steps - 3 * 37
    assert all(len(set(one)) == len(one) for one in passes), "nothing is doubled in a pass"
    assert all(set(one) == set(passes[0]) for one in passes[:3]), "nothing is lost in one"
    assert passes[0] != passes[1] != passes[2]
    counts = Counter(drawn)
    assert len(counts) == 37
    assert max(counts.values()) - min(counts.values()) <= 1


def test_evaluation_sees_everything_once_in_order(pictures: Path) -> None:
    source = opened(pictures, train=False)
    for ranks in (1, 2, 3):
        parts = [list(EpochSampler(len(source), rank=r, ranks=ranks)) for r in range(ranks)]
        keys = [source[item].key for part in parts for item in part]
        assert sorted(keys) == sorted(set(keys))
        assert len(keys) == 37


def test_each_rank_has_shards_of_its_own(pictures: Path) -> None:
    source = opened(pictures, shuffle=4)
    order = source.order(np.random.default_rng(0), chunk=8, ranks=4)
    shards = [set(source._table.shard[order[rank::4]].tolist()) for rank in range(4)]
    shared = sum(len(a & b) for i, a in enumerate(shards) for b in shards[i + 1 :])
    assert shared <= 3, "only the shard on the border between two ranks is read by both"
    assert sorted(order.tolist()) == list(range(37))
    still = opened(pictures, shuffle=0).order(np.random.default_rng(0), chunk=1, ranks=1)
    assert all(np.diff(still[source._table.shard[still] == s]).tolist() == [1] * 4 for s in (0, 1))


def test_a_stopped_epoch_goes_on_where_it_was(pictures: Path) -> None:
    source = opened(pictures)
    order = partial(source.order, chunk=4, ranks=2)
    for rank in (0, 1):
        make = partial(EpochSampler, 37, chunk=4, shuffle=True, seed=1, rank=rank, ranks=2)
        whole = make(order=order)
        epochs = []
        for epoch in (2, 3):
            whole.set_epoch(epoch)
            epochs.append(list(whole))
        rest = list(make(order=order, used=lambda: 2 * 36 + 12))
        assert len(rest) == 18
        assert rest == (epochs[0] + epochs[1])[6:24]


def test_resampling_draws_with_replacement(pictures: Path) -> None:
    source = opened(pictures, resample=200)
    assert len(source) == 200
    keys = keys_of_epoch(source, epoch=0, rank=0, ranks=1, workers=0)
    assert len(keys) == 200
    counts = Counter(keys)
    assert set(counts.values()) != {200 // 37}
    assert max(counts.values()) > 6
    assert keys != keys_of_epoch(source, epoch=1, rank=0, ranks=1, workers=0)


def test_webdataset_reads_what_we_write(pictures: Path) -> None:
    urls = sorted(str(path) for path in pictures.glob("*.tar"))
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(theirs) == 37
    ours = opened(pictures, train=False, short_side=20, size=20)
    for sample, mine in zip(theirs, (ours[i] for i in range(37)), strict=True):
        rgb = np.asarray(Image.open(io.BytesIO(sample["bmp"])))[:, 2:22]
        assert np.array_equal(
            ((mine.pixels[:, 0] + 1) * 127.5).round().byte().permute(1, 2, 0), rgb
        )
        assert mine.key.endswith(sample["__key__"])


def test_we_read_what_webdataset_writes(tmp_path: Path, make_film: MakeFilm) -> None:
    film = make_film(tmp_path / "a.mp4", frames=20).read_bytes()
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as out:
        out.write({"__key__": "a/x", "png": Image.new("RGB", (20, 20), "red"), "txt": "red"})
        out.write({"__key__": "film", "mp4": film, "json": {"caption": "grey", "n": 1}})
        out.write({"__key__": "no-media", "txt": "nothing to see"})
    source = opened(tmp_path / "theirs.tar", train=False, flip=False)
    found = {sample.key: sample.prompt for sample in (source[i] for i in range(len(source)))}
    assert found == {"theirs.tar/a/x": "red", "theirs.tar/film@0.000": "grey"}
    again = opened(tmp_path / "theirs.tar", train=False)  # from the cached index
    assert [again[i].key for i in range(2)] == [source[i].key for i in range(2)]


def test_mistakes_of_the_source(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match=r"no shards\.json and no \.tar in"):
        opened(tmp_path / "pictures")
    with pytest.raises(UserError, match="unbalanced braces"):
        opened(f"{tmp_path}/{{0..3.tar")
    with pytest.raises(UserError, match=r"can't be opened .*nosuch"):
        opened("nosuch://bucket/a.tar")
    with pytest.raises(RunError, match=r"none of 1 shards .*gone\.tar"):
        opened(tmp_path / "gone.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    with pytest.raises(RunError, match="no plain tar archive"):
        opened(tmp_path / "packed.tar")
    for settings, said in (
        ({"frames": 0}, "frames=0"),
        ({"shuffle": -1}, "shuffle=-1"),
        ({"resample": 0}, "resample=0"),
        ({"train": False, "resample": 5}, "are for training"),
    ):
        with pytest.raises(UserError, match=said):
            ShardSource(str(pictures), **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="attempts=0"):
        Patience(attempts=0)


def test_memory_is_flat(pictures: Path) -> None:
    """Nothing is kept of the samples: 40 epochs hold no more than the first six."""

    def held() -> int:
        gc.collect()  # empties Python's lists of freed tuples too
        return tracemalloc.get_traced_memory()[0]

    source = opened(pictures)
    tracemalloc.start()
    for epoch in range(40):
        for index in range(37):
            source[(epoch, index)]
        if epoch == 5:
            early = held()
    late = held()
    tracemalloc.stop()
    assert late - early < 20_000


def test_a_config_trains_on_shards(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zoo.cli import train

    config = Path(__file__).parents[2] / "configs" / "smoke" / "kl_vae_image.yaml"
    given = ["fit", "--config", str(config), "--data.train", "zoo.data.shard_source.ShardSource"]
    options = {"root": pictures, "frames": 1, "size": 64, "buckets": "zoo.data.buckets.Buckets"}
    for name, value in (options | {"patience.attempts": 5, "buckets.size": 64}).items():
        name = name.replace("buckets.", "buckets.init_args.")
        given += [f"--data.train.init_args.{name}", str(value)]
    with pytest.raises(SystemExit) as stopped:
        train.main([*given, "--print_config"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert "zoo.data.shard_source.ShardSource" in shown
    assert "attempts: 5" in shown
    with pytest.raises(UserError, match="unknown key 'shufle': did you mean 'shuffle'"):
        train.main([*given, "--data.train.init_args.shufle", "3", "--print_config"])
