"""Noise schedules: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps."""

from __future__ import annotations

import itertools
import math
import operator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError


@lru_cache(maxsize=8)
def cosine_alpha_bars(timesteps: int, *, s: float = 0.008) -> tuple[float, ...]:
    """CDT's cosine schedule, `timesteps` numbers that fall from nearly 1 to nearly 0.

    Eq. 17 of arXiv 2102.09672 on timesteps + 1 points linspace(0, timesteps + 1), betas clipped to
    [0, 0.999]: the grid is the released CDT's, so that its weights see the times they know. Plain
    numbers, so that a traced net holds them as constants.
    """
    points = timesteps + 1
    curve = [
        math.cos((i * points / timesteps / points + s) / (1 + s) * math.pi / 2) ** 2
        for i in range(points)
    ]
    kept = (1 - min(max(1 - b / a, 0.0), 0.999) for a, b in itertools.pairwise(curve))
    return tuple(itertools.accumulate(kept, operator.mul))


@lru_cache(maxsize=8)
def cosine_alpha_bar(timesteps: int) -> Tensor:
    """`cosine_alpha_bars` as a tensor, [timesteps] in float64 on the CPU."""
    # kept between calls: a caller's default device must not be kept with it
    return torch.tensor(cosine_alpha_bars(timesteps), dtype=torch.float64, device="cpu")


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t of [B,...] pixels and noise at alpha_bar [B] (eq. 4 of arXiv 2006.11239)."""
    a = alpha_bar.to(x0).view(-1, *(1,) * (x0.ndim - 1))
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def sampling_indices(timesteps: int, steps: int) -> list[int]:
    """Schedule indices of `steps` sampling steps, noisiest first; one step uses the last index.

    Raises:
        UserError: steps outside [1, timesteps].
    """
    if not 1 <= steps <= timesteps:
        raise UserError(f"steps = {steps}: give 1 to {timesteps} sampling steps")
    if steps == 1:
        return [timesteps - 1]
    return [i * (timesteps - 1) // (steps - 1) for i in reversed(range(steps))]


SCHEDULES = ("cosine", "sd")


def ddim_scheduler(schedule: str, *, prediction: str) -> Any:
    """diffusers' DDIMScheduler: its config carries a net's schedule into the net's folder.

    Args:
        schedule: "cosine" (arXiv 2102.09672) made to end in pure noise (arXiv 2305.08891), where
            every sampler starts; "sd", Stable Diffusion's, which ends at a signal-to-noise ratio of
            .0047. Time steps are trailing: the first is always the last of the schedule.
        prediction: "epsilon", "v_prediction" or "sample".

    Raises:
        UserError: an unknown schedule, or noise predictions on a schedule that ends in pure noise.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    made: Any = DDIMScheduler
    common = {
        "prediction_type": prediction,
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
    if schedule == "sd":
        return made(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **common)
    if schedule != "cosine":
        raise UserError(f"unknown schedule '{schedule}': use one of {', '.join(SCHEDULES)}")
    if prediction == "epsilon":
        raise UserError(
            "schedule = 'cosine' ends in pure noise, where a noise prediction says nothing of the "
            "picture: use v_prediction or sample, or schedule = 'sd'"
        )
    return made(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True, **common)
