"""The adversarial stage of a KL-VAE: hinge losses, a balanced weight, LeCam.

The net and the discriminator have two optimisers and take turns; the loop is in zoo.lit. The whole
stage is a module, so that a checkpoint holds the discriminator, its step counter and its anchors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
Mean = Callable[[Tensor], Tensor]


def _alone(value: Tensor) -> Tensor:
    return value


class Adversarial(nn.Module):
    """Losses of both players.

    Args:
        discriminator: [B,3,T,H,W] to verdicts.
        optimizer: called with the discriminator's parameters.
        weight: of the net's adversarial loss, on top of the balance.
        start: step of the net at which the discriminator begins to learn.
        warmup: steps of the discriminator over which the net's adversarial loss grows from 0, so
            that it isn't led by a discriminator that knows nothing.
        max_balance: bound of the balance |grad of the other losses| / |grad of the adversarial|.
        lecam: weight of LeCam; 0 leaves it out.
        lecam_decay: of the running means of the verdicts.
    """

    steps: Tensor
    real_mean: Tensor
    fake_mean: Tensor

    def __init__(
        self,
        *,
        discriminator: nn.Module,
        optimizer: OptimizerFactory,
        weight: float = 0.5,
        start: int = 0,
        warmup: int = 500,
        max_balance: float = 10.0,
        lecam: float = 1e-3,
        lecam_decay: float = 0.99,
    ) -> None:
        super().__init__()
        if start < 0 or warmup < 0 or weight <= 0 or max_balance <= 0 or lecam < 0:
            raise UserError(
                f"weight = {weight}, start = {start}, warmup = {warmup}, "
                f"max_balance = {max_balance}, lecam = {lecam}: none may be negative, nor the "
                "weight or its bound 0"
            )
        if not 0 <= lecam_decay < 1:
            raise UserError(f"lecam_decay = {lecam_decay}: give a number in [0, 1)")
        self.discriminator = discriminator
        self.optimizer = optimizer
        self.weight, self.start, self.warmup = weight, start, warmup
        self.max_balance, self.lecam, self.lecam_decay = max_balance, lecam, lecam_decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    def fool(self, y: Tensor) -> Tensor:
        """The net's hinge loss on its reconstructions [B,3,T,H,W]: -mean verdict, a scalar."""
        self.discriminator.requires_grad_(False)
        loss: Tensor = -self.discriminator(y).float().mean()
        return loss

    def balance(
        self, other: Tensor, adversarial: Tensor, last_layer: Tensor, *, mean: Mean = _alone
    ) -> Tensor:
        """The factor that makes both losses pull equally on the last layer, times the weight.

        min(max_balance, |grad other| / |grad adversarial|) (arXiv 2012.09841, equation 7), grown
        from 0 over the discriminator's first steps. A scalar without gradient. `mean` averages a
        tensor over the processes that share a batch.
        """
        norms = [
            mean(torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float()).norm()
            for loss in (other, adversarial)
        ]
        ratio = (norms[0] / (norms[1] + 1e-6)).clamp(max=self.max_balance)
        grown = (self.steps / self.warmup).clamp(max=1.0) if self.warmup else 1.0
        scale: Tensor = self.weight * grown * ratio
        return scale.to(ratio).detach()

    def judge(
        self, x: Tensor, y: Tensor, *, mean: Mean = _alone
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on originals and reconstructions, both [B,3,T,H,W].

        Hinge (arXiv 1705.02894): 1/2 E max(0, 1 - D(x)) + 1/2 E max(0, 1 + D(y)), and LeCam (arXiv
        2104.03310): E max(0, D(x) - mean D(y))^2 + E max(0, mean D(x) - D(y))^2 with running means,
        which keeps the verdicts from drifting apart on little data. `mean` averages a tensor over
        the processes that share a batch.

        Returns:
            The weighted sum, a scalar with gradient, and its terms, detached.
        """
        self.discriminator.requires_grad_(True)
        real, fake = (self.discriminator(v).float() for v in (x, y.detach()))
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        terms = {
            "disc": hinge.detach(),
            "disc_real": real.detach().mean(),
            "disc_fake": fake.detach().mean(),
        }
        total = hinge
        if self.lecam:
            self._anchor(mean(terms["disc_real"]), mean(terms["disc_fake"]))
            apart = (
                F.relu(real - self.fake_mean).square().mean()
                + F.relu(self.real_mean - fake).square().mean()
            )
            total = total + self.lecam * apart
            terms["disc_lecam"] = apart.detach()
        self.steps += 1
        return total, terms

    @torch.no_grad()
    def _anchor(self, real: Tensor, fake: Tensor) -> None:
        # a mean of what was seen so far until the decay is reached: no pull towards the zeros
        # that the anchors begin with
        share = 1 - min(self.lecam_decay, float(self.steps) / (float(self.steps) + 1))
        self.real_mean.lerp_(real, share)
        self.fake_mean.lerp_(fake, share)
