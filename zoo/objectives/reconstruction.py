"""The KL-VAE objective: a pixel loss + KL + LPIPS."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from zoo.nets.tokenizer import Tokenizer
from zoo.objectives.losses import Losses, PerceptualTerm, kl_per_pixel


class ReconstructionObjective:
    """Encode, sample, decode, compare.

    Args:
        pixel: mean squared or mean absolute error.
        kl_weight: on the KL in nats per pixel value (arXiv 1312.6114).
        lpips_weight, lpips_start: LPIPS-VGG, from this share of the run on.
    """

    def __init__(
        self,
        *,
        pixel: Literal["mse", "l1"] = "mse",
        kl_weight: float = 1e-4,
        lpips_weight: float = 0.1,
        lpips_start: float = 0.0,
    ) -> None:
        self.pixel, self.kl_weight = pixel, kl_weight
        self.lpips = PerceptualTerm(lpips_weight, start=lpips_start)

    def prepare(self) -> None:
        """Load LPIPS, where its weight is not 0."""
        self.lpips.prepare()

    def __call__(self, net: Tokenizer, x: Tensor, *, progress: float) -> Losses:
        """Losses on clips [B,3,T,H,W]."""
        posterior = net.encode(x)
        y = net.decode(posterior.sample(), size=(x.shape[2], x.shape[3], x.shape[4]))
        error = y.float() - x
        by_clip = (error.square() if self.pixel == "mse" else error.abs()).flatten(1).mean(1)
        terms = {self.pixel: by_clip.mean(), "kl": kl_per_pixel(posterior, x)}
        total = terms[self.pixel] + self.kl_weight * terms["kl"]
        perceptual = self.lpips(y, x, progress)
        if perceptual is not None:
            terms["lpips"] = perceptual
            total = total + self.lpips.weight * perceptual
        return Losses(total, terms, by_clip=by_clip.detach())
