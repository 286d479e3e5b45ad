"""Distilling a text-to-image teacher into few decoder passes, from captions alone."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from zoo.data.batch import Batch
from zoo.diffusion.samplers import DDIMPlan, TiUESample, tiue_sample
from zoo.errors import UserError
from zoo.frozen import Frozen
from zoo.lit.adversarial import take_over
from zoo.lit.finite import check_gradient, mean_over_processes
from zoo.lit.module import scheduled
from zoo.lit.prompted import PromptedModule
from zoo.nets.tiue.unet import TiUEUNet
from zoo.objectives.distillation import DistillationObjective, check_widths
from zoo.objectives.divergence import Divergence
from zoo.objectives.losses import Losses
from zoo.objectives.score import LoRA, ScoreNet
from zoo.open_pipeline import open_pipeline
from zoo.pipelines import TiUEPipeline

_WARMUP = 2**32 - 1
"""Marks the noise of the score net's lead, which no step of the run has."""


class DistillationModule(PromptedModule):
    """Trains a student that begins as its teacher; the score net follows it.

    `steps` and `anchors` choose the student: 4 and 1 is TiUE, 1 and 1 one-step distillation
    (SwiftBrush), 4 and 4 a four-step student that shares nothing.

    The student steps through Lightning's optimiser, the score net through torch's own, so
    `global_step` counts the student's steps; `score_steps` counts the score net's.

    Args:
        teacher: a pipeline: name, dir:PATH or hf:REPOSITORY; any Stable Diffusion 1.x / 2.x folder,
            or what the training of `t2i_tiny` exports.
        objective: the losses.
        optimizer: called with the student's parameters; its rate is constant after the warm-up.
        score: the score net, `LoRA` or `FullCopy`.
        score_optimizer: called with the score net's parameters.
        net: the student; None: a copy of the teacher. One that is given begins as the teacher, too.
        steps, anchors: decoder and encoder passes of the student.
        spacing: how the student's time steps lie on the schedule: "trailing" (begins at its end),
            "leading", "linspace"; None: as the teacher's scheduler says.
        score_updates: of the score net, for each of the student.
        score_warmup: updates of the score net before the student's first.
        warmup_steps: steps of linear warm-up of the student's rate.
        parts: a batch is worked on in so many parts, one after the other, for less memory.
        gradient_checkpointing: of student and score net.
        attention: backend of the nets' attention.
        prompts: of the sample sheet.

    Raises:
        UserError: no such teacher, a student of other widths, numbers outside their range.
    """

    wants_latents = False
    score_steps: Tensor
    alpha_bars: Tensor

    def __init__(
        self,
        *,
        teacher: str,
        objective: DistillationObjective,
        optimizer: OptimizerCallable,
        score: ScoreNet,
        score_optimizer: OptimizerCallable,
        net: TiUEUNet | None = None,
        steps: int = 4,
        anchors: int = 1,
        spacing: Literal["trailing", "leading", "linspace"] | None = None,
        score_updates: int = 1,
        score_warmup: int = 0,
        warmup_steps: int = 0,
        parts: int = 1,
        gradient_checkpointing: bool = False,
        attention: str = "auto",
        prompts: list[str] | None = None,
    ) -> None:
        if score_updates < 1 or score_warmup < 0 or parts < 1:
            raise UserError(
                f"score_updates = {score_updates}, score_warmup = {score_warmup}, parts = {parts}: "
                "give at least 1, 0 and 1"
            )
        if anchors not in (1, steps):
            raise UserError(f"anchors = {anchors}: give 1 (TiUE), or {steps} for a plain student")
        source = open_pipeline(teacher, dtype=torch.float32)
        pipeline = student_of(source, net=net, steps=steps, anchors=anchors, spacing=spacing)
        super().__init__(pipeline, prompts=prompts, attention=attention)
        self.net.requires_grad_(True)
        self.objective = objective
        self.score = score
        score.attach(source.unet)
        if gradient_checkpointing:
            self.net.enable_gradient_checkpointing()
            score.checkpoint_gradients()
        # a divergence with a head to train is a module, and its weights belong to the run
        divergence: Any = objective.divergence
        learns = isinstance(divergence, Divergence) and not divergence.data_free
        self.divergence: Any = divergence if learns else None
        if self.divergence is not None and self.divergence.samples is None:
            raise UserError(
                f"{self.divergence.name} learns a density ratio from samples of the teacher: give "
                "the divergence samples, or choose reverse_kl"
            )
        self._teacher = Frozen(of=source)
        self.optimizer, self.score_optimizer = optimizer, score_optimizer
        self.plan: DDIMPlan = pipeline.plan(steps)
        self.anchors = anchors
        self.score_updates, self.score_warmup = score_updates, score_warmup
        self.warmup_steps = warmup_steps
        self.parts = parts
        self.automatic_optimization = False
        self._clip: float | None = None
        self.register_buffer("alpha_bars", pipeline.ddim().alphas_cumprod.float(), persistent=False)
        self.register_buffer("score_steps", torch.zeros((), dtype=torch.long))

    def frozen_nets(self) -> list[nn.Module]:
        """The pipeline's, and the teacher."""
        return [*super().frozen_nets(), self.score.frozen_teacher]

    def take_over(self, trainer: Trainer) -> None:
        """Clipping is this module's: it has two optimisers, or three. Any number of processes.

        Raises:
            UserError: the trainer's precision, accumulation or divided weights don't go with that.
        """
        self._clip = take_over(trainer, what="distillation")

    def configure_optimizers(self) -> list[Any]:
        """The student's with its warm-up, the score net's without."""

        def warm(_: int) -> float:
            return min(1.0, (self.trainer.global_step + 1) / max(1, self.warmup_steps))

        student: OptimizerLRSchedulerConfig = scheduled(self.optimizer(self.net.parameters()), warm)
        found = [student, {"optimizer": self.score_optimizer(self.score.parameters())}]
        if self.divergence is not None:
            found.append(
                {"optimizer": self.divergence.optimizer(self.divergence.head.parameters())}
            )
        return found

    def on_fit_start(self) -> None:
        """Load CLIP where it is asked for."""
        super().on_fit_start()
        # frozen_nets are set to need no gradient; adapters on the teacher do
        self.score.requires_grad_(True)
        if self.divergence is not None:
            self.divergence.requires_grad_(True)
            self._sample_teacher()
        if self.objective.clip is not None:
            self.objective.clip.prepare(self.device)

    def _sample_teacher(self) -> None:
        """Make or read the teacher's samples of all captions.

        The first process makes them, the others then read the file. Where that takes longer than
        the strategy's time-out, make them before by a short run of one process.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        prompts = getattr(data.train, "prompts", None)
        if not prompts:
            raise UserError(
                f"{self.divergence.name} needs a teacher's sample of every caption: train it on "
                "Captions, whose captions are known beforehand"
            )
        teacher = self._teacher.of
        teacher.set_progress_bar_config(disable=True)
        adapted = isinstance(self.score, LoRA)
        strategy = self.trainer.strategy
        if not self.trainer.is_global_zero:
            strategy.barrier("samples of the teacher")
        if adapted:
            teacher.unet.disable_adapters()
        try:
            with Progress(console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task("samples of the teacher")
                self.divergence.samples.prepare(
                    teacher,
                    prompts,
                    report=lambda done, total: bar.update(task, completed=done, total=total),
                )
        finally:
            if adapted:
                teacher.unet.enable_adapters()
        if self.trainer.is_global_zero:
            strategy.barrier("samples of the teacher")

    def on_train_start(self) -> None:
        """The score net's lead over the student; a resumed run has had it."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        missing = self.score_warmup - int(self.score_steps)
        if self.trainer.global_step or missing <= 0:
            return
        # each process has captions and noise of its own, as in training
        rank, ranks = self.part
        samples = list(data.train.spread(self.score_warmup * data.batch_size * ranks))
        with self.trainer.precision_plugin.forward_context():
            for number in range(missing):
                chosen = samples[number :: self.score_warmup][rank::ranks]
                self._seed_noise(number, _WARMUP)
                made = [self._sample([s.prompt for s in chosen], gradient=False)]
                self._step_score(made, [[s.prompt for s in chosen]])

    def training_step(self, batch: Batch, index: int) -> None:
        """The student's turn, then the score net's on the samples just made."""
        size = -(-len(batch.prompt) // self.parts)
        parts = [batch.prompt[i : i + size] for i in range(0, len(batch.prompt), size)]
        optimizers: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        optimizers[0].zero_grad()
        made, totals = [], []
        for prompts in parts:
            losses, shared, sample = self._student_losses(prompts, batch)
            made.append(sample)
            share = len(prompts) / len(batch.prompt)
            self.manual_backward(losses.total * share)
            totals.append({name: value * share for name, value in shared.items()})
        self._descend(optimizers[0], self.net.parameters(), "the student")
        schedule.step()
        for name in totals[0]:
            total = sum(t[name] for t in totals)
            self.log(f"train/{name}", total, prog_bar=name != "loss")
        for _ in range(self.score_updates):
            self.log("train/score", self._step_score(made, parts), prog_bar=True)
        if self.divergence is not None:
            for name, value in self._step_ratio(made, parts).items():
                self.log(f"train/{name}", value)

    def validation_step(self, batch: Batch, index: int) -> None:
        """The sheet of the averaged student."""
        if index == 0 and self.trainer.is_global_zero:
            self.save_sheet()

    def _sample(self, prompts: list[str], *, gradient: bool) -> tuple[Tensor, TiUESample]:
        """The noise and what the student makes of it."""
        config: Any = self.net.config
        side = config.sample_size
        size = side if isinstance(side, list | tuple) else (side, side)
        z = torch.randn(len(prompts), config.in_channels, *size, device=self.device)
        with torch.set_grad_enabled(gradient):
            return z, tiue_sample(
                self.net, z, self.text_of(prompts), self.plan, anchors=self.anchors
            )

    def _student_losses(
        self, prompts: list[str], batch: Batch
    ) -> tuple[Losses, dict[str, Tensor], tuple[Tensor, TiUESample]]:
        """The losses, their means over processes, and the detached samples."""

        def run() -> tuple[Losses, tuple[Tensor, TiUESample]]:
            z, sample = self._sample(prompts, gradient=True)
            losses = self.objective.student(
                sample.sample,
                self.text_of(prompts),
                self.text_of([""]),
                score=self.score,
                plan=self.plan,
                alpha_bars=self.alpha_bars,
                z=z,
                predictions=sample.predictions,
            )
            clip = self.objective.clip
            if clip is not None:
                term = clip(self.pipeline.of.decode_latents(sample.sample), prompts)
                losses = Losses(
                    losses.total + clip.weight * term, losses.terms | {"clip": term}, output=z
                )
            return losses, (z, sample)

        losses, made = run()
        shared = self.checked(losses, batch, again=run)
        z, sample = made
        # the graph isn't needed any more, and would stay in memory with the other parts'
        return losses, shared, (z, TiUESample(*(x.detach() for x in sample)))

    def _step_score(self, made: list[tuple[Tensor, TiUESample]], parts: list[list[str]]) -> Tensor:
        """One update of the score net on the student's samples; the loss, of all processes."""
        # torch's own optimiser: Lightning's would count the step
        optimizer = self.trainer.optimizers[1]
        optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        count = sum(map(len, parts))
        for (_, sample), prompts in zip(made, parts, strict=True):
            loss = self.objective.score(
                sample.sample,
                self.text_of(prompts),
                self.text_of([""]),
                score=self.score,
                plan=self.plan,
                alpha_bars=self.alpha_bars,
            )
            self.manual_backward(loss * (len(prompts) / count))
            total += loss.detach() * (len(prompts) / count)
        self._descend(optimizer, self.score.parameters(), "the score net")
        self.score_steps += 1
        return mean_over_processes({"score": total}, self.trainer.strategy)["score"]

    def _step_ratio(
        self, made: list[tuple[Tensor, TiUESample]], parts: list[list[str]]
    ) -> dict[str, Tensor]:
        """One update of the ratio head on the student's samples and the teacher's.

        Returns:
            Its terms, means over processes.
        """
        # torch's own optimiser, as the score net's
        optimizer = self.trainer.optimizers[2]
        optimizer.zero_grad()
        count, found = sum(map(len, parts)), dict[str, Tensor]()
        for (_, sample), prompts in zip(made, parts, strict=True):
            loss, terms = self.objective.ratio(
                self.divergence.samples(prompts).to(self.device),
                sample.sample,
                self.text_of(prompts),
                alpha_bars=self.alpha_bars,
            )
            share = len(prompts) / count
            self.manual_backward(loss * share)
            for name, value in terms.items():
                found[name] = found.get(name, torch.zeros_like(value)) + value * share
        self._descend(optimizer, self.divergence.parameters(), "the ratio head")
        return mean_over_processes(found, self.trainer.strategy)

    def _descend(self, optimizer: Any, weights: Iterable[Tensor], who: str) -> None:
        weights = list(weights)
        check_gradient(weights, step=self.trainer.global_step, who=who)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(weights, self._clip)
        optimizer.step()


def student_of(
    teacher: TiUEPipeline,
    *,
    net: TiUEUNet | None,
    steps: int,
    anchors: int,
    spacing: str | None,
    sampler: str = "ddim",
) -> TiUEPipeline:
    """A pipeline with a UNet of its own that begins as the teacher's; other parts are shared.

    Raises:
        UserError: `net` has other widths, or numbers are outside their range.
    """
    if net is None:
        net = deepcopy(teacher.unet)
    else:
        check_widths(net, teacher.unet)
        net.load_state_dict(teacher.unet.state_dict(), strict=True)
    scheduler = teacher.scheduler
    how: Any = teacher.config
    if spacing is not None:
        scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing=spacing)
    return TiUEPipeline(
        net,
        scheduler,
        teacher.vae,
        teacher.text_encoder,
        teacher.tokenizer,
        text=how.text,
        steps=steps,
        plain=anchors == steps and steps > 1,
        sampler=sampler,
    )
