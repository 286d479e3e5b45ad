"""The interface of every autoencoder in the zoo.

Pixels are float [B,3,T,H,W] in [-1,1], latents [B,c,t,h,w]. Any T >= 1, H and W work: edges are
repeated up to what the net needs and cropped back. A net adds the two methods that do the work on
sizes that fit, `_encode` and `_decode`; padding, cropping and streaming are here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.diffusion.samplers import Noise, generator_noise
from zoo.errors import UserError
from zoo.nets.posterior import Posterior
from zoo.nets.pretrained import Pretrained
from zoo.streaming import Carry, State

Size = tuple[int, int, int]


class Tokenizer(Pretrained, ABC):
    """A net with `encode`, `decode` and their streaming forms.

    Attributes:
        compression: pixels a latent stands for, (time, height, width). 1 + k * time frames give
            1 + k latents: the first latent is one frame, so that an image is a one-frame video.
        latent_channels: c.
        latent_mean, latent_std: [c], measured at the end of training; 0 and 1 until then.
        streams: whether chunks give what the whole clip gives. Where they can't, `stream_encode`
            and `stream_decode` collect the whole stream first and memory grows with its length.
    """

    streams: bool = True
    compression: Size
    latent_channels: int
    latent_mean: Tensor
    latent_std: Tensor

    def _register_latent_statistics(self) -> None:
        self.register_buffer("latent_mean", torch.zeros(self.latent_channels))
        self.register_buffer("latent_std", torch.ones(self.latent_channels))

    @abstractmethod
    def _encode(self, x: Tensor, carry: Carry | None) -> Posterior:
        """Posterior of a chunk whose height and width fit; the whole clip's T is 1 + k * time."""

    @abstractmethod
    def _decode(self, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise) -> Tensor:
        """Pixels of a chunk of latents, not cropped. A diffusion decoder draws from `noise`."""

    def noise_needed(
        self, z: Tensor, state: State | None, *, steps: int
    ) -> tuple[Tensor, int] | None:
        """What decoding this chunk asks of its noise: `like` and `frames`; None: nothing."""
        return None

    def encode(self, x: Tensor) -> Posterior:
        """Encode a whole clip.

        Args:
            x: [B,3,T,H,W] in [-1,1], any T >= 1, H, W.

        Returns:
            The posterior over [B,c,1 + ceil((T - 1) / time),ceil(H / height),ceil(W / width)].

        Raises:
            UserError: the shape is not that of a video, or, in eval mode, a pixel isn't finite.
        """
        check_video(x, finite=not self.training)
        x = pad_space(x, self.compression)
        return self._encode(pad_time(x, missing_frames(x.shape[2], self.compression[0])), None)

    def decode(
        self,
        z: Tensor,
        *,
        size: Size | None = None,
        steps: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Decode a whole clip.

        Args:
            z: latents [B,c,t,h,w].
            size: (T,H,W) to crop to, as encoded; None keeps all that the latents stand for.
            steps: sampling steps of a diffusion decoder; others ignore it.
            generator: source of a diffusion decoder's noise, drawn frame by frame.

        Returns:
            [B,3,T,H,W], near [-1,1] (not clipped).

        Raises:
            UserError: wrong channel count, `steps` < 1, or `size` larger than the latents hold.
        """
        x, _ = self._decode_checked(z, None, size=size, steps=steps, generator=generator)
        return crop(x, size)

    def reconstruct(
        self, x: Tensor, *, steps: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Encode to the posterior mean and decode: [B,3,T,H,W] to the same shape."""
        size = (x.shape[2], x.shape[3], x.shape[4]) if x.ndim == 5 else None
        return self.decode(self.encode(x).mean, size=size, steps=steps, generator=generator)

    def encode_step(self, x: Tensor, state: State | None) -> tuple[Posterior, State]:
        """Encode the next frames of a stream; the posterior may have zero frames.

        Args:
            x: [B,3,T,H,W], any T >= 1; H and W are padded as in `encode`.
            state: what the last call returned; None begins a stream.
        """
        check_video(x, finite=not self.training)
        carry = Carry(state)
        return self._encode(pad_space(x, self.compression), carry), carry.state

    def decode_step(
        self,
        z: Tensor,
        state: State | None,
        *,
        steps: int = 1,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, State]:
        """Decode the next latents of a stream: 1 + (t - 1) * time frames first, then t * time."""
        carry = Carry(state)
        return self._decode_checked(z, carry, size=None, steps=steps, generator=generator)

    def _decode_checked(
        self,
        z: Tensor,
        carry: Carry | None,
        *,
        size: Size | None,
        steps: int,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, State]:
        self.check_latents(z, steps=steps)
        if size is not None:
            t, h, w = self.compression
            most = (1 + (z.shape[2] - 1) * t, z.shape[3] * h, z.shape[4] * w)
            if any(asked > held or asked < 1 for asked, held in zip(size, most, strict=True)):
                raise UserError(f"size {tuple(size)} is outside what these latents hold, {most}")
        x = self._decode(z, carry, steps=steps, noise=generator_noise(generator))
        return x, {} if carry is None else carry.state

    def check_latents(self, z: Tensor, *, steps: int) -> None:
        """Raise UserError unless this net decodes latents of this shape in so many steps."""
        if z.ndim != 5 or z.shape[1] != self.latent_channels or z.shape[2] < 1:
            raise UserError(
                f"latents of shape {tuple(z.shape)} don't fit this net: "
                f"give [B,{self.latent_channels},t,h,w] with t >= 1"
            )
        if steps < 1:
            raise UserError(f"steps = {steps}: a decoder needs at least 1 sampling step")

    @torch.no_grad()
    def stream_encode(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Posterior means of a video of any length, in constant memory.

        Args:
            chunks: consecutive pieces [B,3,T_i,H,W]; any lengths, not aligned to anything.

        Yields:
            [B,c,t_i,h,w] with t_i >= 1; together what `encode` of the whole gives as mean.
        """
        if not self.streams:
            if whole := list(chunks):
                yield self.encode(torch.cat(whole, dim=2)).mean
            return
        state: State | None = None
        frames, last = 0, None
        for chunk in chunks:
            posterior, state = self.encode_step(chunk, state)
            frames, last = frames + chunk.shape[2], chunk[:, :, -1:]
            if posterior.mean.shape[2]:
                yield posterior.mean
        if last is not None and (missing := missing_frames(frames, self.compression[0])):
            tail = last.expand(-1, -1, missing, -1, -1)
            yield self.encode_step(tail, state)[0].mean

    @torch.no_grad()
    def stream_decode(
        self,
        latents: Iterable[Tensor],
        *,
        size: Size | None = None,
        steps: int = 1,
        generator: torch.Generator | None = None,
        step: Callable[..., tuple[Tensor, State]] | None = None,
    ) -> Iterator[Tensor]:
        """Pixels of a stream of latents, in constant memory.

        Args:
            latents: consecutive pieces [B,c,t_i,h,w].
            size, steps, generator: as for `decode`; T of `size` is the whole stream's.
            step: decodes a chunk: `zoo.compiled.CompiledStep(self)`; None is `decode_step`.

        Yields:
            [B,3,T_i,H,W]; together what `decode` of the whole gives, the same noise included.
        """
        if not self.streams:
            if whole := list(latents):
                z = torch.cat(whole, dim=2)
                yield self.decode(z, size=size, steps=steps, generator=generator)
            return
        state: State | None = None
        left = None if size is None else size[0]
        for z in latents:
            x, state = (step or self.decode_step)(z, state, steps=steps, generator=generator)
            if size is not None and left is not None:
                x = crop(x, (min(left, x.shape[2]), size[1], size[2]))
                left -= x.shape[2]
            if x.shape[2]:
                yield x


def check_video(x: Tensor, *, finite: bool = False) -> None:
    """Raise UserError unless `x` is [B,3,T,H,W] with at least one frame; `finite`: and no NaN."""
    if x.ndim != 5 or x.shape[1] != 3 or 0 in x.shape:
        raise UserError(
            f"pixels of shape {tuple(x.shape)} aren't a video: give [B,3,T,H,W] with T >= 1"
        )
    # a training run checks its losses instead: no wait for the device in each step
    if finite and not (x.is_meta or torch.compiler.is_compiling() or x.isfinite().all()):
        bad = (~x.isfinite()).sum().item()
        raise UserError(f"{bad} of {x.numel()} pixels are NaN or infinite: mend the video")


def missing_frames(frames: int, stride: int) -> int:
    """How many frames `frames` lacks to be 1 + k * stride."""
    return (1 - frames) % stride


def pad_time(x: Tensor, frames: int) -> Tensor:
    """Repeat the last frame `frames` times."""
    return F.pad(x, (0, 0, 0, 0, 0, frames), mode="replicate") if frames else x


def pad_space(x: Tensor, multiple: Size) -> Tensor:
    """Repeat the bottom and right edge until height and width are multiples."""
    bottom, right = -x.shape[3] % multiple[1], -x.shape[4] % multiple[2]
    return F.pad(x, (0, right, 0, bottom, 0, 0), mode="replicate") if bottom or right else x


def crop(x: Tensor, size: Size | None) -> Tensor:
    """The first T frames, top H rows and left W columns."""
    return x if size is None else x[:, :, : size[0], : size[1], : size[2]]
