"""Metrics of single clips as torchmetrics classes: means that are right in any number of processes.

Imported where they are used: torchmetrics takes seconds to import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.metrics import reconstruction
from zoo.metrics.reconstruction import checked, frames_of
from zoo.objectives.perceptual import Perceptual


class ClipMetric(Metric, ABC):
    """The mean over clips of a value of each clip.

    `update(y, x)` takes the reconstruction and the original, [B,3,T,H,W] in [-1,1]; the
    reconstruction is rounded to 8 bits. Sums are float64; clips without a value (a single frame
    has no flicker) are left out.
    """

    full_state_update = False
    unit: ClassVar[str] = ""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def values(self, y: Tensor, x: Tensor) -> Tensor:
        """The value of each clip, [B]."""

    def update(self, y: Tensor, x: Tensor) -> None:
        """Add clips."""
        self.add(self.values(y, x))

    def add(self, values: Tensor) -> None:
        """Add the values of clips, [B], measured before."""
        known = values[~values.isnan()].double()
        self.total += known.sum().to(self.total)
        self.count += len(known)

    def compute(self) -> Tensor:
        """The mean; NaN when no clip has a value."""
        return self.total / self.count


class PSNR(ClipMetric):
    """Of each frame, then of the clip: see `zoo.metrics.reconstruction.psnr`."""

    higher_is_better = True
    unit = "dB"

    def values(self, y: Tensor, x: Tensor) -> Tensor:
        """dB of each clip, [B]."""
        return reconstruction.psnr(y, x)


class SSIM(ClipMetric):
    """Of each frame, then of the clip: see `zoo.metrics.reconstruction.ssim`."""

    higher_is_better = True

    def values(self, y: Tensor, x: Tensor) -> Tensor:
        """SSIM of each clip, [B], at most 1."""
        return reconstruction.ssim(y, x)


class Flicker(ClipMetric):
    """See `zoo.metrics.reconstruction.flicker`."""

    higher_is_better = False
    unit = "grey levels"

    def values(self, y: Tensor, x: Tensor) -> Tensor:
        """Grey levels of 255 of each clip, [B]."""
        return reconstruction.flicker(y, x)


class LPIPS(ClipMetric):
    """LPIPS (arXiv 1801.03924) of each frame, then of the clip.

    Args:
        net: `alexnet` or `vgg16`.
        spatial: the mean of the upsampled distance maps in place of the mean of the layers' means.
    """

    higher_is_better = False

    def __init__(self, net: str = "alexnet", *, spatial: bool = False) -> None:
        super().__init__()
        # not a submodule: it is the same for all, and nothing of it is a metric's state
        self.network = Perceptual(net, spatial=spatial)

    def values(self, y: Tensor, x: Tensor) -> Tensor:
        """LPIPS of each clip, [B].

        Raises:
            UserError: no provider has the backbone.
        """
        distance = self.network(frames_of(checked(y, x)), frames_of(x))
        return distance.view(len(x), -1).mean(1)
