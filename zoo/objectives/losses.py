"""What every objective takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from zoo.objectives.perceptual import Perceptual


@dataclass(frozen=True)
class Losses:
    """The terms of one batch.

    Attributes:
        total: the weighted sum, a scalar with gradient.
        terms: each term before its weight, scalars.
        time: diffusion time in [0,1] of each clip, [B]; None for other objectives.
        by_clip: the main term of each clip, [B], detached.
        output: the reconstruction [B,3,T,H,W], with gradient: what a discriminator judges.
    """

    total: Tensor
    terms: dict[str, Tensor]
    time: Tensor | None = None
    by_clip: Tensor = field(default_factory=lambda: torch.zeros(0))
    output: Tensor | None = None


class Objective(Protocol):
    """Losses of a net on a batch. `prepare` fetches what it needs, before training starts."""

    def prepare(self) -> None:
        """Fetch and load frozen networks (LPIPS)."""

    def __call__(self, net: Any, x: Tensor, *, progress: float) -> Losses:
        """Losses on pixels [B,3,T,H,W]; `progress` in [0,1] is how much of the run is done."""


class PerceptualTerm:
    """LPIPS on one random frame of each clip, from a share of the run on.

    MSE alone blurs; LPIPS over the last part of a run mends that for little PSNR, and costs a VGG
    pass a frame, so short runs keep it for the end.

    Args:
        weight: 0 leaves the term out.
        start: share of the run, in [0,1), after which it counts.
        net: LPIPS backbone.
    """

    def __init__(self, weight: float, *, start: float, net: str = "vgg16") -> None:
        self.weight, self.start = weight, start
        self._lpips = Perceptual(net) if weight else None

    def prepare(self) -> None:
        """Load the backbone."""
        if self._lpips is not None:
            self._lpips.load()

    def __call__(self, y: Tensor, x: Tensor, progress: float) -> Tensor | None:
        """LPIPS of one random frame of each of [B,3,T,H,W], averaged; None before the start."""
        if self._lpips is None or progress < self.start:
            return None
        clips = torch.arange(len(x), device=x.device)
        frames = torch.randint(x.shape[2], (len(x),), device=x.device)
        return self._lpips(y[clips, :, frames], x[clips, :, frames]).mean()
