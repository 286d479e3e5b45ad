"""The objective of a latent video generator: denoise each chunk given the chunks before it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from zoo.diffusion.paths import mix, target
from zoo.errors import UserError
from zoo.nets.video_dit import VideoDiT
from zoo.objectives.losses import Losses

Times = Literal["uniform", "logit_normal"]


class LatentVideoObjective:
    """Mean squared error of the prediction on the net's path (rectified flow or v-diffusion).

    Args:
        dropout: share of captions replaced by the empty one, for classifier-free guidance.
        times: of each chunk: uniform, or logit_normal, more in the middle (eq. 19 of
            arXiv 2403.03206, m = 0, s = 1).
        past_noise: the past of a clip gets noise up to this time, drawn anew for each clip and told
            to the net, so that it stands the errors of its own past; 0: the past is clean.

    Raises:
        UserError: a number outside its range.
    """

    def __init__(
        self, *, dropout: float = 0.1, times: Times = "logit_normal", past_noise: float = 0.2
    ) -> None:
        if not 0 <= dropout < 1:
            raise UserError(f"dropout = {dropout}: give a share of captions in [0, 1)")
        if not 0 <= past_noise < 1:
            raise UserError(f"past_noise = {past_noise}: give a time in [0, 1)")
        if times not in get_args(Times):
            raise UserError(f"times = '{times}': give {' or '.join(get_args(Times))}")
        self.dropout, self.times, self.past_noise = dropout, times, past_noise

    def __call__(
        self,
        net: VideoDiT,
        latents: Tensor,
        text: Tensor,
        empty: Tensor,
        *,
        begins: Tensor,
        part: tuple[int, int] = (0, 1),
    ) -> Losses:
        """Losses on one batch.

        Args:
            net: what is trained.
            latents: clean, normalised [B,c,n,h,w].
            text: states of the captions [B,L,D].
            empty: states of the empty caption [1,L,D].
            begins: [B] bool, whether a clip is the beginning of its film.
            part: (number, count) of the processes that share a batch: their times differ, too.
        """
        count, n, device = len(latents), latents.shape[2], latents.device
        kind, chunk = net.config.path, net.config.chunk
        drop = torch.rand(count, 1, 1, device=device) < self.dropout
        times = self._times(count, -(-n // chunk), device, part)
        times = times.repeat_interleave(chunk, 1)[:, :n]
        past_times = self.past_noise * torch.rand(count, 1, device=device).expand(-1, n)
        noise, past_noise = torch.randn_like(latents), torch.randn_like(latents)
        predicted = net(
            mix(kind, latents, noise, _spread(times)),
            times,
            torch.where(drop, empty, text),
            past=mix(kind, latents, past_noise, _spread(past_times)),
            past_times=past_times,
            begins=begins,
        )
        wanted = target(kind, latents, noise, _spread(times))
        error = (predicted.float() - wanted).square().flatten(1).mean(1)
        return Losses(error.mean(), {"mse": error.mean()}, by_clip=error.detach())

    def _times(
        self, count: int, chunks: int, device: torch.device, part: tuple[int, int]
    ) -> Tensor:
        """[B,chunks] in (0,1): of a chunk, one from each equal part of the times.

        There are as many of them as clips in the batch that the processes share.
        """
        number, processes = part
        own = self._order(count, chunks, device) * processes + number
        share = (own + torch.rand(count, chunks, device=device)) / (count * processes)
        if self.times == "uniform":
            return share
        # the quantile function of the normal distribution, then its sigmoid
        normal: Tensor = torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6))
        return normal.sigmoid()

    def _order(self, count: int, chunks: int, device: torch.device) -> Tensor:
        """[B,chunks]: for each chunk the clips' numbers, shuffled."""
        return torch.rand(chunks, count, device=device).argsort(1).T


def _spread(times: Tensor) -> Tensor:
    """[B,n] to the latents' [B,1,n,1,1]."""
    return times[:, None, :, None, None]
