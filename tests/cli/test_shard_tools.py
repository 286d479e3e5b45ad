"""`zoo data shard` and `inspect`, and the loaders' benchmark, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.film_makers import Cli, write_film
from zoo.data.inspection import near_pairs, perceptual_hash


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
    given = ("--loader", media, *small, "--clips", 2, "--repetitions", 2, "--out", out)
    status, _, err = cli("benchmark", "speed", *given)
    assert status == 0, err
    result = json.loads((out / "loader.json").read_text())
    assert {"plain PyAV loop", "VideoFolder, no cache", "ShardSource"} <= set(result["loaders"])
    for row in result["loaders"].values():
        assert len(row["clips_per_s"]) == 2
        assert min(row["clips_per_s"]) > 0


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
