"""The KL-VAE objective: a pixel loss + a regularizer + LPIPS."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.nets.tokenizer import Tokenizer
from zoo.objectives.losses import Losses, PerceptualTerm
from zoo.objectives.regularizers import Regularizer, choose_regularizer


class ReconstructionObjective:
    """Encode, sample, decode, compare.

    Args:
        pixel: mean squared or mean absolute error.
        kl_weight: on the KL in nats per pixel value (arXiv 1312.6114); 1e-4 where nothing is said.
        regularizer: another member of the family (`zoo.objectives.KL`, ...) in place of kl_weight.
        lpips_weight, lpips_start: LPIPS-VGG, from this share of the run on.
        latent_noise: for latents that a generator will make: each clip is decoded from its sample
            plus noise whose std is drawn from [0, latent_noise], in units of a latent of std 1.
    """

    def __init__(
        self,
        *,
        pixel: Literal["mse", "l1"] = "mse",
        kl_weight: float | None = None,
        regularizer: Regularizer | None = None,
        lpips_weight: float = 0.1,
        lpips_start: float = 0.0,
        latent_noise: float = 0.0,
    ) -> None:
        if latent_noise < 0:
            raise UserError(f"latent_noise = {latent_noise}: give a standard deviation, 0 for none")
        self.pixel, self.latent_noise = pixel, latent_noise
        self.regularizer = choose_regularizer(kl_weight, regularizer)
        self.lpips = PerceptualTerm(lpips_weight, start=lpips_start)

    def prepare(self) -> None:
        """Load LPIPS, where its weight is not 0."""
        self.lpips.prepare()

    def __call__(self, net: Tokenizer, x: Tensor, *, progress: float) -> Losses:
        """Losses on clips [B,3,T,H,W]."""
        posterior = net.encode(x)
        z = posterior.sample()
        given = z
        if self.latent_noise:
            std = self.latent_noise * torch.rand(len(z), 1, 1, 1, 1, device=z.device)
            given = z + std.to(z) * torch.randn_like(z)
        y = net.decode(given, size=(x.shape[2], x.shape[3], x.shape[4]))
        error = y.float() - x
        by_clip = (error.square() if self.pixel == "mse" else error.abs()).flatten(1).mean(1)
        terms: dict[str, Tensor] = {self.pixel: by_clip.mean()}
        total = self.regularizer.add_to(
            terms[self.pixel],
            terms,
            posterior=posterior,
            z=z,
            pixels=x[0].numel(),
            progress=progress,
        )
        perceptual = self.lpips(y, x, progress)
        if perceptual is not None:
            terms["lpips"] = perceptual
            total = total + self.lpips.weight * perceptual
        return Losses(total, terms, by_clip=by_clip.detach(), output=y)
