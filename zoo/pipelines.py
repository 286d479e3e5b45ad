"""Text to image with TiUE, as a diffusers pipeline (arXiv 2505.21960)."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from zoo.data.transforms import to_pil
from zoo.diffusion.noise import draw_noise, noise_generators
from zoo.diffusion.samplers import DDIMPlan, EncoderDecoder, Guided, consistency_sample, tiue_sample
from zoo.errors import RunError, UserError
from zoo.kernels.processor import set_attention
from zoo.nets.pretrained import Pretrained, parse_config
from zoo.nets.tiue.unet import TiUEUNet, text_width
from zoo.nets.tokenizer import Tokenizer
from zoo.pipeline_checks import check_parts, checked_prompts
from zoo.registry import presets
from zoo.text import TEXT_ENCODERS, CLIPText, MiniLMText, TextEncoder, text_encoder_for

_log = logging.getLogger("zoo")
_SAMPLERS = ("ddim", "consistency")


@dataclass
class TiUEOutput(BaseOutput):
    """What the pipeline returns.

    Attributes:
        images: PIL pictures, or a tensor [B,3,H,W] in [-1,1], or latents [B,c,h,w].
        seeds: the seed of each picture; None where the caller's generators were used.
        truncated: tokens of each prompt that did not fit the text encoder.
    """

    images: Any
    seeds: list[int] | None = None
    truncated: list[int] | None = None


@dataclass(frozen=True)
class Sampling:
    """How a net is sampled: decoder passes, encoder passes, guidance (1: none)."""

    steps: int
    anchors: int
    guidance: float


class ZooVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A Tokenizer of the zoo as the image decoder of a pipeline folder.

    The UNet works on normalised latents, (z - latent_mean) / latent_std.

    Args:
        architecture: name of a Tokenizer, as in its config.json.
        settings: its config.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, architecture: str, settings: dict[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        presets()  # importing the nets makes their architectures known
        kind = Pretrained.by_name.get(architecture)
        if kind is None or not issubclass(kind, Tokenizer):
            raise UserError(f"'{architecture}' is not a tokenizer that this version knows")
        self.net = kind(parse_config(kind.config_class, settings, architecture))

    @classmethod
    def of(cls, net: Tokenizer) -> ZooVAE:
        """Wrap a net; its tensors are shared."""
        with torch.device("meta"):
            made: ZooVAE = cls(
                net.architecture, json.loads(json.dumps(dataclasses.asdict(net.config)))
            )
        made.net = net
        return made

    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised latents [B,c,h,w] (posterior means) of pixels [B,3,H,W]."""
        shape = (1, -1, 1, 1)
        z = self.net.encode(pixels[:, :, None]).mean[:, :, 0]
        return (z - self.net.latent_mean.view(shape).to(z)) / self.net.latent_std.view(shape).to(z)

    def decode(self, z: Tensor) -> Tensor:
        """Pixels [B,3,H,W] of normalised latents [B,c,h,w]."""
        shape = (1, -1, 1, 1)
        z = z * self.net.latent_std.view(shape).to(z) + self.net.latent_mean.view(shape).to(z)
        return self.net.decode(z[:, :, None])[:, :, 0]


