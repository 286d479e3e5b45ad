"""Score tokenizers on clips: the one code behind the benchmark and training's last table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError

if TYPE_CHECKING:
    from zoo.metrics.clips import ClipMetric

Reconstruct = Callable[[Tensor], Tensor]
Row = dict[str, float | int | str]


def average_pool(x: Tensor, *, factor: int = 8, upsample: bool = True) -> Tensor:
    """The crudest tokenizer: average-pool each frame, bicubic back. [B,3,T,H,W] to the same.

    Args:
        x: pixels.
        factor: side of a block.
        upsample: False leaves the block means.
    """
    frames = x.movedim(2, 1).flatten(0, 1)
    small = F.avg_pool2d(frames, factor, ceil_mode=True, count_include_pad=False)
    if upsample:
        small = F.interpolate(small, size=frames.shape[-2:], mode="bicubic", align_corners=False)
    return small.view(x.shape[0], x.shape[2], *small.shape[1:]).movedim(1, 2)


class Scorer:
    """The metrics of single clips.

    Args:
        lpips: network of LPIPS, `alexnet` or `vgg16`.
        spatial: see `zoo.metrics.clips.LPIPS`.

    Attributes:
        metrics: by name: `psnr`, `ssim`, `lpips`, `flicker`.
        missing: why one isn't measured, by name.
    """

    def __init__(self, *, lpips: str = "alexnet", spatial: bool = False) -> None:
        from zoo.metrics.clips import LPIPS, PSNR, SSIM, Flicker

        self.metrics: dict[str, ClipMetric] = {"psnr": PSNR(), "ssim": SSIM(), "flicker": Flicker()}
        self.missing: dict[str, str] = {}
        metric = LPIPS(lpips, spatial=spatial)
        try:
            metric.network.load()
            self.metrics["lpips"] = metric
        except UserError as error:
            self.missing["lpips"] = str(error)

    @torch.no_grad()
    def __call__(self, y: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Values of each clip, [B] by name; NaN where a clip has none.

        Args:
            y: reconstruction, [B,3,T,H,W].
            x: original in [-1,1].
        """
        return {name: metric.values(y, x) for name, metric in self.metrics.items()}


@torch.no_grad()
def evaluate(
    models: dict[str, Reconstruct], clips: Iterable[Tensor], *, scorer: Scorer
) -> list[Row]:
    """Mean scores over clips.

    Args:
        models: reconstruction by name, each [B,3,T,H,W] to the same.
        clips: [B,3,T,H,W] in [-1,1]; read once.
        scorer: measures.

    Returns:
        One row a model, in their order: `model`, `clips` and the means by metric, without those
        that no clip has (a single frame doesn't flicker).
    """
    measured: dict[str, dict[str, list[Tensor]]] = {name: {} for name in models}
    for x in clips:
        for name, reconstruct in models.items():
            for key, values in scorer(reconstruct(x), x).items():
                measured[name].setdefault(key, []).append(values)
    rows: list[Row] = []
    for name, parts in measured.items():
        joined = {key: torch.cat(values).double() for key, values in parts.items()}
        count = max((len(values) for values in joined.values()), default=0)
        means = {key: float(v.nanmean()) for key, v in joined.items() if not v.isnan().all()}
        rows.append({"model": name, "clips": count, **means})
    return rows
