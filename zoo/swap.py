"""Can a generator be kept when its tokenizer changes? A linear map, and what it loses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.metrics.reconstruction import psnr
from zoo.nets.latent_swap import LatentSwap, LatentSwapConfig
from zoo.nets.tokenizer import Tokenizer, missing_frames, pad_space, pad_time


@dataclass(frozen=True)
class SwapReport:
    """What the map does on clips that it wasn't fitted on.

    Attributes:
        fitted, held_out: clips.
        error: squared error of the mapped latents by the variance of the target's, each channel
            by its own, mean over channels: 0 is exact, 1 is no better than their mean.
        source_psnr, target_psnr: each tokenizer's own reconstruction, dB.
        swapped_psnr: source latents, mapped and decoded by the target, dB.
    """

    fitted: int
    held_out: int
    error: float
    source_psnr: float
    target_psnr: float
    swapped_psnr: float

    def as_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


@torch.no_grad()
def fit_swap(
    source: Tokenizer, target: Tokenizer, clips: Iterable[Tensor], *, every: int = 5
) -> tuple[LatentSwap, SwapReport]:
    """Fit the map from `source` latents to `target` latents, and measure it.

    The clips are read once, one by one: two sums of products are kept and, of the clips that are
    held out, the clips.

    Args:
        source: whose latents the generator makes.
        target: whose decoder is to show them.
        clips: [B,3,T,H,W] in [-1,1]; sides are padded to blocks of both.
        every: each `every`-th clip is held out for the report, the first among them.

    Raises:
        UserError: fewer than two clips, or too few blocks.
    """
    if every < 2:
        raise UserError(f"every = {every}: with less than 2 no clip is left to fit on")
    swap = LatentSwap(
        LatentSwapConfig(
            source_channels=source.latent_channels,
            target_channels=target.latent_channels,
            source_compression=source.compression,
            target_compression=target.compression,
        )
    )
    held: list[Tensor] = []
    fitted = 0

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal fitted
        for number, clip in enumerate(clips):
            if number % every == 0:
                held.append(clip)
                continue
            fitted += 1
            x = to_blocks(clip, swap)
            yield source.encode(x).mean.cpu(), target.encode(x).mean.cpu()

    swap.fit(pairs())
    return swap, _measure(swap, source, target, held, fitted=fitted)


def to_blocks(clip: Tensor, swap: LatentSwap) -> Tensor:
    """Repeat the last frame, bottom and right edge until the clip makes whole blocks."""
    x = pad_space(clip, swap.block)
    return pad_time(x, missing_frames(x.shape[2], swap.block[0]))


def _measure(
    swap: LatentSwap, source: Tokenizer, target: Tokenizer, held: list[Tensor], *, fitted: int
) -> SwapReport:
    wanted, errors = [], []
    scores: list[tuple[float, float, float]] = []
    for clip in held:
        x = to_blocks(clip, swap)
        given, want = source.encode(x).mean, target.encode(x).mean
        made = swap(given.cpu()).to(want)
        wanted.append(want.movedim(1, 0).flatten(1).double())
        errors.append((made - want).movedim(1, 0).flatten(1).double())
        size = (clip.shape[2], clip.shape[3], clip.shape[4])
        decoded = [net.decode(z, size=size) for net, z in ((source, given), (target, want))]
        decoded.append(target.decode(made, size=size))
        own, other, mapped = (float(psnr(y.clamp(-1, 1), clip).mean()) for y in decoded)
        scores.append((own, other, mapped))
    variance = torch.cat(wanted, dim=1).var(1, correction=0).clamp_min(1e-12)
    error = torch.cat(errors, dim=1).square().mean(1) / variance
    means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    return SwapReport(fitted, len(held), float(error.mean()), *means)


__all__ = ["SwapReport", "fit_swap"]
