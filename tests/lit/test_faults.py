"""Fault drills with real faults: what a run does when the machine fails it."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.drills import Run, ranks, until
from tests.scripts.resume_rounds import curve
from tests.training_setups import train
from zoo.cli.train import latest_checkpoint
from zoo.errors import RunError, StepError, UserError
from zoo.lit.checkpoints import fault, newest_whole, previous
from zoo.lit.loggers import SteadyCSVLogger, SteadyTensorBoardLogger

FAMILY = "kl_vae_video"


def steps_done(folder: Path, rank: int = 0) -> int:
    diary = folder / f"diary{rank}"
    return len(diary.read_text().splitlines()) if diary.exists() else 0


def session(folder: Path, steps: int = 12, resume: Path | None = None, **more: Any) -> int:
    """Train; a RunError's sentence goes where the command line would show it."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return int(train(FAMILY, folder, steps=steps, resume=resume, **more).global_step)
    except RunError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from error


def global_step(file: Path) -> int:
    return int(torch.load(file, weights_only=False)["global_step"])


class At(Callback):
    """Does something after a step."""

    def __init__(self, step: int, what: Any) -> None:
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.what(trainer, pl_module)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_fault_signal_in_one_of_two_processes(number: int, tmp_path: Path) -> None:
    """Both stop after the same step, which is saved."""
    runs = ranks(session, tmp_path, 10_000, folder=tmp_path, strategy="ddp", devices=2)
    until(lambda: steps_done(tmp_path) >= 3)
    runs[1].kill(number)
    steps = {run.result() for run in runs}
    assert len(steps) == 1
    assert steps == {global_step(tmp_path / "last.ckpt")}


def test_fault_kill_9_of_one_of_two_processes(tmp_path: Path) -> None:
    """The other stops at once, names it, and what was saved is whole."""
    runs = ranks(session, tmp_path, 10_000, folder=tmp_path, strategy="ddp", devices=2)
    until(lambda: steps_done(tmp_path) >= 3)
    began = time.monotonic()
    runs[1].kill()
    assert runs[0].wait(30) == 1
    assert time.monotonic() - began < 30
    assert "error: process 0: process 1 of 2 doesn't answer after step" in runs[0].said
    assert fault(newest_whole(tmp_path / "last.ckpt")) is None


def test_fault_nan_in_a_batch_of_one_of_two_processes(tmp_path: Path) -> None:
    """Both end at the same step; the one that had it names the clip; the state before is saved."""
    runs = ranks(session, tmp_path, 100, folder=tmp_path, bad=7, strategy="ddp", devices=2)
    assert [run.wait() for run in runs] == [1, 1]
    said = [run.said for run in runs]
    step = steps_done(tmp_path)
    assert all(f"error: step {step}: the loss" in text for text in said)
    assert sum("0/7" in text for text in said) == 1
    assert sum("not finite in another process" in text for text in said) == 1
    assert global_step(tmp_path / "last.ckpt") == step


def test_fault_nan_in_a_gradient(tmp_path: Path) -> None:
    """Ends the run before it reaches the weights, which are saved."""

    def poison(trainer: Trainer, module: Any) -> None:
        module.net.head.weight.register_hook(lambda gradient: gradient * torch.nan)

    with pytest.raises(StepError, match="step 3: the gradient of the net is not finite"):
        train(FAMILY, tmp_path, steps=9, every=100, callbacks=(At(3, poison),))
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert state["global_step"] == 3
    assert all(v.isfinite().all() for v in state["current_model_state"].values())


def full_disk(folder: Path) -> int:
    """From step 4 to 6 no file may grow past a few bytes, as on a full disk."""

    def limit(size: int) -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        return lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return session(
        folder, 8, callbacks=(At(4, limit(20_000)), At(7, limit(resource.RLIM_INFINITY)))
    )


def test_fault_full_disk(tmp_path: Path) -> None:
    """Training goes on, the user is told which step, the last good file stays, then is replaced."""
    run = Run(full_disk, tmp_path, folder=tmp_path)
    assert run.result() == 8
    for step in (4, 5, 6):
        assert (
            f"step {step} was not saved ([Errno 27] File too large): training goes on" in run.said
        )
    assert [global_step(f(tmp_path / "last.ckpt")) for f in (Path, previous)] == [8, 7]
    assert not (tmp_path / ".last.ckpt.part").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_fault_torn_checkpoint(damage: str, tmp_path: Path, caplog: Any) -> None:
    """The one before is taken, and that is said; the curve is the same; both torn is an error."""
    train(FAMILY, tmp_path, steps=6)
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "cut":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    else:
        last.unlink()
    with caplog.at_level(logging.WARNING):
        train(FAMILY, tmp_path, steps=8, resume=last)
    assert f"{last} is torn" in caplog.text
    assert f"going on from the one before, {previous(last)}" in caplog.text
    assert list(curve(tmp_path)) == list(range(1, 9))  # step 6 twice, the same
    for file in (last, previous(last)):
        file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"is torn .* and no whole one is kept"):
        newest_whole(last)


def test_fault_folder_removed(tmp_path: Path) -> None:
    """With its logs: it is made again, with the rows from before."""
    folder = tmp_path / "run"
    loggers = [
        SteadyTensorBoardLogger(folder, name="", version="tensorboard"),
        SteadyCSVLogger(folder, name="", version="csv", flush_logs_every_n_steps=1),
    ]
    remove = At(4, lambda *_: shutil.rmtree(folder))
    named = {"callbacks": (remove,), "diary": False, "logger": loggers, "log_every_n_steps": 1}
    train(FAMILY, folder, steps=6, **named)
    assert global_step(folder / "last.ckpt") == 6
    rows = (folder / "csv" / "metrics.csv").read_text().splitlines()
    assert "train/loss" in rows[0]
    assert len(rows) >= 1 + 2


def test_fault_clock_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour back in the middle of a run: the same steps; the newest checkpoint is still found."""
    real = time.time
    back = At(3, lambda *_: monkeypatch.setattr(time, "time", lambda: real() - 3600))
    train(FAMILY, tmp_path / "run", steps=6, callbacks=(back,))
    train(FAMILY, tmp_path / "run-2", steps=6)
    assert curve(tmp_path / "run") == curve(tmp_path / "run-2")
    os.utime(tmp_path / "run-2" / "last.ckpt", (0, 0))
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run-2" / "last.ckpt"


def worker_killed(folder: Path) -> None:
    def kill(trainer: Trainer, module: Any) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)

    train(FAMILY, folder, steps=12, workers=1, callbacks=(At(3, kill),))


def test_fault_data_worker_killed(tmp_path: Path) -> None:
    """The run ends and says so; what was saved goes on to the same curve."""
    run = Run(worker_killed, tmp_path / "killed", folder=tmp_path)
    assert run.wait() == 1
    assert "DataLoader worker" in run.said
    train(FAMILY, tmp_path / "killed", steps=12, resume=tmp_path / "killed" / "last.ckpt")
    train(FAMILY, tmp_path / "whole", steps=12)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
