"""Measures of a latent space: is the posterior alive, and how much does it tell?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.nets.posterior import Posterior

ACTIVE_SHARE = 0.01


class LatentStatistics:
    """Moments of posteriors, summed over batches. A code is the c numbers of one position.

    The two measures make a vanishing KL visible: both fall to 0 when codes stop depending on the
    pixels.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, Tensor] = {}

    def update(self, posterior: Posterior) -> None:
        """Add the codes of a posterior over [B,c,t,h,w] that has a variance."""
        assert posterior.logvar is not None
        mean, logvar = (
            v.detach().movedim(1, -1).flatten(0, -2).double()
            for v in (posterior.mean, posterior.logvar)
        )
        self.count += len(mean)
        for name, value in (
            ("mean", mean.sum(0)),
            ("outer", mean.T @ mean),
            ("variance", logvar.exp().sum(0)),
            ("logvar", logvar.sum(0)),
        ):
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    @property
    def begun(self) -> bool:
        """Whether `update` was called, if with no code."""
        return bool(self._sums)

    def sum_over(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add up the moments of several processes; `total` sums a tensor over them."""
        count = torch.tensor(self.count, device=self._sums["mean"].device)
        self.count = int(total(count))
        self._sums = {name: total(value) for name, value in self._sums.items()}

    def active_units(self) -> int:
        """Channels whose posterior mean makes up more than 1 % of the variance of their codes.

        Where codes have variance 1, as under a strong KL, this is the measure of arXiv 1509.00519
        (section 4.3): Var(mean) > 0.01. A share also counts right where a weak KL leaves codes
        small or large.
        """
        signal = self._covariance_of_means().diagonal()
        noise = self._sums["variance"] / self.count
        return int((signal > ACTIVE_SHARE * (signal + noise)).sum())

    def mutual_information(self) -> float:
        """I_q(x; z) of a code and what it stands for, in nats: H(z) - H(z|x), z taken as Gaussian.

        1/2 log det Cov(z) - 1/2 E sum log s^2 with Cov(z) = Cov(mean) + E diag(s^2). A Gaussian
        has the largest entropy of its covariance, so this bounds the information from above; a
        minibatch estimate is exact about the shape of q(z) but never sees more than log N nats.
        """
        noise = self._sums["variance"] / self.count
        covariance = self._covariance_of_means() + torch.diag(noise)
        # by the correlations, so that channels of very different scale keep their digits
        scale = covariance.diagonal().sqrt()
        log_det = torch.linalg.slogdet(covariance / scale.outer(scale)).logabsdet
        log_det = log_det + 2 * scale.log().sum()
        nats = 0.5 * (log_det - self._sums["logvar"].sum() / self.count)
        return max(0.0, float(nats)) if math.isfinite(float(nats)) else math.nan

    def _covariance_of_means(self) -> Tensor:
        mean = self._sums["mean"] / self.count
        return self._sums["outer"] / self.count - mean.outer(mean)
