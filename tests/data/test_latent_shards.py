"""Latents on disk: bit-exact, readable by webdataset, the same bytes after any stop, a source."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from safetensors.torch import load
from torch import Tensor

from zoo.data.datamodule import ZooDataModule
from zoo.data.latent_source import LatentClips
from zoo.data.latent_writer import LatentWriter
from zoo.data.latents import DTYPES, LatentFolder, Settings
from zoo.errors import RunError, UserError

CHANNELS = 3


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "model": "dir:/models/a",
        "architecture": "cdt",
        "config_sha256": "c" * 64,
        "weights_sha256": "a" * 64,
        "compression": [4, 8, 8],
        "latent_mean": [1.0, 2.0, 3.0],
        "latent_std": [0.5, 1.0, 2.0],
        "dtype": "fp32",
    }
    return Settings(**(values | changes))


def latents(count: int, *, seed: int = 0, height: int = 4, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(CHANNELS, count, height, width, generator=generator)


def pieces(z: Tensor) -> list[tuple[Tensor, int]]:
    """Uneven pieces, as an encoder gives them, with the frames that each took."""
    lengths = [1, 0, 7, 20, 3] * z.shape[1]
    cut, start = [], 0
    for length in lengths:
        piece = z[:, start : start + length]
        if start < z.shape[1] or not cut:
            cut.append((piece, max(0, 4 * piece.shape[1] - 3 * (start == 0))))
        start += length
    return cut


def even(number: int) -> float:
    """When a frame begins at 25 a second, from a start at 2 s."""
    return 2.0 + number / 25


def uneven(number: int) -> float:
    return even(number) + 0.01 * (number % 3)


def write_film(
    writer: LatentWriter, source: Path, z: Tensor, seconds: Callable[[int], float] = even
) -> None:
    key = source.name
    film = writer.begin(key=key, source=source, height=32, width=40, rate="25", info={})
    done = film.frames
    for piece, frames in pieces(z):
        if done:  # what a stopped run has behind it
            done -= frames
            continue
        first = film.frames
        writer.add(piece, times=[seconds(first + i) for i in range(frames)])
    writer.end()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "film.mp4").write_bytes(b"film")
    return tmp_path / "film.mp4"


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_round_trip_is_bit_exact(dtype: str, tmp_path: Path, source: Path) -> None:
    z = latents(70)
    folder = tmp_path / "l"
    with LatentWriter(folder, settings(dtype=dtype), shard_bytes=6000) as writer:
        write_film(writer, source, z)
    expected = z.to(DTYPES[dtype])
    back = LatentFolder(folder)
    (film,) = back.films
    assert film.latents == [CHANNELS, 70, 4, 5]
    assert film.frames == 1 + 4 * 69
    assert len(film.places) > 1  # the film is in several shards
    read = torch.cat([sample for sample, _ in back.samples(film)], dim=1)
    assert read.dtype == DTYPES[dtype]
    assert torch.equal(read, expected)
    for first, count in ((0, 1), (15, 2), (16, 16), (3, 60), (69, 1)):
        assert torch.equal(back.read(film, first, count), expected[:, first : first + count])
    with pytest.raises(UserError, match="70 latents"):
        back.read(film, 69, 2)
    assert back.statistics is not None
    wide = expected.double().flatten(1)
    assert back.statistics["mean"] == pytest.approx(wide.mean(1).tolist())
    assert back.statistics["std"] == pytest.approx(wide.std(1, correction=0).tolist())
    # the same through the library the shards are named after
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"000000-{i:06d}" for i in range(5)]
    assert torch.equal(
        torch.cat([load(s["safetensors"])["latents"] for s in samples], dim=1), expected
    )
    facts = [json.loads(s["json"]) for s in samples]
    assert [f["first_frame"] for f in facts] == [0, 61, 125, 189, 253]
    assert [f["frames"] for f in facts] == [61, 64, 64, 64, 24]
    assert {(f["key"], f["height"], f["width"], f["rate"]) for f in facts} == {
        ("film.mp4", 32, 40, "25")
    }


def test_times_are_kept_where_they_are_uneven(tmp_path: Path, source: Path) -> None:
    def late(number: int) -> float:  # a gap after frame 100: the second of three samples
        return even(number) + (number > 100)

    expected = {"even": even, "uneven": uneven, "late": late}
    for name, seconds in expected.items():
        with LatentWriter(tmp_path / name, settings()) as writer:
            write_film(writer, source, latents(40), seconds)
        folder = LatentFolder(tmp_path / name)
        assert folder.films[0].begin == 2.0
        facts = [f for _, f in folder.samples(folder.films[0])]
        have = {"even": [], "uneven": [0, 1, 2], "late": [1, 2]}[name]
        assert [i for i, f in enumerate(facts) if "times" in f] == have
        for f in (facts[i] for i in have):
            frames = range(f["first_frame"], f["first_frame"] + f["frames"])
            assert f["times"] == pytest.approx([seconds(n) for n in frames])


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_any_stop_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """Three films; after every single `add` the run is given up, in files as they then are."""
    sources = [tmp_path / f"{name}.mp4" for name in "abc"]
    films = dict(zip(sources, (latents(20), latents(1, seed=1), latents(50, seed=2)), strict=True))
    for path in sources:
        path.write_bytes(b"film")

    def encode(folder: Path, *, stop_after: int, mark_every: int) -> int:
        """As `encode_film` does; returns how many pieces were written."""
        written = 0
        writer = LatentWriter(folder, settings(), shard_bytes=5000)
        left = [p for p in sources if p.name not in writer.done]
        for path in left:
            film = writer.begin(
                key=path.name,
                source=path,
                height=32,
                width=40,
                rate="25",
                info={},
            )
            if film.frames:
                assert writer.state is not None
                assert writer.state["memory"].item() == film.frames
            skip = film.frames
            for piece, frames in pieces(films[path]):
                if skip > 0:
                    skip -= frames
                    continue
                if film.frames and written % mark_every == 0:
                    writer.checkpoint({"memory": torch.tensor(film.frames)})
                if written == stop_after:
                    return written
                first = film.frames
                writer.add(piece, times=[uneven(first + i) for i in range(frames)])
                written += 1
            writer.end()
        writer.finish()
        return written

    total = encode(tmp_path / "whole", stop_after=-1, mark_every=1)
    expected = files(tmp_path / "whole")
    assert [name for name in expected if name.endswith(".tar")] == [
        f"{i:06d}.tar" for i in range(6)
    ]
    for mark_every in (1, 2, 1000):
        for stop in range(total):
            folder = tmp_path / f"{mark_every}-{stop}"
            encode(folder, stop_after=stop, mark_every=mark_every)
            assert encode(folder, stop_after=-1, mark_every=mark_every) <= total
            assert files(folder) == expected
            shutil.rmtree(folder)
    # a second stop, right after the first
    folder = tmp_path / "twice"
    for stop in (7, 1, 0, 2):
        encode(folder, stop_after=stop, mark_every=2)
    encode(folder, stop_after=-1, mark_every=2)
    assert files(folder) == expected


def test_a_film_that_changed_is_begun_again(tmp_path: Path, source: Path) -> None:
    writer = LatentWriter(tmp_path / "l", settings())
    writer.begin(key="film.mp4", source=source, height=32, width=40, rate="25", info={})
    writer.add(latents(9), times=[n / 25 for n in range(33)])
    writer.checkpoint({})
    source.write_bytes(b"another film")
    with LatentWriter(tmp_path / "l", settings()) as writer:
        assert writer.film is not None
        write_film(writer, source, latents(5))
    folder = LatentFolder(tmp_path / "l")
    assert torch.equal(folder.read(folder.films[0], 0, 5), latents(5))


def test_a_film_that_is_gone_is_forgotten(tmp_path: Path, source: Path) -> None:
    other = source.with_name("other.mp4")
    other.write_bytes(b"x")
    for name, path in (("l", source), ("m", other)):
        with LatentWriter(tmp_path / name, settings(), shard_bytes=5000) as writer:
            write_film(writer, path, latents(5))
        writer = LatentWriter(tmp_path / name, settings(), shard_bytes=5000)
        writer.begin(key="gone", source=other, height=32, width=40, rate="25", info={})
        writer.add(latents(60), times=[n / 25 for n in range(237)])
        writer.checkpoint({})
    with LatentWriter(tmp_path / "l", settings(), shard_bytes=5000) as writer:
        assert writer.film is not None
        write_film(writer, other, latents(6))
    with LatentWriter(tmp_path / "m", settings(), shard_bytes=5000) as writer:
        pass
    for name, keys in (("l", ["film.mp4", "other.mp4"]), ("m", ["other.mp4"])):
        folder = LatentFolder(tmp_path / name)
        assert [film.key for film in folder.films] == keys
        for film in folder.films:
            assert torch.equal(folder.read(film, 0, 5), latents(film.latents[1])[:, :5])
        assert not list((tmp_path / name).glob(".*.part"))


def test_more_films_can_be_added(tmp_path: Path, source: Path) -> None:
    with LatentWriter(tmp_path / "l", settings()) as writer:
        write_film(writer, source, latents(5))
    before = files(tmp_path / "l")
    with LatentWriter(tmp_path / "l", settings()) as writer:
        pass
    assert files(tmp_path / "l") == before
    other = source.with_name("other.mp4")
    other.write_bytes(b"x")
    with LatentWriter(tmp_path / "l", settings()) as writer:
        assert writer.done == {"film.mp4"}
        write_film(writer, other, latents(6, seed=1))
    folder = LatentFolder(tmp_path / "l")
    assert [film.key for film in folder.films] == ["film.mp4", "other.mp4"]
    assert torch.equal(folder.read(folder.films[1], 0, 6), latents(6, seed=1))
    assert files(tmp_path / "l")["000000.tar"] == before["000000.tar"]


def test_what_does_not_belong_is_refused(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "l"
    with LatentWriter(folder, settings()) as writer:
        write_film(writer, source, latents(5))
    before = files(folder)
    for changes, said in (
        ({"model": "dir:/b", "weights_sha256": "b" * 64}, r"/models/a \(cdt.*aaaa.*dir:/b .*bbbb"),
        ({"dtype": "fp16"}, "with dtype = fp32, not fp16"),
        ({"size": [64, 48]}, r"with size = None, not \[64, 48\]"),
    ):
        with pytest.raises(UserError, match=said):
            LatentWriter(folder, settings(**changes))
    assert files(folder) == before
    with pytest.raises(UserError, match="holds other files"):
        LatentWriter(tmp_path, settings())
    with pytest.raises(UserError, match="can't be written"):
        LatentWriter(source / "below a file", settings())
    with pytest.raises(UserError, match="no folder of latents"):
        LatentFolder(tmp_path)
    writer = LatentWriter(folder, settings())
    writer.begin(key="b.mp4", source=source, height=32, width=40, rate="25", info={})
    with pytest.raises(UserError, match="hasn't ended: run it again"):
        LatentFolder(folder)


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with (
        pytest.raises(RunError, match="No space left on device"),
        LatentWriter(tmp_path / "l", settings()) as writer,
    ):
        write_film(writer, source, latents(50))
    assert not (tmp_path / "l").exists()


def test_latents_that_overflow_are_said(tmp_path: Path, source: Path) -> None:
    with (
        pytest.raises(RunError, match="isn't finite in fp16: give --dtype fp32"),
        LatentWriter(tmp_path / "l", settings(dtype="fp16")) as writer,
    ):
        write_film(writer, source, 1e5 * latents(5))


def test_a_broken_shard_is_named(tmp_path: Path, source: Path) -> None:
    with LatentWriter(tmp_path / "l", settings()) as writer:
        write_film(writer, source, latents(40))
    shard = tmp_path / "l" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:9000])
    folder = LatentFolder(tmp_path / "l")
    with pytest.raises(RunError, match=r"000000\.tar is .*encode film\.mp4 again"):
        list(folder.samples(folder.films[0]))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Films of 20, 9 and 2 latents."""
    with LatentWriter(tmp_path / "l", settings()) as writer:
        for number, count in enumerate((20, 9, 2)):
            path = tmp_path / f"{number}.mp4"
            path.write_bytes(b"x")
            write_film(writer, path, latents(count, seed=number))
    return tmp_path / "l"


