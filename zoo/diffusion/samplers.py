"""Samplers as pure functions of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def ddim_step(x: Tensor, x0: Tensor, *, alpha_bar: float, next_alpha_bar: float) -> Tensor:
    """One deterministic DDIM step from a predicted x0 (eq. 12 of arXiv 2010.02502, eta = 0).

    Args:
        x: noisy pixels at `alpha_bar`, [B,...].
        x0: their predicted clean version.
        next_alpha_bar: 1 on the last step, which then returns `x0` itself.
    """
    if next_alpha_bar == 1.0:
        return x0
    noise = (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
    following: Tensor = next_alpha_bar**0.5 * x0 + (1 - next_alpha_bar) ** 0.5 * noise
    return following


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
