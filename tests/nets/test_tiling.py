"""Tiles: what they cover, that they see the undivided frame's noise, and how little they show."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from tests.nets.zoo_of_nets import make, video
from zoo.diffusion.samplers import Noise
from zoo.errors import UserError
from zoo.nets.cdt import CDT
from zoo.nets.pca import BlockPCA
from zoo.nets.tiling import Tiled, ramps, spans
from zoo.nets.tokenizer import Tokenizer
from zoo.objectives import DenoisingObjective
from zoo.streaming import Carry


@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 64, 135, 240])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 2), (32, 8), (9, 4), (16, 12), (5, 1)])
def test_spans_cover_and_ramps_sum_to_one(length: int, tile: int, overlap: int) -> None:
    places = spans(length, tile, overlap)
    assert places[0][0] == 0
    assert places[-1][1] == length
    assert all(stop - start <= tile for start, stop in places)
    assert all(a[1] - b[0] >= overlap for a, b in itertools.pairwise(places))
    total = torch.zeros(3 * length)
    for (start, stop), weight in zip(places, ramps(places, 3), strict=True):
        assert weight.min() > 0
        total[3 * start : 3 * stop] += weight
    assert torch.allclose(total, torch.ones(()), atol=1e-6)


class NoiseOnly(BlockPCA):
    """Decodes to the noise it is given: what a diffusion decoder would see."""

    def _decode(self, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise) -> Tensor:
        x = super()._decode(z, carry, steps=steps, noise=noise)
        return noise(x[:, :, :1], x.shape[2])


def test_tiles_cut_the_noise_of_the_undivided_frame() -> None:
    net = NoiseOnly(make("pca").config)
    tiled = Tiled(net, tile=(16, 24), overlap=8)
    z = torch.zeros(2, net.latent_channels, 3, 5, 7)
    whole, cut = (n.decode(z, generator=torch.Generator().manual_seed(4)) for n in (net, tiled))
    assert torch.allclose(whole, cut, atol=1e-6)
    pieces = tiled.stream_decode(z.split(1, dim=2), generator=torch.Generator().manual_seed(4))
    assert torch.allclose(torch.cat(list(pieces), dim=2), whole, atol=1e-6)


@pytest.mark.parametrize("name", ["pca", "cdt_tiny", "klvae_video_tiny"])
def test_one_tile_is_the_net_and_blocks_need_no_neighbours(name: str) -> None:
    net, x = make(name), video(6, 33, 47)
    given = [torch.Generator().manual_seed(0) for _ in range(2)]
    tiled = Tiled(net, tile=64 if name != "pca" else 16)
    assert torch.allclose(
        tiled.reconstruct(x, generator=given[0]),
        net.reconstruct(x, generator=given[1]),
        atol=1e-5,
    )
    posterior, plain = tiled.encode(x), net.encode(x)
    assert (posterior.logvar is None) == (plain.logvar is None)
    assert torch.allclose(posterior.std, plain.std, atol=1e-5)


def test_what_does_not_fit_is_said() -> None:
    net = make("klvae_video_tiny")
    with pytest.raises(UserError, match=r"tile 100 is no multiple .* 96 or 104"):
        Tiled(net, tile=100)
    for tile, overlap in ((16, 8), (32, 16), (64, 32), (128, 32), (256, 64), (264, 64)):
        assert Tiled(net, tile=tile).overlap == (overlap // 8, overlap // 8)
    with pytest.raises(UserError, match="overlap 12 is no multiple"):
        Tiled(net, tile=64, overlap=(16, 12))
    with pytest.raises(UserError, match="leaves nothing of a tile"):
        Tiled(net, tile=64, overlap=64)
    tiled = Tiled(net, tile=16)
    _, state = tiled.encode_step(video(5), None)
    with pytest.raises(UserError, match="don't continue this stream"):
        tiled.encode_step(video(5, 40, 24), state)


def smooth(count: int, height: int, width: int, *, seed: int) -> Tensor:
    """Clips [count,3,9,H,W] of drifting colour gradients."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3 + height // 32, 3 + width // 32, generator=generator)
    return F.interpolate(coarse, (9, height, width), mode="trilinear", align_corners=True) * 2 - 1


def trained_cdt() -> CDT:
    """A narrow CDT trained for seconds: enough that its attention and convolutions matter."""
    torch.manual_seed(0)
    net = zoo.create("cdt_tiny", context_dim=16, unet_dim=16)
    assert isinstance(net, CDT)
    assert net.pca is not None
    net.pca.fit([smooth(8, 64, 64, seed=1)])
    objective = DenoisingObjective(lpips_weight=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for step in range(60):
        x = smooth(2, 64, 64, seed=2 + step)
        x = (x + 0.1 * torch.randn(x.shape)).clamp(-1, 1)  # something left to learn
        losses = objective(net, x, progress=0.0)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval().requires_grad_(False)


def seam(net: Tokenizer, x: Tensor, *, tile: int, steps: int) -> tuple[float, float]:
    """Grey levels (of 255) between tiled and undivided: mean over overlaps, mean elsewhere."""
    tiled = Tiled(net, tile=tile)
    size = x.shape[2:]
    given = [torch.Generator().manual_seed(0) for _ in range(2)]
    # both halves tiled against both undivided
    whole = net.reconstruct(x, steps=steps, generator=given[0])
    cut = tiled.reconstruct(x, steps=steps, generator=given[1])
    places = [
        spans(-(-length // unit), tile // unit, tiled.overlap[0])
        for length, unit in zip(size[1:], net.compression[1:], strict=True)
    ]
    shared = torch.zeros(size[1:], dtype=torch.bool)
    for axis, unit in enumerate(net.compression[1:]):
        for (_, stop), (start, _) in itertools.pairwise(places[axis]):
            shared.narrow(axis, start * unit, (stop - start) * unit).fill_(True)
    error = 127.5 * (whole.clamp(-1, 1) - cut.clamp(-1, 1)).abs()
    return float(error[..., shared].mean()), float(error[..., ~shared].mean())


@pytest.mark.parametrize("steps", [1, 2])
def test_seams_stay_under_one_level(steps: int, trained: CDT) -> None:
    x = smooth(1, 96, 160, seed=1000)
    at_seams, elsewhere = seam(trained, x, tile=64, steps=steps)
    said = f"{at_seams:.3f} levels at seams, {elsewhere:.3f} off them"
    print(f"{steps} steps: tiles differ by {said}")  # noqa: T201
    assert 0 < at_seams < 1
    noisy = CDT(replace(trained.config, gamma=1.0))
    noisy.load_state_dict(trained.state_dict())
    assert seam(noisy.eval().requires_grad_(False), x, tile=64, steps=steps)[0] < 1


@pytest.fixture(scope="module")
def trained() -> CDT:
    return trained_cdt()
