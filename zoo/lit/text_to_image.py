"""Training of a text-to-image diffusion net from scratch: the teacher of the distilled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from zoo.data.batch import Batch
from zoo.data.captioned import CaptionedPictures
from zoo.data.sheet import grid, save_png
from zoo.errors import UserError
from zoo.hub import load
from zoo.kernels.processor import set_attention
from zoo.lit.finite import check_terms
from zoo.lit.module import ZooModule, scheduled
from zoo.nets.tiue.unet import TiUEUNet
from zoo.nets.tokenizer import Tokenizer
from zoo.objectives.diffusion import DiffusionObjective
from zoo.objectives.losses import Losses
from zoo.pipelines import TiUEPipeline
from zoo.text import CachedText

_MOST_KEPT = 50_000  # pictures whose latents (and captions whose states) are kept in memory


class Frozen:
    """Parts that a module uses but doesn't train: neither averaged, saved nor copied with it."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class TextToImageModule(ZooModule):
    """Trains a UNet to denoise latents of captioned pictures.

    Latents and text states of pictures that are the same in every epoch are made once, before the
    first step. At every validation `samples/step-N.png` shows the averaged net's pictures.

    Args:
        net: what is trained.
        objective: prediction type, schedule, weights.
        optimizer: called with the parameters.
        autoencoder: name or dir:PATH of the image autoencoder whose latents are learned; "none"
            trains on pixels.
        warmup_steps: steps of linear warm-up; then a cosine over the rest of the run.
        attention: backend of the net's attention (`zoo.kernels`). On a CPU "math" makes a step of
            `t2i_tiny` 18 % shorter than "auto": torch's CPU kernel is slow on few tokens.
        prompts: of the sample sheet.
        steps, guidance: DDIM steps and classifier-free guidance of the samples and of the export.

    Raises:
        UserError: the net doesn't fit autoencoder or text encoder.
    """

    net: TiUEUNet

    def __init__(
        self,
        *,
        net: TiUEUNet,
        objective: DiffusionObjective,
        optimizer: OptimizerCallable,
        autoencoder: str,
        warmup_steps: int = 100,
        attention: str = "auto",
        prompts: list[str] | None = None,
        steps: int = 25,
        guidance: float = 3.0,
    ) -> None:
        super().__init__()
        self.net = net.train()
        self.objective = objective
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.prompts = prompts or ["red apple, 3d"]
        vae = None if autoencoder == "none" else load(autoencoder)
        if not isinstance(vae, Tokenizer | None):
            raise UserError(f"{autoencoder} is no autoencoder: give the folder of an image one")
        self.pipeline = Frozen(
            of=TiUEPipeline(
                net, objective.scheduler, vae, steps=steps, plain=True, guidance=guidance
            )
        )
        self.pipeline.of.set_progress_bar_config(disable=True)
        set_attention(net, attention)
        self.pipeline.of.sampling()  # numbers out of range are said here
        self._kept = Frozen(train={}, val={}, text=None)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Warm-up, then a cosine."""
        return scheduled(self.optimizer(self.net.parameters()), self.warm_cosine)

    def on_fit_start(self) -> None:
        """Encode what stays the same."""
        super().on_fit_start()
        pipeline = self.pipeline.of
        if pipeline.vae is not None:
            pipeline.vae.requires_grad_(False).eval().to(self.device)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        prompts = [""]
        for source, kept in ((data.train, self._kept.train), (data.val, self._kept.val)):
            fixed = isinstance(source, CaptionedPictures) and source.fixed
            if not fixed or len(source) > _MOST_KEPT:
                continue
            prompts += source.prompts
            for first in range(0, len(source), 64):
                batch = [source[i] for i in range(first, min(first + 64, len(source)))]
                latents = self.encode(torch.stack([s.pixels for s in batch]).to(self.device))
                kept.update(zip((s.key for s in batch), latents.cpu(), strict=True))
        self._kept.text = CachedText(pipeline.encode_prompts, prompts)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised latents [B,c,h,w] of pictures [B,3,1,H,W]: what the net is trained on."""
        vae = self.pipeline.of.vae
        if vae is None:
            return pixels[:, :, 0]
        mean = vae.net.encode(pixels).mean
        shape = (1, -1, 1, 1, 1)
        latents: Tensor = (mean - vae.net.latent_mean.view(shape)) / vae.net.latent_std.view(shape)
        return latents[:, :, 0]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch of captioned pictures."""

        def run() -> Losses:
            return self._losses(batch, self._kept.train)

        losses = run()
        step = self.trainer.global_step
        check_terms(losses.terms, step=step, clips=batch.key, net=self.net, again=run)
        self.log("train/loss", losses.total, prog_bar=True)
        self.log("train/mse", losses.terms["mse"])
        return losses.total

    def validation_step(self, batch: Batch, index: int) -> None:
        """The loss, with the same noise every time; with the first batch, the sheet."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            losses = self._losses(batch, self._kept.val)
        size = len(batch.pixels)
        self.log("val/mse", losses.terms["mse"], prog_bar=True, batch_size=size, sync_dist=True)
        self.log("val/loss", losses.total, batch_size=size, sync_dist=True)
        if index == 0 and self.trainer.is_global_zero:
            self.save_sheet()

    def save_sheet(self) -> Path:
        """Pictures of the prompts, always from the same noise, eight a row."""
        pictures = []
        for first in range(0, len(self.prompts), 16):
            prompts = self.prompts[first : first + 16]
            seeds = range(first, first + len(prompts))
            pictures += self.pipeline.of(prompts, seed=list(seeds)).images
        folder = Path(self.trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{self.trainer.global_step:06d}.png"
        save_png(grid(pictures, min(8, len(pictures))), path)
        return path

    def export(self, folder: Path) -> None:
        """Write the pipeline: net, schedule and autoencoder."""
        self.pipeline.of.save_pretrained(folder)

    def _losses(self, batch: Batch, kept: dict[str, Tensor]) -> Losses:
        if all(key in kept for key in batch.key):
            latents = torch.stack([kept[key] for key in batch.key])
        else:
            latents = self.encode(batch.pixels)
        text, empty = self._kept.text(batch.prompt), self._kept.text([""])
        return self.objective(self.net, *(x.to(self.device) for x in (latents, text, empty)))
