"""Two processes (gloo) do what one does with the same batch, in every family that exists."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.drills import Run, ranks
from tests.prompted_setups import words
from tests.training_setups import SETUPS, families, train
from tests.waves import GlobalNoise
from zoo.errors import UserError
from zoo.lit.sharding import local


class Gradients(Callback):
    """Copies of the gradients of steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.kept: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step in self.steps:
            for name, weight in pl_module.named_parameters():
                if weight.grad is not None:
                    self.kept[f"{trainer.global_step}/{name}"] = weight.grad.clone()


class Errors(Callback):
    """What this process's validation steps return for each clip, of the last validation."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_validation_start(self, *_: Any) -> None:
        self.kept = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any
    ) -> None:
        if isinstance(outputs, torch.Tensor) and outputs.ndim == 1:
            self.kept.append(outputs)


class Reseeded(Callback):
    """The noise of a step's global batch, whatever the rank."""

    def __init__(self, noise: GlobalNoise) -> None:
        self.noise = noise

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.noise.seed(2**32)  # a module may train something before its first step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.noise.seed(trainer.global_step)


def twenty_steps(family: str, folder: Path) -> dict[str, Any]:
    """Train on 4 clips a step; returns what the gate compares."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    noise = GlobalNoise(int(os.environ.get("RANK", "0")), processes)
    gradients, errors = Gradients(1, 5), Errors()
    more = {"devices": processes, "strategy": "ddp"} if processes > 1 else {}
    with noise:
        trainer = train(
            family,
            folder,
            steps=20,
            batch=4 // processes,
            every=20,
            callbacks=(Reseeded(noise), gradients, errors),
            **more,
        )
    state = torch.load(folder / "last.ckpt", weights_only=False)
    return {
        "gradients": gradients.kept,
        "weights": state["current_model_state"],
        "averages": state["state_dict"],
        "logged": {k: float(v) for k, v in trainer.callback_metrics.items()},
        "keys": [line.split()[2] for line in _diary(folder, trainer.global_rank)],
        "used": state["ZooDataModule"]["used"],
        "errors": errors.kept,
    }


def _diary(folder: Path, rank: int) -> list[str]:
    return (folder / f"diary{rank}").read_text().splitlines()


def largest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    assert a
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


@pytest.mark.parametrize("family", families())
def test_ddp_equals_one_process(family: str, tmp_path: Path) -> None:
    """Gradients to 1e-6, weights after 20 steps to 1e-5; averages, logs and clips, too."""
    alone = Run(twenty_steps, family, tmp_path / "one", folder=tmp_path)
    two = ranks(twenty_steps, family, tmp_path / "two", folder=tmp_path)
    one, first, second = (run.result(120) for run in (alone, *two))
    assert largest(first["gradients"], second["gradients"]) == 0
    assert largest(one["gradients"], first["gradients"]) < 1e-6
    assert largest(one["weights"], first["weights"]) < 1e-5
    assert largest(one["averages"], first["averages"]) < 1e-5
    # what is logged is of the whole batch and of all validation clips, in every process
    assert second["logged"] == pytest.approx(first["logged"])
    if first["errors"]:
        clips = torch.cat([*first["errors"], *second["errors"]])
        assert len(clips) == 3
        assert first["logged"]["val/mse"] == pytest.approx(float(clips.mean()), rel=1e-5)
    for result in (one, first):
        # their noise depends on the validation batch
        for name in ("val/xt_gain", "val/mse", "val/loss"):
            result["logged"].pop(name, None)
    assert first["logged"] == pytest.approx(one["logged"], rel=1e-3, abs=1e-4)
    assert one["used"] == first["used"] == 80
    # the clips of a step are the same, each in one process
    for whole, *parts in zip(one["keys"], first["keys"], second["keys"], strict=True):
        assert sorted(whole.split(",")) == sorted(",".join(parts).split(","))


def divided(family: str, folder: Path, stop: int, resume: Path | None) -> tuple[int, int]:
    """Train under fsdp2; the numbers of weights this process holds, and of all."""
    noise = GlobalNoise(int(os.environ["RANK"]), 2)
    with noise:
        trainer = train(
            family,
            folder,
            steps=12,
            stop=stop,
            callbacks=(Reseeded(noise),),
            resume=resume,
            devices=2,
            strategy="fsdp2",
        )
    weights = list(trainer.lightning_module.parameters())
    return sum(local(w).numel() for w in weights), sum(w.numel() for w in weights)


def alone(family: str, folder: Path, stop: int, resume: Path | None) -> None:
    noise = GlobalNoise(0, 1)
    with noise:
        train(
            family,
            folder,
            steps=12,
            stop=stop,
            batch=4,
            callbacks=(Reseeded(noise),),
            resume=resume,
        )


@pytest.mark.parametrize("family", [pytest.param("cdt", marks=pytest.mark.slow), "kl_vae_video"])
def test_ddp_sharded_equals_one_process(family: str, tmp_path: Path) -> None:
    """FSDP2 from step 4 to 8, one process before and after: the same weights to 1e-5.

    So a checkpoint goes on in another strategy and on another number of processes, both ways.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Run(alone, family, whole, 12, None, folder=tmp_path).result()
    Run(alone, family, parts, 4, None, folder=tmp_path).result()
    last = parts / "last.ckpt"
    for run in ranks(divided, family, parts, 8, last, folder=tmp_path):
        own, all_of_them = run.result(120)
        assert own < 0.7 * all_of_them
    Run(alone, family, parts, 12, last, folder=tmp_path).result()
    a, b = (torch.load(folder / "last.ckpt", weights_only=False) for folder in (whole, parts))
    for key in ("current_model_state", "state_dict"):
        assert largest(a[key], b[key]) < 1e-5
    assert a["ZooDataModule"] == b["ZooDataModule"]


@pytest.mark.parametrize(
    "family",
    ["adversarial", "text_to_image", "distillation", "divergence", "consistency", "latent_video"],
)
def test_fsdp2_is_refused_where_it_would_leave_nets_undivided(family: str, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", devices=1, strategy="fsdp2", logger=False)
    with pytest.raises(UserError, match=r"(?i)fsdp2.* use --trainer\.strategy ddp"), words():
        SETUPS[family].module(tmp_path).take_over(trainer)
