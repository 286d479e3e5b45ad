"""Text to image with TiUE, as a diffusers pipeline (arXiv 2505.21960)."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from zoo.data.transforms import to_uint8
from zoo.diffusion.consistency import consistency_sample, fresh_generators
from zoo.diffusion.guidance import Guided, checked_guidance
from zoo.diffusion.samplers import DDIMPlan, EncoderDecoder, tiue_sample
from zoo.errors import RunError, UserError
from zoo.kernels.processor import set_attention
from zoo.nets.pretrained import Pretrained, parse_config
from zoo.nets.tiue.unet import TiUEUNet, text_width
from zoo.nets.tokenizer import Tokenizer
from zoo.registry import presets
from zoo.text import TEXT_ENCODERS, CLIPText, MiniLMText, TextEncoder, text_encoder_for

_log = logging.getLogger("zoo")


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

    def decode(self, z: Tensor) -> Tensor:
        """Pixels [B,3,H,W] of normalised latents [B,c,h,w]."""
        shape = (1, -1, 1, 1)
        z = z * self.net.latent_std.view(shape).to(z) + self.net.latent_mean.view(shape).to(z)
        return self.net.decode(z[:, :, None])[:, :, 0]


class TiUEPipeline(DiffusionPipeline):
    """One encoder pass, `steps` decoder passes side by side, no guidance.

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

    Raises:
        UserError: parts that don't fit each other.
    """

    model_cpu_offload_seq: Any = "text_encoder->unet->vae"
    _optional_components: Any = ["vae", "text_encoder", "tokenizer"]  # noqa: RUF012

    # diffusers reads annotations here, and 0.36 fails on those that are not classes
    def __init__(  # type: ignore[no-untyped-def]
        self, unet, scheduler, vae=None, text_encoder=None, tokenizer=None, text=None
    ) -> None:
        super().__init__()
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
        _check_parts(unet, scheduler, vae, self.prompt_encoder)
        plain: Any = super()  # diffusers' methods have no types
        plain.register_modules(
            unet=unet,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        # the folder is a plain one: weights and config are those of diffusers' class
        plain.register_to_config(unet=("diffusers", "UNet2DConditionModel"), text=text)

    @property
    def pixels_per_latent(self) -> int:
        """Height and width of a latent in pixels."""
        if self.vae is None:
            return 1
        if isinstance(self.vae, ZooVAE):
            return int(self.vae.net.compression[1])
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def plan(self, steps: int, timesteps: Sequence[int] | None = None) -> DDIMPlan:
        """The DDIM steps: `steps` of the scheduler's choice, or the given `timesteps`.

        Raises:
            UserError: fewer than 1 step, more than the schedule has, or time steps outside it.
        """
        total = self.scheduler.config.num_train_timesteps
        if timesteps is None and not 1 <= steps <= total:
            raise UserError(f"{steps} steps: the schedule has {total}, give 1 to {total}")
        ddim = DDIMScheduler.from_config(self.scheduler.config)
        if timesteps is None:
            ddim.set_timesteps(steps)
            timesteps = ddim.timesteps.tolist()
        return DDIMPlan.of(
            ddim.alphas_cumprod,
            timesteps,
            final_alpha_bar=float(ddim.final_alpha_cumprod),
            prediction=ddim.config.prediction_type,
        )

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
        steps: int = 4,
        timesteps: Sequence[int] | None = None,
        anchors: int = 1,
        guidance: float = 1.0,
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
            steps: decoder passes N; the scheduler chooses their time steps.
            timesteps: chosen by hand, falling; `steps` is then ignored.
            anchors: encoder passes, 1 (TiUE) to N (the plain model; what LCM's scheduler does).
            guidance: scale of classifier-free guidance; other than 1 doubles every pass. TiUE has
                it distilled into the net: this is for teachers.
            height, width: of the pictures, in pixels; None takes the UNet's own size.
            output_type: "pil", "pt" or "latent".
            callback: told (decoder passes done, N).
            negative_prompt: refused, see below.

        Raises:
            UserError: an empty prompt, a negative prompt, numbers outside their range, float16 on
                a CPU.
            RunError: the pictures aren't finite.
        """
        prompts = _checked_prompts(prompt, negative_prompt)
        if num_images_per_prompt < 1:
            raise UserError(f"{num_images_per_prompt} pictures a prompt: give at least 1")
        if output_type not in ("pil", "pt", "latent"):
            raise UserError(f"output type '{output_type}': use pil, pt or latent")
        if timesteps is not None:
            steps = len(timesteps)
        plan = self.plan(steps, timesteps)
        checked_guidance(guidance)
        device, dtype = self._execution_device, self.unet.dtype
        if device.type == "cpu" and dtype == torch.float16:
            raise UserError("float16 is not for a CPU: load the pipeline in float32 or bfloat16")
        count = len(prompts) * num_images_per_prompt
        shape = (self.unet.config.in_channels, *self._latent_size(height, width))
        noise, seeds = draw_noise(count, shape, seed, generator)
        states, truncated = self._encode(prompts)
        text = states.repeat_interleave(num_images_per_prompt, dim=0)
        with self.progress_bar(total=steps) as bar:

            def report(done: int, total: int) -> None:
                bar.update(done - bar.n)
                if callback is not None:
                    callback(done, total)

            net: EncoderDecoder[Any] = self.unet
            if guidance != 1:
                net = Guided(self.unet, self._encode([""])[0], scale=guidance)
            z = noise.to(device, dtype)
            if isinstance(self.scheduler, LCMScheduler):
                latents = consistency_sample(
                    *(net, z, text, self.scheduler),
                    steps=steps,
                    generators=fresh_generators(generator, seeds, count),
                    report=report,
                )
            else:
                latents = tiue_sample(
                    *(net, z, text, plan),
                    anchors=anchors,
                    at_once=at_once if parallel else 1,
                    report=report,
                ).sample
        images: Any = latents
        if output_type != "latent":
            # one by one: an autoencoder needs more memory than the UNet, and fills a GPU alone
            images = torch.cat([self._decode(z) for z in latents[:, None]])
        if not images.isfinite().all():
            raise RunError(f"the pictures aren't finite in {dtype}: load the pipeline in float32")
        if output_type == "pil":
            images = self._to_pil(images)
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

    def _decode(self, z: Tensor) -> Tensor:
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

    @staticmethod
    def _to_pil(pixels: Tensor) -> list[Any]:
        from PIL import Image

        return [Image.fromarray(x) for x in to_uint8(pixels).movedim(1, -1).cpu().numpy()]


