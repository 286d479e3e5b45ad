"""Any autoencoder of diffusers behind the Tokenizer interface."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.diffusion.samplers import Noise
from zoo.errors import UserError
from zoo.nets.foreign.calls import CALLS, repeat_latents
from zoo.nets.foreign.table import ENTRIES
from zoo.nets.pictures import PictureTokenizer
from zoo.nets.posterior import Posterior
from zoo.nets.tokenizer import Size, missing_frames
from zoo.streaming import Carry

_LOG = logging.getLogger("zoo")


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """Which diffusers class, and what it is built with.

    Attributes:
        kind: name of the autoencoder's class.
        settings: its config; what is left out has the class's defaults.
        decoder, decoder_settings: a second class that decodes in its place; empty: there is none.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    decoder: str = ""
    decoder_settings: dict[str, Any] = field(default_factory=dict)


class Foreign(PictureTokenizer):
    """A wrapped diffusers autoencoder; its module keeps diffusers' own keys under `vae.`.

    Latents are the class's own; `latent_mean` and `latent_std` are what its authors published, so
    that (z - mean) / std is what their generators see. What a class can't stream says `why_whole`:
    then streams collect the clip and memory grows with its length (12 bytes a pixel in float32,
    and all activations of the clip at once).

    Args:
        config: the class and its settings.
        modules: autoencoder and second decoder (or None) that were built from them already.

    Raises:
        UserError: this diffusers has no such class, or it refuses its settings.
    """

    architecture: ClassVar[str] = "foreign"
    config_class = ForeignConfig
    config: ForeignConfig

    def __init__(self, config: ForeignConfig, *, modules: tuple[Any, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        if modules is None:
            modules = (
                _build(config.kind, config.settings),
                _build(config.decoder, config.decoder_settings) if config.decoder else None,
            )
        vae, decoder = modules
        self._calls = CALLS[config.decoder or config.kind]
        if decoder is not None:
            vae.decoder = nn.Identity()  # its own is never called
            vae.denoiser = decoder
        self.vae: Any = vae
        self.streams = not self._calls.why_whole
        self.compression: Size = _compression(vae, self.config.kind)
        self.latent_channels = _channels(vae)
        self._register_latent_statistics()
        self.measure_published()
        self._padding_told = False

    @property
    def why_whole(self) -> str:
        """Why it needs the whole clip at once; empty where it streams."""
        return self._calls.why_whole

    @property
    def published(self) -> nn.Module:
        """The module that the published parameter count is of."""
        module: nn.Module = self.vae.denoiser if self.config.decoder else self.vae
        return module

    @torch.no_grad()
    def measure_published(self) -> None:
        """Take `latent_mean` and `latent_std` from the wrapped module's config and buffers."""
        mean, std = published_statistics(self.vae, self.latent_channels)
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def encode(self, x: Tensor) -> Posterior:
        """As `Tokenizer.encode`; pictures [B,3,H,W] give a posterior over [B,c,h,w].

        Raises:
            UserError: also for pixels of another dtype than the net's.
        """
        time = self.compression[0]
        if x.ndim == 5 and (missing := missing_frames(x.shape[2], time)) and not self._padding_told:
            self._padding_told = True
            _LOG.warning(
                "%s takes 1 + k * %d frames: of %d the last is repeated %d times and cropped again",
                self.config.kind,
                time,
                x.shape[2],
                missing,
            )
        return super().encode(x)

    def _encode(self, x: Tensor, carry: Carry | None) -> Posterior:
        self._check(x, "pixels", carry)
        try:
            return self._calls.encode(self.vae, x, carry)
        except NotImplementedError as error:
            raise self._unserved(x, self.config.kind, error) from error

    def _decode(self, z: Tensor, carry: Carry | None, *, steps: int, noise: Noise) -> Tensor:
        self._check(z, "latents", carry)
        given = repeat_latents(z, self._calls.least(self.vae))
        try:
            y = self._calls.decode(self.vae, given, carry, steps=steps, noise=noise)
        except NotImplementedError as error:
            raise self._unserved(z, self.config.decoder or self.config.kind, error) from error
        if given is z:
            return y
        t, h, w = self.compression
        return y[:, :, : 1 + (z.shape[2] - 1) * t, : z.shape[3] * h, : z.shape[4] * w]

    def _check(self, x: Tensor, what: str, carry: Carry | None) -> None:
        own = next(self.parameters()).dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise UserError(
                f"{what} are {_spell(x.dtype)}, the net is {_spell(own)}: give "
                f"{what}.to(torch.{_spell(own)}), pixels in [-1,1]"
            )
        if carry is not None and not self.streams:
            raise UserError(
                f"{self.config.kind} can't stream ({self.why_whole}): give the whole clip"
            )

    def _unserved(self, x: Tensor, kind: str, error: NotImplementedError) -> UserError:
        if torch.is_grad_enabled() and "backward" in str(error):
            return UserError(
                f"torch has no gradient on {x.device.type} of the attention in {kind}: run it "
                "under torch.no_grad()"
            )
        return UserError(
            f"torch has no {_spell(x.dtype)} kernel on {x.device.type} that {kind} needs: load it "
            "with dtype=torch.float32"
        )


def _spell(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def foreign_class(kind: str) -> Any:
    """The diffusers class of that name.

    Raises:
        UserError: the zoo doesn't know how to call it, or this diffusers lacks it.
    """
    if kind not in CALLS:
        raise UserError(f"{kind} is no tokenizer that the zoo wraps: it takes {', '.join(CALLS)}")
    # imported here: it takes seconds, and `import zoo` must not
    import diffusers

    found = getattr(diffusers, kind, None)
    if found is None:
        since = min(e.since for e in ENTRIES.values() if kind in (e.decoder or e.kind, e.kind))
        raise UserError(
            f"diffusers {diffusers.__version__} has no {kind}: pip install -U 'diffusers>={since}'"
        )
    return found


def _build(kind: str, settings: dict[str, Any]) -> Any:
    made = foreign_class(kind)
    if settings.get("regularizer") == "fsq":
        raise UserError("the zoo wraps no quantised latents: use a VidTok with regularizer kl")
    try:
        vae = made(**settings).eval()
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{kind} refuses its settings ({error}): see its config.json") from error
    if torch.get_default_device().type == "meta":
        # some classes make a parameter without asking what the default device is
        vae = vae.to("meta")
        _make_constants(vae)
    return vae


def _make_constants(vae: nn.Module) -> None:
    """Give a net on meta the buffers that no file holds: loading would leave them empty."""
    for path, module in list(vae.named_modules()):
        if module._non_persistent_buffers_set:
            # of the wrapped classes, only Cosmos's patches have any
            patch: Any = module
            with torch.device("cpu"):
                vae.set_submodule(path, type(patch)(patch.patch_size, patch.patch_method))


def published_statistics(vae: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel as published, [c] each.

    Where several positions of a channel have their own (Cosmos: times; FLUX.2: places of 2x2), they
    are pooled: the variance of a mixture is the mean variance and the variance of the means.
    """
    config = vae.config
    if (norm := getattr(vae, "bn", None)) is not None:
        means, variances = norm.running_mean, norm.running_var + config.batch_norm_eps
    elif getattr(config, "latents_mean", None) is not None:
        means = torch.tensor(config.latents_mean)
        variances = torch.tensor(config.latents_std).square()
    elif isinstance(getattr(vae, "latents_mean", None), Tensor):
        means, variances = vae.latents_mean, vae.latents_std.square()
    else:
        shift = getattr(config, "shift_factor", None) or 0.0
        scale = getattr(config, "scaling_factor", None) or 1.0
        return torch.full((channels,), shift), torch.full((channels,), 1.0 / scale)
    means, variances = means.view(channels, -1), variances.view(channels, -1)
    return means.mean(1), (variances.mean(1) + means.var(1, correction=0)).sqrt()


def _channels(vae: Any) -> int:
    for name in ("latent_channels", "z_dim", "z_channels"):
        if name in vae.config:
            return int(vae.config[name])
    raise AssertionError("a class that says nowhere how many latent channels it has")


def _compression(vae: Any, kind: str) -> Size:
    """Pixels of a latent, (time, height, width)."""
    if kind == "AutoencoderKLWan":
        return vae.config.scale_factor_temporal, *(vae.config.scale_factor_spatial,) * 2
    if kind == "AutoencoderVidTok":
        return vae.temporal_compression_ratio, *(2 ** len(vae.encoder.spatial_ds),) * 2
    if kind == "AutoencoderTiny":
        return 1, *(2 ** (len(vae.config.encoder_block_out_channels) - 1),) * 2
    if kind == "AutoencoderKLCogVideoX":
        space = 2 ** (len(vae.config.block_out_channels) - 1)
        return int(vae.config.temporal_compression_ratio), space, space
    if kind in ("AutoencoderKL", "AutoencoderKLFlux2"):
        return 1, *(2 ** (len(vae.config.block_out_channels) - 1),) * 2
    time = getattr(vae, "temporal_compression_ratio", None) or vae.config.get(
        "temporal_compression_ratio", 1
    )
    space = getattr(vae, "spatial_compression_ratio", None) or vae.config.spatial_compression_ratio
    return int(time), int(space), int(space)
