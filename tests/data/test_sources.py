from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from films import MakeFilm, index_of, level
from PIL import Image
from torch import Tensor

from zoo.data import cache as cache_module
from zoo.data import source as source_module
from zoo.data import sources, transforms
from zoo.data.batch import Sample
from zoo.data.sources import ImageFolder, VideoFolder
from zoo.errors import RunError, UserError


@pytest.fixture
def folder(tmp_path: Path, make_film: MakeFilm) -> Path:
    root = tmp_path / "films"
    make_film(root / "a.mp4", frames=40)
    make_film(root / "b.mkv", frames=21, height=48, width=32)
    make_film(root / "sub" / "c.mp4", frames=9)
    (root / "notes.txt").write_text("no film")
    (root / ".hidden.mp4").write_text("no film")
    return root


def open_films(root: Path | str, **settings: object) -> VideoFolder:
    source = VideoFolder(str(root), **{"frames": 5, "size": 16, **settings})
    source.prepare()
    return source


def indices(sample: Sample) -> list[int]:
    grey = (sample.pixels.mean(dim=(0, 2, 3)) + 1) * 127.5
    return [index_of(float(value)) for value in grey]


def same(one: Sample, two: Sample) -> bool:
    return one.key == two.key and torch.equal(one.pixels, two.pixels)


def test_evaluation_walks_through_all_windows(folder: Path) -> None:
    source = open_films(folder, train=False)
    samples = [source[i] for i in range(len(source))]
    assert [sample.key for sample in samples] == (
        [f"a.mp4@{0.2 * i:.3f}" for i in range(8)]
        + [f"b.mkv@{0.2 * i:.3f}" for i in range(4)]
        + ["sub/c.mp4@0.000"]
    )
    for i, sample in enumerate(samples):
        first = 5 * (i if i < 8 else i - 8 if i < 12 else 0)
        assert indices(sample) == list(range(first, first + 5))
        assert sample.pixels.shape == (3, 5, 16, 16)
        assert sample.pixels.dtype == torch.float32
    with pytest.raises(IndexError):
        source[13]


def test_evaluation_at_a_rate(folder: Path) -> None:
    source = open_films(folder, train=False, rate=12.5, files=["a.mp4"])
    assert [indices(source[i]) for i in range(len(source))] == [
        [10 * i + 2 * k for k in range(5)] for i in range(4)
    ]


def test_one_film_and_lists_of_roots(folder: Path) -> None:
    assert open_films(folder / "a.mp4", train=False)[1].key == "a.mp4@0.200"
    source = VideoFolder([str(folder / "sub"), str(folder / "a.mp4")], frames=5, size=16)
    source.prepare()
    assert [file.key for file in source.usable] == ["c.mp4", "a.mp4"]


def test_asset_roots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"two": ("a.mp4", "b.mkv")}
    monkeypatch.setattr(source_module, "fetch", lambda name: folder / name)
    monkeypatch.setattr(source_module, "GROUPS", groups)
    monkeypatch.setattr(
        source_module, "fetch_group", lambda name: {each: folder / each for each in groups[name]}
    )
    assert [file.key for file in open_films("asset:a.mp4").usable] == ["a.mp4"]
    assert [file.key for file in open_films("asset:two").usable] == ["a.mp4", "b.mkv"]


def test_training_samples_are_clips_of_their_films(folder: Path) -> None:
    source = open_films(folder, clips_per_film=40)
    assert len(source) == 120
    starts: dict[str, set[int]] = {}
    for i in range(120):
        sample = source[i]
        found = indices(sample)
        assert found == list(range(found[0], found[0] + 5))
        name, at = sample.key.split("@")
        assert float(at) == pytest.approx(0.04 * found[0], abs=6e-4)
        starts.setdefault(name, set()).add(found[0])
    drawn = {name: sum(source[i].key.startswith(name) for i in range(120)) for name in starts}
    # 40, 21 and 9 of 70 frames, up to rounding at both ends of a film's share
    assert drawn["a.mp4"] == pytest.approx(120 * 40 / 70, abs=2)
    assert drawn["sub/c.mp4"] == pytest.approx(120 * 9 / 70, abs=2)
    assert starts["sub/c.mp4"] == set(range(5))
    assert max(starts["a.mp4"]) >= 33


def test_samples_are_a_function_of_seed_epoch_and_index(folder: Path) -> None:
    one = open_films(folder, short_side=(16, 24))
    two = open_films(folder, short_side=(16, 24))
    order = list(range(len(one)))
    forward = {i: one[(3, i)] for i in order}
    backward = {i: two[(3, i)] for i in reversed(order)}
    assert all(same(forward[i], backward[i]) for i in order)
    assert sum(same(one[(4, i)], forward[i]) for i in order) < 3
    other = open_films(folder, short_side=(16, 24), seed=1)
    assert sum(same(other[(3, i)], forward[i]) for i in order) < 3


