"""Callbacks of a training run: averaged weights, pictures, speed."""

from __future__ import annotations

import time
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.data.batch import Batch
from zoo.data.transforms import to_uint8
from zoo.data.writer import VideoWriter
from zoo.lit.loggers import tolerated
from zoo.lit.pictures import save_strip
from zoo.lit.sharding import FSDP2, hold, like, local, whole_tensor


class EMA(Callback):
    """Exponential moving average of the weights: validated, exported and saved.

    Every process averages what it holds of the weights, so that it works where they are divided.
    A checkpoint has the averages as `state_dict`, the weights as `current_model_state`.

    Args:
        decay: of each step; early on min(decay, (1 + n) / (10 + n)), so that the average forgets
            the random start quickly.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.count = 0
        self._step = 0
        self._averages: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights, or where the checkpoint was taken."""
        now = _tensors(pl_module)
        self._averages = {name: value.detach().clone() for name, value in now.items()}
        for name, value in (self._loaded or {}).items():
            self._averages[name] = like(now[name], value).clone()
        self._loaded = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Average after every step of the optimizer."""
        if trainer.global_step <= self._step:
            return
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in _tensors(pl_module).items():
            average = local(self._averages[name])
            if self.count and value.is_floating_point():
                average.lerp_(local(value), 1 - decay)
            else:
                average.copy_(local(value))
        self.count += 1
        self._step = trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the averages."""
        self._swap(pl_module)
        hold(pl_module, True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train on from the weights."""
        hold(pl_module, False)
        self._swap(pl_module)

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in the module, for the export; the last checkpoint has both."""
        for name, value in _tensors(pl_module).items():
            local(value).copy_(local(self._averages[name]))

    def state_dict(self) -> dict[str, Any]:
        """The step of the last average."""
        return {"latest_update_step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self._step = state_dict["latest_update_step"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the averages; every process calls it."""
        names = pl_module.state_dict().keys()
        averages = {name: whole_tensor(v) for name, v in self._averages.items() if name in names}
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = averages
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.count)}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the averages; Lightning loaded them in the place of the weights."""
        self._loaded = dict(checkpoint["state_dict"])
        if "averaging_state" not in checkpoint:
            return
        self.count = int(checkpoint["averaging_state"]["n_averaged"])
        if not isinstance(trainer.strategy, FSDP2):  # which took the weights
            pl_module.load_state_dict(checkpoint["current_model_state"])

    @torch.no_grad()
    def _swap(self, module: LightningModule) -> None:
        if not self._averages:
            return  # validation alone
        for name, value in _tensors(module).items():
            weight, average = local(value), local(self._averages[name])
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)


def _tensors(module: LightningModule) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))


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
