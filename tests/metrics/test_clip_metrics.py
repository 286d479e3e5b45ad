"""Metrics of clips against scikit-image and the lpips package; the same in several processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from tests.wanted import or_skip
from zoo.errors import UserError
from zoo.metrics.clips import LPIPS, PSNR, SSIM, Flicker
from zoo.metrics.distributions import KID, FrechetDistance, Manifold


def pair(clips: int = 2, frames: int = 5, size: int = 40) -> tuple[Tensor, Tensor]:
    """A smooth original and a noisy, not rounded reconstruction, both partly clipped."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips, 3, frames, size // 8, size // 8, generator=generator)
    x = torch.nn.functional.interpolate(x, size=(frames, size, size), mode="trilinear").tanh()
    x = ((x + 1) * 127.5).round() / 127.5 - 1
    return x + 0.1 * torch.randn(x.shape, generator=generator), x


def as_uint8(x: Tensor) -> np.ndarray:
    """[B,3,T,H,W] to uint8 [B,T,H,W,3]."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()


def test_psnr_is_scikit_images_of_the_rounded_frames() -> None:
    y, x = pair()
    expected = [
        np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(*c, strict=True)])
        for c in zip(as_uint8(x), as_uint8(y), strict=True)
    ]
    np.testing.assert_allclose(PSNR().values(y, x), expected, atol=1e-4)


def test_ssim_is_scikit_images_of_the_rounded_frames() -> None:
    y, x = pair()
    settings = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 255,
        "channel_axis": -1,
    }
    expected = [
        np.mean([structural_similarity(a, b, **settings) for a, b in zip(*c, strict=True)])
        for c in zip(as_uint8(x), as_uint8(y), strict=True)
    ]
    np.testing.assert_allclose(SSIM().values(y, x), expected, atol=1e-4)


def test_flicker_sees_what_comes_and_goes_and_not_what_stays() -> None:
    _, x = pair()
    x = x * 0.5
    still = x + 4 / 127.5
    blinking = x.clone()
    blinking[:, :, ::2] += 4 / 127.5
    assert Flicker().values(still, x).max() < 1.0
    assert 3.0 < Flicker().values(blinking, x).min() < 5.0
    one = Flicker()
    one.update(x[:, :, :1], x[:, :, :1])
    assert one.compute().isnan()


def test_values_outside_the_range_and_other_shapes_are_refused() -> None:
    y, x = pair()
    with pytest.raises(UserError, match=r"pixels in \[.*255"):
        PSNR().update(y, (x + 1) * 127.5)
    with pytest.raises(UserError, match="can't compare"):
        PSNR().update(y[:, :, :2], x)


@pytest.mark.assets
@pytest.mark.parametrize(("net", "short"), [("alexnet", "alex"), ("vgg16", "vgg")])
def test_lpips_has_the_packages_heads_and_grows_with_blur(net: str, short: str) -> None:
    import lpips
    from skimage.data import astronaut

    metric = LPIPS(net)
    module = or_skip(metric.network.load)
    published = torch.load(
        map_location="cpu",
        f=Path(lpips.__file__).parent / "weights" / "v0.1" / f"{short}.pth",
        weights_only=True,
    )
    heads = module.state_dict()
    for name, value in published.items():
        assert torch.equal(heads[name], value)
    picture = torch.from_numpy(astronaut()[::4, ::4].copy()).permute(2, 0, 1) / 127.5 - 1
    x = picture[None, :, None]
    distances = []
    for width in (3, 5, 9):
        kernel = torch.ones(3, 1, width, width) / width**2
        padded = torch.nn.functional.pad(x[:, :, 0], [width // 2] * 4, mode="reflect")
        blurred = torch.nn.functional.conv2d(padded, kernel, groups=3)
        distances.append(float(metric.values(blurred[:, :, None], x)))
    assert 0.02 < distances[0] < distances[1] < distances[2] < 1
    assert float(metric.values(x, x)) == 0


@pytest.mark.assets
def test_spatial_lpips_averages_maps_of_the_pictures_size() -> None:
    import lpips

    y, x = pair(clips=1, frames=2, size=64)
    metric = LPIPS("alexnet", spatial=True)
    module = or_skip(metric.network.load)
    assert isinstance(module, lpips.LPIPS)
    rounded = ((y.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    maps = [module(rounded[:, :, t], x[:, :, t]) for t in range(2)]
    assert maps[0].shape == (1, 1, 64, 64)
    assert float(metric.values(y, x)) == pytest.approx(float(sum(m.mean() for m in maps)) / 2)


def make_metrics() -> dict[str, torch.nn.Module]:
    return {
        "psnr": PSNR(),
        "ssim": SSIM(),
        "flicker": Flicker(),
        "frechet": FrechetDistance(4),
        "kid": KID(paired=True, subset_size=6),
        "manifold": Manifold(),
    }


def measure(metrics: dict[str, torch.nn.Module], part: slice) -> dict[str, float]:
    """All metrics on a part of the data."""
    y, x = pair(clips=6)
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(30, 4, generator=generator)
    fake = real + 0.3 * torch.randn(30, 4, generator=generator)
    for name in ("psnr", "ssim", "flicker"):
        metrics[name].update(y[part], x[part])
    wide = slice(part.start * 5, part.stop * 5)
    for name in ("frechet", "kid", "manifold"):
        metrics[name].update(real[wide], real=True)
        metrics[name].update(fake[wide], real=False)
    found: dict[str, float] = {}
    for name, metric in metrics.items():
        value = metric.compute()
        if isinstance(value, dict):
            found |= {key: float(v) for key, v in value.items()}
        elif isinstance(value, tuple):
            found |= {f"{name}{i}": float(v) for i, v in enumerate(value)}
        else:
            found[name] = float(value)
    return found


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    # shares of different sizes: a mean of the processes' means would be wrong
    found = measure(make_metrics(), slice(0, 2) if rank == 0 else slice(2, 6))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    alone = measure(make_metrics(), slice(0, 6))
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt")
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            assert together[name] == pytest.approx(value, abs=1e-6, rel=1e-6), name


def test_a_range_that_looks_like_0_to_1_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    from zoo.metrics.reconstruction import _warn_of_range

    y, x = pair()
    _warn_of_range.cache_clear()
    PSNR().update(y, x)
    assert not caplog.records
    for _ in range(2):
        PSNR().update((y.clamp(-1, 1) + 1) / 2, (x + 1) / 2)
    assert [r.message for r in caplog.records] == [
        "no pixel is negative: metrics take pixels in [-1, 1], is this [0, 1]?"
    ]