def draw_noise(
    count: int,
    shape: tuple[int, ...],
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> tuple[Tensor, list[int] | None]:
    """Noise [count,*shape] in float32 on the CPU (or the generators' device), and its seeds.

    Raises:
        UserError: seeds or generators that are not one a picture, or both.
    """
    if seed is not None and generator is not None:
        raise UserError("seed and generator both say where the noise is from: give one of them")
    if isinstance(generator, torch.Generator):
        generators, seeds = [generator] * count, None
    elif generator is not None:
        generators, seeds = list(generator), None
    else:
        first = random.SystemRandom().randrange(2**31 - count) if seed is None else seed
        seeds = [first + i for i in range(count)] if isinstance(first, int) else list(first)
        if any(not 0 <= s < 2**63 for s in seeds):
            raise UserError(f"seeds {seeds}: give numbers from 0 to 2^63 - 1")
        generators = [torch.Generator().manual_seed(s) for s in seeds]
    if len(generators) != count:
        raise UserError(
            f"{len(generators)} seeds or generators for {count} pictures: give one each"
        )
    drawn = [torch.randn(shape, generator=g, device=g.device) for g in generators]
    return torch.stack(drawn), seeds


def _checked_prompts(prompt: str | Sequence[str], negative: object) -> list[str]:
    if negative not in (None, ""):
        raise UserError(
            "a negative prompt can't be followed: guidance is distilled into the net, so there is "
            "no second pass to steer away from; say what the picture should show"
        )
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UserError("there is no prompt: describe at least one picture")
    for number, text in enumerate(prompts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"prompt {number} of {len(prompts)} is empty: describe the picture")
    return prompts


def _check_parts(unet: TiUEUNet, scheduler: Any, vae: Any, text: TextEncoder) -> None:
    config: Any = unet.config
    takes = text_width(unet)
    if text.dim != takes:
        raise UserError(f"the text encoder gives {text.dim} channels, the UNet takes {takes}")
    if config.in_channels != config.out_channels:
        raise UserError(
            f"a UNet with {config.in_channels} channels in and {config.out_channels} out is not "
            "text to image (inpainting or depth): use a plain one"
        )
    if isinstance(vae, ZooVAE):
        holds = vae.net.latent_channels
    else:
        holds = 3 if vae is None else vae.config.latent_channels
    if holds != config.in_channels:
        what = "without an autoencoder a picture has" if vae is None else "the autoencoder has"
        raise UserError(f"{what} {holds} channels, the UNet works on {config.in_channels}")
    if "beta_schedule" not in getattr(scheduler, "config", {}):
        raise UserError(
            f"a {type(scheduler).__name__} has no DDIM noise schedule: use a scheduler of Stable "
            "Diffusion 1.x or 2.x"
        )


__all__ = ["TiUEOutput", "TiUEPipeline", "ZooVAE", "draw_noise"]
