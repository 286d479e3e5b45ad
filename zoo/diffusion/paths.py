"""Continuous paths from data to noise: x_t = a(t) x_0 + s(t) eps, t in [0,1], 0 is clean.

| path | a, s | the net predicts |
|---|---|---|
| rectified_flow (arXiv 2209.03003) | 1 - t, t | dx/dt = eps - x_0 |
| v_diffusion (arXiv 2202.00512) | cos(pi t / 2), sin(pi t / 2) | v = a eps - s x_0 |

For both, a prediction gives x_0 and eps, and with them x at any other time: on rectified flow this
step is Euler's, on v_diffusion DDIM's. Times broadcast: one a sample, or one a latent.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from zoo.errors import UserError

PathKind = Literal["rectified_flow", "v_diffusion"]


def coefficients(kind: PathKind, t: Tensor) -> tuple[Tensor, Tensor]:
    """a and s at times `t`, of its shape."""
    if kind == "rectified_flow":
        return 1 - t, t
    angle = t * (math.pi / 2)
    return angle.cos(), angle.sin()


def mix(kind: PathKind, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t; `t` broadcasts to the shape of `x0`."""
    a, s = coefficients(kind, t)
    return a * x0 + s * noise


def target(kind: PathKind, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the net should say of x_t."""
    if kind == "rectified_flow":
        return noise - x0
    a, s = coefficients(kind, t)
    return a * noise - s * x0


def advance(kind: PathKind, x: Tensor, prediction: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """x at time `to` from x at time `t`, by what the net says of it."""
    if kind == "rectified_flow":
        return x + (to - t) * prediction
    a, s = coefficients(kind, t)
    x0, noise = a * x - s * prediction, s * x + a * prediction
    a, s = coefficients(kind, to)
    return a * x0 + s * noise


def sampling_times(steps: int, *, shift: float = 1.0) -> Tensor:
    """steps + 1 times from 1 to 0, float64; `shift` > 1 spends more steps near noise
    (eq. 23 of arXiv 2403.03206).

    Raises:
        UserError: steps < 1 or shift <= 0.
    """
    if steps < 1:
        raise UserError(f"steps = {steps}: give at least 1 sampling step")
    if shift <= 0:
        raise UserError(f"shift = {shift}: give a number above 0, 1 spaces the steps evenly")
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * t / (1 + (shift - 1) * t)
