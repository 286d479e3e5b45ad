"""Schedule and sampler against formulas written another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from zoo.diffusion.samplers import ddim_step, frame_noise
from zoo.diffusion.schedule import add_noise, cosine_alpha_bar, sampling_indices
from zoo.errors import UserError


def test_cosine_schedule_is_the_running_product() -> None:
    """facts: 1 - beta is the ratio of neighbours, beta at most 0.999."""
    timesteps, s = 50, 0.008
    grid = [i * (timesteps + 1) / timesteps for i in range(timesteps + 1)]
    f = [math.cos((g / (timesteps + 1) + s) / (1 + s) * math.pi / 2) ** 2 for g in grid]
    product, expected = 1.0, []
    for before, after in itertools.pairwise(f):
        product *= 1 - min(max(1 - after / before, 0.0), 0.999)
        expected.append(product)
    assert np.allclose(cosine_alpha_bar(timesteps).numpy(), expected, rtol=1e-10, atol=0)


def test_one_step_starts_at_the_last_index() -> None:
    assert sampling_indices(8192, 1) == [8191]
    assert sampling_indices(8192, 4) == [8191, 5460, 2730, 0]
    for steps in (0, 8193):
        with pytest.raises(UserError, match=f"steps = {steps}"):
            sampling_indices(8192, steps)


def test_ddim_keeps_the_noise_it_implies() -> None:
    """With the true x0 a step gives what add_noise gives at the next alpha."""
    x0, noise = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    x = add_noise(x0, noise, torch.tensor([0.3, 0.3]))
    stepped = ddim_step(x, x0, alpha_bar=0.3, next_alpha_bar=0.7)
    assert torch.allclose(stepped, add_noise(x0, noise, torch.tensor([0.7, 0.7])))
    assert ddim_step(x, x0, alpha_bar=0.3, next_alpha_bar=1.0) is x0


def test_noise_does_not_depend_on_chunks() -> None:
    like = torch.empty(2, 3, 1, 4, 5)
    whole = frame_noise(like, 5, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    pieces = [frame_noise(like, n, generator=generator) for n in (1, 3, 1)]
    assert torch.equal(torch.cat(pieces, dim=2), whole)
    assert whole.std().item() == pytest.approx(1, abs=0.1)
