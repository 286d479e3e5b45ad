"""Films through a net: chunks, stops and folders of latents change nothing of the result."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from zoo.data.film import open_film
from zoo.data.latent_writer import LatentWriter
from zoo.data.latents import LatentFolder, Settings
from zoo.data.reader import Frame
from zoo.data.transforms import to_uint8
from zoo.data.writer import VideoWriter
from zoo.errors import RunError, UserError
from zoo.films import chunk_frames, decode_film, encode_film, reconstruct_film
from zoo.nets.cdt import CDT
from zoo.nets.pca import BlockPCA, PCAConfig
from zoo.nets.tiling import Tiled
from zoo.nets.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def net() -> Tokenizer:
    torch.manual_seed(0)
    net = zoo.create("cdt_tiny", context_dim=8, unet_dim=8)
    assert isinstance(net, CDT)
    assert net.pca is not None
    net.pca.fit([torch.rand(2, 3, 17, 32, 32) * 2 - 1])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", 30)


def write_film(path: Path, frames: int, *, width: int = 47, height: int = 33) -> Path:
    rng = np.random.default_rng(frames)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    big = coarse.repeat(8, 0).repeat(8, 1)
    with VideoWriter(path, width=width, height=height, rate=Fraction(25)) as writer:
        for t in range(frames):
            writer.write(np.roll(big, t, axis=1)[:height, :width])
    return path


def encode(net: Tokenizer, path: Path, folder: Path, **changes: Any) -> LatentFolder:
    options = {k: changes.pop(k) for k in ("chunk", "checkpoint_seconds") if k in changes}
    key = changes.pop("key", path.name)
    settings = Settings.of(net, model="dir:x", **({"dtype": "fp32"} | changes))
    with open_film(path) as film, LatentWriter(folder, settings) as writer:
        encode_film(net, film, writer, key=key, **options)
    return LatentFolder(folder)


def whole(folder: LatentFolder) -> Tensor:
    return torch.cat([z for z, _ in folder.samples(folder.films[0])], dim=1)


@pytest.mark.parametrize("frames", [1, 2, 3, 30])
def test_latents_are_those_of_encode_and_the_film_that_of_reconstruct(
    frames: int, net: Tokenizer, tmp_path: Path
) -> None:
    path = write_film(tmp_path / "film.mp4", frames)
    folder = encode(net, path, tmp_path / "l", chunk=8)
    with open_film(path) as film:
        originals = list(film)
    x = torch.from_numpy(np.stack([f.rgb for f in originals])).movedim(-1, 0)[None]
    x = x.float() / 127.5 - 1
    z = net.encode(x).mean[0]
    assert folder.films[0].frames == frames
    assert (whole(folder) - z).abs().max() < 1e-4 * z.abs().max()
    pairs = list(reconstruct_film(net, originals, chunk=8, seed=3))
    decoded = list(decode_film(net, folder, folder.films[0], chunk=8, seed=3))
    assert len(pairs) == len(decoded) == frames
    for (original, result), frame in zip(pairs, decoded, strict=True):
        assert frame.rgb.shape == original.rgb.shape == (33, 47, 3)
        assert frame.time == pytest.approx(original.time, abs=1e-3)
        assert np.array_equal(result, frame.rgb)
    y = net.reconstruct(x, generator=torch.Generator().manual_seed(3))
    expected = to_uint8(y[0]).movedim(0, -1).numpy().astype(int)
    assert np.abs(expected - np.stack([f.rgb for f in decoded])).max() <= 1


def test_chunks_and_tiles_change_little(net: Tokenizer, path: Path, tmp_path: Path) -> None:
    z = whole(encode(net, path, tmp_path / "a", chunk=4))
    other = whole(encode(net, path, tmp_path / "b", chunk=13))
    assert (z - other).abs().max() < 1e-4 * z.abs().max()
    tiled = Tiled(net, tile=64)  # larger than the frame
    settings = Settings.of(net, model="dir:x", dtype="fp32", tile=64)
    with open_film(path) as film, LatentWriter(tmp_path / "c", settings) as writer:
        encode_film(tiled, film, writer, key="film.mp4", chunk=4)
    assert (whole(LatentFolder(tmp_path / "c")) - z).abs().max() < 1e-4 * z.abs().max()
    assert chunk_frames(net, 64, 64) == 16
    assert chunk_frames(net, 1920, 1080) == 4
    assert chunk_frames(Tiled(net, tile=256), 1920, 1080) == 16


def test_samples_are_drawn_once_a_film_whatever_the_chunks(
    net: Tokenizer, path: Path, tmp_path: Path
) -> None:
    mean = whole(encode(net, path, tmp_path / "m"))
    z = whole(encode(net, path, tmp_path / "a", kind="sample", chunk=4))
    again = whole(encode(net, path, tmp_path / "b", kind="sample", chunk=11))
    assert (z - again).abs().max() < 1e-4 * z.abs().max()
    assert (z - mean).abs().mean() > 1e-3
    for name, changes in (("c", {"seed": 1}), ("d", {"key": "other"})):
        other = whole(encode(net, path, tmp_path / name, kind="sample", chunk=4, **changes))
        assert (z - other).abs().mean() > 1e-3


class Stops(Exception):
    pass


@pytest.mark.parametrize("kind", ["mean", "sample"])
def test_a_stopped_film_goes_on_from_its_checkpoint(
    kind: str, net: Tokenizer, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(net, path, tmp_path / "whole", kind=kind, chunk=4)
    steps = 0
    plain = type(net).encode_step

    def counted(self: Tokenizer, x: Tensor, state: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise Stops
        return plain(self, x, state)

    monkeypatch.setattr(type(net), "encode_step", counted)
    with pytest.raises(Stops):
        encode(net, path, tmp_path / "l", kind=kind, chunk=4, checkpoint_seconds=0.0)
    encode(net, path, tmp_path / "l", kind=kind, chunk=4, checkpoint_seconds=0.0)
    # 8 chunks and the repeated end: five steps were done, and the one that failed is done again
    assert steps == 6 + 4
    for a in sorted((tmp_path / "whole").iterdir()):
        assert a.read_bytes() == (tmp_path / "l" / a.name).read_bytes(), a.name


def test_a_film_without_frames_leaves_nothing(net: Tokenizer, path: Path, tmp_path: Path) -> None:
    settings = Settings.of(net, model="dir:x")
    with (
        pytest.raises((RunError, UserError)),
        open_film(path, start=100.0) as film,
        LatentWriter(tmp_path / "l", settings) as writer,
    ):
        encode_film(net, film, writer, key="film.mp4")
    assert not (tmp_path / "l").exists()


def test_two_films_share_a_net(net: Tokenizer, path: Path, tmp_path: Path) -> None:
    """Interleaved streams don't meet: each is what it is alone."""
    other = write_film(tmp_path / "other.mp4", 21)
    frames = {}
    for film_path in (path, other):
        with open_film(film_path) as film:
            frames[film_path] = list(film)
    alone = {p: list(reconstruct_film(net, f, chunk=4)) for p, f in frames.items()}
    both: dict[Path, list[tuple[Frame, Any]]] = {path: [], other: []}
    running = {p: reconstruct_film(net, f, chunk=4) for p, f in frames.items()}
    for _ in range(30):
        for p, stream in running.items():
            both[p] += [pair for pair in [next(stream, None)] if pair is not None]
    for p, pairs in both.items():
        assert len(pairs) == len(frames[p])
        for (_, a), (_, b) in zip(pairs, alone[p], strict=True):
            assert np.array_equal(a, b)


def test_a_net_that_compresses_only_space(path: Path, tmp_path: Path) -> None:
    net = BlockPCA(PCAConfig(latent_channels=5, compression=(1, 8, 8)))
    net.fit([torch.rand(2, 3, 3, 32, 32) * 2 - 1])
    folder = encode(net, path, tmp_path / "l", chunk=7)
    assert folder.films[0].latents == [5, 30, 5, 6]
    decoded = list(decode_film(net, folder, folder.films[0], chunk=4))
    with open_film(path) as film:
        pairs = list(reconstruct_film(net, film))
    assert len(decoded) == len(pairs) == 30
    for (_, result), frame in zip(pairs, decoded, strict=True):
        assert np.array_equal(result, frame.rgb)
