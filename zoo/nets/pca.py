"""Principal components of pixel blocks: the linear tokenizer that any net has to beat.

One block is (time x height x width x 3) numbers, (1 x height x width x 3) in the first frame, each
with its own basis. It serves twice: as a baseline in tables, and as the fixed shortcut beside the
learned layers of the small nets, so that training starts from the best linear code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from zoo.diffusion.samplers import Noise
from zoo.errors import UserError
from zoo.kernels.precision import full_precision
from zoo.nets.posterior import Posterior
from zoo.nets.tokenizer import Size, Tokenizer, missing_frames, pad_space, pad_time
from zoo.streaming import Carry, Temporal, name_slots, windows


@dataclass(frozen=True, kw_only=True)
class PCAConfig:
    """latent_channels: components kept of each block; compression: the block (t, h, w)."""

    latent_channels: int = 16
    compression: tuple[int, ...] = (4, 8, 8)


class BlockPCA(Tokenizer, Temporal):
    """Whitened PCA of blocks. Zeros until `fit`: it then encodes to 0 and decodes to 0."""

    architecture: ClassVar[str] = "pca"
    config_class = PCAConfig

    first_mean: Tensor
    first_basis: Tensor
    mean: Tensor
    basis: Tensor

    def __init__(self, config: PCAConfig) -> None:
        super().__init__()
        self.config = config
        t, h, w = config.compression
        self.compression: Size = (t, h, w)
        self.latent_channels = config.latent_channels
        self._register_latent_statistics()
        for name, size in (("first_", 3 * h * w), ("", 3 * t * h * w)):
            self.register_buffer(f"{name}mean", torch.zeros(size))
            # rows: orthogonal directions, each as long as the standard deviation along it
            self.register_buffer(f"{name}basis", torch.zeros(config.latent_channels, size))
        name_slots(self)

    @torch.no_grad()
    def fit(self, clips: Iterable[Tensor]) -> BlockPCA:
        """Fit both bases on clips [B,3,T,H,W] in [-1,1]; first frames feed the first basis.

        Raises:
            UserError: fewer blocks than components.
        """
        moments: dict[str, tuple[int, Tensor, Tensor]] = {}
        for clip in clips:
            x = pad_space(clip, self.compression)
            x = pad_time(x, missing_frames(x.shape[2], self.compression[0]))
            # a block of one frame is the same block whether its frame is the first or not
            first, rest = (x, x) if self.compression[0] == 1 else (x[:, :, :1], x[:, :, 1:])
            for name, frames, time in (("first_", first, 1), ("", rest, self.compression[0])):
                if frames.shape[2]:
                    blocks = self._blocks(frames, time=time).flatten(0, -2).double()
                    count, total, outer = moments.get(name, (0, torch.zeros(()), torch.zeros(())))
                    moments[name] = (
                        count + len(blocks),
                        total + blocks.sum(0),
                        outer + blocks.T @ blocks,
                    )
        for name in ("first_", ""):
            if name not in moments or moments[name][0] < self.latent_channels:
                least = 1 if self.compression[0] == 1 else 1 + self.compression[0]
                raise UserError(
                    f"a block PCA needs clips of at least {least} frames and "
                    f"{self.latent_channels} blocks"
                )
            count, total, outer = moments[name]
            mean = total / count
            values, vectors = torch.linalg.eigh(outer / count - mean[:, None] * mean)
            std = values.clamp_min(1e-12).sqrt().flip(0)[: self.latent_channels]
            basis = vectors.T.flip(0)[: self.latent_channels] * std[:, None]
            getattr(self, f"{name}mean").copy_(mean)
            getattr(self, f"{name}basis").copy_(basis)
        return self

    @torch.no_grad()
    def fit_readout(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> BlockPCA:
        """Fit `expand` alone, to another net's codes: least squares from codes to blocks.

        Args:
            pairs: codes [B,c,t,h,w] and the clips [B,3,T,H,W] that they are of.

        Raises:
            UserError: fewer blocks than channels.
        """
        sums: dict[str, list[Tensor]] = {}
        for codes, clip in pairs:
            x = pad_space(clip, self.compression)
            x = pad_time(x, missing_frames(x.shape[2], self.compression[0]))
            one = self.compression[0] == 1  # then all blocks are alike, as in `fit`
            for name, z, frames, time in (
                ("first_", *((codes, x) if one else (codes[:, :, :1], x[:, :, :1])), 1),
                ("", *((codes, x) if one else (codes[:, :, 1:], x[:, :, 1:])), self.compression[0]),
            ):
                if z.shape[2]:
                    blocks = self._blocks(frames, time=time).flatten(0, -2).double()
                    given = z.movedim(1, -1).flatten(0, -2).double()
                    ones = torch.ones_like(given[:, :1])
                    given = torch.cat([given, ones], dim=1)  # the last row of the fit is the mean
                    new = [given.T @ given, given.T @ blocks]
                    old = sums.get(name, new)
                    sums[name] = (
                        new if old is new else [a + b for a, b in zip(old, new, strict=True)]
                    )
        for name in ("first_", ""):
            if name not in sums or sums[name][0][-1, -1] <= self.latent_channels:
                raise UserError(
                    f"a readout needs clips of more than {self.compression[0]} frames and over "
                    f"{self.latent_channels} blocks"
                )
            outer, cross = sums[name]
            # a channel that never changes would make the system singular
            ridge = 1e-6 * outer.diagonal().mean() * torch.eye(len(outer), device=outer.device)
            fit = torch.linalg.solve(outer + ridge, cross)
            getattr(self, f"{name}basis").copy_(fit[:-1])
            getattr(self, f"{name}mean").copy_(fit[-1])
        return self

    def project(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        """Codes [B,c,t,h,w] (unit variance on the fitted data) of pixels [B,3,T,H,W]."""
        codes = []
        waiting = carry.read(self.slot) if carry else None
        if waiting is None:
            codes.append(self._project(x[:, :, :1], self.first_mean, self.first_basis, time=1))
            x, waiting = x[:, :, 1:], x[:, :, :0]
        time = self.compression[0]
        ready, rest = windows(waiting, x, kernel=time, stride=time)
        if carry:
            carry.write(self.slot, rest)
        codes.append(self._project(ready, self.mean, self.basis, time=time))
        return torch.cat(codes, dim=2)

    def expand(self, z: Tensor, carry: Carry | None = None) -> Tensor:
        """Pixels of codes: the best linear reconstruction."""
        begun = carry is not None and carry.read(f"{self.slot}.expand") is not None
        if carry:
            carry.write(f"{self.slot}.expand", z.new_empty(z.shape[0], 0))
        parts = []
        if not begun:
            parts.append(self._expand(z[:, :, :1], self.first_mean, self.first_basis, time=1))
            z = z[:, :, 1:]
        if z.shape[2]:
            parts.append(self._expand(z, self.mean, self.basis, time=self.compression[0]))
        return torch.cat(parts, dim=2)

    def _blocks(self, x: Tensor, *, time: int) -> Tensor:
        _, h, w = self.compression
        return rearrange(x, "b c (t p) (h q) (w r) -> b t h w (c p q r)", p=time, q=h, r=w)

    def _project(self, x: Tensor, mean: Tensor, basis: Tensor, *, time: int) -> Tensor:
        # full precision whatever the nets around it use: the shortcut is exact or it is no anchor
        with full_precision(x.device):
            mean, basis, wide = (_at_least_float32(v) for v in (mean, basis, x))
            inverse = basis / basis.square().sum(1, keepdim=True).clamp_min(1e-12)
            codes = (self._blocks(wide, time=time) - mean) @ inverse.T
        return codes.movedim(-1, 1).to(x.dtype)

    def _expand(self, z: Tensor, mean: Tensor, basis: Tensor, *, time: int) -> Tensor:
        _, h, w = self.compression
        with full_precision(z.device):
            mean, basis, wide = (_at_least_float32(v) for v in (mean, basis, z))
            blocks = wide.movedim(1, -1) @ basis + mean
            x = rearrange(blocks, "b t h w (c p q r) -> b c (t p) (h q) (w r)", p=time, q=h, r=w)
        return x.to(z.dtype)

    def _encode(self, x: Tensor, carry: Carry | None) -> Posterior:
        return Posterior(self.project(x, carry))

    def _decode(self, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise) -> Tensor:
        return self.expand(z, carry)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x
