"""The transformer block of the video generator, and its rotary positions."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels import attention

Over = Literal["all", "space", "time"]
_SPACE_BASE, _TIME_BASE = 100.0, 100.0  # longest wavelengths, in latents: grids are small


class Angles(NamedTuple):
    """Cosines and sines of the rotary positions, [m,s,D/2]: of m latents with s tokens."""

    cos: Tensor
    sin: Tensor


class RotaryPositions(nn.Module):
    """Rotary positions (arXiv 2104.09864) in time, height and width, a third of a head each.

    Only differences of positions count. Keys are kept unrotated, so that a stream can number its
    window from 0 in every chunk and its angles stay exact at any length.

    Args:
        width: channels of a head, even.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = width // 6
        self.time = width // 2 - 2 * self.space

    def forward(self, place: Tensor, rows: int, columns: int, *, dtype: torch.dtype) -> Angles:
        """Angles of latents at times `place` [m] with rows x columns tokens."""
        device = place.device
        down, across = (torch.arange(n, device=device, dtype=dtype) for n in (rows, columns))
        time = place.to(dtype)[:, None] * _frequencies(self.time, _TIME_BASE, device, dtype)
        step = _frequencies(self.space, _SPACE_BASE, device, dtype)
        height, width = down[:, None] * step, across[:, None] * step
        shape = (len(place), rows, columns, -1)
        angle = torch.cat(
            [
                time[:, None, None].expand(shape),
                height[None, :, None].expand(shape),
                width[None, None].expand(shape),
            ],
            dim=-1,
        ).flatten(1, 2)
        return Angles(angle.cos(), angle.sin())


def _frequencies(count: int, base: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    share = torch.arange(count, device=device, dtype=dtype) / max(1, count)
    return torch.tensor(base, device=device, dtype=dtype) ** -share


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Turn pairs of channels of [B,m,s,H,D] by `angles`, in their precision."""
    a, b = x.to(angles.cos).chunk(2, dim=-1)
    cos, sin = angles.cos[:, :, None], angles.sin[:, :, None]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def sinusoids(times: Tensor, dim: int) -> Tensor:
    """Times in [0,1], any shape, to [...,dim] cosines and sines of 1000 t."""
    half = dim // 2
    steps = torch.arange(half, device=times.device) / half
    wide = times.to(torch.promote_types(times.dtype, torch.float32))
    angle = 1000 * wide[..., None] * torch.exp(-math.log(10000) * steps)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Block(nn.Module):
    """Self-attention, cross-attention to text and a feed-forward layer, modulated by time."""

    def __init__(self, dim: int, *, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.cross_q = nn.Linear(dim, dim)
        self.cross_kv = nn.Linear(dim, 2 * dim)
        self.cross_out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_ratio * dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(mlp_ratio * dim, dim),
        )
        self.table = nn.Parameter(torch.randn(6, dim) / math.sqrt(dim))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: Tensor,
        angles: Angles,
        mask: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
        over: Over,
        backend: str,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """One block.

        Args:
            x: tokens [B,n,s,d].
            modulation: [B,n,6,d].
            text: [B,L,d].
            angles: of the kept latents and these, m = kept + n.
            mask: bool [n,m], which latents see which; None: all.
            past: unrotated keys and values of kept latents [B,kept,s,d].
            over: what self-attention goes over.
            backend: of the attention kernels.

        Returns:
            Tokens [B,n,s,d], and keys and values of all m latents (None: `over` is "space").
        """
        parts = (self.table + modulation)[:, :, None].unbind(3)
        shift, scale, gate, shift_2, scale_2, gate_2 = parts
        h = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        h, kept = self._attend(h, angles, mask, past, over, backend)
        x = x + gate * self.out(h)
        x = x + self._cross(F.layer_norm(x, x.shape[-1:]), text, backend)
        h = F.layer_norm(x, x.shape[-1:]) * (1 + scale_2) + shift_2
        return x + gate_2 * self.mlp(h), kept

    def _attend(
        self,
        x: Tensor,
        angles: Angles,
        mask: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
        over: Over,
        backend: str,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        n, s = x.shape[1:3]
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        kept = None
        if over != "space":
            if past is not None:
                k, v = torch.cat([past[0].to(k), k], 1), torch.cat([past[1].to(v), v], 1)
            kept = (k, v)
        own = Angles(angles.cos[-n:], angles.sin[-n:])
        # unit length before the product keeps its softmax from saturating (arXiv 2302.05442)
        q = rotate(_unit(self._split(q)), own)
        k = rotate(_unit(self._split(k)), own if over == "space" else angles)
        v = self._split(v)
        if over == "all":
            if mask is not None:
                mask = mask.repeat_interleave(s, 0).repeat_interleave(s, 1)
            q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v))
            y = attention(q, k, v, mask=mask, backend=backend)
            return torch.unflatten(y.transpose(1, 2).flatten(2), 1, (n, s)), kept
        if over == "space":
            q, k, v = (part.flatten(0, 1).transpose(1, 2) for part in (q, k, v))
            y = attention(q, k, v, backend=backend)
            return torch.unflatten(y.transpose(1, 2).flatten(2), 0, (-1, n)), None
        q, k, v = (part.transpose(1, 2).flatten(0, 1).transpose(1, 2) for part in (q, k, v))
        y = attention(q, k, v, mask=mask, backend=backend)
        return torch.unflatten(y.transpose(1, 2).flatten(2), 0, (-1, s)).transpose(1, 2), kept

    def _cross(self, x: Tensor, text: Tensor, backend: str) -> Tensor:
        n, s = x.shape[1:3]
        q = self._split(self.cross_q(x)).flatten(1, 2).transpose(1, 2)
        k, v = (self._split(part).transpose(1, 2) for part in self.cross_kv(text).chunk(2, dim=-1))
        y = attention(q, k, v, backend=backend).transpose(1, 2).flatten(2)
        out: Tensor = self.cross_out(torch.unflatten(y, 1, (n, s)))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1))


def _unit(x: Tensor) -> Tensor:
    """RMS norm over a head."""
    return F.rms_norm(x, x.shape[-1:])


def patches(x: Tensor, patch: int) -> Tensor:
    """[B,c,n,h,w] to [B,n,h w / patch^2,c patch^2]."""
    x = torch.unflatten(torch.unflatten(x, 4, (-1, patch)), 3, (-1, patch))
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)


def unpatches(tokens: Tensor, like: Tensor, patch: int) -> Tensor:
    """The inverse of `patches`, of the shape of `like`."""
    _, channels, _, height, width = like.shape
    x = torch.unflatten(tokens, 3, (channels, patch, patch))
    x = torch.unflatten(x, 2, (height // patch, width // patch))
    return x.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)
