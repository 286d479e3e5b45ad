"""Kill -9 and go on: the same losses to the bit, the same state at the end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from tests.drills import Run, ranks
from tests.scripts.resume_rounds import curve, digest, rounds
from tests.training_setups import families, train


@pytest.mark.parametrize(
    ("family", "kills"), [("adversarial", 7), ("kl_vae_video", 7), ("distillation", 6)]
)
def test_resume_after_kill_9_is_exact(family: str, kills: int, tmp_path: Path) -> None:
    """Twenty in all, at random moments; 500 by tests/scripts/resume_rounds.py."""
    found = rounds(family, tmp_path, kills=kills, steps=60, seed=kills)
    assert found["kills"] == kills


class Keep(Callback):
    """Copies of the checkpoint of given steps; place it behind Checkpoints."""

    def __init__(self, file: Path, *steps: int) -> None:
        self.file, self.steps = file, steps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps:
            shutil.copy(self.file, self.file.with_name(f"{trainer.global_step}.ckpt"))


def whole_and_parts(family: str, folder: Path) -> None:
    """14 steps at once; the same resumed at 5, 11 and 12: in an epoch of 11, at its end, after."""
    whole, parts = folder / "whole", folder / "parts"
    train(family, whole, steps=14, last=(Keep(whole / "last.ckpt", 5),))
    file = parts / "last.ckpt"
    train(family, parts, steps=14, stop=11, resume=whole / "5.ckpt")
    train(family, parts, steps=14, stop=12, resume=file)
    train(family, parts, steps=14, resume=file)


@pytest.mark.parametrize("family", families(slow=("cdt", "cdt_decoder")))
def test_resume_in_an_epoch_and_at_its_end(family: str, tmp_path: Path) -> None:
    Run(whole_and_parts, family, tmp_path, folder=tmp_path).result(120)
    whole, parts = curve(tmp_path / "whole"), curve(tmp_path / "parts")
    assert parts == {step: line for step, line in whole.items() if step > 5}
    assert digest(tmp_path / "whole" / "last.ckpt") == digest(tmp_path / "parts" / "last.ckpt")


def stopped(family: str, folder: Path, steps: int, resume: Path | None, **more: Any) -> None:
    train(family, folder, steps=steps, resume=resume, **more)


def test_resume_on_another_number_of_processes(tmp_path: Path) -> None:
    """A checkpoint of two processes goes on in one with the same batch: no clip twice, none lost.

    A pass of 22 clips ends within the sixth step of 4.
    """
    two = {"strategy": "ddp", "devices": 2, "batch": 2}
    for run in ranks(stopped, "kl_vae_video", tmp_path, 3, None, folder=tmp_path, **two):
        run.result()
    last = tmp_path / "last.ckpt"
    Run(stopped, "kl_vae_video", tmp_path, 11, last, folder=tmp_path, batch=4).result()
    lines = [(tmp_path / f"diary{rank}").read_text().splitlines() for rank in range(2)]
    assert [int(line.split()[0]) for line in lines[0]] == list(range(1, 12))
    clips = [clip for part in lines for line in part for clip in line.split()[2].split(",")]
    assert sorted(clips) == sorted(f"{number}/{i}" for number in (0, 1) for i in range(22))
