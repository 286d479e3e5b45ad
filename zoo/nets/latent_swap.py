"""A linear map from one tokenizer's latents to another's.

A generator makes latents of the tokenizer that it was trained with. How well a linear map takes
them to another tokenizer's says whether the generator can be kept while the tokenizer changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm
from typing import ClassVar

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.nets.pretrained import Pretrained
from zoo.nets.tokenizer import Size


@dataclass(frozen=True, kw_only=True)
class LatentSwapConfig:
    """Between which latents: channels and compression (time, height, width) of both."""

    source_channels: int
    target_channels: int
    source_compression: tuple[int, ...]
    target_compression: tuple[int, ...]


class LatentSwap(Pretrained):
    """Latents of a source tokenizer to those of a target, block by block.

    A block is the smallest piece of the film that both code with whole latents: as many pixels as
    the least common multiple of their compressions on each axis. The first frame, which both code
    alone, has a map of its own. The map takes all source latents of a block, and a 1, to all target
    latents of it. `fit` reads pairs one after the other and keeps two sums of products.
    """

    architecture: ClassVar[str] = "latent_swap"
    config_class = LatentSwapConfig
    config: LatentSwapConfig

    def __init__(self, config: LatentSwapConfig) -> None:
        super().__init__()
        self.config = config
        self.block: Size = tuple(  # type: ignore[assignment]
            lcm(a, b)
            for a, b in zip(config.source_compression, config.target_compression, strict=True)
        )
        # latents of a block, per axis
        self._source = _ratio(self.block, config.source_compression)
        self._target = _ratio(self.block, config.target_compression)
        for name, first in (("first_", True), ("", False)):
            inputs, outputs = (
                channels * _cells(shape, first=first)
                for channels, shape in (
                    (config.source_channels, self._source),
                    (config.target_channels, self._target),
                )
            )
            self.register_buffer(f"{name}weight", torch.zeros(inputs + 1, outputs))

    def forward(self, z: Tensor) -> Tensor:
        """Target latents [B,C,t',h',w'] of source latents [B,c,t,h,w] of whole blocks.

        Raises:
            UserError: latents that don't make whole blocks.
        """
        count, height, width = self._source
        if (
            z.ndim != 5
            or z.shape[1] != self.config.source_channels
            or (z.shape[2] - 1) % count
            or z.shape[3] % height
            or z.shape[4] % width
        ):
            raise UserError(
                f"latents of shape {tuple(z.shape)} don't make whole blocks: give "
                f"[B,{self.config.source_channels},1 + k * {count},i * {height},j * {width}]"
            )
        pieces = []
        for name, part in _parts(z, self._source):
            first = name == "first_"
            weight: Tensor = getattr(self, f"{name}weight").to(z)
            made = part @ weight[:-1] + weight[-1]
            pieces.append(_unblock(made, self._target, self.config.target_channels, first=first))
        return torch.cat(pieces, dim=2)

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> LatentSwap:
        """Least squares over pairs of latents (source, target) of the same clips.

        Raises:
            UserError: fewer blocks than a map has inputs.
        """
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for given, wanted in pairs:
            for (name, x), (_, y) in zip(
                _parts(given, self._source), _parts(wanted, self._target), strict=True
            ):
                x, y = x.flatten(0, -2).double(), y.flatten(0, -2).double()
                x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
                outer, cross = sums.get(name, (torch.zeros(()), torch.zeros(())))
                sums[name] = outer.to(x) + x.T @ x, cross.to(x) + x.T @ y
        for name in ("first_", ""):
            weight: Tensor = getattr(self, f"{name}weight")
            seen = int(sums[name][0][-1, -1]) if name in sums else 0
            if seen < len(weight):
                raise UserError(
                    f"{seen} blocks of {'x'.join(map(str, self.block))} pixels can't fit "
                    f"{len(weight)} inputs: give more, longer or larger clips"
                )
            outer, cross = sums[name]
            # a channel that never changes would make the system singular
            ridge = 1e-8 * outer.diagonal().mean() * torch.eye(len(outer)).to(outer)
            weight.copy_(torch.linalg.solve(outer + ridge, cross))
        return self


def _ratio(block: Size, compression: tuple[int, ...]) -> Size:
    t, h, w = (b // c for b, c in zip(block, compression, strict=True))
    return t, h, w


def _cells(shape: Size, *, first: bool) -> int:
    return shape[1] * shape[2] * (1 if first else shape[0])


def _parts(z: Tensor, shape: Size) -> list[tuple[str, Tensor]]:
    """Blocks of the first frame and of the rest, [B,k,i,j,inputs] each; no rest where T is 1."""
    parts = [("first_", _to_blocks(z[:, :, :1], (1, *shape[1:])))]
    if z.shape[2] > 1:
        parts.append(("", _to_blocks(z[:, :, 1:], shape)))
    return parts


def _to_blocks(z: Tensor, shape: Size) -> Tensor:
    batch, channels, *sides = z.shape
    t, h, w = shape
    k, i, j = (side // size for side, size in zip(sides, shape, strict=True))
    z = z.reshape(batch, channels, k, t, i, h, j, w)
    # b c k t i h j w -> b k i j (c t h w)
    return z.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _unblock(blocks: Tensor, shape: Size, channels: int, *, first: bool) -> Tensor:
    """The inverse of `_to_blocks`: [B,C,k*t,i*h,j*w]."""
    batch, k, i, j, _ = blocks.shape
    _, h, w = shape
    t = 1 if first else shape[0]
    cells = blocks.reshape(batch, k, i, j, channels, t, h, w)
    # b k i j c t h w -> b c k t i h j w
    z = cells.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return z.reshape(batch, channels, k * t, i * h, j * w)


__all__ = ["LatentSwap", "LatentSwapConfig"]
