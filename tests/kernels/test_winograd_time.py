"""Winograd's convolution in time against the plain one in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.spies import calls_taken
from zoo.kernels import winograd, winograd_time


@pytest.mark.parametrize("frames", [3, 4, 9, 10, 19])
@pytest.mark.parametrize(
    ("kernel", "padding"), [((3, 3), (0, 0)), ((3, 3), (1, 1)), ((1, 5), (0, 2))]
)
def test_it_is_the_convolution(
    frames: int, kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, frames, 6, 7, dtype=torch.float64)
    weight, bias = torch.randn(6, 5, 3, *kernel).double(), torch.randn(6).double()
    wanted = F.conv3d(x, weight, bias, padding=(0, *padding))
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        given = x.contiguous(memory_format=layout)
        found = winograd_time.conv(given, weight, bias, padding=padding)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        assert torch.equal(given, x)
    without = winograd_time.conv(x, weight, None, padding=padding)
    torch.testing.assert_close(without + bias[:, None, None, None], wanted)


def test_rounding_in_bfloat16() -> None:
    """Outputs of deviation 1: a direct call is .0017 off, this one .0039."""
    torch.manual_seed(0)
    x = torch.randn(1, 64, 11, 16, 16, dtype=torch.bfloat16)
    weight = (torch.randn(64, 64, 3, 3, 3) / (27 * 64) ** 0.5).bfloat16()
    exact = F.conv3d(x.double(), weight.double())
    error = (winograd_time.conv(x, weight, None) - exact).square().mean().sqrt()
    assert 0 < error < 0.005


def test_it_serves_long_clips_in_bfloat16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd_time, "bfloat16_of_cpu", lambda: "vectors")
    monkeypatch.setattr(winograd, "bfloat16_of_cpu", lambda: "vectors")
    x = torch.randn(1, 64, 9, 16, 16)
    weight = torch.randn(64, 64, 3, 3, 3, requires_grad=True)
    count = calls_taken(winograd_time, weight, monkeypatch)
    with torch.no_grad():
        assert count(x.bfloat16()) == 1
        assert count(x) == 0
        assert count(x.bfloat16(), stride=2) == 0
        assert count(x.bfloat16()[:, :, :3]) == 0
        assert count(x.bfloat16()[..., :8, :8]) == 0
        monkeypatch.setattr(winograd_time, "bfloat16_of_cpu", lambda: "tiles")
        assert count(x.bfloat16()) == 0
    monkeypatch.setattr(winograd_time, "bfloat16_of_cpu", lambda: "vectors")
    assert count(x.bfloat16()) == 0  # gradients
