"""How much a UNet's features change between neighbouring time steps.

TiUE (arXiv 2505.21960) rests on an observation: encoder features change less than decoder features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.diffusion.samplers import DDIMPlan, ddim_closed_form
from zoo.nets.tiue.unet import TiUEUNet


@dataclass(frozen=True)
class Similarity:
    """Mean cosine similarities, one number for each pair of neighbouring steps.

    Attributes:
        encoder: of the outputs of the first convolution, every encoder layer and the mid block.
        decoder: of the outputs of the up blocks.
    """

    encoder: list[float]
    decoder: list[float]


@torch.no_grad()
def adjacent_similarity(net: TiUEUNet, z: Tensor, text: Tensor, plan: DDIMPlan) -> Similarity:
    """Sample with the plain net, without guidance, and compare the features of adjacent steps.

    Args:
        net: any UNet; nothing is cached, each step has its own encoder pass.
        z: noise [B,c,h,w].
        text: [B,L,D].
        plan: at least two time steps.

    Returns:
        Cosines over all elements of a sample's feature map, averaged over samples and maps.
    """
    found: list[Tensor] = []
    blocks: Any = net.up_blocks
    hooks = [b.register_forward_hook(lambda _m, _i, out: found.append(out)) for b in blocks]
    result = Similarity([], [])
    before: tuple[list[Tensor], list[Tensor]] | None = None
    try:
        for t, coefficients in zip(plan.timesteps, plan.coefficients(), strict=True):
            found.clear()
            features = net.encode(z, t, text)
            out = net.decode(features, torch.full((len(z),), t, device=z.device), text)
            now = ([features.mid, *features.skips], list(found))
            if before is not None:
                result.encoder.append(_cosine(before[0], now[0]))
                result.decoder.append(_cosine(before[1], now[1]))
            before = now
            z = ddim_closed_form(z, out[None], [coefficients])
    finally:
        for hook in hooks:
            hook.remove()
    return result


def _cosine(before: list[Tensor], now: list[Tensor]) -> float:
    values = [
        torch.cosine_similarity(a.flatten(1).float(), b.flatten(1).float()).mean()
        for a, b in zip(before, now, strict=True)
    ]
    return float(torch.stack(values).mean())
