"""CDT's denoising UNet: causal in time, conditioned on a pyramid of contexts (arXiv 2503.03708)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.nets.blocks3d import (
    CausalConv3d,
    ChannelNorm,
    FrameAttention,
    ResnetBlock,
    SpaceDown,
    SpaceUp,
    TimeDown,
    TimeUp,
    depth_to_space,
    space_to_depth,
)
from zoo.nets.cdt_context import CompressorConfig, resize_like
from zoo.streaming import Carry


@dataclass(frozen=True, kw_only=True)
class CDTConfig(CompressorConfig):
    """A whole CDT.

    Attributes:
        unet_dim, unet_mults: width of the UNet's levels, coarsest last.
        condition_times: how many levels, finest first, see their context.
        level_blocks: residual blocks of a level.
        context_norm: normalise each context before it joins the UNet's features. Without it, the
            contexts can grow until the noisy video no longer matters and the diffusion decoder is
            a plain one in disguise.
        top_blocks: residual blocks at the finest level after the last skip (the published net has
            none and leaves that skip unused).
        timesteps: length of the noise schedule.
        gamma: standard deviation of the noise that sampling starts from.
        eta: share of fresh noise between sampling steps, 0 (DDIM) to 1 (ancestral).
    """

    unet_dim: int = 64
    unet_mults: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    condition_times: int = 4
    level_blocks: int = 2
    context_norm: bool = False
    top_blocks: int = 0
    timesteps: int = 8192
    gamma: float = 0.8
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.unet_mults) < len(self.context_mults):
            raise UserError(
                f"unet_mults {self.unet_mults} needs at least as many levels as context_mults "
                f"{self.context_mults} has stages"
            )
        if len(self.unet_mults) == len(self.space_down) and (
            self.space_down[-1] or self.time_down[-1]
        ):
            raise UserError(
                f"unet_mults {self.unet_mults} needs one level more than there are stages where "
                "the last stage halves: the deepest level has no way up of its own"
            )
        if not (self.gamma >= 0 and 0 <= self.eta <= 1):
            raise UserError(
                f"gamma = {self.gamma}, eta = {self.eta}: give gamma >= 0 and eta in [0, 1]"
            )
        if not 0 < self.condition_times <= len(self.context_mults):
            raise UserError(
                f"condition_times = {self.condition_times}: "
                f"give 1 to {len(self.context_mults)}, the number of contexts"
            )


class UNetLevel(nn.Module):
    """Residual blocks, then attention within each frame."""

    def __init__(self, config: CDTConfig, channels: int, out_channels: int, *, large: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResnetBlock(
                channels if index == 0 else out_channels,
                out_channels,
                kind=config.block,
                padding=config.padding,
                time_dim=config.unet_dim,
                large=large and index == 0,
            )
            for index in range(config.level_blocks)
        )
        self.attention = FrameAttention(out_channels)

    def forward(self, x: Tensor, time: Tensor, carry: Carry | None) -> Tensor:
        for block in self.blocks:
            x = block(x, time, carry)
        y: Tensor = self.attention(x)
        return y


class DenoisingUNet(nn.Module):
    """Predicts the clean video from a noisy one, the diffusion time and the contexts."""

    def __init__(self, config: CDTConfig) -> None:
        super().__init__()
        self.config = config
        levels = len(config.unet_mults)
        widths = [config.unet_dim * mult for mult in config.unet_mults]
        pixels = 3 * config.patch**2
        light = config.block == "light"
        # the levels below those that follow the latents halve space, except the last
        space = (*config.space_down, *(1,) * (levels - len(config.space_down) - 1), 0)[:levels]
        time = (*config.time_down, *(0,) * (levels - len(config.time_down)))
        contexts = [config.context_channels, *config.widths][: config.condition_times]
        if config.pca:
            contexts[0] += pixels

        dim = config.unet_dim
        self.time_mlp = nn.Sequential(nn.Linear(1, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.stem = CausalConv3d(pixels, dim, (1, 3, 3), padding=config.padding) if light else None
        self.context_norms = (
            nn.ModuleList(ChannelNorm(width) for width in contexts) if config.context_norm else None
        )
        inputs = [dim if light else pixels, *widths[:-1]]
        for level, width in enumerate(contexts):
            inputs[level] += width
        self.down = nn.ModuleList(
            UNetLevel(config, a, b, large=level == 0)
            for level, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        padding = config.padding
        self.space_down = nn.ModuleList(
            SpaceDown(width, padding=padding) if flag else nn.Identity()
            for width, flag in zip(widths, space, strict=True)
        )
        self.time_down = nn.ModuleList(
            TimeDown(width, padding=padding) if flag else nn.Identity()
            for width, flag in zip(widths, time, strict=True)
        )
        kind, deepest = config.block, widths[-1]
        self.mid_block1 = ResnetBlock(deepest, deepest, kind=kind, padding=padding, time_dim=dim)
        self.mid_attention = FrameAttention(deepest)
        self.mid_block2 = ResnetBlock(deepest, deepest, kind=kind, padding=padding, time_dim=dim)

        self.up = nn.ModuleList(
            UNetLevel(config, 2 * widths[level], widths[level - 1], large=False)
            for level in range(levels - 1, 0, -1)
        )
        self.space_up = nn.ModuleList(
            SpaceUp(
                widths[level - 1],
                widths[level - 1],
                upsampling=config.upsampling,
                padding=padding,
            )
            if space[level - 1]
            else nn.Identity()
            for level in range(levels - 1, 0, -1)
        )
        self.time_up = nn.ModuleList(
            TimeUp(widths[level - 1]) if time[level - 1] else nn.Identity()
            for level in range(levels - 1, 0, -1)
        )
        self.top = nn.ModuleList(
            ResnetBlock(
                2 * dim if index == 0 else dim, dim, kind=kind, padding=padding, time_dim=dim
            )
            for index in range(config.top_blocks)
        )
        self.norm = ChannelNorm(dim)
        kernel = (1, 3, 3) if light else (3, 7, 7)
        self.head = CausalConv3d(dim, pixels, kernel, padding=padding)
        if config.pca:
            # training starts as the linear code: the net only has to learn what that leaves
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        contexts: list[Tensor],
        *,
        base: Tensor | None = None,
        carry: Carry | None = None,
    ) -> Tensor:
        """Predict x0.

        Args:
            x: noisy pixels [B,3,T,H,W].
            t: diffusion time in [0,1], [B].
            contexts: of `ContextDecoder`, finest first.
            base: the linear shortcut's reconstruction, [B,3,T,H,W], where the net has one: the
                prediction is relative to it.
            carry: the stream's memory for this sampling step.

        Returns:
            [B,3,T,H,W].
        """
        patch = self.config.patch
        time = self.time_mlp(t[:, None].to(x.dtype))
        x = space_to_depth(x, patch).contiguous(memory_format=torch.channels_last_3d)
        if self.stem is not None:
            x = self.stem(x)
        contexts = contexts[: self.config.condition_times]
        if base is not None:
            contexts = [torch.cat([contexts[0], space_to_depth(base, patch)], 1), *contexts[1:]]
        if self.context_norms is not None:
            contexts = [
                norm(context) for norm, context in zip(self.context_norms, contexts, strict=True)
            ]

        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level < len(contexts):
                x = torch.cat([x, contexts[level]], dim=1)
            x = block(x, time, carry)
            if level or self.top:  # the published net has no use for its finest skip
                skips.append(x)
            x = self.space_down[level](x)
            x = _in_time(self.time_down[level], x, carry)
        x = self.mid_block1(x, time, carry)
        x = self.mid_attention(x)
        x = self.mid_block2(x, time, carry)
        for index, block in enumerate(self.up):
            skip = skips.pop()
            x = torch.cat([resize_like(x, skip), skip], dim=1)
            x = block(x, time, carry)
            x = self.space_up[index](x)
            x = _in_time(self.time_up[index], x, carry)
        if self.top:
            x = torch.cat([resize_like(x, skips[0]), skips[0]], dim=1)
        for block in self.top:
            x = block(x, time, carry)
        out = depth_to_space(self.head(self.norm(x), carry), patch)
        return out if base is None else out + base


def _in_time(layer: nn.Module, x: Tensor, carry: Carry | None) -> Tensor:
    y: Tensor = x if isinstance(layer, nn.Identity) else layer(x, carry)
    return y
