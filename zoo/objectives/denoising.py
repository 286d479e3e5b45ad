"""CDT's objective: x0 MSE + a regularizer + LPIPS (arXiv 2503.03708), our own weights and times."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.diffusion.schedule import add_noise
from zoo.errors import UserError
from zoo.nets.cdt import CDT
from zoo.objectives.losses import Losses, PerceptualTerm
from zoo.objectives.regularizers import Regularizer, choose_regularizer

Times = Literal["uniform", "logit_normal", "squared"]


class DenoisingObjective:
    """Train encoder, context and UNet together to predict the clean clip from a noisy one.

    Args:
        kl_weight: on the KL in nats per pixel value; 1e-4 where nothing is said, 0 for a decoder
            on a frozen encoder.
        regularizer: another member of the family (`zoo.objectives.KL`, ...) in place of kl_weight.
        lpips_weight, lpips_start: LPIPS-VGG of the predicted x0, from this share of the run on.
        pure_noise: share of clips at the last time step, where one-step sampling starts; without
            a large share of both kinds, the one-step result or the use of x_t suffers.
        times: where on the schedule the other clips are: uniform; logit_normal, more in the middle
            (eq. 19 of arXiv 2403.03206, m = 0, s = 1); squared, t = u^2, more where x_t shows much.
    """

    def __init__(
        self,
        *,
        kl_weight: float | None = None,
        regularizer: Regularizer | None = None,
        lpips_weight: float = 0.1,
        lpips_start: float = 0.0,
        pure_noise: float = 0.5,
        times: Times = "uniform",
    ) -> None:
        if not 0 <= pure_noise <= 1:
            raise UserError(f"pure_noise = {pure_noise}: give a share in [0, 1]")
        self.pure_noise, self.times = pure_noise, times
        self.regularizer = choose_regularizer(kl_weight, regularizer)
        self.lpips = PerceptualTerm(lpips_weight, start=lpips_start)

    def prepare(self) -> None:
        """Load LPIPS, where its weight is not 0."""
        self.lpips.prepare()

    def __call__(self, net: CDT, x: Tensor, *, progress: float) -> Losses:
        """Losses on clips [B,3,T,H,W]; T = 1 + k * time."""
        posterior = net.encode(x)
        z = posterior.sample()
        contexts, base = net.conditions(z)
        index = self.sample_times(net.config.timesteps, len(x), x.device)
        alpha_bar = net.alpha_bar.to(x.device, torch.float32)[index]
        noisy = add_noise(x, torch.randn_like(x), alpha_bar)
        x0 = net.denoise(noisy, index, contexts, base=base)

        by_clip = (x0.float() - x).square().flatten(1).mean(1)
        terms = {"mse": by_clip.mean()}
        total = self.regularizer.add_to(
            terms["mse"],
            terms,
            posterior=posterior,
            z=z,
            pixels=x[0].numel(),
            progress=progress,
        )
        perceptual = self.lpips(x0, x, progress)
        if perceptual is not None:
            terms["lpips"] = perceptual
            total = total + self.lpips.weight * perceptual
        time = index / (net.config.timesteps - 1)
        return Losses(total, terms, time=time, by_clip=by_clip.detach(), output=x0)

    def sample_times(self, timesteps: int, count: int, device: torch.device) -> Tensor:
        """Schedule indices [count]: the last with chance `pure_noise`, else as `times` says."""
        if self.times == "logit_normal":
            t = torch.randn(count, device=device).sigmoid()
        else:
            t = torch.rand(count, device=device) ** (2 if self.times == "squared" else 1)
        index = (t * timesteps).long().clamp_max(timesteps - 1)
        pure = torch.rand(count, device=device) < self.pure_noise
        return torch.where(pure, timesteps - 1, index)
