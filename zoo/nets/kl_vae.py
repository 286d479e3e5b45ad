"""Image KL-VAE: diffusers' AutoencoderKL behind the Tokenizer interface.

Structure of arXiv 2112.10752 (Stable Diffusion: 4 channels) and of FLUX (16 channels, no 1x1
convolutions around the latents). The wrapped module keeps diffusers' own keys under `vae.`. Frames
are coded one by one, so a stream needs no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.diffusion.samplers import Noise
from zoo.kernels.processor import set_attention
from zoo.nets.blocks3d import depth_to_space, space_to_depth
from zoo.nets.pca import BlockPCA, PCAConfig
from zoo.nets.pictures import PictureTokenizer
from zoo.nets.posterior import Posterior
from zoo.nets.tokenizer import Size
from zoo.registry import register
from zoo.streaming import Carry, name_slots


@dataclass(frozen=True, kw_only=True)
class KLVAEConfig:
    """What AutoencoderKL is built with.

    Attributes:
        latent_channels: channels of a latent.
        block_channels: width of each level, finest first; each but the last halves space.
        layers: residual blocks of a level (one more in the decoder).
        norm_groups: groups of each group norm.
        quant_conv: 1x1 convolutions on moments and latents, as in Stable Diffusion.
        attention: one-head attention in the middle blocks.
        patch: space-to-depth factor in front of AutoencoderKL, and back behind it.
        pca: a fixed linear shortcut beside the learned layers (zero until it is fitted). A net
            with a patch or a shortcut trains faster, but diffusers alone can't run it.
    """

    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    norm_groups: int = 32
    quant_conv: bool = True
    attention: bool = True
    patch: int = 1
    pca: bool = False

    @property
    def compression(self) -> Size:
        """Pixels a latent stands for: (1, height, width)."""
        space = self.patch * 2 ** (len(self.block_channels) - 1)
        return 1, space, space


class KLVAE(PictureTokenizer):
    """An image tokenizer; videos [B,3,T,H,W] frame by frame, pictures [B,3,H,W] too."""

    architecture: ClassVar[str] = "kl_vae"
    config_class = KLVAEConfig
    config: KLVAEConfig

    def __init__(self, config: KLVAEConfig) -> None:
        # imported here: it takes seconds, and `import zoo` must not
        from diffusers import AutoencoderKL

        super().__init__()
        self.config = config
        self.compression: Size = config.compression
        self.latent_channels = config.latent_channels
        self._register_latent_statistics()
        levels = len(config.block_channels)
        self.vae: Any = AutoencoderKL(  # type: ignore[no-untyped-call]
            in_channels=3 * config.patch**2,
            out_channels=3 * config.patch**2,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_channels,
            layers_per_block=config.layers,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
            use_quant_conv=config.quant_conv,
            use_post_quant_conv=config.quant_conv,
            mid_block_add_attention=config.attention,
        )
        set_attention(self.get_submodule("vae"))
        self.pca = (
            BlockPCA(PCAConfig(latent_channels=self.latent_channels, compression=self.compression))
            if config.pca
            else None
        )
        self._start_narrow()
        name_slots(self)

    def _start_narrow(self) -> None:
        """Codes with little noise at first; with the shortcut, training starts as the PCA."""
        moments: Any = self.vae.quant_conv or self.vae.encoder.conv_out
        if self.pca is not None:
            for layer in (moments, self.vae.decoder.conv_out):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            moments.weight[self.latent_channels :] = 0
            moments.bias[self.latent_channels :] = -7.0

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels; the adversarial stage balances gradients on it."""
        weight: Tensor = self.vae.decoder.conv_out.weight
        return weight

    def _encode(self, x: Tensor, carry: Carry | None) -> Posterior:
        moments = self.vae.encoder(_frames(space_to_depth(x, self.config.patch)))
        if self.vae.quant_conv is not None:
            moments = self.vae.quant_conv(moments)
        posterior = Posterior.from_moments(_video(moments, len(x)))
        if self.pca is None:
            return posterior
        return Posterior(posterior.mean + self.pca.project(x, carry), posterior.logvar)

    def _decode(self, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise) -> Tensor:
        codes = _frames(z)
        if self.vae.post_quant_conv is not None:
            codes = self.vae.post_quant_conv(codes)
        x = depth_to_space(_video(self.vae.decoder(codes), len(z)), self.config.patch)
        return x if self.pca is None else x + self.pca.expand(z, carry)


def _frames(x: Tensor) -> Tensor:
    """[B,C,T,H,W] -> [B * T,C,H,W]."""
    return x.movedim(2, 1).flatten(0, 1)


def _video(x: Tensor, batch: int) -> Tensor:
    """The inverse of `_frames`."""
    return x.view(batch, -1, *x.shape[1:]).movedim(1, 2)


@register(family="kl_vae")
def klvae_image_f8c4() -> KLVAE:
    """1x8x8, 4 latent channels: the structure of Stable Diffusion's VAE (83.65 M parameters)."""
    return KLVAE(KLVAEConfig())


@register(family="kl_vae")
def klvae_image_f8c16() -> KLVAE:
    """1x8x8, 16 latent channels: the structure of FLUX's VAE (83.82 M parameters)."""
    return KLVAE(KLVAEConfig(latent_channels=16, quant_conv=False))


@register(family="kl_vae")
def klvae_image_tiny(*, latent_channels: int = 4) -> KLVAE:
    """1x4x4, 4 latent channels, under 1.5 M parameters: trains on a CPU.

    Patch and shortcut are what trains: half a minute takes it past the PCA, where 90 s of a plain
    AutoencoderKL of the same size end 3.7 dB below (photos, one core).
    """
    return KLVAE(
        KLVAEConfig(
            latent_channels=latent_channels,
            block_channels=(104,),
            layers=1,
            norm_groups=8,
            quant_conv=False,
            attention=False,
            patch=4,
            pca=True,
        )
    )
