"""The nets that contract tests run over: presets and published structures at toy width."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from zoo.nets.cdt import CDT, CDTConfig
from zoo.nets.kl_vae import KLVAE, KLVAEConfig
from zoo.nets.kl_vae_video import KLVAEVideo, KLVAEVideoConfig
from zoo.nets.pca import BlockPCA, PCAConfig
from zoo.nets.tiling import Tiled
from zoo.nets.tokenizer import Tokenizer
from zoo.registry import create, presets


def _published(**changes: object) -> CDT:
    """CDT's own structure (post-norm blocks, no shortcut), narrow."""
    values = {"context_dim": 4, "unet_dim": 4, "latent_channels": 3, "unet_mults": (1, 1, 2, 2, 2)}
    return CDT(CDTConfig(**(values | changes)))  # type: ignore[arg-type]


def like_small() -> CDT:
    """Replicate padding, transposed convolutions, space halved first."""
    return _published(padding="replicate", upsampling="transposed", context_channels=3)


def like_base() -> CDT:
    """Zero padding, nearest + 5x5, the last stage without space."""
    return _published(
        padding="zeros",
        upsampling="nearest",
        context_channels=4,
        space_down=(0, 1, 1, 1),
        time_down=(0, 0, 1, 1),
    )


def published_vae() -> KLVAEVideo:
    """The video KL-VAE on published blocks."""
    return KLVAEVideo(KLVAEVideoConfig(context_dim=4, latent_channels=3))


def published_image_vae() -> KLVAE:
    """Stable Diffusion's structure, narrow: attention, 1x1 convolutions around the latents."""
    return KLVAE(KLVAEConfig(block_channels=(4, 8, 8), layers=1, norm_groups=2))


def pca() -> BlockPCA:
    """The linear tokenizer, fitted on noise."""
    return BlockPCA(PCAConfig(latent_channels=5, compression=(4, 8, 8)))


BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    **{
        name: preset.build  # type: ignore[dict-item]
        for name, preset in presets().items()
        if name.endswith("_tiny") and preset.family in ("cdt", "kl_vae")
    },
    **{
        build.__name__: build
        for build in (like_small, like_base, published_vae, published_image_vae, pca)
    },
}


def cdt_tiled() -> Tiled:
    """A CDT in tiles that are smaller than `video`."""
    return Tiled(BUILDERS["cdt_tiny"](), tile=16, overlap=8)


def foreign(name: str) -> Tokenizer:
    """A published tokenizer, small."""
    return create(name, reduced=True)  # type: ignore[return-value]


FOREIGN = ("wan21_vae", "wan22_vae", "sd_vae_ft_mse", "flux2_vae", "taesd", "dc_ae_f32c32_sana")
"""One of each class of diffusers that streams, and both structures of Wan."""

STREAMING: dict[str, Callable[[], Tokenizer]] = {
    **BUILDERS,
    "cdt_tiled": cdt_tiled,
    **{name: partial(foreign, name) for name in FOREIGN},
}
"""All that must stream: the nets, and what runs them otherwise."""


def make(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tokenizer:
    """A net whose every parameter matters: zero-initialised ones are filled, shortcuts fitted."""
    torch.manual_seed(seed)
    net = STREAMING[name]().to(dtype).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for module in net.modules():
        if isinstance(module, BlockPCA):
            module.fit([torch.rand(2, 3, 17, 32, 32, dtype=dtype) * 2 - 1])
    return net.requires_grad_(False)


def video(
    frames: int = 9, height: int = 16, width: int = 24, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Noise of two clips; any dependence shows on it."""
    generator = torch.Generator().manual_seed(frames)
    noise = torch.rand(2, 3, frames, height, width, generator=generator, dtype=torch.float64)
    return (2 * noise - 1).to(dtype)
