"""What every training run does alike: progress, learning rate, noise, finite gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.data.batch import Batch
from zoo.errors import UserError
from zoo.lit.finite import check_gradient, check_terms, mean_over_processes
from zoo.lit.sharding import FSDP2
from zoo.objectives.losses import Losses


class ZooModule(LightningModule):
    """Base of the training modules.

    Attributes:
        net: what is trained and exported.
        warmup_steps: steps of linear warm-up of the learning rate; then a cosine over the run.
    """

    net: nn.Module
    warmup_steps: int

    def __init__(self) -> None:
        super().__init__()
        self._seed: int | None = None
        self._tally: dict[str, Tensor] = {}  # sums over validation clips, and their number

    def progress(self) -> float:
        """Share of the run that is done, in [0,1]: of its steps or of its time, what is further.

        A run with a time limit thus ends its schedule on a slow machine too.
        """
        steps = self.trainer.estimated_stepping_batches
        done = self.trainer.global_step / steps if 0 < steps < math.inf else 0.0
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
                elapsed = callback.time_elapsed()
                done = max(done, elapsed / max(1e-9, elapsed + left))
        return min(1.0, done)

    def cosine(self, _: int) -> float:
        """Factor of the learning rate: a cosine over the run."""
        return 0.5 * (1 + math.cos(math.pi * self.progress()))

    def warm_cosine(self, step: int) -> float:
        """Factor of the learning rate: linear warm-up, then the cosine."""
        warm = (self.trainer.global_step + 1) / max(1, self.warmup_steps)
        return min(1.0, warm) * self.cosine(step)

    def take_over(self, trainer: Trainer) -> None:
        """Call before `fit`: a module that steps by hand takes over what the trainer did.

        Raises:
            UserError: this module can't train in the trainer's way.
        """
        if isinstance(trainer.strategy, FSDP2):
            raise UserError(
                f"fsdp2 divides tokenizers: {type(self).__name__} trains whole nets, use "
                "--trainer.strategy ddp"
            )

    @property
    def part(self) -> tuple[int, int]:
        """(number, count) of the processes that share a batch: this one has every count-th clip."""
        return self.trainer.global_rank, self.trainer.world_size

    def tally(self, batch: Batch, terms: dict[str, Tensor]) -> None:
        """Count means over a validation batch; they are logged at the end as val/NAME."""
        clips = self.counted(batch)
        for name, value in (terms | {"": torch.ones(())}).items():
            total = value.detach().double().cpu() * clips
            self._tally[name] = self._tally.get(name, torch.zeros_like(total)) + total

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._tally = {}

    def on_validation_epoch_end(self) -> None:
        """Log means over the clips of all processes.

        Not by `log(sync_dist=True)`: it averages the processes' numbers of clips as integers, so
        that 2 and 1 clips count as 1 and 1.
        """
        if not self._tally:
            return
        sums = torch.stack(list(self._tally.values())).to(self.device)
        shared = self.trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(shared, Tensor)
        totals = dict(zip(self._tally, shared.tolist(), strict=True))
        count = totals.pop("")
        for name, total in totals.items():
            self.log(f"val/{name}", total / count, prog_bar=name == "mse")

    def counted(self, batch: Batch) -> int:
        """How many clips of a validation batch are this process's to count.

        With fewer clips than processes some repeat a clip that another one counts.
        """
        source = self.trainer.datamodule.val  # type: ignore[attr-defined]
        return len(batch.key) if self.trainer.global_rank < len(source) else 0

    def on_fit_start(self) -> None:
        """Remember the run's seed."""
        if self._seed is None:
            self._seed = torch.initial_seed()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed that the noise of every step is drawn from."""
        checkpoint["seed"] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the noise of the run, whatever seed this process was started with."""
        self._seed = checkpoint.get("seed", self._seed)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Make a step's noise a function of seed, rank and step, so that resuming is exact."""
        trainer = self.trainer
        self._seed_noise(trainer.global_step, index % trainer.accumulate_grad_batches)

    def _seed_noise(self, *numbers: int) -> None:
        """Draw from here on what seed, rank and `numbers` decide."""
        assert self._seed is not None
        drawn = np.random.SeedSequence((self._seed, self.trainer.global_rank, *numbers))
        torch.manual_seed(int(drawn.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def checked(
        self, losses: Losses, batch: Batch, *, again: Callable[[], object]
    ) -> dict[str, Tensor]:
        """End the run, in every process, where a term is not finite in one of them.

        Args:
            losses: of this process's batch.
            batch: named in the message.
            again: runs the batch once more, to find the layer that overflowed.

        Returns:
            The terms and the total, as "loss", detached: means over all processes.

        Raises:
            StepError: a term is not finite.
        """
        terms = losses.terms | {"loss": losses.total}
        shared = mean_over_processes(terms, self.trainer.strategy)
        check_terms(
            losses.terms,
            shared={name: shared[name] for name in losses.terms},
            step=self.trainer.global_step,
            clips=batch.key,
            net=self.net,
            again=again,
        )
        return shared

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is told; a non-finite gradient ends the run, not the weights."""
        self.clip_gradients(
            optimizer,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )
        if self.trainer.precision == "16-mixed":
            return  # its scaler expects overflows and skips those steps
        check_gradient(self.net.parameters(), step=self.trainer.global_step, who="the net")


def scheduled(optimizer: Optimizer, scale: Callable[[int], float]) -> OptimizerLRSchedulerConfig:
    """An optimiser whose learning rate is scaled at every step."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
