"""`zoo data shard` and `inspect`, and the loaders' benchmark, as a user runs them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.film_makers import Cli, write_film
from zoo.data.inspection import near_pairs, perceptual_hash
from zoo.errors import RunError
from zoo.metrics.loader_speed import LoaderTiming, compare_loaders


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Films and a picture, one of them twice and one broken."""
    folder = tmp_path / "media"
    folder.mkdir()
    write_film(folder / "one.mp4")
    shutil.copy(folder / "one.mp4", folder / "again.mp4")
    (folder / "bad.mp4").write_text("no film")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    coarse.resize((120, 90), Image.Resampling.BICUBIC).save(folder / "p.png")
    (folder / "p.txt").write_text("coloured squares\n")
    return folder


def test_shard_and_inspect(cli: Cli, media: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "shards", tmp_path / "sheet.png"
    status, said, err = cli("data", "shard", media, "-o", out, "--workers", 1)
    assert status == 0, err
    assert said.startswith("3 samples in 1 shards, ")
    assert "broken: bad.mp4: " in said
    status, said, err = cli("data", "inspect", out, "--sheet", sheet)
    assert status == 0, err
    assert f"3 usable samples in 1 shards of {out}" in said
    assert "captions: 1" in said
    assert "duplicates: 1 pairs look alike" in said
    assert "(0 of 128 bits differ)" in said
    assert "broken: source bad.mp4: " in said
    with Image.open(sheet) as image:
        assert image.size == (3 * 132, 132)
        assert np.asarray(image).std() > 10
    again = cli("data", "shard", media, "-o", out, "--workers", 1)
    assert again[0] == 0
    assert again[1].startswith("3 samples in 1 shards, ")


def test_inspect_finds_what_changed_later(cli: Cli, media: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert cli("data", "shard", media, "-o", out, "--workers", 1)[0] == 0
    data = bytearray((out / "000000.tar").read_bytes())
    data[700] ^= 1
    (out / "000000.tar").write_bytes(data)
    status, said, _ = cli("data", "inspect", out, "--sheet", tmp_path / "s.png")
    assert status == 0
    assert "broken: 000000.tar: its sha256 is" in said
    assert "its CRC-32 is another one" in said


def test_inspect_of_a_folder_of_films(cli: Cli, media: Path, tmp_path: Path) -> None:
    status, said, _ = cli("data", "inspect", media, "--sheet", tmp_path / "s.png")
    assert status == 0
    assert f"2 usable files in {media}, " in said
    assert "seconds a film: " in said
    assert "broken: bad.mp4: " in said
    assert "again.mp4 and one.mp4 (0 of 128 bits differ)" in said


def test_mistakes(cli: Cli, media: Path, tmp_path: Path) -> None:
    for given, said in (
        (("shard", tmp_path / "nowhere", "-o", tmp_path / "o"), "there is no folder or file at"),
        (("shard", media, "-o", media), "holds other files"),
        (("shard", media, "-o", tmp_path / "o", "--clip-seconds", -1), "clips of -1 s"),
        (("shard", media, "-o", tmp_path / "o", "--shard-mb", 0), "shards of 0 MB"),
        (("shard", media, "-o", tmp_path / "o", "--workers", 0), "workers=0: give at least 1"),
        (("inspect", tmp_path / "nowhere"), "there is no folder or file at"),
        (("inspect", media, "--sheet", media / "p.png" / "x.png"), "give another --sheet"),
    ):
        status, _, err = cli("data", *given)
        assert status == 2
        assert said in err
        assert err.strip().count("\n") == 0 or "error: " in err.strip().splitlines()[-1]
    for given, said in (
        ((), "give either --models, or --loader"),
        (("--loader", tmp_path / "nowhere"), "there is no folder or file at"),
        (("--loader", media, "--clips", 0), "--clips 0"),
    ):
        status, _, err = cli("benchmark", "speed", *given)
        assert status == 2
        assert said in err


def test_the_loaders_are_compared(cli: Cli, media: Path, tmp_path: Path) -> None:
    out = tmp_path / "speed"
    small = ("--loader-size", 32)
    small += ("--loader-workers", 1, 2)
    given = ("--loader", media, *small, "--clips", 2, "--repetitions", 2, "--out", out)
    status, _, err = cli("benchmark", "speed", *given)
    assert status == 0, err
    result = json.loads((out / "loader.json").read_text())
    for workers, rows in result["workers"].items():
        assert {"plain PyAV loop", "VideoFolder, no cache", "ShardSource"} <= set(rows)
        assert rows["plain PyAV loop"]["ratio_to_plain"][0] == 1
        for row in rows.values():
            assert len(row["clips_per_s"]) == 2 * int(workers)
            assert len(row["clip_ms"]) == 4 * int(workers)
            assert min(row["clips_per_s"]) > 0
            low, high = row["ratio_to_plain"][1:]
            assert low <= row["ratio_to_plain"][0] <= high
    assert set(result["workers"]) == {"1", "2"}


def test_loaders_are_timed_in_processes_of_their_own(tmp_path: Path) -> None:
    kept = []
    seen = tmp_path / "seen"

    def load(number: int) -> torch.Tensor:
        kept.append(number)
        with seen.open("a") as file:
            file.write(f"{number} {os.getpid()}\n")
        return torch.zeros(1)

    timing = compare_loaders({"a": load}, clips=3, repetitions=2, workers=2)["a"]
    assert kept == []
    assert len(timing.clip_ms) == 12
    rows = [line.split() for line in seen.read_text().splitlines()]
    assert len({process for _, process in rows}) == 4
    # a worker's first clip is loaded once more, uncounted
    assert sorted(int(number) for number, _ in rows) == sorted([*range(12), 0, 1, 6, 7])


def test_a_loader_that_fails_is_named() -> None:
    def load(number: int) -> torch.Tensor:
        raise ValueError("no such film")

    with pytest.raises(RunError, match="mine failed: ValueError: no such film"):
        compare_loaders({"mine": load}, clips=1, repetitions=1)

    def die(number: int) -> torch.Tensor:
        os._exit(3)

    with pytest.raises(RunError, match="mine failed: its process ended with 3"):
        compare_loaders({"mine": die}, clips=1, repetitions=1)


def test_the_ratio_of_two_loaders_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    fast, slow = LoaderTiming([*rng.normal(10, 1, 200)]), LoaderTiming([*rng.normal(30, 3, 200)])
    ratio, low, high = fast.ratio_to(slow, paired=False)
    assert low < ratio < high
    assert abs(ratio - 3) < 0.1
    assert 0.03 < high - low < 0.2
    double = LoaderTiming([2 * ms for ms in fast.clip_ms])
    assert fast.ratio_to(double, paired=True) == (2, 2, 2)


def test_hashes_survive_scaling_and_encoding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hashes = {}
    for number in range(60):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
        image = coarse.resize((160, 120), Image.Resampling.BICUBIC)
        hashes[f"{number}"] = perceptual_hash([np.asarray(image)])
        if number < 3:
            image.resize((70, 50)).save(tmp_path / "small.jpg", quality=60)
            with Image.open(tmp_path / "small.jpg") as small:
                hashes[f"{number} small"] = perceptual_hash([np.asarray(small)])
    hashes["flat"] = hashes["flat too"] = perceptual_hash([np.zeros((20, 20, 3), np.uint8)])
    pairs = {(a, b) for a, b, _ in near_pairs(hashes)}
    assert pairs == {("0", "0 small"), ("1", "1 small"), ("2", "2 small")}
