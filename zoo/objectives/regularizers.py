"""What keeps latents near N(0, I): one family, for KL-VAEs and CDTs alike.

Each member is called with the posterior, the sample z that was decoded, and how many pixel values
a clip has; it gives one scalar before its weight. Divergences are in nats per pixel value, so that
a weight doesn't depend on the clip's size and weight 1 on a KL is the bound of arXiv 1312.6114 for
pixels with a variance of 1/2. The last two look at the distribution of the codes of all clips and
positions together; a code is the c numbers of one position.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError
from zoo.nets.posterior import Posterior


class Regularizer(ABC):
    """Base of the family.

    Attributes:
        name: of the term in the log.

    Args:
        weight: on the term (beta); 0 leaves the term out.
        warmup: share of the run over which the weight grows from 0, linearly (arXiv 1602.02282);
            0 starts with the whole weight.
    """

    name: ClassVar[str] = "kl"

    def __init__(self, *, weight: float = 1e-4, warmup: float = 0.0) -> None:
        if not 0 <= weight < math.inf or not 0 <= warmup <= 1:
            raise UserError(
                f"weight = {weight}, warmup = {warmup}: give a weight of at least 0 and a share of "
                "the run in [0, 1]"
            )
        self.weight, self.warmup = weight, warmup

    def weight_at(self, progress: float) -> float:
        """The weight when `progress` in [0,1] of the run is done."""
        return self.weight * (min(1.0, progress / self.warmup) if self.warmup else 1.0)

    def add_to(
        self,
        total: Tensor,
        terms: dict[str, Tensor],
        *,
        posterior: Posterior,
        z: Tensor,
        pixels: int,
        progress: float,
    ) -> Tensor:
        """`total` with the weighted term, which also goes into `terms`; see `__call__`."""
        if not self.weight:
            return total
        terms[self.name] = self(posterior, z, pixels=pixels)
        return total + self.weight_at(progress) * terms[self.name]

    @abstractmethod
    def __call__(self, posterior: Posterior, z: Tensor, *, pixels: int) -> Tensor:
        """The term before its weight, a scalar.

        Args:
            posterior: over [B,c,t,h,w].
            z: the sample that was decoded, same shape.
            pixels: pixel values of a clip, C * T * H * W.

        Raises:
            UserError: the encoder is deterministic, and the member needs a variance.
        """


class KL(Regularizer):
    """KL(q(z|x) || N(0, I)) = 1/2 sum(mean^2 + s^2 - 1 - log s^2) (arXiv 1312.6114, appendix B).

    Args:
        weight, warmup: see `Regularizer`.
        free_bits: nats that each latent channel may hold, on average over clips and positions,
            before it costs anything: sum_c max(free_bits, mean KL_c) (arXiv 1606.04934, equation
            15). Against a KL that vanishes.
    """

    def __init__(
        self, *, weight: float = 1e-4, warmup: float = 0.0, free_bits: float = 0.0
    ) -> None:
        super().__init__(weight=weight, warmup=warmup)
        if free_bits < 0:
            raise UserError(f"free_bits = {free_bits}: give at least 0 nats")
        self.free_bits = free_bits

    def __call__(self, posterior: Posterior, z: Tensor, *, pixels: int) -> Tensor:
        if not self.free_bits:
            return posterior.kl().mean() / pixels
        mean, logvar = _moments(posterior)
        nats = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        by_channel = nats.movedim(1, 0).flatten(1).mean(1)
        positions = mean[0, 0].numel()
        return by_channel.clamp_min(self.free_bits).sum() * positions / pixels


class CauchySchwarz(Regularizer):
    """Cauchy-Schwarz divergence to N(0, I) in closed form (definition: arXiv 2404.17951).

    D(p;q) = log[ int p^2 int q^2 / (int p q)^2 ], for one latent number
    mean^2 / (1 + s^2) + log(1 + s^2) - log s - log 2 (our algebra, checked by quadrature): its pull
    on a mean is bounded where the posterior is wide; like the KL it has no bound as s goes to 0.
    """

    name = "cauchy_schwarz"

    def __call__(self, posterior: Posterior, z: Tensor, *, pixels: int) -> Tensor:
        mean, logvar = _moments(posterior)
        # with the logistic function of log s^2 nothing overflows at either end
        pull = mean.square() * torch.sigmoid(-logvar)
        nats = pull + F.softplus(logvar) - 0.5 * logvar - math.log(2)
        return nats.flatten(1).sum(1).mean() / pixels


class SplitKL(Regularizer):
    """The KL split in three, each with a weight of its own (arXiv 1802.04942, equation 2).

    E KL(q(z|x) || p) = I_q(x; z) + TC(z) + sum_j KL(q(z_j) || p(z_j)): mutual information, total
    correlation, dimension-wise KL. Weights (1, 1, 1) are the KL, (1, beta, 1) is beta-TCVAE; DTS
    (arXiv 2105.08179) rewards information, (-a, b, g).

    q(z) is estimated from the batch: log q(z_i) = logmeanexp_k log q(z_i | x_k) over at most
    `codes` codes drawn from it. The three estimates sum to the KL of those codes exactly; the
    information among N codes can't be seen above log N nats, what is more counts as the others.

    Args:
        weight, warmup: see `Regularizer`.
        information, correlation, dimensions: the three weights.
        codes: how many codes are compared; memory is codes^2 * c.
    """

    name = "split_kl"

    def __init__(
        self,
        *,
        weight: float = 1e-4,
        warmup: float = 0.0,
        information: float = 1.0,
        correlation: float = 1.0,
        dimensions: float = 1.0,
        codes: int = 256,
    ) -> None:
        super().__init__(weight=weight, warmup=warmup)
        if codes < 2:
            raise UserError(f"codes = {codes}: at least 2 codes can be compared")
        self.weights = (information, correlation, dimensions)
        self.codes = codes

    def __call__(self, posterior: Posterior, z: Tensor, *, pixels: int) -> Tensor:
        parts = self.split(posterior, z)
        positions = z[0, 0].numel()
        total = sum(w * part for w, part in zip(self.weights, parts, strict=True))
        assert isinstance(total, Tensor)
        return total * positions / pixels

    def split(self, posterior: Posterior, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(information, total correlation, dimension-wise KL) in nats per code, scalars."""
        mean, logvar, z = (_codes(v) for v in (*_moments(posterior), z.float()))
        if len(z) > self.codes:
            drawn = torch.randperm(len(z), device=z.device)[: self.codes]
            mean, logvar, z = mean[drawn], logvar[drawn], z[drawn]
        log_2pi, count = math.log(2 * math.pi), math.log(len(z))
        # [i,k,d]: log q(z_i,d | x_k)
        distance = (z[:, None] - mean[None]).square() * torch.exp(-logvar)[None]
        pairs = -0.5 * (distance + logvar[None] + log_2pi)
        own = pairs.diagonal().sum(0)
        joint = pairs.sum(2).logsumexp(1) - count
        marginals = (pairs.logsumexp(1) - count).sum(1)
        prior = -0.5 * (z.square() + log_2pi).sum(1)
        return (own - joint).mean(), (joint - marginals).mean(), (marginals - prior).mean()


