"""Settings of the video generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from zoo.diffusion.paths import PathKind
from zoo.errors import UserError

Attention = Literal["full", "factorised"]


@dataclass(frozen=True, kw_only=True)
class VideoDiTConfig:
    """Architecture, and what the weights were trained on.

    Attributes:
        latent_channels: c of the tokenizer.
        compression: (t,h,w) of the tokenizer.
        dim, depth, heads: width, blocks and attention heads.
        mlp_ratio: hidden width of the feed-forward layers over `dim`.
        patch: rows and columns of latents a token holds.
        text_dim: channels of the text states.
        attention: "full": over all latents of a clip; "factorised": blocks alternate between space
            and time, as in Latte (arXiv 2401.03048).
        chunk: latents that are denoised together.
        window: latents before a chunk that it sees; a multiple of `chunk`.
        path: what the net predicts, see `zoo.diffusion.paths`.
        latent_size: (h,w) of the training clips, the size generated when none is asked for.
        rate: frames a second of the training films.
        tokenizer: the tokenizer's name; a copy travels with the weights where it has none.
        tokenizer_sha256: of its weights.
    """

    latent_channels: int = 16
    compression: tuple[int, ...] = (4, 8, 8)
    dim: int = 192
    depth: int = 6
    heads: int = 6
    mlp_ratio: int = 4
    patch: int = 1
    text_dim: int = 384
    attention: Attention = "full"
    chunk: int = 1
    window: int = 4
    path: PathKind = "rectified_flow"
    latent_size: tuple[int, ...] = (8, 8)
    rate: float = 12.5
    tokenizer: str = ""
    tokenizer_sha256: str = ""

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise UserError(
                f"dim = {self.dim} with {self.heads} heads: give heads of an even width"
            )
        if self.attention == "factorised" and self.depth < 2:
            raise UserError("depth = 1 with factorised attention has no block over time: give 2")
        if self.chunk < 1 or self.window < 0 or self.window % self.chunk:
            raise UserError(
                f"chunk = {self.chunk} and window = {self.window}: give a chunk of at least 1 and "
                "a window that is a multiple of it"
            )
        for name, kind in (("attention", Attention), ("path", PathKind)):
            if getattr(self, name) not in get_args(kind):
                known = " or ".join(get_args(kind))
                raise UserError(f"{name} = '{getattr(self, name)}': give {known}")
