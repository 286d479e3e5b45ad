"""One clip by PyAV and by torchcodec: the same frames."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from films import index_of

from zoo.data import decoding
from zoo.data.container import Encoded
from zoo.data.decoding import decode_clip, why_not_torchcodec
from zoo.data.reader import FrameReader
from zoo.data.shard_source import ShardSource
from zoo.data.video import read_clip
from zoo.errors import UserError

with_torchcodec = pytest.mark.skipif(bool(why_not_torchcodec()), reason=why_not_torchcodec())


def moving(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return [np.roll(coarse, 2 * i, axis=1) for i in range(count)]


@pytest.mark.parametrize("gop", [12, 250])
def test_skimmed_frames_change_nothing(
    gop: int, tmp_path: Path, encode: Callable[..., Path]
) -> None:
    """Frames before the start that nothing leans on aren't decoded: the clip is the same bits."""
    path = encode(tmp_path / "a.mp4", moving(80), gop=gop)
    whole = [frame.rgb for frame in FrameReader(path)]
    for first in (1, 11, 12, 13, 30, 62):
        clip = read_clip(path, frames=17, start=first / 25).permute(1, 2, 3, 0).numpy()
        assert np.array_equal(clip, np.stack(whole[first : first + 17]))


def test_without_torchcodec_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    why_not_torchcodec.cache_clear()
    assert "torchcodec" in why_not_torchcodec()
    with pytest.raises(UserError, match=r"torchcodec can't be imported .*: use pyav or auto"):
        ShardSource(str(tmp_path), decoder="torchcodec")
    why_not_torchcodec.cache_clear()


def test_auto_without_torchcodec_is_pyav(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encode: Callable[..., Path]
) -> None:
    path = encode(tmp_path / "a.mp4", moving(30))
    film = Encoded("a", path.read_bytes())
    monkeypatch.setattr(decoding, "why_not_torchcodec", lambda: "it isn't there")
    settings = {"frames": 5, "start": 0.4, "rate": None, "short_side": 32}
    auto = decode_clip(film, decoder="auto", **settings)  # type: ignore[arg-type]
    assert torch.equal(auto, read_clip(path, **settings))  # type: ignore[arg-type]


@with_torchcodec
@pytest.mark.parametrize("rate", [None, 12.5, 40.0])
@pytest.mark.parametrize("start", [0.0, 0.4, 0.97])
def test_torchcodec_gives_the_same_frames(
    rate: float | None, start: float, tmp_path: Path, encode: Callable[..., Path]
) -> None:
    stamps = [40 * i + (9 if i % 4 == 3 else 0) for i in range(60)]
    greys = [np.full((32, 48, 3), 12 + 4 * i, np.uint8) for i in range(60)]
    path = encode(tmp_path / "a.mp4", greys, gop=25, stamps=stamps)
    film = Encoded("a", path.read_bytes())
    for side in (32, 16):
        clips = [
            decode_clip(film, frames=9, start=start, rate=rate, short_side=side, decoder=decoder)  # type: ignore[arg-type]
            for decoder in ("pyav", "torchcodec")
        ]
        assert clips[0].shape == clips[1].shape
        shown = [
            [round(float(f.float().mean() - 12) / 4) for f in clip.unbind(1)] for clip in clips
        ]
        assert shown[0] == shown[1]


@with_torchcodec
@pytest.mark.parametrize("side", [64, 40])
def test_torchcodec_gives_nearly_the_same_pixels(
    side: int, tmp_path: Path, encode: Callable[..., Path]
) -> None:
    """Its scaler rounds in another way: 1.4 to 2.9 levels of 255 on films from cameras."""
    y, x = np.mgrid[:64, :96]
    images = [
        np.stack([128 + 90 * np.sin(0.1 * x + 0.3 * i), 2 * x, 3 * y], axis=-1).astype(np.uint8)
        for i in range(40)
    ]
    film = Encoded("a", encode(tmp_path / "a.mp4", images).read_bytes())
    settings = {"frames": 9, "start": 0.5, "rate": None, "short_side": side}
    mine, theirs = (
        decode_clip(film, decoder=decoder, **settings).float()  # type: ignore[arg-type]
        for decoder in ("pyav", "torchcodec")
    )
    assert (mine - theirs).abs().mean() < 3


@with_torchcodec
def test_what_torchcodec_reads_otherwise_goes_to_pyav(
    tmp_path: Path, encode: Callable[..., Path]
) -> None:
    """Turned films: PyAV's, bit for bit."""
    path = encode(tmp_path / "a.mp4", moving(30), rotation=90.0)
    film = Encoded("a", path.read_bytes())
    settings = {"frames": 5, "start": 0.4, "rate": None, "short_side": 32}
    clip = decode_clip(film, decoder="torchcodec", **settings)  # type: ignore[arg-type]
    assert torch.equal(clip, read_clip(path, **settings))  # type: ignore[arg-type]


@pytest.mark.gpu
@with_torchcodec
def test_nvdec_gives_the_same_frames(tmp_path: Path, encode: Callable[..., Path]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    greys = [np.full((256, 256, 3), 12 + 5 * i, np.uint8) for i in range(40)]
    path = encode(tmp_path / "a.mp4", greys)
    film = Encoded("a", path.read_bytes())
    clip = decode_clip(
        film, frames=9, start=0.4, rate=None, short_side=128, decoder="torchcodec", device="cuda"
    )
    assert clip.device.type == "cuda"
    assert [index_of(float(f.float().mean())) for f in clip.unbind(1)] == list(range(10, 19))
