"""Measures that make a vanishing KL visible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoo.metrics.latents import LatentStatistics
from zoo.nets.posterior import Posterior


def test_vae_information_of_gaussian_codes_is_exact() -> None:
    """q(z) Gaussian: I = 1/2 log det(C + S) - 1/2 log det S, over batches of any size."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4))
    root[3] = 0  # a channel that says nothing
    noise = np.array([0.1, 0.5, 1.0, 1.0])
    codes = torch.from_numpy(rng.standard_normal((200, 4, 5, 10, 4)) @ root.T).movedim(-1, 1)
    statistics = LatentStatistics()
    for part in codes.split(70):
        logvar = torch.from_numpy(np.log(noise**2)).view(4, 1, 1, 1).expand_as(part)
        statistics.update(Posterior(part.float(), logvar.float()))
    covariance = np.cov(codes.movedim(1, 0).flatten(1).numpy(), bias=True)
    reference = 0.5 * (
        np.linalg.slogdet(covariance + np.diag(noise**2))[1] - np.log(noise**2).sum()
    )
    assert statistics.mutual_information() == pytest.approx(reference, rel=1e-4)
    assert statistics.active_units() == 3


def test_vae_that_collapsed_has_no_information() -> None:
    statistics = LatentStatistics()
    for _ in range(3):
        statistics.update(
            Posterior(1e-3 * torch.randn(4, 16, 2, 8, 8), torch.zeros(4, 16, 2, 8, 8))
        )
    assert statistics.active_units() == 0
    assert statistics.mutual_information() < 1e-3
