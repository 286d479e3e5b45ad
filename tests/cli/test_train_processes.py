"""`zoo train` in several processes, under SLURM, and options that Lightning would trip over."""

from __future__ import annotations

import os
import signal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from tests.drills import Run, ranks, until
from zoo.cli import run, train
from zoo.data.video import VideoWriter

SMOKE = Path(__file__).parents[2] / "configs" / "smoke"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A film of 64 pixels."""
    rng = np.random.default_rng(0)
    (tmp_path / "films").mkdir()
    with VideoWriter(tmp_path / "films" / "a.mp4", width=64, height=64, rate=Fraction(25)) as film:
        for _ in range(20):
            film.write(rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1))
    return tmp_path


def command(folder: Path, *extra: object, config: str = "kl_vae_video") -> None:
    """The command line in this process: it ends it with its status."""
    os.chdir(folder)
    os.environ |= {"ZOO_CACHE": str(folder / "cache"), "ZOO_OFFLINE": "1"}
    arguments = [
        *("fit", "--config", SMOKE / f"{config}.yaml", "--out", "run", "--model.pca_clips", 8),
        *("--data.train.init_args.root", "films", "--data.val.init_args.root", "films"),
        *("--model.net.init_args.context_dim", 8, "--model.objective.init_args.lpips_weight", 0),
        *("--data.train.init_args.short_side", 64, "--evaluate", "false"),
        *("--trainer.max_steps", 3, "--trainer.val_check_interval", 3, *extra),
    ]
    run(train.main, [*map(str, arguments)])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ddp_by_the_command(folder: Path, strategy: str) -> None:
    """One run folder, one export, logs once; whole weights in the export, also of divided ones."""
    more = ("--trainer.devices", 2, "--trainer.strategy", strategy)
    for one in ranks(command, folder, *more, folder=folder / "said"):
        assert one.wait() == 0, one.said
    assert not (folder / "run-2").exists()
    names = {path.name for path in (folder / "run").iterdir()}
    assert names >= {"config.yaml", "last.ckpt", "export", "csv", "tensorboard", "samples"}
    net = zoo.load(f"dir:{folder / 'run' / 'export'}")
    averages = torch.load(folder / "run" / "last.ckpt", weights_only=False)["state_dict"]
    for name, value in net.state_dict().items():
        if not name.startswith("latent_"):
            assert torch.equal(value, averages[f"net.{name}"]), name
    assert len(list((folder / "run" / "tensorboard").glob("events*"))) == 1


def test_sharded_adversarial_stage_is_refused(folder: Path) -> None:
    more = ("--trainer.devices", 2, "--trainer.strategy", "fsdp2")
    for one in ranks(command, folder, *more, folder=folder / "said", config="kl_vae_video_gan"):
        assert one.wait() == 2
        assert "error: FSDP2: the adversarial stage needs whole weights" in one.said


def test_resume_under_slurm_after_its_signal(folder: Path) -> None:
    """The signal before the time limit: saved, queued again, and the same command goes on."""
    (folder / "bin").mkdir()
    scontrol = folder / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    scontrol.chmod(0o755)
    slurm = {
        **{"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1"},
        **{"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost"},
        **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }
    steps = ("--trainer.max_steps", 100_000, "--save_every", 1, "--trainer.max_time", "null")
    first = Run(command, folder, *steps, folder=folder / "said", env=slurm)
    until(lambda: (folder / "run" / "last.ckpt").exists())
    first.kill(signal.SIGUSR1)
    assert first.wait() == 128 + signal.SIGUSR1, first.said
    assert (folder / "asked").read_text() == "requeue 17\n"
    last = folder / "run" / "last.ckpt"
    done = torch.load(last, weights_only=False)["global_step"]
    again = slurm | {"SLURM_RESTART_COUNT": "1"}
    more = ("--trainer.max_steps", done + 2, "--trainer.val_check_interval", 1)
    second = Run(command, folder, *more, folder=folder / "said", env=again)
    assert second.wait() == 0, second.said
    assert torch.load(last, weights_only=False)["global_step"] == done + 2
    assert not (folder / "run-2").exists()


def test_fault_broken_film_among_good_ones(folder: Path) -> None:
    """Left out and named; training goes on with the others."""
    good = (folder / "films" / "a.mp4").read_bytes()
    for name in "bcdefghij":
        (folder / "films" / f"{name}.mp4").write_bytes(good)
    (folder / "films" / "torn.mp4").write_bytes(good[:100])
    one = Run(command, folder, folder=folder / "said")
    assert one.wait() == 0, one.said
    assert "1 files of films were skipped: torn.mp4: " in one.said


@pytest.mark.slow
def test_fault_data_worker_is_said_in_one_sentence(folder: Path) -> None:
    steps = ("--trainer.max_steps", 100_000, "--trainer.max_time", "null", "--save_every", 1)
    one = Run(command, folder, *steps, "--data.num_workers", 1, folder=folder / "said")
    until(lambda: (folder / "run" / "last.ckpt").exists())
    children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    assert one.wait() == 1
    assert "error: DataLoader worker" in one.said.splitlines()[-1]
    assert "go on with --ckpt_path last" in one.said.splitlines()[-1]
    assert "Traceback" not in one.said


def test_run_without_progress_bar(folder: Path) -> None:
    one = Run(command, folder, "--trainer.enable_progress_bar", "false", folder=folder / "said")
    assert one.wait() == 0, one.said
    assert "it/s" not in one.said


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--trainer.accelerator", "tpu"), "error: Requirement 'torch_xla"),
        (("--trainer.devices", "0"), "error: `Trainer(devices='0')` value is not a valid input"),
        (
            ("--trainer.strategy", "dpp"),
            "error: You selected an invalid strategy name: `strategy='dpp'`",
        ),
    ],
)
def test_what_lightning_refuses_is_one_sentence(
    folder: Path, extra: tuple[str, ...], said: str
) -> None:
    """And leaves no run folder behind."""
    one = Run(command, folder, *extra, folder=folder / "said")
    assert one.wait() == 2, one.said
    assert "Traceback" not in one.said
    assert one.said.splitlines()[-1].startswith(said)
    assert not (folder / "run").exists()
