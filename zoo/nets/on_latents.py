"""Nets that work on a tokenizer's latents and know which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.nets.pretrained import Pretrained
from zoo.nets.tokenizer import Tokenizer
from zoo.nets.video_dit_config import VideoDiTConfig


class OnLatents(Pretrained):
    """A generator bound to one tokenizer: its shapes, statistics and weights.

    Attributes:
        latent_mean, latent_std: [c], the tokenizer's; 0 and 1 until `bind`.
    """

    config: VideoDiTConfig
    latent_mean: Tensor
    latent_std: Tensor

    def _register_latent_statistics(self) -> None:
        self.register_buffer("latent_mean", torch.zeros(self.config.latent_channels))
        self.register_buffer("latent_std", torch.ones(self.config.latent_channels))

    def bind(
        self, tokenizer: Tokenizer, *, name: str, size: Sequence[int], rate: float, weights: str
    ) -> None:
        """Take over a tokenizer's normalisation and identity; called before training.

        Args:
            tokenizer: what makes the latents.
            name: its name, `dir:` for one that travels with this net's folder.
            size: (h,w) of the clips trained on.
            rate: frames a second of their films.
            weights: sha256 of its weights.

        Raises:
            UserError: its latents have another shape, or no statistics.
        """
        self.check_tokenizer(tokenizer, name=name)
        mean, std = tokenizer.latent_mean, tokenizer.latent_std
        if bool((mean == 0).all()) and bool((std == 1).all()):
            raise UserError(
                f"{name} has no latent statistics (mean 0, std 1): a generator needs normalised "
                "latents, export the tokenizer with train.py"
            )
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)
        self.config = replace(
            self.config,
            tokenizer=name,
            tokenizer_sha256=weights,
            latent_size=tuple(size),
            rate=float(rate),
        )

    def check_tokenizer(self, tokenizer: Tokenizer, *, name: str, weights: str = "") -> None:
        """Refuse a tokenizer of other latents.

        Raises:
            UserError: another shape or, where `weights` is its sha256, other weights; both named.
        """
        config = self.config
        ours = (config.latent_channels, tuple(config.compression))
        theirs = (tokenizer.latent_channels, tuple(tokenizer.compression))
        if ours != theirs:
            said = [f"{c} channels, {t}x{h}x{w} pixels a latent" for c, (t, h, w) in (ours, theirs)]
            raise UserError(
                f"this generator makes latents of {said[0]}, {name} those of {said[1]}: "
                "give the tokenizer it was trained with"
            )
        if weights and weights != config.tokenizer_sha256:
            raise UserError(
                f"this generator makes latents of {config.tokenizer or 'no tokenizer yet'} "
                f"(weights {config.tokenizer_sha256[:8]}), not of {name} (weights {weights[:8]}): "
                "give the tokenizer it was trained with"
            )

    def normalize(self, z: Tensor) -> Tensor:
        """A tokenizer's latents [B,c,t,h,w] as this net knows them."""
        shape = (1, -1, 1, 1, 1)
        return (z - self.latent_mean.view(shape)) / self.latent_std.view(shape)

    def denormalize(self, z: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        shape = (1, -1, 1, 1, 1)
        return z * self.latent_std.view(shape) + self.latent_mean.view(shape)
