"""A CDT decoder on the latents of any tokenizer: context decoder and UNet over a frozen encoder.

The encoder may be a net for video or for images (compression (1,f,f)); the decoder is causal in
time either way, so that frames of an image tokenizer come back without flicker between them. It
streams where the encoder streams. Latents are the encoder's own, so what was made for it decodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.nets.cdt import CDT
from zoo.nets.cdt_unet import CDTConfig
from zoo.nets.posterior import Posterior
from zoo.nets.pretrained import Pretrained, parse_config
from zoo.nets.tokenizer import Size, Tokenizer
from zoo.streaming import Carry

DecoderSize = Literal["tiny", "small", "base"]

# what differs from CDTConfig's defaults, which are CDT-small's structure
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "context_dim": 48,
        "context_mults": (1, 2, 2),
        "context_channels": 48,
        "padding": "zeros",
        "block": "light",
        "unet_dim": 32,
        "unet_mults": (1, 2, 3),
        "condition_times": 3,
        "level_blocks": 1,
        "top_blocks": 2,
    },
    "small": {},
    "base": {
        "context_dim": 128,
        "context_channels": 16,
        "padding": "zeros",
        "upsampling": "nearest",
    },
}


@dataclass(frozen=True, kw_only=True)
class CDTDecoderConfig(CDTConfig):
    """A CDT whose encoder is another net.

    Attributes:
        encoder: `architecture` and `config` of that net, as its config.json has them.
    """

    encoder: dict[str, Any] = field(default_factory=dict)


class CDTDecoder(CDT):
    """A frozen tokenizer's encoder, and a context decoder and UNet that are trained on its latents.

    The whole tokenizer is kept, its own decoder included: an exported folder needs nothing else.
    `fit` comes before training: it fits a linear map from latents to pixels, and the net learns
    what that leaves.
    """

    architecture: ClassVar[str] = "cdt_decoder"
    config_class = CDTDecoderConfig
    config: CDTDecoderConfig

    shift: Tensor
    scale: Tensor

    def __init__(self, config: CDTDecoderConfig) -> None:
        super().__init__(config)
        tokenizer = self.tokenizer
        if (tokenizer.compression, tokenizer.latent_channels) != (
            self.compression,
            self.latent_channels,
        ):
            raise UserError(
                f"a decoder of {self.compression} x {self.latent_channels} channels doesn't fit an "
                f"encoder of {tokenizer.compression} x {tokenizer.latent_channels}"
            )
        tokenizer.requires_grad_(False).eval()
        self.streams = tokenizer.streams
        self.register_buffer("shift", torch.zeros(self.latent_channels))
        self.register_buffer("scale", torch.ones(self.latent_channels))

    def _build_encoder(self) -> nn.Module:
        from zoo.registry import presets

        presets()  # importing the nets makes their architectures known
        name = self.config.encoder.get("architecture")
        kind = Pretrained.by_name.get(str(name))
        if kind is None or not issubclass(kind, Tokenizer):
            raise UserError(f"the encoder's architecture {name!r} is no tokenizer of this version")
        values = self.config.encoder.get("config", {})
        return kind(parse_config(kind.config_class, values, "the encoder's config"))

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen net whose latents these are."""
        assert isinstance(self.encoder, Tokenizer)
        return self.encoder

    @torch.no_grad()
    def fit(self, clips: Iterable[Tensor]) -> None:
        """Measure the scale of the latents and fit the linear shortcut, on clips [B,3,T,H,W].

        Raises:
            UserError: too few clips.
        """
        pairs = [(self.encode(clip).mean, clip) for clip in clips]
        latents = torch.cat([z.movedim(1, 0).flatten(1).float() for z, _ in pairs], dim=1)
        self.shift.copy_(latents.mean(1))
        # a channel that says nothing is not blown up
        self.scale.copy_(latents.std(1, correction=0).clamp_min(1e-4))
        assert self.pca is not None
        self.pca.fit_readout((self._normalised(z), clip) for z, clip in pairs)

    def _normalised(self, z: Tensor) -> Tensor:
        return (z - self.shift.view(-1, 1, 1, 1)) / self.scale.view(-1, 1, 1, 1)

    def train(self, mode: bool = True) -> Self:
        """Train or evaluate the decoder; the encoder always evaluates."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    @torch.no_grad()
    def _encode(self, x: Tensor, carry: Carry | None) -> Posterior:
        return self.tokenizer._encode(x, carry)

    def conditions(
        self, z: Tensor, carry: Carry | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Contexts of the encoder's latents, and what a linear map makes of them."""
        return super().conditions(self._normalised(z), carry)


def cdt_decoder(
    *, encoder: str, size: DecoderSize = "tiny", context_norm: bool = True, gamma: float = 0.8
) -> CDTDecoder:
    """A decoder with random weights on a trained encoder, ready to be trained.

    Args:
        encoder: any tokenizer of the zoo, by name or dir:PATH; random:PRESET is an untrained one,
            for tests.
        size: width and blocks, those of the CDT of that name.
        context_norm, gamma: see `CDTConfig`.

    Raises:
        UserError: unknown encoder, or one whose compression isn't made of powers of two.
    """
    # the one place where a net is built from another's weights: imported late, hub imports nets
    from zoo.hub import load
    from zoo.registry import create

    if encoder.startswith("random:"):
        given = create(encoder.removeprefix("random:"))
    else:
        given = load(encoder)
    if not isinstance(given, Tokenizer):
        raise UserError(f"{encoder} is a {type(given).__name__}, not a tokenizer")
    net = CDTDecoder(decoder_config(given, size=size, context_norm=context_norm, gamma=gamma))
    net.tokenizer.load_state_dict(given.state_dict())
    return net


def decoder_config(
    encoder: Tokenizer, *, size: DecoderSize = "tiny", **changes: Any
) -> CDTDecoderConfig:
    """The config of a decoder whose stages double space and time as often as `encoder` halves them.

    Raises:
        UserError: a compression that isn't made of powers of two, or not the same in both sides.
    """
    values = _SIZES[size] | changes
    stages = len(values.get("context_mults", CDTConfig.context_mults))
    light = values.get("block") == "light"
    patch, space, time = _flags(encoder.compression, stages=stages, light=light)
    # the UNet's deepest level never halves: what halves in the last stage needs one level more
    levels = {"context_mults": len(space), "unet_mults": len(space) + (space[-1] | time[-1])}
    for name, count in levels.items():
        mults = values.get(name, getattr(CDTConfig, name))
        values[name] = mults + mults[-1:] * (count - len(mults))
    text = {
        "architecture": encoder.architecture,
        "config": dataclasses.asdict(encoder.config),
    }
    return CDTDecoderConfig(
        latent_channels=encoder.latent_channels,
        space_down=space,
        time_down=time,
        patch=patch,
        pca=True,
        encoder=text,
        **values,
    )


def _flags(
    compression: Size, *, stages: int, light: bool
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Patch size and the flags of each stage for a compression (t,h,w)."""
    t, h, w = compression
    if h != w or t & (t - 1) or h & (h - 1):
        raise UserError(
            f"the encoder's compression {compression} isn't made of powers of two, equal in height "
            "and width: a CDT decoder doubles its way up"
        )
    # light nets stand behind a patch of 4, as cdt_tiny does
    patch = min(4, max(1, h // 2)) if light else 1
    space, time = (h // patch).bit_length() - 1, t.bit_length() - 1
    count = max(stages, space, time)
    spaces = tuple(int(i < space) for i in range(count))
    first = 0 if light else count - time  # the published nets halve time last
    return patch, spaces, tuple(int(first <= i < first + time) for i in range(count))