class TiUEPipeline(DiffusionPipeline):
    """One encoder pass and `steps` decoder passes side by side.

    Opens any Stable Diffusion 1.x / 2.x folder (`from_pretrained`), the released TiUE ones among
    them, and writes folders that diffusers' plain classes open. A net that was not distilled for
    it needs `anchors` equal to `steps`, which is its ordinary sampler.

    Args:
        unet: a UNet2DConditionModel; it is made a TiUEUNet (weights shared).
        scheduler: whose noise schedule, prediction type and choice of time steps are used;
            the steps are DDIM's.
        vae: AutoencoderKL, a Tokenizer of the zoo, or None where the net works on pixels.
        text_encoder, tokenizer: CLIP; None with text = "minilm", which is fetched when first used.
        text: "clip" or "minilm"; None takes clip where a text encoder is given.
        steps, plain, guidance: what a call does where it isn't told otherwise: decoder passes;
            whether each has an encoder pass of its own, as a net that was not distilled needs;
            classifier-free guidance. They are kept in the folder.
        sampler: "ddim", or "consistency" for nets of consistency distillation.

    Raises:
        UserError: parts that don't fit each other.
    """

    model_cpu_offload_seq: Any = "text_encoder->unet->vae"
    _optional_components: Any = ["vae", "text_encoder", "tokenizer"]  # noqa: RUF012

    # diffusers reads annotations here, and 0.36 fails on those that are not classes
    def __init__(  # type: ignore[no-untyped-def]
        self,
        unet,
        scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text=None,
        steps=4,
        plain=False,
        guidance=1.0,
        sampler="ddim",
    ) -> None:
        super().__init__()
        if sampler not in _SAMPLERS:
            raise UserError(f"sampler = '{sampler}': use one of {', '.join(_SAMPLERS)}")
        unet = TiUEUNet.from_unet(unet)
        set_attention(unet)
        if isinstance(vae, Tokenizer):
            vae = ZooVAE.of(vae)
        text = text or ("clip" if text_encoder is not None else "minilm")
        if text not in TEXT_ENCODERS:
            raise UserError(f"text = '{text}': use one of {', '.join(TEXT_ENCODERS)}")
        self.prompt_encoder: TextEncoder
        if text == "minilm":
            self.prompt_encoder = text_encoder_for(text_width(unet))
        elif text_encoder is None or tokenizer is None:
            raise UserError("text = 'clip' needs a text encoder and a tokenizer: give both")
        else:
            self.prompt_encoder = CLIPText(tokenizer, text_encoder)
        check_parts(unet, scheduler, vae, self.prompt_encoder)
        diffusers: Any = super()  # whose methods have no types
        diffusers.register_modules(
            unet=unet,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        # the folder is a plain one: weights and config are those of diffusers' class
        diffusers.register_to_config(
            unet=("diffusers", "UNet2DConditionModel"),
            text=text,
            steps=steps,
            plain=plain,
            guidance=guidance,
            sampler=sampler,
        )

    @property
    def pixels_per_latent(self) -> int:
        """Height and width of a latent in pixels."""
        if self.vae is None:
            return 1
        if isinstance(self.vae, ZooVAE):
            return int(self.vae.net.compression[1])
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def ddim(self) -> Any:
        """A DDIMScheduler with the scheduler's noise schedule and prediction type."""
        return DDIMScheduler.from_config(self.scheduler.config)

    def plan(self, steps: int, timesteps: Sequence[int] | None = None) -> DDIMPlan:
        """The DDIM steps: `steps` of the scheduler's choice, or the given `timesteps`.

        Raises:
            UserError: fewer than 1 step, more than the schedule has, or time steps outside it.
        """
        total = self.scheduler.config.num_train_timesteps
        if timesteps is None and not 1 <= steps <= total:
            raise UserError(f"{steps} steps: the schedule has {total}, give 1 to {total}")
        ddim = self.ddim()
        if timesteps is None:
            ddim.set_timesteps(steps)
            timesteps = ddim.timesteps.tolist()
        return DDIMPlan.of(
            ddim.alphas_cumprod,
            timesteps,
            final_alpha_bar=float(ddim.final_alpha_cumprod),
            prediction=ddim.config.prediction_type,
        )

    def sampling(
        self,
        *,
        steps: int | None = None,
        anchors: int | None = None,
        guidance: float | None = None,
    ) -> Sampling:
        """The given settings, the folder's own where there is None.

        Raises:
            UserError: a number outside its range.
        """
        own: Any = self.config
        steps = int(own.steps) if steps is None else steps
        self.plan(steps)
        anchors = (steps if own.plain else 1) if anchors is None else anchors
        if not 1 <= anchors <= steps:
            raise UserError(f"{anchors} anchors for {steps} time steps: give 1 to {steps}")
        guidance = float(own.guidance) if guidance is None else guidance
        if not 0 <= guidance < math.inf:
            raise UserError(f"guidance {guidance:g}: give 1 for none, about 3 to 8 for more of it")
        return Sampling(steps, anchors, guidance)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        parallel: bool = True,
        at_once: int | None = None,
        steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        anchors: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        callback: Callable[[int, int], object] | None = None,
        negative_prompt: object = None,
    ) -> TiUEOutput:
        """Make pictures.

        Args:
            prompt: one or several; the pictures of a prompt stand together.
            num_images_per_prompt: pictures of each.
            seed: of each picture, or of the first (the next ones count up); None draws some. The
                noise of a picture depends on its seed alone, not on batch or device.
            generator: in place of seeds: one a picture, or one for all.
            parallel: all decoder passes in one batch; False runs them one by one, with less memory
                and the same result to rounding.
            at_once: decoder passes in one batch, between the two.
            steps: decoder passes N; the scheduler chooses their time steps. None: the folder's own.
            timesteps: chosen by hand, falling; `steps` is then ignored.
            anchors: encoder passes, 1 (TiUE) to N (the plain model). None: the folder's own.
            guidance: classifier-free, at twice the work; 1 is none. None: the folder's own.
            height, width: of the pictures, in pixels; None takes the UNet's own size.
            output_type: "pil", "pt" or "latent".
            callback: told (decoder passes done, N).
            negative_prompt: refused, see below.

        Raises:
            UserError: an empty prompt, a negative prompt, numbers outside their range, float16 on
                a CPU.
            RunError: the pictures aren't finite.
        """
        prompts = checked_prompts(prompt, negative_prompt)
        if num_images_per_prompt < 1:
            raise UserError(f"{num_images_per_prompt} pictures a prompt: give at least 1")
        if output_type not in ("pil", "pt", "latent"):
            raise UserError(f"output type '{output_type}': use pil, pt or latent")
        if timesteps is not None:
            steps = len(timesteps)
        how = self.sampling(steps=steps, anchors=anchors, guidance=guidance)
        plan = self.plan(how.steps, timesteps)
        device, dtype = self._execution_device, self.unet.dtype
        if device.type == "cpu" and dtype == torch.float16:
            raise UserError("float16 is not for a CPU: load the pipeline in float32 or bfloat16")
        count = len(prompts) * num_images_per_prompt
        shape = (self.unet.config.in_channels, *self._latent_size(height, width))
        generators, seeds = noise_generators(count, seed, generator)

        def draw() -> Tensor:
            return draw_noise(generators, shape).to(device, dtype)

        noise = draw()
        states, truncated = self._encode(prompts)
        text = states.repeat_interleave(num_images_per_prompt, dim=0)
        net: EncoderDecoder[Any] = self.unet
        if how.guidance != 1:
            net = Guided(net, self._encode([""])[0], how.guidance)
        with self.progress_bar(total=how.steps) as bar:

            def report(done: int, total: int) -> None:
                bar.update(done - bar.n)
                if callback is not None:
                    callback(done, total)

            own: Any = self.config
            if own.sampler == "consistency":
                latents = consistency_sample(net, noise, text, plan, draw=draw, report=report)
            else:
                latents, _ = tiue_sample(
                    net,
                    noise,
                    text,
                    plan,
                    anchors=how.anchors,
                    at_once=at_once if parallel else 1,
                    report=report,
                )
        images: Any = latents
        if output_type != "latent":
            # one by one: an autoencoder needs more memory than the UNet, and fills a GPU alone
            images = torch.cat([self.decode_latents(z) for z in latents[:, None]])
        if not images.isfinite().all():
            raise RunError(f"the pictures aren't finite in {dtype}: load the pipeline in float32")
        if output_type == "pil":
            images = to_pil(images)
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]
        return TiUEOutput(images=images, seeds=seeds, truncated=truncated)

    def _latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        own = self.unet.config.sample_size
        if own is None and None in (height, width):
            raise UserError("the UNet has no size of its own: give height and width")
        natural = own if isinstance(own, list | tuple) else (own, own)
        factor = self.pixels_per_latent
        for side in (height, width):
            if side is not None and (side < factor or side % factor):
                raise UserError(f"{side} pixels are no multiple of {factor}, a latent's size")
        h, w = (
            n if side is None else side // factor
            for side, n in zip((height, width), natural, strict=True)
        )
        return h, w

    def _encode(self, prompts: list[str]) -> tuple[Tensor, list[int]]:
        encoder = self.prompt_encoder
        if isinstance(encoder, MiniLMText):  # not of the folder, so `to` didn't move it
            encoder.device = self._execution_device
        states, truncated = encoder(prompts)
        for text, lost in zip(prompts, truncated, strict=True):
            if lost:
                _log.warning(
                    "the prompt '%s...' is too long: its last %d tokens are left out (of %d fit)",
                    text[:40],
                    lost,
                    encoder.tokens,
                )
        return states.to(self._execution_device, self.unet.dtype), truncated

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """What the UNet is conditioned on, [B,L,D]."""
        return self._encode(list(prompts))[0]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """The UNet's latents [B,c,h,w] of pictures [B,3,H,W] in [-1,1]."""
        vae = self.vae
        if vae is None:
            return pixels
        if isinstance(vae, ZooVAE):
            ours: Tensor = vae.encode(pixels.to(vae.dtype))
            return ours
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        z = vae.encode(pixels.to(vae.dtype)).latent_dist.mean
        latents: Tensor = (z - shift) * vae.config.scaling_factor
        return latents

    def decode_latents(self, z: Tensor) -> Tensor:
        """Pixels [B,3,H,W] of the UNet's latents."""
        vae = self.vae
        if vae is None:
            return z
        if isinstance(vae, ZooVAE):
            decoded: Tensor = vae.decode(z.to(vae.dtype))
            return decoded
        z = z / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        pixels: Tensor = vae.decode(z.to(vae.dtype), return_dict=False)[0]
        return pixels


__all__ = ["Sampling", "TiUEOutput", "TiUEPipeline", "ZooVAE"]
