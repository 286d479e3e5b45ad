"""Callbacks of a training run: averaged weights, pictures, speed, a clean stop."""

from __future__ import annotations

import os
import signal
import time
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from zoo.data.batch import Batch
from zoo.data.transforms import to_uint8
from zoo.data.writer import VideoWriter
from zoo.errors import RunError
from zoo.lit.pictures import save_strip


class EMA(WeightAveraging):
    """Exponential moving average of the weights: validated, exported and saved.

    Args:
        decay: of each step; early on min(decay, (1 + n) / (10 + n)), so that the average forgets
            the random start quickly.
    """

    def __init__(self, decay: float = 0.999) -> None:
        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            n = float(count)
            if not current.is_floating_point():
                return current  # a counter
            return averaged.lerp(current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(avg_fn=average)
        self.decay = decay


class Samples(Callback):
    """At every validation: a strip input | reconstruction | error and, of films, a short mp4.

    Args:
        folder: where step-N.png and step-N.mp4 go.
        clips: how many clips of the first validation batch.
        frames: pictures of each clip in the strip.
    """

    def __init__(self, folder: str | Path, *, clips: int = 2, frames: int = 4) -> None:
        self.folder, self.clips, self.frames = Path(folder), clips, frames
        self.latest: tuple[Path, ...] = ()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the pictures of the first batch."""
        if batch_idx or not trainer.is_global_zero:
            return
        x, y = batch.pixels[: self.clips], outputs[: self.clips]
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / f"step-{trainer.global_step:06d}"
        strip, film = stem.with_suffix(".png"), stem.with_suffix(".mp4")
        save_strip(strip, x, y, frames=self.frames)
        self.latest = (strip,)
        if x.shape[2] > 1:
            self.latest = (strip, film)
            pair = torch.cat([to_uint8(x), to_uint8(y)], dim=-1)
            _, _, _, height, width = pair.shape
            with VideoWriter(film, width=width, height=height, rate=Fraction(8)) as writer:
                for clip in pair.movedim(1, -1).cpu():
                    for frame in clip:
                        writer.write(frame.numpy())
        for logger in trainer.loggers:
            add = getattr(getattr(logger, "experiment", None), "add_image", None)
            if add is not None:
                import torchvision

                add("strip", torchvision.io.read_image(str(strip)), trainer.global_step)


class Speed(Callback):
    """Clips a second over the logging interval, without validation and saving."""

    def __init__(self) -> None:
        self._began, self._clips, self._spent = 0.0, 0, 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Stop the clock; log now and then."""
        self._spent += time.perf_counter() - self._began
        self._clips += len(batch.pixels) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("train/clips_per_s", self._clips / self._spent, prog_bar=True)
            self._clips, self._spent = 0, 0.0


class Checkpoints(Callback):
    """Saves the run's state every N steps and whenever it stops: at SIGINT, SIGTERM or a RunError.

    One file, replaced only by a whole newer one. A second signal stops at once.

    Args:
        file: the checkpoint.
        every: steps between two.
    """

    def __init__(self, file: str | Path, *, every: int) -> None:
        self.file, self.every = Path(file), every
        self.signal: signal.Signals | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals: in place of Lightning's own handlers, which are set before this."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self.signal = signal.Signals(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, stop)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save where the run can go on."""
        if self.signal is not None:
            trainer.should_stop = True
        if self.signal is not None or trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, unless it was saved already."""
        if self.signal is None:
            self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep the weights from before a step that failed, if they are good."""
        weights = pl_module.parameters()
        if isinstance(exception, RunError) and all(bool(w.isfinite().all()) for w in weights):
            self._save(trainer)
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop listening."""
        self._restore()

    def _save(self, trainer: Trainer) -> None:
        part = self.file.with_name(f".{self.file.name}.part")
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            os.replace(part, self.file)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
