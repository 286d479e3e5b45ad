"""Samplers as pure functions of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def ddim_step(
    x: Tensor,
    x0: Tensor,
    *,
    alpha_bar: float,
    next_alpha_bar: float,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """One DDIM step from a predicted x0 (eq. 12 and 16 of arXiv 2010.02502).

    Args:
        x: noisy pixels at `alpha_bar`, [B,...].
        x0: their predicted clean version.
        next_alpha_bar: 1 on the last step, which then returns `x0` itself.
        eta: share of the fresh noise that ancestral sampling (eta = 1) adds; 0 is deterministic.
        noise: standard normal, as `x`; needed where eta > 0.
    """
    if next_alpha_bar == 1.0:
        return x0
    predicted = (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
    sigma = eta * ((1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha_bar / next_alpha_bar)) ** 0.5
    remaining = max(0.0, 1 - next_alpha_bar - sigma**2)
    following: Tensor = next_alpha_bar**0.5 * x0 + remaining**0.5 * predicted
    if sigma == 0:
        return following
    assert noise is not None
    return following.add(noise, alpha=sigma)


def frame_noise(like: Tensor, frames: int, *, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise [B,3,frames,H,W] drawn frame by frame.

    A stream that draws its noise chunk by chunk gets what one call for the whole would have drawn.

    Args:
        like: [B,3,*,H,W] giving batch, size, dtype and device.
        frames: how many.
        generator: None draws from the device's global one.
    """
    device = like.device if generator is None else generator.device
    size = (like.shape[0], like.shape[1], *like.shape[-2:])
    drawn = [torch.randn(size, generator=generator, device=device) for _ in range(frames)]
    return torch.stack(drawn, dim=2).to(like)
