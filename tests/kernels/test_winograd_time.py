"""Winograd's convolution in time against the plain one in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.spies import calls_taken
from zoo.kernels import winograd, winograd_time
from zoo.kernels.conv3d import causal_conv3d


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
        few = calls_taken(winograd_time, weight[:8], monkeypatch)
        assert few(x.bfloat16()) == 0
        monkeypatch.setattr(winograd_time, "bfloat16_of_cpu", lambda: "tiles")
        assert count(x.bfloat16()) == 0
    monkeypatch.setattr(winograd_time, "bfloat16_of_cpu", lambda: "vectors")
    assert count(x.bfloat16()) == 0  # gradients


@pytest.mark.parametrize("frames", [3, 4, 9, 10])
def test_a_still_beginning_takes_one_product(frames: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, frames, 6, 7, dtype=torch.float64)
    x[:, :, 1:3] = x[:, :, :1]
    weight, bias = torch.randn(6, 5, 3, 3, 3).double(), torch.randn(6).double()
    wanted = F.conv3d(x, weight, bias, padding=(0, 1, 1))
    found = winograd_time.conv(x, weight, bias, padding=(1, 1), still=True)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_repeated_frames_are_told_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's beginning is still where its first frame is repeated, and nowhere else."""
    monkeypatch.setattr(winograd_time, "bfloat16_of_cpu", lambda: "vectors")
    monkeypatch.setattr(winograd, "bfloat16_of_cpu", lambda: "vectors")
    told: list[bool] = []
    inside = winograd_time.conv

    def spy(*args: Tensor, still: bool, **options: object) -> Tensor:
        told.append(still)
        return inside(*args, still=still, **options)

    monkeypatch.setattr(winograd_time, "conv", spy)
    x, weight = torch.randn(1, 32, 9, 16, 16).bfloat16(), torch.randn(32, 32, 3, 3, 3).bfloat16()
    front = torch.randn(1, 32, 2, 16, 16).bfloat16()
    with torch.no_grad():
        causal_conv3d(x, weight, edge="replicate")
        causal_conv3d(x, weight, edge="zeros")
        causal_conv3d(x, weight, edge="replicate", front=front)
    assert told == [True, False, False]
