"""What the writer of shards makes of pictures and films."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from films import MakeFilm, index_of
from shard_sets import opened, picture, same

from zoo.data import cutting, shard_writer
from zoo.data.container import Encoded
from zoo.data.reader import FrameReader
from zoo.data.shard_writer import ShardSettings, shard_folder
from zoo.errors import RunError, UserError


def films(tmp_path: Path, make_film: MakeFilm) -> Path:
    folder = tmp_path / "films"
    make_film(folder / "a.mp4", frames=40)
    make_film(folder / "sub" / "b.mkv", frames=25, width=32, height=48)
    (folder / "a.txt").write_text("a grey film\n")
    (folder / "broken.mp4").write_text("no film")
    (folder / "sub" / "captions.jsonl").write_text('{"file": "b.mkv", "text": "upright"}\n')
    return folder


def test_clips_of_films(tmp_path: Path, make_film: MakeFilm) -> None:
    root = films(tmp_path, make_film)
    made = shard_folder(root, tmp_path / "out", ShardSettings(clip_seconds=0.5))
    assert list(made["broken"]) == ["broken.mp4"]
    assert made["clips_copied"] + made["clips_encoded"] == made["samples"] == 4
    source = opened(tmp_path / "out", train=False, frames=5, max_broken=0.5)
    samples = [source[i] for i in range(len(source))]
    shown = [
        [index_of(float(v)) for v in (s.pixels.mean(dim=(0, 2, 3)) + 1) * 127.5] for s in samples
    ]
    assert all(np.diff(indices).tolist() == [1] * 4 for indices in shown)
    assert len({(s.prompt, tuple(i)) for s, i in zip(samples, shown, strict=True)}) == len(samples)
    assert Counter(s.prompt for s in samples) == {"a grey film": 6, "upright": 5}
    train = opened(tmp_path / "out", frames=5, rate=12.5, max_broken=0.5)
    again = opened(tmp_path / "out", frames=5, rate=12.5, max_broken=0.5)
    assert same(train[(3, 1)], again[(3, 1)])
    assert train[(3, 1)].pixels.shape == (3, 5, 16, 16)
    with pytest.raises(UserError, match=r"nothing in .* has 90 frames"):
        opened(tmp_path / "out", frames=90)
    with pytest.raises(UserError, match="size 99 is larger than everything"):
        opened(tmp_path / "out", frames=5, size=99)


def frames_of(data: Path | Encoded) -> list[np.ndarray]:
    return [frame.rgb for frame in FrameReader(data)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_copied_clips_have_every_frame_bit_for_bit(
    suffix: str, tmp_path: Path, encode: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (32, 48, 3), np.uint8)
    path = encode(tmp_path / f"a{suffix}", [np.roll(base, i, 1) for i in range(75)], gop=12)
    pieces = cutting.plan(path, seconds=1.0)
    assert len(pieces) == 2
    assert all(piece.copied for piece in pieces)
    clips = list(cutting.cut(path, pieces))
    assert all(clip.copied for clip in clips)
    found = [rgb for clip in clips for rgb in frames_of(Encoded("clip", clip.data))]
    whole = frames_of(path)
    assert len(found) == len(whole) == 75
    assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))
    assert [clip.info.frames for clip in clips] == [36, 39]


def test_films_without_key_frames_are_encoded_anew(
    tmp_path: Path, encode: Callable[..., Path]
) -> None:
    """One group of pictures of 4 s, uneven time stamps: no frame is lost or doubled."""
    images = [np.full((32, 48, 3), 12 + 2 * i, np.uint8) for i in range(100)]
    stamps = [40 * i + (7 if i % 3 else 0) for i in range(100)]
    path = encode(tmp_path / "a.mp4", images, gop=1000, stamps=stamps)
    clips = list(cutting.cut(path, cutting.plan(path, seconds=1.0)))
    assert len(clips) == 4
    assert not any(clip.copied for clip in clips)
    greys = [rgb.mean() for clip in clips for rgb in frames_of(Encoded("clip", clip.data))]
    assert len(greys) == 100
    assert np.abs(np.array(greys) - (12 + 2 * np.arange(100))).max() <= 1


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_stop_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        picture(tmp_path / "pictures" / f"p{number}.bmp", number)
    run = partial(shard_folder, tmp_path / "pictures", settings=ShardSettings(shard_mb=0.006))
    run(out=tmp_path / "whole")
    whole = files_in(tmp_path / "whole")
    assert len([name for name in whole if name.endswith(".tar")]) == 3
    assert not [name for name in whole if name.startswith(".")]
    real = os.replace
    for stop in range(1, 11):
        calls = iter(range(stop))

        def replace(*args: object, calls: Iterator[int] = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            real(*args)  # type: ignore[arg-type]

        out = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", replace)
            with pytest.raises(KeyboardInterrupt):
                run(out=out)
        written: list[object] = []
        add = shard_writer._add

        def count(*args: object, written: list[object] = written, add: object = add) -> object:
            written.append(args)
            return add(*args)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(shard_writer, "_add", count)
            run(out=out)
        assert files_in(out) == whole
        if stop >= 5:
            assert len(written) < 12, "shards that were finished are kept"


def test_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / "pictures" / f"p{number}.bmp", number)
    settings = ShardSettings(shard_mb=0.006)
    shard_folder(tmp_path / "pictures", tmp_path / "one", settings)
    shard_folder(tmp_path / "pictures", tmp_path / "two", settings, workers=2)
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    manifest = json.loads((tmp_path / "one" / "shards.json").read_text())
    for one in manifest["shards"]:
        data = (tmp_path / "one" / one["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == one["sha256"]


def test_mistakes_of_the_writer(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match=r"no folder or file at .*nowhere"):
        shard_folder(tmp_path / "nowhere", tmp_path / "o", ShardSettings())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no file whose name ends in .*\.png"):
        shard_folder(tmp_path / "empty", tmp_path / "o", ShardSettings())
    with pytest.raises(UserError, match="shards of another source or other settings"):
        shard_folder(tmp_path / "pictures", pictures, ShardSettings(shard_mb=7))
    with pytest.raises(UserError, match="clips of -1 s"):
        ShardSettings(clip_seconds=-1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    with pytest.raises(RunError, match=r"none of the 1 files .*a\.png"):
        shard_folder(tmp_path / "bad", tmp_path / "o2", ShardSettings())