@pytest.mark.parametrize("settings", [{}, {"rate": 10.0}, {"short_side": (16, 24)}])
@pytest.mark.parametrize("train", [True, False])
def test_frame_cache_changes_nothing(
    tmp_path: Path,
    make_film: MakeFilm,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: bool,
    settings: dict[str, object],
) -> None:
    if not train and "short_side" in settings:
        settings = {"short_side": 24}
    root = make_film(tmp_path / "films" / "a.mp4", texture=True).parent
    make_film(root / "b.mp4", texture=True, width=33, height=47)
    plain = open_films(root, train=train, cache_gb=0, **settings)
    kept = open_films(root, train=train, **settings)
    wanted = [plain[i] for i in range(len(plain))]
    assert not (cache / "frames").exists()
    assert all(same(kept[i], sample) for i, sample in enumerate(wanted))
    assert len(list((cache / "frames").iterdir())) == 4
    # Later runs don't decode again.
    monkeypatch.setattr(cache_module, "read_frames", None)
    monkeypatch.setattr(sources, "read_clip", None)
    again = open_films(root, train=train, **settings)
    assert all(same(again[i], sample) for i, sample in enumerate(wanted))


def test_frame_cache_keeps_to_its_limit_and_follows_changes(
    folder: Path, make_film: MakeFilm, cache: Path
) -> None:
    bytes_needed = 3 * 16 * 24 * (40 + 21 + 9)
    open_films(folder, cache_gb=(bytes_needed - 1) / 1e9)[0]
    assert not (cache / "frames").exists()
    source = open_films(folder, cache_gb=bytes_needed / 1e9, train=False)
    assert indices(source[12]) == [0, 1, 2, 3, 4]
    assert (cache / "frames").exists()
    # The same name with other content: grey is now that of the frames 20 on.
    film = make_film(folder / "long.mp4", frames=48)
    rows = open_films(film, train=False)[4]
    os.replace(film, folder / "sub" / "c.mp4")
    assert indices(rows) == indices(open_films(folder, train=False)[16]) == [20, 21, 22, 23, 24]


