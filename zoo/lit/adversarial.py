"""One step of the adversarial stage: the net's turn, then the discriminator's.

The net steps through Lightning's optimiser, the discriminator through torch's own, which Lightning
doesn't count: `global_step` stays the number of the net's steps, so schedules, checkpoints, limits
and pictures mean what they mean without a discriminator. Its own count is `Adversarial.steps`.
"""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from zoo.data.batch import Batch
from zoo.errors import UserError
from zoo.lit.finite import check_gradient, check_terms, mean_over_processes
from zoo.lit.sharding import FSDP2
from zoo.objectives import Adversarial, Losses


def take_over(trainer: Trainer, *, what: str = "the adversarial stage") -> float | None:
    """Before fit: what Lightning's loop does for one optimiser is now done in `take_turns`.

    Returns:
        The largest gradient norm, which the trainer is no longer asked to see to.

    Raises:
        UserError: precision, accumulation or sharded weights don't go with two optimisers.
    """
    if trainer.precision == "16-mixed":
        raise UserError(f"{what} has no float16 scaler: use bf16-mixed or 32-true")
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"accumulate_grad_batches = {trainer.accumulate_grad_batches}: {what} takes 1; use a "
            "larger batch"
        )
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        # each player's backward pass leaves the other without gradients; not to be waited for
        strategy._ddp_kwargs["find_unused_parameters"] = True
    elif trainer.world_size > 1 or isinstance(strategy, FSDP2):
        raise UserError(
            f"{type(strategy).__name__}: {what} needs whole weights on every process; use "
            "--trainer.strategy ddp"
        )
    clip, trainer.gradient_clip_val = trainer.gradient_clip_val, None
    return None if clip is None else float(clip)


def check_stage(stage: Adversarial, net: nn.Module, *, steps: float) -> None:
    """Say before the first step what would only show hours later.

    Args:
        stage: the second stage.
        net: what it trains.
        steps: how many the run has.

    Raises:
        UserError: the discriminator would start after the last step, or never find a last layer.
    """
    if not isinstance(getattr(net, "last_layer", None), Tensor):
        raise UserError(
            f"{type(net).__name__} has no last_layer: the adversarial stage trains KL-VAEs"
        )
    if stage.start >= steps:
        raise UserError(
            f"the discriminator would start at step {stage.start}, after the last step {steps:g}: "
            "lower model.adversarial.init_args.start or raise trainer.max_steps"
        )


def take_turns(
    module: LightningModule,
    stage: Adversarial,
    losses: Losses,
    batch: Batch,
    *,
    last_layer: Tensor,
    clip: float | None,
) -> dict[str, Tensor]:
    """Step the net, and from `stage.start` on the discriminator.

    Args:
        module: two optimisers (net, discriminator) and a schedule for each.
        losses: of the net without the adversarial term.
        batch: the originals.
        last_layer: of the net.
        clip: largest norm of each player's gradient; None doesn't clip.

    Returns:
        The terms of the stage, means over processes, for the log; empty before the start.

    Raises:
        StepError: a term or a gradient is not finite.
    """
    trainer = module.trainer
    strategy = trainer.strategy
    step = trainer.global_step
    total = losses.total
    terms: dict[str, Tensor] = {}
    playing = step >= stage.start
    x, y = batch.pixels, losses.output
    assert y is not None
    optimizers = cast(list[LightningOptimizer], module.optimizers())
    schedules = cast(list[LRScheduler], module.lr_schedulers())
    if playing:

        def checked(own: dict[str, Tensor]) -> dict[str, Tensor]:
            shared = mean_over_processes(own, strategy)
            check_terms(
                own,
                shared=shared,
                step=step,
                clips=batch.key,
                net=stage.discriminator,
                again=lambda: stage.fool(y),
            )
            return shared

        def mean(value: Tensor) -> Tensor:
            reduced = strategy.reduce(value.clone(), reduce_op="mean")
            assert isinstance(reduced, Tensor)
            return reduced

        fooling = stage.fool(y)
        balance = stage.balance(total, fooling, last_layer, mean=mean)
        terms = checked({"gan": fooling, "gan_balance": balance})
        total = total + balance * fooling
    _descend(module, optimizers[0], total, clip=clip, step=step, who="the net")
    schedules[0].step()
    if playing:
        loss, verdicts = stage.judge(x, y, mean=mean)
        terms |= checked(verdicts)
        raw = trainer.optimizers[1]
        _descend(module, raw, loss, clip=clip, step=step, who="the discriminator")
        schedules[1].step()
    return terms


def _descend(
    module: LightningModule,
    optimizer: LightningOptimizer | torch.optim.Optimizer,
    loss: Tensor,
    *,
    clip: float | None,
    step: int,
    who: str,
) -> None:
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    module.manual_backward(loss)
    check_gradient(weights, step=step, who=who)
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
