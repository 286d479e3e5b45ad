"""The encoder and the context decoder of CDT (arXiv 2503.03708), shared with the video KL-VAE."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.nets.blocks3d import (
    BlockKind,
    CausalConv3d,
    Conv3d,
    Padding,
    ResnetBlock,
    SpaceDown,
    SpaceUp,
    TimeDown,
    TimeUp,
    Upsampling,
    space_to_depth,
)
from zoo.nets.pca import BlockPCA, PCAConfig
from zoo.streaming import Carry


@dataclass(frozen=True, kw_only=True)
class CompressorConfig:
    """What encoder and context decoder share.

    Attributes:
        latent_channels: channels of a latent.
        context_dim, context_mults: width of the stages, coarsest last.
        context_channels: channels of the finest context.
        space_down, time_down: 1 for each stage that halves space, time.
        padding: what stands outside the frame and before the video.
        upsampling: how a stage doubles space.
        block: kind of residual block; the light kind brings a convolution as stem and small heads.
        patch: space-to-depth factor in front of the first stage.
        pca: a fixed linear shortcut beside the learned layers (zero until it is fitted).
    """

    latent_channels: int = 16
    context_dim: int = 64
    context_mults: tuple[int, ...] = (1, 2, 3, 4)
    context_channels: int = 3
    space_down: tuple[int, ...] = (1, 1, 1, 0)
    time_down: tuple[int, ...] = (0, 0, 1, 1)
    padding: Padding = "replicate"
    upsampling: Upsampling = "transposed"
    block: BlockKind = "reference"
    patch: int = 1
    pca: bool = False

    def __post_init__(self) -> None:
        stages = len(self.context_mults)
        if not len(self.space_down) == len(self.time_down) == stages:
            raise UserError(
                f"space_down {self.space_down} and time_down {self.time_down} need one flag for "
                f"each of the {stages} stages of context_mults {self.context_mults}"
            )

    @property
    def compression(self) -> tuple[int, int, int]:
        """Pixels a latent stands for: (time, height, width)."""
        space = self.patch * prod(1 + flag for flag in self.space_down)
        return prod(1 + flag for flag in self.time_down), space, space

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, finest first."""
        return tuple(self.context_dim * mult for mult in self.context_mults)

    def build_pca(self) -> BlockPCA | None:
        """The shortcut that this config asks for."""
        if not self.pca:
            return None
        return BlockPCA(
            PCAConfig(latent_channels=self.latent_channels, compression=self.compression)
        )


class EncoderStage(nn.Module):
    """A residual block, then space down, then time down, where the flags say so."""

    def __init__(
        self, config: CompressorConfig, channels: int, out_channels: int, *, index: int
    ) -> None:
        super().__init__()
        kind, padding = config.block, config.padding
        self.block = ResnetBlock(
            channels, out_channels, kind=kind, padding=padding, large=index == 0
        )
        self.space = SpaceDown(out_channels, padding=padding) if config.space_down[index] else None
        self.time = TimeDown(out_channels, padding=padding) if config.time_down[index] else None

    def forward(self, x: Tensor, carry: Carry | None) -> Tensor:
        x = self.block(x, None, carry)
        if self.space is not None:
            x = self.space(x)
        if self.time is not None:
            x = self.time(x, carry)
        return x


