"""Checkpoints that outlive the process and the disk: whole files, the last two of them."""

from __future__ import annotations

import logging
import os
import signal
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.errors import RunError, StepError, UserError
from zoo.lit.sharding import local

_LOG = logging.getLogger(__name__)


def previous(path: Path) -> Path:
    """Where the checkpoint before `path` is kept."""
    return path.with_stem(f"{path.stem}-previous")


def fault(path: Path) -> str | None:
    """Why a checkpoint can't be trusted, None if every byte is as it was written (by CRC)."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        return str(error) or type(error).__name__
    return None if bad is None else f"the checksum of {bad} is wrong"


def newest_whole(path: Path) -> Path:
    """`path`, or the checkpoint before it where `path` is torn or gone; says so.

    Raises:
        UserError: neither is whole.
    """
    why = fault(path)
    if why is None:
        return path
    before = previous(path)
    if fault(before) is not None:
        raise UserError(f"{path} is torn ({why}) and no whole one is kept: start without it")
    _LOG.warning("%s is torn (%s): going on from the one before, %s", path, why, before)
    return before


class WholeFiles(TorchCheckpointIO):
    """A checkpoint appears whole or not at all, and the one before it is kept.

    What can't be written (a full disk) costs that save, not the run: the user is told, the last
    good file stays.

    Attributes:
        failed: why the last save failed; None if it didn't.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: str | None = None
        self._step = -1

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside `path`, wait for the disk, rename; nothing where this step is there."""
        path = Path(path)
        if checkpoint["global_step"] == self._step and path.exists():
            return  # the same state would push the one before it out
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                # renamed before its bytes are on the disk, a file would be empty after a power cut
                os.fsync(file.fileno())
            if path.exists():
                os.replace(path, previous(path))
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            # torch reports what its writer met as a RuntimeError in the OSError's place
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            self.failed = str(cause)
            _LOG.warning(
                "step %s was not saved (%s): training goes on, the last good checkpoint stays; "
                "free some space",
                checkpoint["global_step"],
                cause,
            )
            _remove(part)
        else:
            self.failed, self._step = None, checkpoint["global_step"]

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load `path`, or the one before it; see `newest_whole`."""
        return super().load_checkpoint(newest_whole(Path(path)), *args, **kwargs)


def _remove(part: Path) -> None:
    try:
        part.unlink(missing_ok=True)
    except OSError:  # a folder that can't be written to has no part either
        _LOG.warning("%s is left behind", part)


class Checkpoints(Callback):
    """Saves the run's state every N steps and whenever it stops: at a signal or a StepError.

    SIGINT and SIGTERM stop the run at the end of the step, in all processes; the same one a second
    time stops this process at once. Under SLURM the signal that announces the end of the job does,
    too (`sbatch --signal=SIGUSR1@120`); the command then asks for another turn.

    Args:
        file: the checkpoint; the one before it is kept beside it.
        every: steps between two.
    """

    def __init__(self, file: str | Path, *, every: int) -> None:
        self.file, self.every = Path(file), every
        self.signal: signal.Signals | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals: in place of Lightning's own handlers, which are set before this."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.signal == number:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self.signal = self.signal or signal.Signals(number)

        numbers = [signal.SIGINT, signal.SIGTERM]
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            # Lightning's handler would save in the middle of a step
            numbers.append(environment.requeue_signal or signal.SIGUSR1)
        for number in numbers:
            self._handlers[number] = signal.signal(number, stop)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save where the run can go on; processes agree on the step at which they stop."""
        strategy = trainer.strategy
        number = torch.tensor(self.signal or 0, device=strategy.root_device)
        if highest := int(strategy.reduce(number, reduce_op="max")):
            self.signal = signal.Signals(highest)
            trainer.should_stop = True
        if self.signal is not None or trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end."""
        self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep the weights from before a step that failed, if they are good."""
        # saving takes all processes: alone, or where all of them raise the same at this step
        together = RunError if trainer.world_size == 1 else StepError
        if isinstance(exception, together):
            good = all(bool(local(w).isfinite().all()) for w in pl_module.parameters())
            if trainer.strategy.reduce_boolean_decision(good):
                self._save(trainer)
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        self._restore()

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.file)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
