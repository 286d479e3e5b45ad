"""Both paths against their definitions, each other's limits and the discrete-time formulas."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from zoo.diffusion.paths import PathKind, advance, coefficients, mix, sampling_times, target
from zoo.diffusion.predictions import target as discrete_target
from zoo.errors import UserError


@pytest.mark.parametrize("kind", get_args(PathKind))
def test_a_true_prediction_moves_along_the_path(kind: PathKind) -> None:
    x0, noise = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    t, to = (torch.rand(3, 1, 1, dtype=torch.float64) for _ in range(2))
    moved = advance(kind, mix(kind, x0, noise, t), target(kind, x0, noise, t), t, to)
    assert torch.allclose(moved, mix(kind, x0, noise, to), atol=1e-12)
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    assert torch.allclose(mix(kind, x0, noise, zero), x0)
    assert torch.allclose(mix(kind, x0, noise, one), noise)


def test_rectified_flow_predicts_the_derivative() -> None:
    x0, noise = torch.randn(2, 5, dtype=torch.float64)
    t, step = torch.tensor(0.3).double(), 1e-6
    slope = (
        mix("rectified_flow", x0, noise, t + step) - mix("rectified_flow", x0, noise, t)
    ) / step
    assert torch.allclose(slope, target("rectified_flow", x0, noise, t), atol=1e-6)


def test_v_diffusion_is_variance_preserving_and_the_discrete_one() -> None:
    x0, noise = torch.randn(2, 4, 5, dtype=torch.float64)
    t = torch.rand(4, dtype=torch.float64)
    a, s = coefficients("v_diffusion", t)
    assert torch.allclose(a.square() + s.square(), torch.ones(4).double())
    ours = target("v_diffusion", x0, noise, t[:, None])
    assert torch.allclose(ours, discrete_target("v_prediction", x0, noise, a.square()))


def test_sampling_times() -> None:
    even, shifted = sampling_times(4), sampling_times(4, shift=3.0)
    assert even.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert shifted[[0, -1]].tolist() == [1, 0]
    assert (shifted[1:-1] > even[1:-1]).all()
    for wrong in ({"steps": 0}, {"steps": 4, "shift": 0.0}):
        with pytest.raises(UserError, match=r"steps = 0|shift = 0.0"):
            sampling_times(**wrong)  # type: ignore[arg-type]
