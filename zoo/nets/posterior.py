"""The distribution an encoder returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import UserError


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents, q(z|x) = N(mean, std^2).

    Attributes:
        mean: [B,c,t,h,w].
        logvar: log of the variance, same shape, in [-30, 20]; None for a deterministic encoder,
            whose std is 0.
    """

    mean: Tensor
    logvar: Tensor | None = None

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """From a net's output [B,2c,t,h,w]: means, then log-variances (clamped)."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        """Standard deviation, [B,c,t,h,w]."""
        if self.logvar is None:
            return torch.zeros_like(self.mean)
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """z = mean + std * noise, [B,c,t,h,w]; noise is drawn on the generator's device."""
        if self.logvar is None:
            return self.mean
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device)
        return self.mean + self.std * noise.to(self.mean)

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) of each sample in nats, [B] (arXiv 1312.6114, appendix B)."""
        if self.logvar is None:
            raise UserError(
                "a deterministic encoder has no KL divergence: use a net with a KL posterior"
            )
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)
