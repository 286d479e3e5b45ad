"""CDT: a video tokenizer whose decoder is a causal, conditioned diffusion model.

arXiv 2503.03708. One sampling step is the usual setting; more steps keep one UNet state each, so
that a chunk of a stream leaves only when all its steps are done and the context is decoded once.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from zoo.diffusion.samplers import Noise, ddim_step
from zoo.diffusion.schedule import cosine_alpha_bar, cosine_alpha_bars, sampling_indices
from zoo.nets.cdt_context import ContextDecoder, Encoder
from zoo.nets.cdt_unet import CDTConfig, DenoisingUNet
from zoo.nets.posterior import Posterior
from zoo.nets.tokenizer import Size, Tokenizer
from zoo.registry import register
from zoo.streaming import Carry, State, name_slots


class CDT(Tokenizer):
    """Encoder, context decoder and denoising UNet."""

    architecture: ClassVar[str] = "cdt"
    config_class = CDTConfig
    config: CDTConfig

    def __init__(self, config: CDTConfig) -> None:
        super().__init__()
        self.config = config
        self.compression: Size = config.compression
        self.latent_channels = config.latent_channels
        self._register_latent_statistics()
        self.encoder = self._build_encoder()
        self.context = ContextDecoder(config)
        self.unet = DenoisingUNet(config)
        self.pca = config.build_pca()
        # kept, because torch.compile would trace the making of a thousand numbers
        self._alpha_bars = cosine_alpha_bars(config.timesteps)
        name_slots(self)

    def _build_encoder(self) -> nn.Module:
        return Encoder(self.config)

    @property
    def alpha_bar(self) -> Tensor:
        """The noise schedule, [timesteps], float64 on the CPU."""
        return cosine_alpha_bar(self.config.timesteps)

    def denoise(
        self,
        x: Tensor,
        index: Tensor,
        contexts: list[Tensor],
        *,
        base: Tensor | None = None,
        carry: Carry | None = None,
    ) -> Tensor:
        """Predict x0 [B,3,T,H,W] of noisy `x` at schedule indices `index` [B].

        `contexts` and `base` are what `conditions` returned for the same frames.
        """
        t = index.to(x.device, torch.float32) / self.config.timesteps
        x0: Tensor = self.unet(x, t, contexts, base=base, carry=carry)
        return x0

    def conditions(
        self, z: Tensor, carry: Carry | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """What the UNet is given for latents `z`: contexts and the shortcut's picture."""
        contexts: list[Tensor] = self.context(z, carry)
        return contexts, None if self.pca is None else self.pca.expand(z, carry)

    def with_sampling(self, *, gamma: float | None = None, eta: float | None = None) -> Self:
        """This net, sharing its weights, with another gamma or eta; the original stays as it is.

        Raises:
            UserError: gamma < 0, or eta outside [0, 1].
        """
        net = copy.copy(self)
        net.config = replace(
            self.config,
            gamma=self.config.gamma if gamma is None else gamma,
            eta=self.config.eta if eta is None else eta,
        )
        return net

    def _encode(self, x: Tensor, carry: Carry | None) -> Posterior:
        posterior = Posterior.from_moments(self.encoder(x, carry))
        if self.pca is None:
            return posterior
        return Posterior(posterior.mean + self.pca.project(x, carry), posterior.logvar)

    def noise_needed(
        self, z: Tensor, state: State | None, *, steps: int
    ) -> tuple[Tensor, int] | None:
        """A frame like those of this chunk, and how many noise fields decoding it draws."""
        return self._noise_needed(z, state is not None and "begun" in state, steps)

    def _noise_needed(self, z: Tensor, begun: bool, steps: int) -> tuple[Tensor, int]:
        time, height, width = self.compression
        frames = z.shape[2] * time if begun else 1 + (z.shape[2] - 1) * time
        frame = z.new_empty(z.shape[0], 3, 1, z.shape[3] * height, z.shape[4] * width)
        return frame, frames * self._draws(steps)

    def _draws(self, steps: int) -> int:
        """Noise fields a frame."""
        return steps if self.config.eta and steps > 1 else 1

    def _decode(self, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise) -> Tensor:
        contexts, base = self.conditions(z, carry)
        begun = carry is not None and carry.read("begun") is not None
        if carry:
            carry.write("begun", z.new_empty(z.shape[0], 0))
        # all draws of a frame come before those of the next: chunks draw what the whole draws
        draws = self._draws(steps)
        fields = noise(*self._noise_needed(z, begun, steps))
        x = self.config.gamma * fields[:, :, ::draws]
        alpha_bar = self._alpha_bars
        indices = sampling_indices(self.config.timesteps, steps)
        for step, index in enumerate(indices):
            x0 = self.denoise(
                x,
                torch.full((len(x),), index, device=x.device),
                contexts,
                base=base,
                carry=carry.scope(f"step{step}") if carry else None,
            )
            following = alpha_bar[indices[step + 1]] if step + 1 < steps else 1.0
            x = ddim_step(
                x,
                x0,
                alpha_bar=alpha_bar[index],
                next_alpha_bar=following,
                eta=self.config.eta,
                noise=fields[:, :, step + 1 :: draws] if step + 1 < draws else None,
            )
        return x


@register(family="cdt")
def cdt_tiny(
    *,
    latent_channels: int = 16,
    context_dim: int = 48,
    unet_dim: int = 32,
    context_norm: bool = True,
    gamma: float = 0.8,
) -> CDT:
    """4x8x8, 16 latent channels, under 4 M parameters: trains on a CPU."""
    return CDT(
        CDTConfig(
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
            unet_dim=unet_dim,
            unet_mults=(1, 2, 3),
            condition_times=3,
            level_blocks=1,
            context_norm=context_norm,
            top_blocks=2,
            gamma=gamma,
        )
    )


@register(family="cdt")
def cdt_small(
    *,
    latent_channels: int = 16,
    context_dim: int = 64,
    unet_dim: int = 64,
    context_norm: bool = False,
    gamma: float = 0.8,
) -> CDT:
    """4x8x8, 16 latent channels, 120.67 M parameters: the structure of the released CDT-small."""
    return CDT(
        CDTConfig(
            latent_channels=latent_channels,
            context_dim=context_dim,
            unet_dim=unet_dim,
            context_norm=context_norm,
            gamma=gamma,
        )
    )


@register(family="cdt")
def cdt_base(
    *,
    latent_channels: int = 16,
    context_dim: int = 128,
    unet_dim: int = 64,
    context_norm: bool = False,
    gamma: float = 0.8,
) -> CDT:
    """4x8x8, 16 latent channels, 192.59 M parameters: the structure of the released CDT-base."""
    return CDT(
        CDTConfig(
            latent_channels=latent_channels,
            context_dim=context_dim,
            context_channels=16,
            space_down=(0, 1, 1, 1),
            padding="zeros",
            upsampling="nearest",
            unet_dim=unet_dim,
            context_norm=context_norm,
            gamma=gamma,
        )
    )


__all__ = ["CDT", "CDTConfig", "cdt_base", "cdt_small", "cdt_tiny"]
