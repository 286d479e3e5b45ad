"""Frames of any size in the memory of a tile: encode and decode cut them into overlapping tiles.

`Tiled(net)` is a tokenizer itself, so whole clips, streams and command lines use it like the net:
space is cut into tiles and time streams as ever, each tile with a state of its own. Overlaps are
blended with linear ramps; a diffusion decoder's tiles cut their noise out of one frame-wide field,
which is the noise that the undivided net draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.diffusion.samplers import Noise, NoiseField
from zoo.errors import UserError
from zoo.nets.posterior import Posterior
from zoo.nets.tokenizer import Size, Tokenizer
from zoo.parking import park, unpark
from zoo.streaming import Carry

Span = tuple[int, int]


class Tile(NamedTuple):
    """A tile's name in the stream's state, its place in latents and its weights at some scale."""

    name: str
    rows: Span
    columns: Span
    weight: Tensor


class Tiled(Tokenizer):
    """A tokenizer that runs another one tile by tile.

    A net needs the memory that one tile needs, whatever the frame is: the states of the tiles wait
    in files meanwhile. What grows with the frame are the pixels of a chunk.

    Args:
        net: any tokenizer; it is shared, not copied.
        tile: pixels of a tile, (height, width) or one number for both; multiples of the net's
            compression.
        overlap: pixels that neighbours share at least, likewise. None: a quarter of the tile, at
            least four latents where that is no more than half of it.

    Raises:
        UserError: tile or overlap don't fit the compression or each other.
    """

    def __init__(
        self,
        net: Tokenizer,
        *,
        tile: int | tuple[int, int] = 256,
        overlap: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.config = net.config
        self.compression: Size = net.compression
        self.latent_channels = net.latent_channels
        self.streams = net.streams
        self.register_buffer("latent_mean", net.latent_mean, persistent=False)
        self.register_buffer("latent_std", net.latent_std, persistent=False)
        self.train(net.training)
        height, width = (tile, tile) if isinstance(tile, int) else tile
        if overlap is None:
            _, h, w = net.compression
            overlap = _usual_overlap(height, h), _usual_overlap(width, w)
        elif isinstance(overlap, int):
            overlap = overlap, overlap
        # in latents, (rows, columns)
        self.tile = _in_latents("tile", (height, width), net.compression)
        self.overlap = _in_latents("overlap", overlap, net.compression)
        for shared, size, pixels in zip(self.overlap, self.tile, (height, width), strict=True):
            if shared >= size:
                raise UserError(
                    f"an overlap of {overlap[0]}x{overlap[1]} leaves nothing of a tile of "
                    f"{pixels} pixels: give a larger tile or a smaller overlap"
                )

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the net itself: tiles are a way to run it."""
        self.net.save_pretrained(folder)

    def _tiles(self, height: int, width: int, scale: tuple[int, int]) -> Iterator[Tile]:
        """Tiles of a frame of `height` x `width` latents, weighted at `scale` pixels a latent."""
        rows = spans(height, self.tile[0], self.overlap[0])
        columns = spans(width, self.tile[1], self.overlap[1])
        down, across = ramps(rows, scale[0]), ramps(columns, scale[1])
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                yield Tile(f"tile{i}.{j}", row, column, down[i][:, None] * across[j])

    def _encode(self, x: Tensor, carry: Carry | None) -> Posterior:
        _, h, w = self.compression
        height, width = x.shape[3] // h, x.shape[4] // w
        _check_frame(carry, x)
        mean, logvar = Canvas(x.dtype, height, width), Canvas(x.dtype, height, width)
        for tile in self._tiles(height, width, (1, 1)):
            (top, bottom), (left, right) = tile.rows, tile.columns
            memory = _recall(carry, tile, x.device)
            cut = x[..., top * h : bottom * h, left * w : right * w]
            posterior = self.net._encode(cut, memory)
            _keep(carry, tile, memory)
            mean.add(posterior.mean, tile.weight, top, left)
            if posterior.logvar is not None:
                logvar.add(posterior.logvar, tile.weight, top, left)
        return Posterior(mean.done(), None if posterior.logvar is None else logvar.done())

    def _decode(self, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise) -> Tensor:
        _, h, w = self.compression
        height, width = z.shape[3] * h, z.shape[4] * w
        _check_frame(carry, z)
        field = NoiseField(noise, height=height, width=width)
        canvas = Canvas(z.dtype, height, width)
        for tile in self._tiles(z.shape[3], z.shape[4], (h, w)):
            (top, bottom), (left, right) = tile.rows, tile.columns
            memory = _recall(carry, tile, z.device)
            x = self.net._decode(
                z[..., top:bottom, left:right],
                memory,
                steps=steps,
                noise=field.window(top * h, left * w),
            )
            _keep(carry, tile, memory)
            canvas.add(x, tile.weight, top * h, left * w)
        return canvas.done()


