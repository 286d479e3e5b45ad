"""Weights as int8: small, close, for every kind of layer, and refused where they can't go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.nets.zoo_of_nets import make, video
from zoo.errors import UserError
from zoo.int8 import Int8Weight, quantize_int8
from zoo.nets.tiue import TiUEUNet
from zoo.registry import create

pytest.importorskip("torchao", reason="an optional package: pip install '.[int8]'")


def _bytes(net: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in net.state_dict().values())


@pytest.mark.parametrize("name", ["cdt_tiny", "klvae_video_tiny", "klvae_image_tiny"])
def test_a_tokenizer_takes_a_third_and_gives_nearly_the_same(name: str) -> None:
    net, clip = make(name), video(5)
    before, dense = _bytes(net), net.decode(net.encode(clip).mean, generator=_noise())
    assert quantize_int8(net) is net
    after = net.decode(net.encode(clip).mean, generator=_noise())
    assert _bytes(net) < before / 3
    error = (after - dense).square().mean().sqrt() / dense.square().mean().sqrt()
    assert 0 < error < 0.05


def _noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        (nn.Linear(32, 64), 0),
        (nn.Conv3d(8, 16, (1, 3, 3)), 0),
        (nn.ConvTranspose3d(16, 8, (1, 3, 3)), 1),
    ],
)
def test_every_output_channel_has_its_scale(layer: nn.Module, dim: int) -> None:
    weight = layer.get_parameter("weight").detach().clone()
    # one loud channel must not cost the others their precision
    weight.select(dim, 3).mul_(1000)
    layer.get_parameter("weight").data.copy_(weight)
    quantize_int8(layer)
    values, scale = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1  # type: ignore[union-attr,index]
    assert values.dtype == torch.int8
    assert scale.numel() == weight.shape[dim]
    largest = weight.abs().transpose(0, dim).flatten(1).amax(1)
    apart = (layer.weight - weight).abs().transpose(0, dim).flatten(1).amax(1)  # type: ignore[operator]
    assert (apart <= largest / 127 * 0.51).all()


def test_small_layers_norms_and_biases_stay() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(2048), nn.Linear(64, 64))
    quantize_int8(net)
    assert isinstance(net[0].weight, nn.Parameter)
    assert isinstance(net[1].weight, nn.Parameter)
    assert not isinstance(net[2].weight, nn.Parameter)
    assert net[2].bias.dtype == torch.float32


def test_a_unet_and_half_precision() -> None:
    torch.manual_seed(0)
    net = create("tiue_tiny").eval()
    assert isinstance(net, TiUEUNet)
    assert isinstance(net.config, dict)
    x, text = torch.randn(2, net.config["in_channels"], 16, 16), torch.randn(2, 20, 384)
    times = torch.tensor([999, 500])
    with torch.no_grad():
        dense = net.decode(net.encode(x, times, text), times, text)
        quantize_int8(net)
        after = net.decode(net.encode(x, times, text), times, text)
    assert 0 < (after - dense).abs().max() < 0.05 * dense.abs().max()
    half = quantize_int8(nn.Linear(64, 64).to(torch.bfloat16))
    assert half(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_no_second_time_and_no_saving(tmp_path: Path) -> None:
    net = quantize_int8(make("klvae_video_tiny"))
    with pytest.raises(UserError, match="int8 weights already"):
        quantize_int8(net)
    with pytest.raises(UserError, match="int8"):
        net.save_pretrained(tmp_path / "out")  # type: ignore[operator]
    assert not list(tmp_path.iterdir())


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.int8.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        quantize_int8(nn.Linear(64, 64))


def test_zeros_stay_zeros() -> None:
    weight = torch.zeros(4, 300)
    values, scale = Int8Weight(0).right_inverse(weight)
    assert not Int8Weight(0)(values, scale).any()
