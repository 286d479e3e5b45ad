"""Score tokenizers on a source of clips, the trivial baselines beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.metrics.reconstruction import psnr, ssim
from zoo.objectives.perceptual import Perceptual

Reconstruct = Callable[[Tensor], Tensor]
Row = dict[str, float | int | str]


def average_pool(x: Tensor, *, factor: int = 8) -> Tensor:
    """The crudest tokenizer: average-pool each frame, bicubic back. [B,3,T,H,W] to the same."""
    frames = x.movedim(2, 1).flatten(0, 1)
    small = F.avg_pool2d(frames, factor, ceil_mode=True, count_include_pad=False)
    back = F.interpolate(small, size=frames.shape[-2:], mode="bicubic", align_corners=False)
    return back.view(x.shape[0], x.shape[2], *back.shape[1:]).movedim(1, 2)


@torch.no_grad()
def evaluate(
    models: dict[str, Reconstruct], clips: Iterable[Tensor], *, lpips: Perceptual | None
) -> list[Row]:
    """Mean PSNR, SSIM and LPIPS over clips.

    Args:
        models: reconstruction by name, each [B,3,T,H,W] to the same.
        clips: [B,3,T,H,W] in [-1,1]; read once.
        lpips: its network; None leaves LPIPS out.

    Returns:
        One row a model, in their order: `model`, `clips`, `psnr` (dB), `ssim`, `lpips`.
    """
    totals: dict[str, dict[str, Any]] = {name: {"clips": 0} for name in models}
    for x in clips:
        for name, reconstruct in models.items():
            y = reconstruct(x)
            values = {"psnr": psnr(y, x), "ssim": ssim(y, x)}
            if lpips is not None:
                frames = [v.clamp(-1, 1).movedim(2, 1).flatten(0, 1) for v in (y, x)]
                values["lpips"] = lpips(frames[0], frames[1]).view(len(x), -1).mean(1)
            totals[name]["clips"] += len(x)
            for key, value in values.items():
                totals[name][key] = totals[name].get(key, 0.0) + float(value.sum())
    return [
        {"model": name, "clips": total["clips"]}
        | {k: v / total["clips"] for k, v in total.items() if k != "clips"}
        for name, total in totals.items()
    ]