class Canvas:
    """Weighted sum of tiles, in float32 at least: bfloat16 sums would show as seams."""

    def __init__(self, dtype: torch.dtype, height: int, width: int) -> None:
        self._dtype = dtype
        self._size = height, width
        self._sum: Tensor | None = None

    def add(self, part: Tensor, weight: Tensor, top: int, left: int) -> None:
        """Add a tile [B,C,T,H,W] whose corner lies at (top, left), times its weight [H,W]."""
        wide = torch.promote_types(self._dtype, torch.float32)
        if self._sum is None:
            self._sum = part.new_zeros(*part.shape[:3], *self._size, dtype=wide)
        height, width = part.shape[3:]
        place = self._sum[..., top : top + height, left : left + width]
        place.add_(part.to(wide) * weight.to(part.device, wide))

    def done(self) -> Tensor:
        """The sum [B,C,T,H,W]."""
        assert self._sum is not None
        return self._sum.to(self._dtype)


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Cover [0, length) with as few (start, stop) of `tile` as share `overlap` or more.

    They are spread evenly over multiples of the greatest common divisor of tile and overlap, where
    the coarser grids inside a net lie as in the undivided frame; the last one may be smaller.
    """
    if length <= tile:
        return [(0, length)]
    grid = gcd(tile, overlap)
    last = -(-(length - tile) // grid)
    count = -(-last * grid // (tile - overlap))
    starts = [i * last // count * grid for i in range(count + 1)]
    return [(start, min(start + tile, length)) for start in starts]


def ramps(places: list[Span], scale: int) -> list[Tensor]:
    """Weights of spans at `scale` positions a unit, [(stop - start) * scale] each.

    They rise and fall linearly over what neighbours share and sum to 1 at each position.
    """
    weights = []
    total = torch.zeros(places[-1][1] * scale)
    for i, (start, stop) in enumerate(places):
        centre = torch.arange(start * scale, stop * scale) + 0.5
        weight = torch.ones_like(centre)
        if i > 0:
            shared = (places[i - 1][1] - start) * scale
            weight = torch.minimum(weight, (centre - start * scale) / shared)
        if i + 1 < len(places):
            shared = (stop - places[i + 1][0]) * scale
            weight = torch.minimum(weight, (stop * scale - centre) / shared)
        total[start * scale : stop * scale] += weight
        weights.append(weight)
    return [
        weight / total[start * scale : stop * scale]
        for weight, (start, stop) in zip(weights, places, strict=True)
    ]


def _in_latents(what: str, pixels: tuple[int, int], compression: Size) -> tuple[int, int]:
    for given, unit in zip(pixels, compression[1:], strict=True):
        if given < unit or given % unit:
            below = max(unit, given // unit * unit)
            raise UserError(
                f"{what} {given} is no multiple of the net's compression, {unit} pixels: "
                f"give {below} or {below + unit}"
            )
    return pixels[0] // compression[1], pixels[1] // compression[2]


def _usual_overlap(side: int, unit: int) -> int:
    """A quarter of the tile, but four latents where half of it has them: what seams need."""
    latents = side // unit
    return max(1, min(latents // 2, max(latents // 4, 4))) * unit


def _check_frame(carry: Carry | None, x: Tensor) -> None:
    """Refuse another frame size in the middle of a stream: its tiles would find no state."""
    if carry is None:
        return
    size = x.new_tensor(x.shape[3:])
    before = carry.read("frame")
    if before is not None and not torch.equal(before[0], size):
        raise UserError(f"frames of {tuple(x.shape[3:])} don't continue this stream of {before[0]}")
    carry.write("frame", size.expand(len(x), 2))


def _recall(carry: Carry | None, tile: Tile, device: torch.device) -> Carry | None:
    if carry is None:
        return None
    return Carry(unpark(carry.take(tile.name), device))


def _keep(carry: Carry | None, tile: Tile, memory: Carry | None) -> None:
    if carry is not None and memory is not None:
        # a tile's turn comes once a chunk: until then its state need not be in memory
        carry.put(tile.name, park(memory.state))


__all__ = ["Tiled"]
