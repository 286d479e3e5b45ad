"""The objective of a text-to-image diffusion net: denoise, sometimes without the caption."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.diffusion.predictions import target
from zoo.diffusion.schedule import add_noise, ddim_scheduler
from zoo.errors import UserError
from zoo.objectives.losses import Losses


class DiffusionObjective:
    """Mean squared error of the prediction, weighted by the signal-to-noise ratio (SNR).

    Args:
        prediction: what the net predicts: "v_prediction", "epsilon" or "sample" (x0).
        schedule: "cosine", which ends in pure noise, or "sd"; see `ddim_scheduler`.
        snr_gamma: the min-SNR cap (arXiv 2303.09556). In terms of the x0 error the weight is
            min(SNR + 1, gamma), for noise predictions min(SNR, gamma): with the paper's min(SNR,
            gamma) alone, pure noise would have weight 0, and one-step students start there.
        dropout: share of captions replaced by the empty one, for classifier-free guidance.

    Raises:
        UserError: a number outside its range, or a schedule that the prediction can't serve.
    """

    def __init__(
        self,
        *,
        prediction: str = "v_prediction",
        schedule: str = "cosine",
        snr_gamma: float = 5.0,
        dropout: float = 0.1,
    ) -> None:
        if snr_gamma <= 0:
            raise UserError(f"snr_gamma = {snr_gamma}: give a cap above 0, 5 is usual")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout = {dropout}: give a share of captions in [0, 1)")
        self.scheduler: Any = ddim_scheduler(schedule, prediction=prediction)
        self.alpha_bar: Tensor = self.scheduler.alphas_cumprod.double()
        self.prediction, self.snr_gamma, self.dropout = prediction, snr_gamma, dropout

    def weight(self, alpha_bar: Tensor) -> Tensor:
        """On the squared error of the prediction, for alpha_bar [B]."""
        snr = alpha_bar / (1 - alpha_bar)
        if self.prediction == "epsilon":
            return (self.snr_gamma / snr).clamp_max(1)
        capped = (snr + 1).clamp_max(self.snr_gamma)
        return capped / (snr + 1) if self.prediction == "v_prediction" else capped

    def __call__(
        self,
        net: Any,
        latents: Tensor,
        text: Tensor,
        empty: Tensor,
        *,
        part: tuple[int, int] = (0, 1),
    ) -> Losses:
        """Losses on one batch.

        Args:
            net: called with (x_t, time step [B], text), gives `.sample`.
            latents: clean, normalised [B,c,h,w].
            text: states of the captions [B,L,D].
            empty: states of the empty caption [1,L,D].
            part: (number, count) of the processes that share a batch: their time steps differ, too.
        """
        count, device = len(latents), latents.device
        drop = torch.rand(count, 1, 1, device=device) < self.dropout
        text = torch.where(drop, empty, text)
        index = stratified_times(count, len(self.alpha_bar), device, part=part)
        alpha_bar = self.alpha_bar.to(device, torch.float32)[index]
        noise = torch.randn_like(latents)
        predicted = net(add_noise(latents, noise, alpha_bar), index, text).sample
        wanted = target(self.prediction, latents, noise, alpha_bar)
        error = (predicted.float() - wanted).square().flatten(1).mean(1)
        loss = (self.weight(alpha_bar) * error).mean()
        time = index / (len(self.alpha_bar) - 1)
        return Losses(loss, {"mse": error.mean()}, time=time, by_clip=error.detach())


def stratified_times(
    count: int, timesteps: int, device: torch.device, *, part: tuple[int, int] = (0, 1)
) -> Tensor:
    """Uniform time steps [count], one from each of `count` equal parts: batches differ less.

    With `part` (number, processes) the parts are those of the batch that the processes share, of
    which each has every so manieth sample.
    """
    number, processes = part
    own = torch.arange(count, device=device) * processes + number
    place = (own + torch.rand(count, device=device)) / (count * processes)
    return (place * timesteps).long().clamp_max(timesteps - 1)
