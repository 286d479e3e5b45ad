"""How each diffusers autoencoder is called: one small adapter per convention.

Inputs fit: frames are 1 + k * time, sides multiples of the compression. Where a class codes a clip
in its own chunks and says what it remembers between them, `step` adapters do the same with the
zoo's `Carry`, so that a stream gives the very numbers of the whole clip.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.diffusion.samplers import Noise
from zoo.errors import UserError
from zoo.nets.posterior import Posterior
from zoo.nets.tokenizer import Size, pad_time
from zoo.streaming import Carry


class Calls(ABC):
    """Encode and decode through a diffusers module.

    Attributes:
        why_whole: why the class needs the whole clip at once; empty where it streams.
    """

    why_whole: str = ""

    def least(self, vae: Any) -> Size:
        """Latents (t,h,w) that the decoder needs; fewer are repeated up to them."""
        return 1, 1, 1

    @abstractmethod
    def encode(self, vae: Any, x: Tensor, carry: Carry | None) -> Posterior:
        """Posterior of pixels [B,3,T,H,W] in [-1,1]."""

    @abstractmethod
    def decode(
        self, vae: Any, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise
    ) -> Tensor:
        """Pixels of latents [B,c,t,h,w]."""


class Pictures(Calls):
    """Image classes, frame by frame: the memory of one frame whatever T is."""

    def encode(self, vae: Any, x: Tensor, carry: Carry | None) -> Posterior:
        posteriors = [_posterior(vae.encode(frame)) for frame in _frames(x)]
        mean = torch.stack([p.mean for p in posteriors], dim=2)
        logvars = [p.logvar for p in posteriors if p.logvar is not None]
        return Posterior(mean, torch.stack(logvars, dim=2) if logvars else None)

    def decode(
        self, vae: Any, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise
    ) -> Tensor:
        return torch.stack([vae.decode(frame).sample for frame in _frames(z)], dim=2)


class WholeClip(Calls):
    """Video classes that need all frames at once."""

    def __init__(self, why: str) -> None:
        self.why_whole = why

    def encode(self, vae: Any, x: Tensor, carry: Carry | None) -> Posterior:
        return _posterior(vae.encode(x))

    def decode(
        self, vae: Any, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise
    ) -> Tensor:
        y: Tensor = vae.decode(z).sample
        return y


class Reflecting(WholeClip):
    """LTX-2's own decoder may pad by reflection, which needs two latents a side."""

    def least(self, vae: Any) -> Size:
        side = 2 if vae.config.decoder_spatial_padding_mode == "reflect" else 1
        return 1, side, side


class VidTok(WholeClip):
    """AutoencoderVidTok's own forward: time - 1 first frames in front, which decode takes away."""

    def encode(self, vae: Any, x: Tensor, carry: Carry | None) -> Posterior:
        front = vae.temporal_compression_ratio - 1
        return _posterior(vae.encode(F.pad(x, (0, 0, 0, 0, front, 0), mode="replicate")))

    def decode(
        self, vae: Any, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise
    ) -> Tensor:
        y: Tensor = vae.decode(z)
        return y


class DiffusionDecoder(WholeClip):
    """LTX-2's pixel denoiser: its own stages and loop on noise that the zoo draws frame by frame.

    `vae` holds the encoder, and the decoder as `vae.denoiser`.
    """

    def least(self, vae: Any) -> Size:
        """Where every neighbourhood of its attention fits into its grid."""
        config = vae.denoiser.config
        strides = config.decoder_upsample_strides
        stages = list(zip(config.decoder_stage_kernels, strides, strict=True))
        last = config.decoder_stage5_kernel
        ghosts = config.decoder_stage_kernels[0][0] // 2 * 2  # frames it appends, then crops

        def time_fits(t: int) -> bool:
            grid = t + ghosts
            for kernel, stride in stages:
                if grid < kernel[0]:
                    return False
                grid = grid * stride[0] - (stride[0] - 1)
            return bool(1 + (t - 1) * config.temporal_compression_ratio >= last[0])

        def side_fits(side: int, axis: int) -> bool:
            for kernel, stride in stages:
                if side < kernel[axis]:
                    return False
                side *= stride[axis]
            return bool(side >= last[axis])

        sides = (next(n for n in count(1) if side_fits(n, axis)) for axis in (1, 2))
        return next(n for n in count(1) if time_fits(n)), *sides  # type: ignore[return-value]

    def decode(
        self, vae: Any, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise
    ) -> Tensor:
        decoder = vae.denoiser.decoder
        context = decoder.forward_stage_4(decoder.forward_stages_1_to_3(z))
        height, width = (side * decoder.patch_size for side in context.shape[2:4])
        like = z[:, :1, :1, :1, :1].expand(-1, decoder.out_channels, -1, height, width)
        drawn = noise(like, context.shape[1])
        if drawn.shape[-2:] != like.shape[-2:]:
            _, h, w = self.least(vae)
            raise UserError(
                f"this decoder needs tiles of at least {h}x{w} latents: give larger ones"
            )
        y: Tensor = decoder.denoise(context, drawn, steps)
        return y


