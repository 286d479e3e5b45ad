"""Training of a text-to-image diffusion net from scratch: the teacher of the distilled ones."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from zoo.data.batch import Batch
from zoo.errors import UserError
from zoo.hub import load
from zoo.lit.module import scheduled
from zoo.lit.prompted import PromptedModule
from zoo.nets.tiue.unet import TiUEUNet
from zoo.nets.tokenizer import Tokenizer
from zoo.objectives.diffusion import DiffusionObjective
from zoo.objectives.losses import Losses
from zoo.pipelines import TiUEPipeline


class TextToImageModule(PromptedModule):
    """Trains a UNet to denoise latents of captioned pictures.

    Args:
        net: what is trained.
        objective: prediction type, schedule, weights.
        optimizer: called with the parameters.
        autoencoder: name or dir:PATH of the image autoencoder whose latents are learned; "none"
            trains on pixels.
        warmup_steps: steps of linear warm-up; then a cosine over the rest of the run.
        attention: backend of the net's attention. On a CPU "math" makes a step of `t2i_tiny` 18 %
            shorter than "auto": torch's CPU kernel is slow on few tokens.
        prompts: of the sample sheet.
        steps, guidance: DDIM steps and classifier-free guidance of the samples and of the export.

    Raises:
        UserError: the net doesn't fit autoencoder or text encoder.
    """

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
        vae = None if autoencoder == "none" else load(autoencoder)
        if not isinstance(vae, Tokenizer | None):
            raise UserError(f"{autoencoder} is no autoencoder: give the folder of an image one")
        pipeline = TiUEPipeline(
            net, objective.scheduler, vae, steps=steps, plain=True, guidance=guidance
        )
        super().__init__(pipeline, prompts=prompts, attention=attention)
        self.objective = objective
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Warm-up, then a cosine."""
        return scheduled(self.optimizer(self.net.parameters()), self.warm_cosine)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch of captioned pictures."""

        def run() -> Losses:
            return self._losses(batch, train=True)

        losses = run()
        shared = self.checked(losses, batch, again=run)
        self.log("train/loss", shared["loss"], prog_bar=True)
        self.log("train/mse", shared["mse"])
        return losses.total

    def validation_step(self, batch: Batch, index: int) -> Tensor:
        """The loss, with the same noise every time; with the first batch, the sheet.

        Returns:
            Each picture's squared error [B].
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            losses = self._losses(batch, train=False)
        self.tally(batch, losses.terms | {"loss": losses.total})
        if index == 0 and self.trainer.is_global_zero:
            self.save_sheet()
        assert losses.by_clip is not None
        return losses.by_clip

    def _losses(self, batch: Batch, *, train: bool) -> Losses:
        latents = self.latents_of(batch, train=train)
        text, empty = self.text_of(batch.prompt), self.text_of([""])
        return self.objective(self.net, latents, text, empty, part=self.part)