def test_cache_that_cannot_be_written_is_done_without(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = open_films(folder, cache_gb=0)[0]
    blocked = cache.parent / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("ZOO_CACHE", str(blocked))
    source = open_films(folder)
    assert same(source[0], wanted)
    assert source.broken == {}


def test_index_probes_only_what_changed(
    folder: Path, make_film: MakeFilm, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []
    plain = sources.probe_times

    def counting(path: Path) -> object:
        probed.append(path.name)
        return plain(path)

    monkeypatch.setattr(sources, "probe_times", counting)
    (folder / "text.mp4").write_text("no film")
    first = open_films(folder, max_broken=0.5)
    assert sorted(probed) == ["a.mp4", "b.mkv", "c.mp4", "text.mp4"]
    probed.clear()
    second = open_films(folder, max_broken=0.5)
    assert probed == []
    assert second.broken == first.broken
    assert second.usable == first.usable
    make_film(folder / "b.mkv", frames=22)
    open_films(folder, files=["b.mkv"])  # leaves what is known about the others alone
    assert probed == ["b.mkv"]
    make_film(folder / "a.mp4", frames=30)
    make_film(folder / "new.mp4")
    assert len(open_films(folder, max_broken=0.5).usable) == 4
    assert sorted(probed) == ["a.mp4", "b.mkv", "new.mp4"]
    (folder / "new.mp4").unlink()
    make_film(folder / "b.mkv")
    open_films(folder, max_broken=0.5)
    (index,) = (cache / "index").glob("*.json")
    assert "new.mp4" not in index.read_text()


def test_damaged_index_is_made_anew(folder: Path, cache: Path) -> None:
    wanted = open_films(folder).usable
    (index,) = (cache / "index").glob("*.json")
    index.write_text("{ no json")
    assert open_films(folder).usable == wanted


def test_variable_rate_films_start_at_their_frames(tmp_path: Path, encode: Callable) -> None:
    gaps = np.random.default_rng(1).integers(20, 90, 40)
    stamps = [0, *np.cumsum(gaps)[:-1].tolist()]
    images = [np.full((32, 48, 3), level(i), np.uint8) for i in range(40)]
    encode(tmp_path / "film.mp4", images, stamps=stamps)
    for cache_gb in (0, 1):
        source = open_films(tmp_path / "film.mp4", train=False, cache_gb=cache_gb)
        found = [indices(source[i]) for i in range(len(source))]
        assert found == [list(range(5 * i, 5 * i + 5)) for i in range(8)]


def test_broken_files_are_listed_and_stop_the_run(folder: Path, make_film: MakeFilm) -> None:
    (folder / "text.mp4").write_text("no film")
    make_film(folder / "short.mp4", frames=4)
    source = open_films(folder, max_broken=0.4)
    assert sorted(source.broken) == ["short.mp4", "text.mp4"]
    assert "too short for 5 frames (4 frames)" in source.broken["short.mp4"]
    assert len(source.usable) == 3
    with pytest.raises(RunError, match=r"2 of 5 files in .*max_broken=0.3.*short.mp4: too short"):
        open_films(folder, max_broken=0.3)


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_file_that_breaks_mid_run_is_replaced(folder: Path, cache_gb: float) -> None:
    source = open_films(folder, max_broken=0.4, cache_gb=cache_gb)
    twin = open_films(folder, max_broken=0.4, cache_gb=cache_gb)
    path = folder / "b.mkv"
    path.write_bytes(b"gone bad")
    samples = [source[i] for i in range(len(source))]
    assert not any(sample.key.startswith("b.mkv") for sample in samples)
    assert list(source.broken) == ["b.mkv"]
    source.check()
    assert all(same(twin[i], samples[i]) for i in reversed(range(len(samples))))
    (folder / "a.mp4").unlink()
    (folder / "sub" / "c.mp4").unlink()
    if not cache_gb:
        with pytest.raises(RunError, match="in a row can't be read"):
            source[0]
        with pytest.raises(RunError, match="3 of 3 files"):
            source.check()


def test_wrong_roots_are_told_in_one_sentence(tmp_path: Path, folder: Path) -> None:
    source = VideoFolder(str(tmp_path / "none"))  # building it doesn't look at the disk
    with pytest.raises(UserError, match=r"no folder or file at .*none"):
        source.prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no file .*\.mp4"):
        open_films(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no file x\.mp4"):
        open_films(folder, files=["a.mp4", "x.mp4"])
    for settings in ({"short_side": 8}, {"short_side": (16, 24), "train": False}, {"frames": 0}):
        with pytest.raises(UserError):
            open_films(folder, **settings)


def gradient(height: int, width: int) -> Tensor:
    rows = torch.linspace(0, 255, height).round().to(torch.uint8)
    return rows[None, None, :, None].expand(3, 1, height, width).contiguous()


def test_images(tmp_path: Path) -> None:
    Image.fromarray(gradient(40, 60)[:, 0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    turned = Image.fromarray(gradient(40, 60)[:, 0].permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned.save(tmp_path / "b.png", exif=exif)
    (tmp_path / "c.jpg").write_text("no image")
    source = ImageFolder(str(tmp_path), size=20, train=False, max_broken=0.4)
    source.prepare()
    assert list(source.broken) == ["c.jpg"]
    assert [source[i].key for i in range(2)] == ["a.png", "b.png"]
    upright, turned_sample = source[0].pixels, source[1].pixels
    assert upright.shape == (3, 1, 20, 20)
    assert upright[0, 0, 0, 5] < -0.9
    assert upright[0, 0, -1, 5] > 0.9
    assert turned_sample[0, 0, 5, -1] < -0.9
    train = ImageFolder(str(tmp_path), size=20, short_side=(20, 40), max_broken=0.4)
    train.prepare()
    assert same(train[(2, 0)], train[(2, 0)])
    assert not same(train[(2, 0)], train[(3, 0)])
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    assert source[0].key == "b.png"
    assert list(source.broken) == ["a.png", "c.jpg"]


def test_transforms() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    floats = transforms.to_float(values)
    assert (floats[0], floats[-1]) == (-1.0, 1.0)
    assert torch.equal(transforms.to_uint8(floats), values)
    assert transforms.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    video = torch.arange(30 * 40).reshape(1, 1, 30, 40).expand(3, 2, 30, 40)
    assert torch.equal(transforms.crop(video, size=10), video[..., 10:20, 15:25])
    places = {
        int(transforms.crop(video, size=10, rng=np.random.default_rng(i))[0, 0, 0, 0])
        for i in range(200)
    }
    assert max(place // 40 for place in places) == 20
    assert max(place % 40 for place in places) == 30
    clip = gradient(64, 96)
    small = transforms.resize_short_side(clip, short_side=16)
    assert (small.shape, small.dtype) == ((3, 1, 16, 24), torch.uint8)
    assert (small.float() - transforms.resize(clip, size=(16, 24)).float()).abs().max() == 0
    # A scale drawn from 16 to 64: the crop holds from a quarter of the rows to all of them.
    spans = [
        float(pixels.max() - pixels.min())
        for pixels in (
            transforms.to_pixels(clip, size=16, short_side=(16, 64), rng=np.random.default_rng(i))
            for i in range(60)
        )
    ]
    assert min(spans) < 0.7
    assert max(spans) > 1.7
    # Mirrored about half of the time, and never without a generator.
    wide = clip.transpose(2, 3)[..., :64].contiguous()
    flips = [
        bool(pixels[0, 0, 0, 0] > pixels[0, 0, 0, -1])
        for pixels in (
            transforms.to_pixels(
                wide, size=64, short_side=(64, 64), flip=True, rng=np.random.default_rng(i)
            )
            for i in range(60)
        )
    ]
    assert 15 < sum(flips) < 45
