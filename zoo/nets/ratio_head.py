"""A small net for the log of a density ratio: no part of a student, never exported."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.errors import UserError

_GROUPS = 8


class RatioHead(nn.Module):
    """log p_t(x_t | text) / q_t(x_t | text) of noised latents: one number a sample.

    Residual blocks that halve the size see the time; the text enters by projection (arXiv
    1802.05637), the form that the log ratio of two conditional densities has: a term of the picture
    alone and an inner product with the condition. It starts at 0, a ratio of 1.

    Args:
        channels: of the latents.
        text_dim: channels of the text states.
        width: of the blocks; a multiple of 8.
        blocks: how many; each halves height and width, down to a single pixel.

    Raises:
        UserError: a width that isn't a multiple of 8, or no block.
    """

    def __init__(
        self, *, channels: int = 4, text_dim: int = 384, width: int = 64, blocks: int = 3
    ) -> None:
        super().__init__()
        # imported here: it takes seconds, and listing the presets imports every net
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps
        from diffusers.models.resnet import ResnetBlock2D

        if width < 1 or width % _GROUPS or blocks < 1:
            raise UserError(
                f"width = {width}, blocks = {blocks}: give a multiple of {_GROUPS} and at least 1"
            )
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.waves = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(width, 2 * width)
        self.blocks = nn.ModuleList(
            ResnetBlock2D(
                in_channels=width, out_channels=width, temb_channels=2 * width, groups=_GROUPS
            )
            for _ in range(blocks)
        )
        self.text = nn.Linear(text_dim, width)
        self.out = nn.Linear(width, 1)
        for last in (self.text, self.out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Log ratios [B].

        Args:
            x_t: noised latents [B,c,h,w].
            t: time steps [B], 0 to 999.
            text: states [B,L,D]; positions of zeros are padding.
        """
        dtype = self.conv_in.weight.dtype
        time: Any = self.time(self.waves(t).to(dtype))
        x = self.conv_in(x_t.to(dtype))
        for block in self.blocks:
            x = block(x, time)
            if min(x.shape[-2:]) > 1:
                x = nn.functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        # not normalised: a sample's brightness and contrast are part of its density
        features = nn.functional.silu(x).mean(dim=(2, 3))
        words = (text != 0).any(dim=2).sum(dim=1, keepdim=True).clamp_min(1)
        pooled = self.text((text.sum(dim=1) / words).to(dtype))
        logit: Tensor = self.out(features)[:, 0] + (features * pooled).sum(dim=1)
        return logit
