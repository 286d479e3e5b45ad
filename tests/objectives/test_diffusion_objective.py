"""The teacher's objective: weights, times, and captions that are left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.diffusion.predictions import target
from zoo.errors import UserError
from zoo.objectives.diffusion import DiffusionObjective, stratified_times


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "epsilon"])
def test_weights_are_min_snr_in_terms_of_x0(kind: str) -> None:
    objective = DiffusionObjective(
        prediction=kind, schedule="sd" if kind == "epsilon" else "cosine", snr_gamma=5.0
    )
    bars = objective.alpha_bar[[100, 400, 800, 999]]
    snr = bars / (1 - bars)
    # squared errors of x0, in units of those of the prediction
    of_x0 = {"v_prediction": 1 - bars, "sample": torch.ones(4), "epsilon": 1 / snr}[kind]
    wanted = snr.clamp_max(5.0) if kind == "epsilon" else (snr + 1).clamp_max(5.0)
    assert torch.allclose(objective.weight(bars), wanted.double() * of_x0)
    if kind != "epsilon":
        assert float(objective.alpha_bar[-1]) == 0
        assert float(objective.weight(objective.alpha_bar[-1:])) == 1


def test_a_net_that_knows_the_picture_has_no_loss() -> None:
    objective = DiffusionObjective(dropout=0.5)
    x0 = torch.randn(4, 2, 4, 4)
    seen: list[Tensor] = []

    def net(x_t: Tensor, index: Tensor, text: Tensor) -> Any:
        seen.append(text)
        bar = objective.alpha_bar[index].float()
        a, s = bar.sqrt().view(-1, 1, 1, 1), (1 - bar).sqrt().view(-1, 1, 1, 1)
        return SimpleNamespace(sample=target("v_prediction", x0, (x_t - a * x0) / s, bar))

    text, empty = torch.ones(4, 3, 5), torch.zeros(1, 3, 5)
    torch.manual_seed(0)
    for _ in range(50):
        losses = objective(net, x0, text, empty)
        assert losses.total < 1e-9
    shown = torch.cat(seen).mean((1, 2))
    assert 0.35 < shown.mean() < 0.65
    assert set(shown.tolist()) == {0.0, 1.0}


def test_times_cover_the_schedule_evenly() -> None:
    torch.manual_seed(0)
    times = torch.stack([stratified_times(8, 1000, torch.device("cpu")) for _ in range(400)])
    assert torch.equal(times // 125, torch.arange(8).expand(400, 8))
    assert times.min() < 5
    assert times.max() > 994


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"snr_gamma": 0.0}, "snr_gamma = 0.0"),
        ({"dropout": -0.1}, "dropout = -0.1"),
        ({"prediction": "epsilon"}, "ends in pure noise"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
    ],
)
def test_numbers_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DiffusionObjective(**settings)
