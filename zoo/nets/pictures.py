"""Tokenizers that take single pictures as well as clips."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.nets.posterior import Posterior
from zoo.nets.tokenizer import Size, Tokenizer


class PictureTokenizer(Tokenizer):
    """A tokenizer for which [B,3,H,W] is a clip of one frame, and so comes back."""

    def encode(self, x: Tensor) -> Posterior:
        """As `Tokenizer.encode`; pictures [B,3,H,W] give a posterior over [B,c,h,w]."""
        if x.ndim != 4:
            return super().encode(x)
        posterior = super().encode(x.unsqueeze(2))
        logvar = posterior.logvar
        return Posterior(posterior.mean.squeeze(2), None if logvar is None else logvar.squeeze(2))

    def decode(
        self,
        z: Tensor,
        *,
        size: Size | None = None,
        steps: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As `Tokenizer.decode`; latents [B,c,h,w] give [B,3,H,W] (`size` is then (1,H,W))."""
        if z.ndim != 4:
            return super().decode(z, size=size, steps=steps, generator=generator)
        x = super().decode(z.unsqueeze(2), size=size, steps=steps, generator=generator)
        return x.squeeze(2)

    def reconstruct(
        self, x: Tensor, *, steps: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Encode to the posterior mean and decode: the shape of `x`, [B,3,T,H,W] or [B,3,H,W]."""
        if x.ndim != 4:
            return super().reconstruct(x, steps=steps, generator=generator)
        return super().reconstruct(x.unsqueeze(2), steps=steps, generator=generator).squeeze(2)
