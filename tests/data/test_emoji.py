"""Captioned emoji pictures to tars, on packages of a few files."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.cli.data import main
from zoo.data import emoji, emoji_anim
from zoo.data.captioned import CaptionedPictures
from zoo.data.emoji import VAL, emoji_rows, prepare_emoji
from zoo.errors import UserError

RED, BLUE = (255, 0, 0, 255), (0, 0, 255, 255)
FACTS: list[dict[str, Any]] = [
    {"name": "RED APPLE", "unified": "1F34E", "image": "1f34e.png", "category": "Food & Drink"},
    {
        "name": "HORSE RACING",
        "unified": "1F3C7",
        "image": "1f3c7.png",
        "category": "People & Body",
        "skin_variations": {"1F3FB": {"unified": "1F3C7-1F3FB", "image": "1f3c7-1f3fb.png"}},
    },
    {
        "name": "EYE IN SPEECH BUBBLE",
        "unified": "1F441-FE0F-200D-1F5E8-FE0F",
        "non_qualified": "1F441-200D-1F5E8",
        "image": "1f441-fe0f-200d-1f5e8-fe0f.png",
        "category": "Smileys & Emotion",
    },
]


def picture(side: int, colour: tuple[int, ...], kind: str) -> bytes:
    """A square of a colour in the middle of nothing."""
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[side // 4 : -side // 4, side // 4 : -side // 4] = colour
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, kind, lossless=True)
    return file.getvalue()


def package(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, which stand in for those that are fetched; and a cache of its own."""
    drawn = picture(256, RED, "WEBP")
    codes = ("1f34e", "1f3c7", "1f3c7-1f3fb", "1f441-200d-1f5e8", "a9-fe0f")
    fluent = package(tmp_path / "a.tgz", {f"assets/{code}.webp": drawn for code in codes})
    flat = picture(64, BLUE, "PNG")
    noto = {"emoji.json": json.dumps(FACTS).encode()}
    for facts in FACTS:
        noto[f"img/google/64/{facts['image']}"] = flat
    noto["img/google/64/1f3c7-1f3fb.png"] = flat  # a skin tone: only Fluent's are kept
    noto["img/google/sheets/64.png"] = flat
    files = {"a": fluent, "b": package(tmp_path / "b.tgz", noto)}
    monkeypatch.setattr(emoji, "fetch_group", lambda group: files)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data" / "emoji"


def test_packages_to_captioned_pictures(
    assets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["prepare", "emoji"]) == 0
    train, val = (Path(line) for line in capsys.readouterr().out.split())
    assert (train, val) == (assets / "emoji-train.tar", assets / "emoji-val.tar")
    assert [path.name for path in assets.parent.iterdir()] == ["emoji"]
    source = CaptionedPictures(str(train), size=64, train=False, styles={"noto": "flat"})
    source.prepare()
    assert dict(zip((file.key for file in source.usable), source.prompts, strict=True)) == {
        "fluent3d_1f34e": "red apple, fluent3d",
        "fluent3d_1f441-200d-1f5e8": "eye in speech bubble, fluent3d",
        "noto_1f34e": "red apple, flat",
        "noto_1f441-fe0f-200d-1f5e8-fe0f": "eye in speech bubble, flat",
    }
    apple = source[0].pixels
    assert apple.shape == (3, 1, 64, 64)
    assert torch.equal(apple[:, 0, 0, 0], torch.ones(3))  # on white
    assert apple[:, 0, 32, 32].tolist() == [1, -1, -1]
    held = CaptionedPictures(str(val), train=False)
    assert held.read_prompts() == [
        "horse racing, fluent3d",
        "horse racing, light skin tone, fluent3d",
        "horse racing, noto",
    ]
    with pytest.raises(UserError, match="People & Body"):
        CaptionedPictures(str(val), train=False, drop=["People & Body"]).prepare()

    def again(*paths: Path) -> None:
        raise AssertionError("made a second time")

    monkeypatch.setattr(emoji, "write_pictures", again)
    assert prepare_emoji() == [train, val]


def test_two_of_one_skin_tone_say_it_once() -> None:
    tones = {
        "1F3FB-1F3FB": {"unified": "1F468-1F3FB-1F468-1F3FB"},
        "1F3FB-1F3FF": {"unified": "1F468-1F3FB-1F468-1F3FF"},
    }
    facts = [{"name": "TWO MEN", "unified": "1F46C", "category": "p", "skin_variations": tones}]
    rows = emoji_rows(facts)
    assert rows["1f468-1f3fb-1f468-1f3fb"] == ("two men, light skin tone", "p")
    assert rows["1f468-1f3fb-1f468-1f3ff"] == ("two men, light skin tone and dark skin tone", "p")


def test_the_split_is_that_of_the_released_checkpoints() -> None:
    # they were trained without these; the animations follow the same list
    assert len(VAL) == 119
    assert emoji_anim.VAL is VAL
    assert {"1f353", "1f62d", "1f994", "2b07"} <= VAL
    assert not {"1f34e", "1f600", "2764"} & VAL


@pytest.mark.parametrize("broken", ["cut", "no names", "no picture"])
def test_a_broken_package_leaves_nothing(broken: str, assets: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.tgz"
    if broken == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif broken == "no names":
        package(path, {"img/google/64/1f34e.png": picture(64, BLUE, "PNG")})
    else:
        facts = {"emoji.json": json.dumps(FACTS).encode()}
        package(path, {**facts, "img/google/64/1f34e.png": b"GIF89a"})
    with pytest.raises(UserError, match=r"b\.tgz isn't the package expected .*: delete it"):
        prepare_emoji()
    assert list(assets.parent.iterdir()) == []


def test_a_full_disk_leaves_nothing(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: Path) -> None:
        (paths[-1] / "emoji-train.tar").write_bytes(b"some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(emoji, "write_pictures", full)
    with pytest.raises(UserError, match=r"emoji can't be written .*No space left.* ZOO_CACHE"):
        prepare_emoji()
    assert list(assets.parent.iterdir()) == []


def test_another_process_may_be_first(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*paths: Path) -> None:
        for folder in (paths[-1], assets):
            folder.mkdir(exist_ok=True)
            (folder / "emoji-train.tar").write_text(folder.name)

    monkeypatch.setattr(emoji, "write_pictures", slow)
    train, _ = prepare_emoji()
    assert train.read_text() == "emoji"
    assert [path.name for path in assets.parent.iterdir()] == ["emoji"]


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(UserError, match=r"fluent_emoji_3d\.tgz .* is not there and ZOO_OFFLINE"):
        prepare_emoji()
    assert not (tmp_path / "data").exists()
