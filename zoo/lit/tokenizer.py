"""Training of any tokenizer: loop, learning rate and logging; the objective holds the losses."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from zoo.data.batch import Batch
from zoo.errors import UserError
from zoo.lit.adversarial import check_stage, take_over, take_turns
from zoo.lit.module import ZooModule, scheduled
from zoo.lit.sharding import FSDP2, shard
from zoo.metrics.latents import LatentStatistics
from zoo.metrics.reconstruction import noisy_input_gain, psnr
from zoo.nets.blocks3d import set_gradient_checkpointing
from zoo.nets.cdt import CDT
from zoo.nets.cdt_decoder import CDTDecoder
from zoo.nets.pca import BlockPCA
from zoo.nets.posterior import Posterior
from zoo.nets.tokenizer import Tokenizer
from zoo.objectives import Adversarial, Losses, Objective

TIME_BINS = 4


class TokenizerModule(ZooModule):
    """Trains a CDT or a KL-VAE: the objective decides which losses.

    Args:
        net: what is trained.
        objective: gives the named losses.
        optimizer: called with the parameters.
        warmup_steps: steps of linear warm-up; then a cosine over the rest of the run.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        pca_clips: training clips that a net's linear shortcut is fitted on, before the first step.
        adversarial: a second stage against a discriminator, for KL-VAEs; None: without.
    """

    net: Tokenizer

    def __init__(
        self,
        *,
        net: Tokenizer,
        objective: Objective,
        optimizer: OptimizerCallable,
        warmup_steps: int = 100,
        gradient_checkpointing: bool = False,
        pca_clips: int = 400,
        adversarial: Adversarial | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        set_gradient_checkpointing(net, gradient_checkpointing)
        self.objective = objective
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.pca_clips = pca_clips
        self.adversarial = adversarial
        # one optimiser: Lightning's loop; two players take their turns by hand
        self.automatic_optimization = adversarial is None
        self._clip: float | None = None
        self._by_time: list[tuple[Tensor, Tensor]] = []
        self._latents = LatentStatistics()
        self._scores = torch.zeros(3, dtype=torch.float64)  # sums of PSNR and gain, clips

    def configure_model(self) -> None:
        """Divide the net over the processes, where the strategy is fsdp2."""
        if isinstance(self.trainer.strategy, FSDP2):
            shard(self, self.net)

    def configure_optimizers(self) -> list[OptimizerLRSchedulerConfig]:
        """The net's optimizer with warm-up and cosine decay, a discriminator's with the cosine."""
        optimizer = self.optimizer(p for p in self.net.parameters() if p.requires_grad)
        configs = [scheduled(optimizer, self.warm_cosine)]
        if self.adversarial is not None:
            weights = self.adversarial.discriminator.parameters()
            configs.append(scheduled(self.adversarial.optimizer(weights), self.cosine))
        return configs

    def take_over(self, trainer: Trainer) -> None:
        """Call before `fit`: with two optimisers clipping is this module's, not the trainer's.

        Raises:
            UserError: the trainer's precision or accumulation doesn't go with two optimisers.
        """
        if self.adversarial is not None:
            self._clip = take_over(trainer)

    def on_fit_start(self) -> None:
        """Load LPIPS and fit the shortcut, unless a checkpoint or `init_from` brought one."""
        if self.adversarial is not None:
            steps = self.trainer.estimated_stepping_batches
            check_stage(self.adversarial, self.net, steps=steps)
        super().on_fit_start()
        self.objective.prepare()
        pca = getattr(self.net, "pca", None)
        if isinstance(pca, BlockPCA) and not pca.basis.any():
            source = self.trainer.datamodule.train  # type: ignore[attr-defined]
            # the same clips on every rank, so that every rank has the same shortcut
            clips = (s.pixels[None].to(self.device) for s in source.spread(self.pca_clips))
            if isinstance(self.net, CDTDecoder):
                self.net.fit(clips)
            else:
                pca.fit(clips)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One batch of clips; a non-finite term ends the run before it reaches the weights."""
        losses: Losses = self._losses(batch)
        if self.adversarial is not None:
            layer: Any = self.net.last_layer
            terms = take_turns(
                self, self.adversarial, losses, batch, last_layer=layer, clip=self._clip
            )
            for name, value in terms.items():
                self.log(f"train/{name}", value)
        self._log_by_time(losses)
        return losses.total

    def _losses(self, batch: Batch) -> Losses:
        def run() -> Losses:
            losses: Losses = self.objective(self.net, batch.pixels, progress=self.progress())
            return losses

        losses = run()
        for name, value in self.checked(losses, batch, again=run).items():
            self.log(f"train/{name}", value, prog_bar=name != "loss")
        return losses

    def _log_by_time(self, losses: Losses) -> None:
        """The main term by diffusion time, in bins; the last time step has its own."""
        if losses.time is None:
            return
        self._by_time.append((losses.time.detach(), losses.by_clip))
        if self.trainer.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        pairs = torch.stack([torch.cat(parts) for parts in zip(*self._by_time, strict=True)])
        gathered = self.all_gather(pairs)
        assert isinstance(gathered, Tensor)
        time, value = gathered.view(-1, *pairs.shape).unbind(1)
        self._by_time.clear()
        bins = torch.where(time == 1, TIME_BINS, (time * TIME_BINS).long())
        names = [f"{i / TIME_BINS:.2f}-{(i + 1) / TIME_BINS:.2f}" for i in range(TIME_BINS)]
        for number, name in enumerate([*names, "1"]):
            if (chosen := bins == number).any():
                self.log(f"loss_at_t/{name}", value[chosen].mean())

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._latents = LatentStatistics()
        self._scores = torch.zeros(3, dtype=torch.float64)

    def validation_step(self, batch: Batch, index: int) -> Tensor:
        """PSNR of one-step reconstructions; for a CDT also what the true x_t is worth to it."""
        x = batch.pixels
        generator = torch.Generator().manual_seed(index)
        posterior = self.net.encode(x)
        size = (x.shape[2], x.shape[3], x.shape[4])
        y = self.net.decode(posterior.mean, size=size, generator=generator)
        count = self.counted(batch)
        self._scores[0] += psnr(y, x)[:count].sum().double().cpu()
        self._scores[2] += count
        if posterior.logvar is not None:
            self._latents.update(Posterior(posterior.mean[:count], posterior.logvar[:count]))
        if isinstance(self.net, CDT):
            gain = noisy_input_gain(self.net, x, generator=generator)
            self._scores[1] += gain[:count].sum().double().cpu()
        return y

    def on_validation_epoch_end(self) -> None:
        """Means over the clips of all processes, active units and mutual information.

        The last two go to 0 where the posterior collapses.
        """

        def total(value: Tensor) -> Tensor:
            reduced = self.trainer.strategy.reduce(value.to(self.device), reduce_op="sum")
            assert isinstance(reduced, Tensor)
            return reduced

        decibels, gain, count = total(self._scores).tolist()
        self.log("val/psnr", decibels / count, prog_bar=True)
        if isinstance(self.net, CDT):
            self.log("val/xt_gain", gain / count, prog_bar=True)
        if self._latents.begun:
            self._latents.sum_over(total)
            self.log("val/active_units", float(self._latents.active_units()))
            self.log("val/mutual_information", self._latents.mutual_information())

    @torch.no_grad()
    def measure_latents(self, *, clips: int = 64) -> None:
        """Set the net's latent mean and std from training clips; a generator needs them.

        Raises:
            UserError: the data module has no training data.
        """
        source = self.trainer.datamodule.train  # type: ignore[attr-defined]
        if not len(source):
            raise UserError("no training clips to measure the latents on")
        means = []
        for sample in source.spread(clips):
            x = sample.pixels[None].to(next(self.net.parameters()).device)
            means.append(self.net.encode(x).mean.movedim(1, 0).flatten(1).float())
        codes = torch.cat(means, dim=1)
        self.net.latent_mean.copy_(codes.mean(1))
        self.net.latent_std.copy_(codes.std(1))