class MMD(Regularizer):
    """Maximum mean discrepancy of all codes to N(0, I) (arXiv 1711.01558, section 3; 1706.02262).

    Unbiased estimate of E k(z,z') + E k(p,p') - 2 E k(z,p), p drawn from N(0, I), with the inverse
    multiquadratic kernel k(a,b) = sum_s C / (C + |a - b|^2), C = 2 c s, whose gradient reaches far
    outliers. It leaves each posterior free: no single code is pulled to 0. Not in nats, no matter
    of the clip's size, and at most 2 per scale; its weight is of the order of 1e-2.

    Args:
        weight, warmup: see `Regularizer`.
        scales: s of the kernels that are summed.
        codes: how many codes are compared.
    """

    name = "mmd"

    def __init__(
        self,
        *,
        weight: float = 1e-2,
        warmup: float = 0.0,
        scales: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
        codes: int = 1024,
    ) -> None:
        super().__init__(weight=weight, warmup=warmup)
        if codes < 2 or not scales or min(scales) <= 0:
            raise UserError(f"codes = {codes}, scales = {scales}: give 2 codes and scales above 0")
        self.scales, self.codes = tuple(scales), codes

    def __call__(self, posterior: Posterior, z: Tensor, *, pixels: int) -> Tensor:
        z = _codes(z.float())
        z = z[torch.randperm(len(z), device=z.device)[: self.codes]]
        prior = torch.randn_like(z)
        pairs = len(z) * (len(z) - 1)
        if not pairs:
            raise UserError("MMD needs at least 2 codes: give larger clips or batches")
        same = (
            (kernel.sum() - kernel.diagonal().sum()) / pairs
            for kernel in (self._kernel(z, z), self._kernel(prior, prior))
        )
        return sum(same, start=-2 * self._kernel(z, prior).mean())

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        # not by (a - b)^2 = a^2 + b^2 - 2ab, which cancels for codes far from the origin
        squared = (a[:, None] - b[None]).square().sum(2)
        constants = [2 * a.shape[1] * scale for scale in self.scales]
        return torch.stack([c / (c + squared) for c in constants]).sum(0)


def choose_regularizer(kl_weight: float | None, regularizer: Regularizer | None) -> Regularizer:
    """What an objective's two settings mean: `kl_weight` is short for a plain KL."""
    if regularizer is None:
        return KL() if kl_weight is None else KL(weight=kl_weight)
    if kl_weight is not None:
        raise UserError(
            f"kl_weight = {kl_weight} and a regularizer are given: set the weight in regularizer"
        )
    return regularizer


def _moments(posterior: Posterior) -> tuple[Tensor, Tensor]:
    if posterior.logvar is None:
        raise UserError("a deterministic encoder has no variance to regularise: set weight 0")
    return posterior.mean.float(), posterior.logvar.float()


def _codes(x: Tensor) -> Tensor:
    """[B,c,t,h,w] -> [B * t * h * w,c]."""
    return x.movedim(1, -1).flatten(0, -2)
