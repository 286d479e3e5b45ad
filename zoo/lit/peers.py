"""Saying which process is gone when the others can't go on without it."""

from __future__ import annotations

import time
from datetime import timedelta

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.errors import RunError, UserError


class Peers(Callback):
    """A process that dies makes the others' next collective fail; they then name it and stop.

    With gloo a collective fails at once, with NCCL after the strategy's time-out
    (`--trainer.strategy.init_args.timeout`).

    Args:
        patience: seconds that the others have to answer in the roll call.
    """

    def __init__(self, patience: float = 3.0) -> None:
        self.patience = patience

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Call the roll after a failed collective.

        Raises:
            RunError: in the place of the exception; names who doesn't answer.
        """
        if not isinstance(exception, RuntimeError) or isinstance(exception, RunError | UserError):
            return
        if trainer.world_size == 1 or not dist.is_initialized():
            return
        missing = roll_call(trainer.global_rank, trainer.world_size, patience=self.patience)
        if missing:
            names = ", ".join(map(str, missing))
            raise RunError(
                f"process {trainer.global_rank}: process {names} of {trainer.world_size} doesn't "
                f"answer after step {trainer.global_step}: look at its message, then go on with "
                "--ckpt_path last"
            ) from exception


def roll_call(rank: int, ranks: int, *, patience: float) -> list[int]:
    """The ranks that don't answer within `patience` seconds; all that are left call it together."""
    # the store answers where collectives don't; it has no public accessor
    store = dist.distributed_c10d._get_default_store()
    here = [f"zoo/roll_call/{r}" for r in range(ranks)]
    try:
        store.set_timeout(timedelta(seconds=patience))
        store.set(here[rank], "here")
        deadline = time.monotonic() + patience
        while not store.check(here) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [r for r in range(ranks) if not store.check([here[r]])]
    except (dist.DistError, RuntimeError):
        return [0]  # which holds the store
