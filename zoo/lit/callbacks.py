"""Callbacks of a training run: averaged weights, pictures, speed."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from zoo.data.batch import Batch
from zoo.data.transforms import to_uint8
from zoo.data.writer import VideoWriter
from zoo.lit.loggers import tolerated
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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights as trained: the last checkpoint goes on from them."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in the module, for the export."""
        super().on_train_end(trainer, pl_module)


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
        with tolerated("samples"):
            self._write(trainer, batch.pixels[: self.clips], outputs[: self.clips])

    def _write(self, trainer: Trainer, x: Tensor, y: Tensor) -> None:
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
