"""The latent video objective against a net that knows the answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from zoo.diffusion.paths import PathKind, coefficients, target
from zoo.errors import UserError
from zoo.objectives.latent_video import LatentVideoObjective


class Oracle:
    """Knows x0, and predicts what follows from it; remembers what it was given."""

    def __init__(self, x0: Tensor, kind: PathKind, chunk: int) -> None:
        self.x0 = x0
        self.config = SimpleNamespace(path=kind, chunk=chunk)
        self.seen: dict[str, Tensor] = {}

    def __call__(self, noisy: Tensor, times: Tensor, text: Tensor, **rest: Tensor) -> Tensor:
        self.seen = {"times": times, "text": text, **rest}
        t = times[:, None, :, None, None]
        a, s = coefficients(self.config.path, t)
        noise = (noisy - a * self.x0) / s
        return target(self.config.path, self.x0, noise, t)


def losses(net: Any, x0: Tensor, **settings: Any) -> Any:
    objective = LatentVideoObjective(**settings)
    count = len(x0)
    text, empty = torch.ones(count, 2, 3), torch.zeros(1, 2, 3)
    return objective(net, x0, text, empty, begins=torch.zeros(count, dtype=torch.bool))


@pytest.mark.parametrize("kind", get_args(PathKind))
@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_the_truth_has_no_loss(kind: PathKind, times: str) -> None:
    torch.manual_seed(0)
    x0 = torch.randn(4, 2, 5, 3, 3, dtype=torch.float64)
    net = Oracle(x0, kind, 2)
    found = losses(net, x0, times=times)
    assert float(found.total) < 1e-6
    assert found.by_clip.shape == (4,)
    net.x0 = x0 + 1
    assert float(losses(net, x0, times=times).total) > 0.1


def test_times_are_one_a_chunk_and_spread_over_the_batch() -> None:
    torch.manual_seed(0)
    x0 = torch.randn(64, 1, 5, 1, 1)
    net = Oracle(x0, "rectified_flow", 2)
    losses(net, x0, times="uniform", past_noise=0.3)
    times = net.seen["times"]
    assert torch.equal(times[:, 0], times[:, 1])
    assert torch.equal(times[:, 2], times[:, 3])
    assert not torch.equal(times[:, 1], times[:, 2])
    ordered = times[:, ::2].sort(dim=0).values
    middles = (torch.arange(64)[:, None] + 0.5) / 64
    assert (ordered - middles).abs().max() <= 0.5 / 64 + 1e-6
    past = net.seen["past_times"]
    assert 0.2 < float(past.max()) <= 0.3
    assert torch.equal(past[:, 0], past[:, 4])
    losses(net, x0, past_noise=0.0)
    assert torch.equal(net.seen["past"], x0)


def test_captions_are_dropped_in_their_share() -> None:
    torch.manual_seed(0)
    x0 = torch.randn(2000, 1, 1, 1, 1)
    net = Oracle(x0, "rectified_flow", 1)
    losses(net, x0, dropout=0.25)
    assert 0.2 < float((net.seen["text"][:, 0, 0] == 0).float().mean()) < 0.3


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"past_noise": -0.1}, {"times": "late"}])
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        LatentVideoObjective(**wrong)
