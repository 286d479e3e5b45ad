"""A UNet of diffusers with random weights, small enough for any test."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

TOY: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
}


def toy(**changes: Any) -> UNet2DConditionModel:
    """A parent with random weights, none of them zero."""
    torch.manual_seed(0)
    net = UNet2DConditionModel(**TOY | changes).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net.requires_grad_(False)


def inputs(
    net: UNet2DConditionModel, size: tuple[int, int] = (16, 16), batch: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, a time step a sample, text."""
    width = net.config.encoder_hid_dim or net.config.cross_attention_dim
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 4, *size, generator=generator).to(net.dtype),
        torch.tensor([999, 500, 1])[:batch],
        torch.randn(batch, 7, width, generator=generator).to(net.dtype),
    )
