"""Winograd's convolution against the plain one in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.spies import calls_taken
from zoo.kernels import winograd
from zoo.kernels.conv3d import causal_conv3d, conv3d


@pytest.mark.parametrize("padding", [(0, 0), (1, 1)])
@pytest.mark.parametrize("kt", [1, 3])
@pytest.mark.parametrize("size", [(10, 14), (9, 13), (3, 4)], ids=["tiles", "odd", "one tile"])
@pytest.mark.parametrize("block", [1, 2**21], ids=["strip by strip", "at once"])
def test_winograd_is_the_convolution(
    size: tuple[int, int],
    kt: int,
    padding: tuple[int, int],
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(winograd, "_BLOCK", block)
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, *size, dtype=torch.float64)
    weight, bias = torch.randn(6, 5, kt, 3, 3, dtype=torch.float64), torch.randn(6).double()
    wanted = F.conv3d(x, weight, bias, padding=(0, *padding))
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        found = winograd.conv(
            x.contiguous(memory_format=layout), weight, bias, padding=padding
        )  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        winograd.conv(x, weight, None, padding=padding) + bias[:, None, None, None], wanted
    )


@pytest.mark.parametrize("kt", [1, 3])
def test_winograd_puts_frames_of_zeros_in_front(kt: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 3, 6, 7).double(), torch.randn(6, 5, kt, 3, 3).double()
    wanted = F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), weight)
    found = winograd.conv(x, weight, None, padding=(1, 1), before=2)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_causal_call_copies_its_clip_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros in front and around are written in one go: two copies are what memory peaked at."""

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("padded beside Winograd's own padding")

    monkeypatch.setattr(F, "pad", fail)
    x, weight = torch.randn(1, 64, 2, 32, 32), torch.randn(64, 64, 3, 3, 3) / (27 * 64) ** 0.5
    with torch.no_grad():
        found = causal_conv3d(x, weight)
    monkeypatch.undo()
    wanted = F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), weight)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_winograd_in_float32_is_accurate() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 256, 3, 18, 18)
    weight = torch.randn(64, 256, 3, 3, 3) / (27 * 256) ** 0.5
    exact = F.conv3d(x.double(), weight.double())
    error = (winograd.conv(x, weight, None) - exact).square().mean().sqrt()
    assert 0 < error < 3e-6  # outputs have a deviation of 1


def test_bfloat16_is_rounded_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 64, 3, 18, 18, dtype=torch.bfloat16)
    weight = (torch.randn(64, 64, 3, 3, 3) / (27 * 64) ** 0.5).bfloat16()
    exact = F.conv3d(x.double(), weight.double())
    found = winograd.conv(x, weight, None)
    assert found.dtype == torch.bfloat16
    error, rounding = (found - exact).square().mean(), (exact.bfloat16() - exact).square().mean()
    assert 0 < error < 1.01 * rounding


def test_winograd_serves_inference_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large calls take it, in bfloat16 where the CPU is slow in that; gradients, strides and small
    calls do not."""
    x, weight = torch.randn(1, 64, 2, 32, 32), torch.randn(64, 64, 1, 3, 3, requires_grad=True)
    count = calls_taken(winograd, weight, monkeypatch)
    with torch.no_grad():
        assert count(x) == count(x, edge="zeros") == 1
        monkeypatch.setattr(winograd, "bfloat16_of_cpu", lambda: "slow")
        assert count(x.bfloat16()) == 1
        for fast in ("vectors", "tiles"):
            monkeypatch.setattr(winograd, "bfloat16_of_cpu", lambda rate=fast: rate)
            assert count(x.bfloat16()) == 0
        assert count(x.double()) == 0
        assert count(x, stride=2) == 0
        assert count(x[..., :8, :8]) == 0
        assert count(x[:, :, :1, :, :].expand(-1, -1, 9, -1, -1)[..., :5, :]) == 0  # 5 is not 8
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert count(x) == 0
        plain = F.conv3d(x, weight, padding=(0, 1, 1))
        torch.testing.assert_close(conv3d(x, weight, padding=(0, 1, 1)), plain, atol=1e-3, rtol=0)
    assert count(x) == 0
    assert count(x.requires_grad_()) == 0
