"""Captioned pictures from a tar and from a folder, captions alone, and what is wrong with them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.caption_source import Captions
from zoo.data.captioned import CaptionedPictures
from zoo.errors import UserError

ROWS = [
    {"text": "red apple", "style": "noto", "category": "Food"},
    {"text": "waving hand", "style": "fluent3d", "category": "People"},
    {"text": "moon", "style": "fluent3d", "category": "Sky"},
]


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 60 * number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    members = {}
    for number, row in enumerate(ROWS):
        members[f"e{number}.png"] = png(number)
        members[f"e{number}.json"] = json.dumps(row).encode()
    return tar(tmp_path / "e.tar", members)


def opened(root: Path, **settings: Any) -> CaptionedPictures:
    source = CaptionedPictures(str(root), size=16, **settings)
    source.prepare()
    return source


def test_a_tar_gives_pictures_with_their_captions(shard: Path) -> None:
    source = opened(shard, styles={"fluent3d": "3d"})
    assert [s.prompt for s in map(source.__getitem__, range(3))] == source.prompts
    assert source.prompts == ["red apple, noto", "waving hand, 3d", "moon, 3d"]
    for epoch in (0, 7):  # the second time from memory
        for number in range(3):
            pixels = source[epoch, number].pixels
            assert pixels.shape == (3, 1, 16, 16)
            assert torch.allclose(pixels, torch.full_like(pixels, 60 * number / 127.5 - 1))


def test_categories_and_words_can_be_left_out(shard: Path) -> None:
    assert opened(shard, drop=["People"]).prompts == ["red apple, noto", "moon, fluent3d"]
    assert opened(shard, drop_words=["hand", "moon"]).prompts == ["red apple, noto"]
    with pytest.raises(
        UserError, match=r"no captioned picture left of 3 .*\['Food', 'People', 'Sk"
    ):
        opened(shard, drop=["Food", "People", "Sky"])


def test_a_folder_gives_the_same(shard: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        (folder / f"e{number}.png").write_bytes(png(number))
    lines = [json.dumps({"file": f"e{n}.png"} | row) for n, row in enumerate(ROWS)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    a, b = opened(shard), opened(folder)
    for number in range(3):
        assert torch.equal(a[number].pixels, b[number].pixels)
        assert a[number].prompt == b[number].prompt


def test_what_is_fixed(shard: Path) -> None:
    assert opened(shard).fixed
    assert not opened(shard, flip=True).fixed
    assert not CaptionedPictures(str(shard), size=8, short_side=16).fixed
    assert CaptionedPictures(str(shard), size=8, short_side=16, train=False).fixed


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"file": "a.png", "text": "x"}\n{oops', "broken captions: line 2 is not JSON"),
        ('{"file": "a.png", "text": " "}', "line 1 has no text"),
        ('{"text": "x"}', "line 1 has no file"),
        ('{"file": "b.png", "text": "x"}', "line 1 names b.png, which isn't there"),
        ("\n\n", "holds no caption: write a line with file and text"),
    ],
)
def test_broken_captions_of_a_folder(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "captions.jsonl").write_text(lines)
    with pytest.raises(UserError, match=said):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.png": png(0), "a.json": b"{"}, "broken captions: a.json is not JSON"),
        ({"a.png": png(0), "a.json": b'{"caption": "x"}'}, "a.json has no text"),
        ({"a.png": png(0)}, "a has no caption"),
        ({"a.json": b'{"text": "x"}'}, "a.json has no picture"),
        ({"notes.txt": b"x"}, "holds no captioned picture"),
    ],
)
def test_broken_captions_of_a_tar(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    with pytest.raises(UserError, match=said):
        opened(tar(tmp_path / "e.tar", members))


def test_other_mistakes_of_the_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder or tar at"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no captions\.jsonl"):
        opened(tmp_path)
    (tmp_path / "e.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(UserError, match="can't be read as an uncompressed tar"):
        opened(tmp_path / "e.tar")


def test_captions_alone(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a cat\n\na dog\n")
    for root, prompts in (
        (shard, ["red apple, noto", "moon, fluent3d"]),
        (tmp_path / "c.txt", ["a cat", "a dog"]),
    ):
        source = Captions(str(root), drop=["People"])
        source.prepare()
        assert [source[3, i].prompt for i in range(len(source))] == prompts
        assert source[0].pixels.numel() == 0
    limited = Captions(str(tmp_path / "c.txt"), limit=1)
    limited.prepare()
    assert limited.prompts == ["a cat"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [("\n \n", "holds no caption"), ('"a"\n{', "broken lines: line 2 is not JSON")],
)
def test_broken_captions_alone(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "c.jsonl").write_text(lines)
    with pytest.raises(UserError, match=said):
        Captions(str(tmp_path / "c.jsonl")).prepare()


def test_prepared_data_is_found_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    for source in (CaptionedPictures("prepared:emoji/x.tar"), Captions("prepared:emoji/x.tar")):
        with pytest.raises(UserError, match=r"data\.py prepare emoji"):
            source.prepare()
    place = tmp_path / "data" / "emoji"
    place.mkdir(parents=True)
    (place / "x.txt").write_text("red apple\n")
    captions = Captions("prepared:emoji/x.txt")
    captions.prepare()
    assert captions.prompts == ["red apple"]
