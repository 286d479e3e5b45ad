"""Video KL-VAE: CDT's encoder with a deterministic causal decoder.

Encoder, latents and shortcut are CDT's own, so that a comparison of the two compares decoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from zoo.diffusion.samplers import Noise
from zoo.nets.blocks3d import CausalConv3d, ChannelNorm, ResnetBlock, depth_to_space
from zoo.nets.cdt_context import CompressorConfig, ContextDecoder, Encoder
from zoo.nets.posterior import Posterior
from zoo.nets.tokenizer import Size, Tokenizer
from zoo.registry import register
from zoo.streaming import Carry, name_slots


@dataclass(frozen=True, kw_only=True)
class KLVAEVideoConfig(CompressorConfig):
    """top_blocks: residual blocks at the finest level, before the head."""

    top_blocks: int = 2


class KLVAEVideo(Tokenizer):
    """Encoder, context decoder as decoder body, residual blocks and a head.

    CDT's finest context is narrow, because its UNet does the rest; here it is as wide as a stage.
    """

    architecture: ClassVar[str] = "kl_vae_video"
    config_class = KLVAEVideoConfig
    config: KLVAEVideoConfig

    def __init__(self, config: KLVAEVideoConfig) -> None:
        super().__init__()
        self.config = config
        self.compression: Size = config.compression
        self.latent_channels = config.latent_channels
        self._register_latent_statistics()
        self.encoder = Encoder(config)
        self.body = ContextDecoder(config)
        channels, padding = config.context_channels, config.padding
        self.top = nn.ModuleList(
            ResnetBlock(channels, channels, kind=config.block, padding=padding)
            for _ in range(config.top_blocks)
        )
        self.norm = ChannelNorm(channels)
        self.head = CausalConv3d(channels, 3 * config.patch**2, (1, 3, 3), padding=padding)
        self.pca = config.build_pca()
        if config.pca:
            # training starts as the linear code: the net only has to learn what that leaves
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        name_slots(self)

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels; the adversarial stage balances gradients on it."""
        return self.head.weight

    def _encode(self, x: Tensor, carry: Carry | None) -> Posterior:
        posterior = Posterior.from_moments(self.encoder(x, carry))
        if self.pca is None:
            return posterior
        return Posterior(posterior.mean + self.pca.project(x, carry), posterior.logvar)

    def _decode(self, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise) -> Tensor:
        x = self.body(z, carry)[0]
        for block in self.top:
            x = block(x, None, carry)
        out = depth_to_space(self.head(self.norm(x), carry), self.config.patch)
        return out if self.pca is None else out + self.pca.expand(z, carry)


@register(family="kl_vae")
def klvae_video_tiny(*, latent_channels: int = 16, context_dim: int = 48) -> KLVAEVideo:
    """4x8x8, 16 latent channels: the encoder of `cdt_tiny`, a deterministic decoder."""
    return KLVAEVideo(
        KLVAEVideoConfig(
            latent_channels=latent_channels,
            context_dim=context_dim,
            context_mults=(1, 2, 2),
            context_channels=context_dim,
            space_down=(1, 0, 0),
            time_down=(1, 1, 0),
            padding="zeros",
            block="light",
            patch=4,
            pca=True,
            top_blocks=3,
        )
    )


@register(family="kl_vae")
def klvae_video_small() -> KLVAEVideo:
    """4x8x8, 16 latent channels: the encoder of CDT-small, a deterministic decoder."""
    return KLVAEVideo(
        KLVAEVideoConfig(
            context_dim=64,
            context_channels=64,
            space_down=(1, 1, 1, 0),
            time_down=(0, 0, 1, 1),
            padding="replicate",
            upsampling="transposed",
        )
    )


@register(family="kl_vae")
def klvae_video_base() -> KLVAEVideo:
    """4x8x8, 16 latent channels: the encoder of CDT-base, a deterministic decoder."""
    return KLVAEVideo(
        KLVAEVideoConfig(
            context_dim=128,
            context_channels=128,
            space_down=(0, 1, 1, 1),
            time_down=(0, 0, 1, 1),
            padding="zeros",
            upsampling="nearest",
        )
    )
