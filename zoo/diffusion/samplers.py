"""Samplers as pure functions of their inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Noise = Callable[[Tensor, int], Tensor]
"""Where a decoder's noise comes from: called with `like` and `frames`, as `frame_noise` is."""


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


def generator_noise(generator: torch.Generator | None) -> Noise:
    """Noise drawn from a generator; None: the device's global one."""
    return partial(frame_noise, generator=generator)


class NoiseField:
    """The noise of one chunk of whole frames, for decoders that see windows of it.

    It is drawn once, by whoever asks first, so that a window's noise is what the undivided frame
    has at that place and neighbours agree where they overlap.

    Args:
        noise: source of the whole frames' noise.
        height, width: of the whole frame in pixels.
    """

    def __init__(self, noise: Noise, *, height: int, width: int) -> None:
        self._noise = noise
        self._size = height, width
        self._drawn: list[Tensor] = []

    def window(self, top: int, left: int) -> Noise:
        """The source for a decoder whose frame begins at row `top` and column `left`."""
        calls = 0

        def cut(like: Tensor, frames: int) -> Tensor:
            nonlocal calls
            if calls == len(self._drawn):
                # a size without memory behind it: only shape, type and device are looked at
                whole = like[..., :1, :1].expand(*like.shape[:-2], *self._size)
                self._drawn.append(self._noise(whole, frames))
            field = self._drawn[calls]
            calls += 1
            assert field.shape[2] == frames, f"windows of one chunk of {field.shape[2]} frames"
            return field[..., top : top + like.shape[-2], left : left + like.shape[-1]]

        return cut
