"""Training of a latent video generator on latents of any tokenizer."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from zoo.data.batch import Batch
from zoo.data.captioned_video import Captioned, CaptionedLatents, film_of
from zoo.data.latents import Settings
from zoo.data.sheet import grid, save_png
from zoo.data.transforms import to_uint8
from zoo.data.writer import VideoWriter
from zoo.errors import UserError
from zoo.frozen import Frozen
from zoo.hub import load
from zoo.lit.module import ZooModule, scheduled
from zoo.nets.tokenizer import Tokenizer
from zoo.nets.video_dit import VideoDiT
from zoo.objectives.latent_video import LatentVideoObjective
from zoo.objectives.losses import Losses
from zoo.text import CachedText
from zoo.video_pipeline import VideoPipeline


class LatentVideoModule(ZooModule):
    """Trains a `VideoDiT`.

    The data are latents that `zoo data encode` wrote (`CaptionedLatents`), or films that are
    encoded on the fly (`CaptionedFilms`). At every validation `samples/step-N.png` shows first,
    middle and last frames of the averaged net's films, and step-N.mp4 the films.

    Args:
        net: what is trained.
        objective: times, dropped captions, noise of the past.
        optimizer: called with the parameters.
        tokenizer: name or dir:PATH of what made the latents; None: the one their folder names.
            Films need it.
        warmup_steps: steps of linear warm-up; then a cosine over the rest of the run.
        attention: backend of the net's attention (`zoo.kernels`).
        gradient_checkpointing: recompute activations in the backward pass.
        prompts: of the samples.
        frames, steps, guidance: of the samples.
        keep_exports: also export the averaged net at every validation, to exports/step-N, for a
            curve of how its films get better.
    """

    net: VideoDiT

    def __init__(
        self,
        *,
        net: VideoDiT,
        objective: LatentVideoObjective,
        optimizer: OptimizerCallable,
        tokenizer: str | None = None,
        warmup_steps: int = 100,
        attention: str = "auto",
        gradient_checkpointing: bool = False,
        prompts: list[str] | None = None,
        frames: int = 17,
        steps: int = 30,
        guidance: float = 3.0,
        keep_exports: bool = False,
    ) -> None:
        super().__init__()
        self.net = net.train()
        net.backend, net.checkpointing = attention, gradient_checkpointing
        self.objective = objective
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.tokenizer_name = tokenizer
        self.prompts = prompts or ["red apple"]
        self.sampling = {"frames": frames, "steps": steps, "guidance": guidance}
        self.keep_exports = keep_exports
        self._parts = Frozen(pipeline=None, text=None)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Warm-up, then a cosine."""
        return scheduled(self.optimizer(self.net.parameters()), self.warm_cosine)

    def on_fit_start(self) -> None:
        """Load the tokenizer, check that the latents are its, and encode the captions.

        Raises:
            UserError: the latents are another tokenizer's, or it has no statistics.
        """
        super().on_fit_start()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        sources = [source for source in (data.train, data.val) if source is not None]
        for source in sources:
            if not isinstance(source, Captioned):
                raise UserError(
                    f"{source.root} is read as {type(source).__name__}, without captions: use "
                    "CaptionedLatents or CaptionedFilms"
                )
        stored = [s.stored for s in sources if isinstance(s, CaptionedLatents)]
        name = self.tokenizer_name or (stored[0].settings.model if stored else None)
        if name is None:
            raise UserError("films are encoded while training: set tokenizer to a name or dir:PATH")
        tokenizer = load(name)
        if not isinstance(tokenizer, Tokenizer):
            raise UserError(f"{name} is no tokenizer: give the one that makes the latents")
        ours = Settings.of(tokenizer, model=name)
        for folder in stored:
            folder.settings.check_model(ours, folder.folder)
        tokenizer.float().eval().requires_grad_(False).to(self.device)
        sample = data.train[0].pixels
        height, width = sample.shape[2:]
        if not stored:
            _, h, w = tokenizer.compression
            height, width = -(-height // h), -(-width // w)
        self.net.bind(
            tokenizer,
            name=name,
            size=(height, width),
            rate=data.train.film_rate,
            weights=ours.weights_sha256,
        )
        pipeline = VideoPipeline(self.net, tokenizer)
        pipeline.count(int(self.sampling["frames"]))  # a mistake is said before the first step
        captions = ["", *(prompt for source in sources for prompt in source.prompts)]
        self._parts.pipeline = pipeline
        self._parts.text = CachedText(pipeline.encode_prompts, captions)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch of captioned clips."""

        def run() -> Losses:
            return self._losses(batch)

        losses = run()
        shared = self.checked(losses, batch, again=run)
        self.log("train/loss", shared["loss"])
        self.log("train/mse", shared["mse"], prog_bar=True)
        return losses.total

    def validation_step(self, batch: Batch, index: int) -> Tensor:
        """The loss, with the same noise every time; with the first batch, films.

        Returns:
            Each clip's squared error [B].
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            losses = self._losses(batch)
        self.tally(batch, losses.terms)
        if index == 0 and self.trainer.is_global_zero:
            self.save_samples()
            if self.keep_exports:
                step = f"step-{self.trainer.global_step:06d}"
                self.export(Path(self.trainer.default_root_dir) / "exports" / step)
        assert losses.by_clip is not None
        return losses.by_clip

    def save_samples(self) -> Path:
        """Films of the prompts, always from the same noise."""
        pipeline: VideoPipeline = self._parts.pipeline
        seeds = list(range(len(self.prompts)))
        made: Any = self.sampling
        films = torch.cat(list(pipeline.films(self.prompts, seeds=seeds, **made)), dim=2)
        folder = Path(self.trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"step-{self.trainer.global_step:06d}"
        save_png(key_frames(films), stem.with_suffix(".png"))
        row = torch.cat(list(to_uint8(films)), dim=-1).movedim(0, -1).cpu().numpy()
        _, height, width, _ = row.shape
        rate = Fraction(self.net.config.rate).limit_denominator(1001)
        with VideoWriter(stem.with_suffix(".mp4"), width=width, height=height, rate=rate) as writer:
            for frame in row:
                writer.write(frame)
        return stem.with_suffix(".png")

    def export(self, folder: Path) -> None:
        """Write the generator and, where it has no name, its tokenizer."""
        self._parts.pipeline.save_pretrained(folder)

    def _losses(self, batch: Batch) -> Losses:
        begins = torch.tensor([film_of(key)[1] for key in batch.key], device=self.device)
        text = self._parts.text(batch.prompt).to(self.device)
        empty = self._parts.text([""]).to(self.device)
        latents = self._latents(batch.pixels)
        return self.objective(self.net, latents, text, empty, begins=begins, part=self.part)

    @torch.no_grad()
    def _latents(self, given: Tensor) -> Tensor:
        """Normalised latents: of the batch as it is, or of its films."""
        source: Any = self.trainer.datamodule.train  # type: ignore[attr-defined]
        if isinstance(source, CaptionedLatents):
            return given
        tokenizer: Tokenizer = self._parts.pipeline.tokenizer
        return self.net.normalize(tokenizer.encode(given).mean)


def key_frames(films: Tensor) -> Any:
    """One PIL picture: first, middle and last frame of each film [B,3,T,H,W], a row a film."""
    from PIL import Image

    last = films.shape[2] - 1
    pictures = [
        Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
        for film in to_uint8(films)
        for frame in film[:, [0, last // 2, last]].unbind(1)
    ]
    return grid(pictures, 3)