class Wan(Calls):
    """AutoencoderKLWan: one frame, then four at a time, with a list of past features.

    The class keeps that list while it codes a clip. A stream's state holds it instead, with the
    frames that wait for their four. "Rep" is the class's mark for an upsampler that has seen the
    first frame alone: a tensor without elements here.
    """

    def encode(self, vae: Any, x: Tensor, carry: Carry | None) -> Posterior:
        if carry is None:
            return _posterior(vae.encode(x))
        waiting = carry.read("frames")
        first = waiting is None
        x = x if waiting is None else torch.cat([waiting, x], dim=2)
        features = _recall(carry, _causal_layers(vae.encoder))
        pieces = []
        while x.shape[2] >= (ready := 1 if first else vae.config.scale_factor_temporal):
            piece, x, first = x[:, :, :ready], x[:, :, ready:], False
            if vae.config.patch_size is not None:
                piece = _own(vae).patchify(piece, vae.config.patch_size)
            pieces.append(vae.encoder(piece, feat_cache=features, feat_idx=[0]))
        carry.write("frames", x)
        _keep(carry, features, x)
        ratio = vae.config.scale_factor_spatial
        size = (x.shape[0], 2 * vae.config.z_dim, 0, x.shape[3] // ratio, x.shape[4] // ratio)
        if not pieces:
            return Posterior.from_moments(x.new_zeros(size))
        return Posterior.from_moments(vae.quant_conv(torch.cat(pieces, dim=2)))

    def decode(
        self, vae: Any, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise
    ) -> Tensor:
        if carry is None:
            whole: Tensor = vae.decode(z).sample
            return whole
        features = _recall(carry, _causal_layers(vae.decoder))
        first = all(feature is None for feature in features)
        pieces = []
        for piece in vae.post_quant_conv(z).split(1, dim=2):
            call = {"feat_cache": features, "feat_idx": [0], "first_chunk": first}
            pieces.append(vae.decoder(piece, **call))
            first = False
        _keep(carry, features, z)
        y = torch.cat(pieces, dim=2)
        if vae.config.patch_size is not None:
            y = _own(vae).unpatchify(y, vae.config.patch_size)
        return y.clamp(-1.0, 1.0)


def _frames(x: Tensor) -> list[Tensor]:
    """Frames [B,C,H,W], laid out as pictures are: rounding depends on it."""
    return [frame.contiguous() for frame in x.unbind(2)]


def _posterior(output: Any) -> Posterior:
    """The zoo's posterior of what an `encode` of diffusers returns."""
    for name in ("latent", "latents"):
        if (latents := getattr(output, name, None)) is not None:
            return Posterior(latents)
    gaussian = output.latent_dist
    # an encoder without spread has a distribution that is its mode
    return Posterior(gaussian.mode(), getattr(gaussian, "logvar", None))


def _causal_layers(half: Any) -> int:
    """Slots of the feature list: the class counts one a causal convolution."""
    return sum(type(m).__name__ == "WanCausalConv3d" for m in half.modules())


def _own(vae: Any) -> Any:
    """The class's module, for its functions."""
    return sys.modules[type(vae).__module__]


def _recall(carry: Carry, slots: int) -> list[Any]:
    held = [carry.read(f"feature{i}") for i in range(slots)]
    return ["Rep" if t is not None and not t.numel() else t for t in held]


def _keep(carry: Carry, features: list[Any], like: Tensor) -> None:
    for i, feature in enumerate(features):
        if feature is not None:
            empty = isinstance(feature, str)
            carry.write(f"feature{i}", like.new_zeros(len(like), 0) if empty else feature)


def repeat_latents(z: Tensor, least: Size) -> Tensor:
    """Repeat the last latents in time and space up to `least`."""
    missing = [max(0, want - have) for want, have in zip(least, z.shape[2:], strict=True)]
    if not any(missing):
        return z
    z = pad_time(z, missing[0])
    return F.pad(z, (0, missing[2], 0, missing[1], 0, 0), mode="replicate")


_GROUP_NORM = "its group norms take the mean over all frames"
_LOOKS_AHEAD = "its decoder looks at the frames that follow"

CALLS: dict[str, Calls] = {
    "AutoencoderKL": Pictures(),
    "AutoencoderKLFlux2": Pictures(),
    "AutoencoderTiny": Pictures(),
    "AutoencoderDC": Pictures(),
    "AutoencoderKLWan": Wan(),
    "AutoencoderKLCogVideoX": WholeClip(
        f"{_GROUP_NORM} of chunks that depend on the clip's length"
    ),
    "AutoencoderKLHunyuanVideo": WholeClip(_GROUP_NORM),
    "AutoencoderKLCosmos": WholeClip("its attention in time looks at all frames before"),
    "AutoencoderKLLTXVideo": WholeClip(_LOOKS_AHEAD),
    "AutoencoderKLLTX2Video": Reflecting(_LOOKS_AHEAD),
    "AutoencoderVidTok": VidTok("its decoder interpolates towards the latent that follows"),
    "LTX2VideoDiffusionDecoderModel": DiffusionDecoder(_LOOKS_AHEAD),
}
"""By the name of the diffusers class."""
