"""What a denoiser may predict, and how one prediction becomes another.

x_t = a x_0 + s eps with a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar); v = a eps - s x_0
(arXiv 2202.00512, section 4). alpha_bar is one number a sample, [B].
"""

from __future__ import annotations

import torch
from torch import Tensor


def _roots(alpha_bar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1, *(1,) * (like.ndim - 1))
    wide = alpha_bar.to(like.device, torch.promote_types(like.dtype, torch.float32)).view(shape)
    return wide.sqrt(), (1 - wide).sqrt()


def target(kind: str, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """What a net of this kind should say, [B,...].

    Args:
        kind: "epsilon", "v_prediction" or "sample" (x0).
        x0, noise: [B,...].
        alpha_bar: [B].
    """
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return x0
    assert kind == "v_prediction", kind
    a, s = _roots(alpha_bar, x0)
    return a * noise - s * x0


def to_x0(kind: str, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """The clean sample that a prediction means; from epsilon it needs alpha_bar > 0."""
    if kind == "sample":
        return prediction
    a, s = _roots(alpha_bar, x_t)
    return (x_t - s * prediction) / a if kind == "epsilon" else a * x_t - s * prediction


def to_epsilon(kind: str, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that a prediction means; from x0 it needs alpha_bar < 1."""
    if kind == "epsilon":
        return prediction
    a, s = _roots(alpha_bar, x_t)
    return (x_t - a * prediction) / s if kind == "sample" else s * x_t + a * prediction
