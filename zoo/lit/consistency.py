"""Consistency distillation of a text-to-image teacher, on captioned pictures."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from zoo.data.batch import Batch
from zoo.frozen import Frozen
from zoo.lit.finite import check_terms
from zoo.lit.module import scheduled
from zoo.lit.prompted import PromptedModule
from zoo.lit.tiue import student_of
from zoo.nets.tiue.unet import TiUEUNet
from zoo.objectives.consistency import ConsistencyObjective
from zoo.objectives.losses import Losses
from zoo.open_pipeline import open_pipeline


class ConsistencyModule(PromptedModule):
    """Trains a student that begins as its teacher to jump to the end of any trajectory.

    Args:
        teacher: a pipeline: name, dir:PATH or hf:REPOSITORY.
        objective: the loss.
        optimizer: called with the student's parameters.
        net: the student; None: a copy of the teacher. One that is given begins as the teacher, too.
        steps: of the samples and of the export.
        spacing: how their time steps lie; see `DistillationModule`.
        warmup_steps: steps of linear warm-up of the rate; then it is constant.
        gradient_checkpointing: of the student.
        attention: backend of the nets' attention.
        prompts: of the sample sheet.

    Raises:
        UserError: no such teacher, or a student of other widths.
    """

    alpha_bars: Tensor

    def __init__(
        self,
        *,
        teacher: str,
        objective: ConsistencyObjective,
        optimizer: OptimizerCallable,
        net: TiUEUNet | None = None,
        steps: int = 4,
        spacing: Literal["trailing", "leading", "linspace"] | None = None,
        warmup_steps: int = 0,
        gradient_checkpointing: bool = False,
        attention: str = "auto",
        prompts: list[str] | None = None,
    ) -> None:
        source = open_pipeline(teacher, dtype=torch.float32)
        pipeline = student_of(
            source, net=net, steps=steps, anchors=steps, spacing=spacing, sampler="consistency"
        )
        super().__init__(pipeline, prompts=prompts, attention=attention)
        self.net.requires_grad_(True)
        if gradient_checkpointing:
            self.net.enable_gradient_checkpointing()
        self.teacher = Frozen(net=source.unet)
        self.objective = objective
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.prediction: str = pipeline.plan(steps).prediction
        self.register_buffer("alpha_bars", pipeline.ddim().alphas_cumprod.float(), persistent=False)

    def frozen_nets(self) -> list[nn.Module]:
        """The pipeline's, and the teacher."""
        return [*super().frozen_nets(), self.teacher.net]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Warm-up, then a constant rate."""

        def warm(_: int) -> float:
            return min(1.0, (self.trainer.global_step + 1) / max(1, self.warmup_steps))

        return scheduled(self.optimizer(self.net.parameters()), warm)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch of captioned pictures."""

        def run() -> Losses:
            return self.objective(
                self.latents_of(batch),
                self.text_of(batch.prompt),
                self.text_of([""]),
                student=lambda x, t, text: self.net(x, t, text).sample,
                teacher=lambda x, t, text: self.teacher.net(x, t, text).sample,
                prediction=self.prediction,
                alpha_bars=self.alpha_bars,
            )

        losses = run()
        step = self.trainer.global_step
        check_terms(losses.terms, step=step, clips=batch.key, net=self.net, again=run)
        self.log("train/loss", losses.total, prog_bar=True)
        self.log("train/mse", losses.terms["mse"])
        return losses.total

    def validation_step(self, batch: Batch, index: int) -> None:
        """The sheet of the averaged student."""
        if index == 0 and self.trainer.is_global_zero:
            self.save_sheet()
