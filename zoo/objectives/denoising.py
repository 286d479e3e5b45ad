"""CDT's objective: x0 MSE + a regularizer + LPIPS (arXiv 2503.03708), our own weights and times."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.diffusion.schedule import add_noise
from zoo.errors import UserError
from zoo.nets.cdt import CDT
from zoo.objectives.losses import Losses, PerceptualTerm
from zoo.objectives.regularizers import Regularizer, choose_regularizer


class DenoisingObjective:
    """Train encoder, context and UNet together to predict the clean clip from a noisy one.

    Args:
        kl_weight: on the KL in nats per pixel value; 1e-4 where nothing is said.
        regularizer: another member of the family (`zoo.objectives.KL`, ...) in place of kl_weight.
        lpips_weight, lpips_start: LPIPS-VGG of the predicted x0, from this share of the run on.
        pure_noise: share of clips at the last time step, where one-step sampling starts; the
            others are uniform over the schedule. Without a large share of both, the one-step
            result or the use of x_t suffers.
    """

    def __init__(
        self,
        *,
        kl_weight: float | None = None,
        regularizer: Regularizer | None = None,
        lpips_weight: float = 0.1,
        lpips_start: float = 0.0,
        pure_noise: float = 0.5,
    ) -> None:
        if not 0 <= pure_noise <= 1:
            raise UserError(f"pure_noise = {pure_noise}: give a share in [0, 1]")
        self.pure_noise = pure_noise
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
        """Schedule indices [count]: the last with probability `pure_noise`, else uniform."""
        index = torch.randint(timesteps, (count,), device=device)
        pure = torch.rand(count, device=device) < self.pure_noise
        return torch.where(pure, timesteps - 1, index)