def test_clips_of_latents(shards: Path) -> None:
    source = LatentClips(str(shards), latents=4, train=False, normalize=False, max_broken=0.5)
    source.prepare()
    assert len(source) == 5 + 2
    assert source.broken == {"2.mp4": "too short for 4 latents (2)"}
    assert [source[i].key for i in (0, 4, 5, 6)] == ["0.mp4@0", "0.mp4@16", "1.mp4@0", "1.mp4@4"]
    assert torch.equal(source[6].pixels, latents(9, seed=1)[:, 4:8])
    mean, std = (torch.tensor(v)[:, None, None, None] for v in ([1.0, 2, 3], [0.5, 1, 2]))
    scaled = LatentClips(str(shards), latents=4, size=2, train=False, files=["0.mp4"])
    scaled.prepare()
    expected = (latents(20)[:, 4:8, 1:3, 1:3] - mean) / std
    assert torch.equal(scaled[1].pixels, expected)


def test_training_clips_are_a_function_of_seed_and_epoch(shards: Path) -> None:
    def batches(seed: int, workers: int) -> list[tuple[list[str], Tensor]]:
        source = LatentClips(
            str(shards), latents=3, size=3, seed=seed, max_broken=0.5, clips_per_film=6
        )
        data = ZooDataModule(source, batch_size=4, num_workers=workers, seed=seed)
        data.setup("fit")
        return [(batch.key, batch.pixels) for batch in data.train_dataloader()]

    first, again, workers, other = batches(0, 0), batches(0, 0), batches(0, 2), batches(1, 0)
    assert len(first) == 3
    for a, b, c in zip(first, again, workers, strict=True):
        assert a[0] == b[0] == c[0]
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[1], c[1])
    assert first[0][0] != other[0][0]
    source = LatentClips(str(shards), latents=3, max_broken=0.5, normalize=False)
    source.prepare()
    for epoch in range(5):
        sample = source[epoch, 1]
        name, start = sample.key.split("@")
        whole = latents({"0.mp4": 20, "1.mp4": 9}[name], seed=int(name[0]))
        assert torch.equal(sample.pixels, whole[:, int(start) : int(start) + 3])
    assert len({source[epoch, 1].key for epoch in range(5)}) > 1


def test_mistakes_in_a_source_of_latents(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be over 0"):
        LatentClips(str(shards), latents=0)
    with pytest.raises(UserError, match="no folder of latents"):
        LatentClips(str(tmp_path)).prepare()
    with pytest.raises(UserError, match=r"no film x\.mp4"):
        LatentClips(str(shards), files=["x.mp4"]).prepare()
    with pytest.raises(RunError, match="too small for 9x9"):
        LatentClips(str(shards), size=9).prepare()
    other = tmp_path / "wide.mp4"
    other.write_bytes(b"x")
    with LatentWriter(shards, settings()) as writer:
        write_film(writer, other, latents(9, width=7))
    with pytest.raises(UserError, match=r"several sizes \(4x5, 4x7\): give a size"):
        LatentClips(str(shards), latents=2).prepare()