class Encoder(nn.Module):
    """Pixels to moments; two heads are summed, a direct one and one through more blocks."""

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        channels = 3 * config.patch**2
        light = config.block == "light"
        self.stem = (
            CausalConv3d(channels, widths[0], (1, 3, 3), padding=config.padding) if light else None
        )
        inputs = (widths[0] if light else channels, *widths[:-1])
        self.stages = nn.ModuleList(
            EncoderStage(config, a, b, index=i)
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.direct = Conv3d(widths[-1], 2 * config.latent_channels, 1)
        backwards = widths[::-1]
        self.walk = nn.ModuleList(
            ResnetBlock(a, b, kind=config.block, padding=config.padding)
            for a, b in itertools.pairwise(backwards)
        )
        self.head = Conv3d(widths[0], 2 * config.latent_channels, 1)
        self._start_narrow(means=not config.pca)

    def _start_narrow(self, *, means: bool) -> None:
        """Codes start with little noise, so that the decoder sees them from the first step.

        Args:
            means: whether learned means start at random; beside a linear shortcut they start at 0.
        """
        codes = self.config.latent_channels
        with torch.no_grad():
            for conv in (self.direct, self.head):
                start = codes if means else 0
                conv.weight[start:] = 0
                conv.bias[start:] = 0  # type: ignore[index]
            self.head.bias[codes:] = -7.0  # type: ignore[index]

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        """[B,3,T,H,W] -> moments [B,2c,t,h,w]; t may be 0 in a stream."""
        _, height, width = (
            n // m for n, m in zip(x.shape[2:], self.config.compression, strict=True)
        )
        x = space_to_depth(x, self.config.patch)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if self.stem is not None:
            x = self.stem(x)
        for stage in self.stages:
            x = stage(x, carry)
            if not x.shape[2]:
                return x.new_empty(x.shape[0], 2 * self.config.latent_channels, 0, height, width)
        direct = self.direct(x)
        for block in self.walk:
            x = block(x, None, carry)
        moments: Tensor = direct + self.head(x)
        return moments


class DecoderStage(nn.Module):
    """A residual block, then space up, then time up, where the flags say so."""

    def __init__(
        self, config: CompressorConfig, channels: int, out_channels: int, *, index: int, last: bool
    ) -> None:
        super().__init__()
        kind, padding = config.block, config.padding
        inner = channels if last else out_channels
        self.block = ResnetBlock(channels, inner, kind=kind, padding=padding)
        self.space: nn.Module | None = None
        self.mapping: ResnetBlock | None = None
        if config.space_down[index]:
            self.space = SpaceUp(inner, out_channels, upsampling=config.upsampling, padding=padding)
        elif last:
            self.mapping = ResnetBlock(inner, out_channels, kind=kind, padding=padding)
        self.time = TimeUp(out_channels) if config.time_down[index] else None

    def forward(self, x: Tensor, carry: Carry | None) -> Tensor:
        x = self.block(x, None, carry)
        if self.space is not None:
            x = self.space(x)
        if self.mapping is not None:
            x = self.mapping(x, None, carry)
        if self.time is not None:
            x = self.time(x, carry)
        return x


class ContextDecoder(nn.Module):
    """Latents to a pyramid of contexts, finest first; two stems are summed, as in the encoder."""

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        widths = config.widths
        self.direct = Conv3d(config.latent_channels, widths[-1], 1)
        self.stem = Conv3d(config.latent_channels, widths[0], 1)
        self.walk = nn.ModuleList(
            ResnetBlock(a, b, kind=config.block, padding=config.padding)
            for a, b in itertools.pairwise(widths)
        )
        outputs = (*widths[:-1][::-1], config.context_channels)
        count = len(widths)
        self.stages = nn.ModuleList(
            DecoderStage(config, a, b, index=count - 1 - i, last=i == count - 1)
            for i, (a, b) in enumerate(zip(widths[::-1], outputs, strict=True))
        )

    def forward(self, z: Tensor, carry: Carry | None = None) -> list[Tensor]:
        """[B,c,t,h,w] -> contexts, the finest (context_channels wide) first."""
        z = z.contiguous(memory_format=torch.channels_last_3d)
        y: Tensor = self.direct(z)
        x: Tensor = self.stem(z)
        for block in self.walk:
            x = block(x, None, carry)
        x = x + y
        contexts = []
        for stage in self.stages:
            x = stage(x, carry)
            contexts.append(x)
        return contexts[::-1]


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Nearest-resize height and width of `x` where an odd size was rounded on the way down."""
    if x.shape[2:] == reference.shape[2:]:
        return x
    return F.interpolate(x, size=reference.shape[2:], mode="nearest")
