"""The tools as a user runs them: training, stopping, resuming, reconstructing, and mistakes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from zoo.cli import train
from zoo.data.video import VideoWriter, probe

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "smoke" / "cdt_video.yaml"


def write_film(path: Path, *, frames: int = 40, width: int = 64, height: int = 64) -> Path:
    """A film of a moving wave."""
    y, x = np.mgrid[:height, :width]
    with VideoWriter(path, width=width, height=height, rate=Fraction(30000, 1001)) as writer:
        for t in range(frames):
            wave = 128 + 80 * np.sin((x + y + 3 * t) / 6)
            writer.write(
                np.stack([wave, wave.T if width == height else wave, wave], -1).astype("u1")
            )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films, an exported net with random weights, a cache of its own."""
    base = tmp_path_factory.mktemp("tools")
    (base / "films").mkdir()
    for name in ("a", "b"):
        write_film(base / "films" / f"{name}.mp4")
    torch.manual_seed(0)
    zoo.create("cdt_tiny", context_dim=8, unet_dim=8).save_pretrained(base / "export")
    return base


def tool(folder: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run tools/NAME.py in `folder`."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"ZOO_CACHE": str(folder / "cache"), "ZOO_OFFLINE": "1"}


def fit(*extra: object) -> list[object]:
    """Arguments of a short offline training."""
    return [
        "fit",
        *("--config", SMOKE),
        *("--data.train.init_args.root", "films", "--data.val.init_args.root", "films"),
        *("--data.train.init_args.short_side", 64, "--model.pca_clips", 8),
        *("--model.objective.init_args.lpips_weight", 0, "--evaluate", "false"),
        *extra,
    ]


def test_train_stops_at_a_signal_and_goes_on(folder: Path) -> None:
    out = folder / "run"
    arguments = fit("--out", out, "--trainer.max_steps", 100_000, "--save_every", 3)
    arguments += ["--trainer.max_time", "null"]
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "tools" / "train.py"),
            *map(str, arguments),
            "--save_every",
            "3",
        ],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "last.ckpt").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    step = int(re.search(r"stopped at step (\d+)", said)[1])  # type: ignore[index]
    assert said.splitlines()[-1] == str(out / "last.ckpt")
    assert torch.load(out / "last.ckpt", weights_only=False)["global_step"] == step

    done = tool(
        folder, "train", *fit("--out", out, "--ckpt_path", "last", "--trainer.max_steps", step + 2)
    )
    assert done.returncode == 0, done.stderr
    strip, film, export = (Path(line) for line in done.stdout.splitlines()[-3:])
    assert strip.suffix == ".png"
    assert probe(film).frames == 2 * 17  # two clips, one after the other
    assert torch.load(out / "last.ckpt", weights_only=False)["global_step"] == step + 2
    net = zoo.load(f"dir:{export}")
    assert net.pca.basis.any()
    assert (net.latent_std != 1).all()


def test_a_loss_that_is_not_finite_ends_the_run(folder: Path) -> None:
    done = tool(
        folder,
        "train",
        *fit(
            "--out",
            "bad",
            "--model.objective.init_args.kl_weight",
            1e-4,
            "--model.optimizer.init_args.lr",
            1e30,
            "--trainer.gradient_clip_val",
            "null",
        ),
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.match(r"error: step \d+: (the loss term [\w, ]+|the gradient) is not finite", last), (
        last
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "--config", "nowhere.yaml"], "no config nowhere.yaml: did you mean"),
        (["--trainer.max_stepz", "5"], "'trainer.max_stepz': did you mean 'trainer.max_steps'"),
        (["--config", "typo.yaml"], "'context_dimm': did you mean 'context_dim'"),
        (["--data.train.init_args.root", "missing"], "missing"),
        (["--data.train.init_args.root", "empty"], "empty"),
        (["--init_from", "cdt_tinny"], "unknown model 'cdt_tinny'"),
        (["--ckpt_path", "last"], "no last.ckpt in"),
        (["--out", "file/run"], "can't write to file/run"),
        (["--model.net", "zoo.nets.cdt.cdt_tinny"], "cdt_tinny"),
    ],
)
def test_mistakes_in_training(folder: Path, arguments: list[str], said: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "file").write_text("not a folder")
    net = "{class_path: zoo.nets.cdt.cdt_tiny, init_args: {context_dimm: 8}}"
    (folder / "typo.yaml").write_text(f"model: {{net: {net}}}\n")
    if arguments[0] != "fit":
        arguments = [*map(str, fit("--out", "mistake")), *arguments]
    one_sentence(tool(folder, "train", *arguments), said)


def one_sentence(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert said in errors[0]
    assert done.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("extra", [[], ["--side-by-side", "--steps", "2"]])
def test_reconstruct_keeps_frames_size_and_rate(folder: Path, extra: list[str]) -> None:
    film = write_film(folder / "odd.mp4", frames=22, width=47, height=33)
    out = folder / f"back{len(extra)}.mp4"
    done = tool(folder, "reconstruct", film, "--model", "dir:export", "-o", out, *extra)
    assert done.returncode == 0, done.stderr
    info = probe(out)
    assert (info.frames, info.height, info.rate) == (22, 33, Fraction(30000, 1001))
    assert info.width == (94 if extra else 47)
    assert re.match(r"22 frames, PSNR -?[\d.]+ dB", done.stdout)
    assert done.stdout.splitlines()[-1] == str(out)


def test_mistakes_in_reconstruct(folder: Path) -> None:
    film = write_film(folder / "in.mp4", frames=3)
    (folder / "text.mp4").write_text("this is not a film")
    cases = [
        ([film, "--model", "dir:nowhere", "-o", "o.mp4"], "nowhere is not a model folder"),
        ([film, "--model", "cdt_tinny", "-o", "o.mp4"], "unknown model 'cdt_tinny'"),
        (["none.mp4", "--model", "dir:export", "-o", "o.mp4"], "none.mp4"),
        (["text.mp4", "--model", "dir:export", "-o", "o.mp4"], "text.mp4"),
        ([film, "--model", "dir:export", "-o", "no/such/o.mp4"], "no/such"),
        ([film, "--model", "dir:export", "-o", "o.xyz"], "o.xyz"),
        ([film, "--model", "dir:export", "-o", film], "is the film itself"),
        ([film, "--model", "dir:export", "-o", "o.mp4", "--steps", "0"], "--steps 0"),
        ([film, "--model", "dir:export", "--steps", "1"], "required: -o"),
    ]
    for arguments, said in cases:
        one_sentence(tool(folder, "reconstruct", *arguments), said)
    assert not [p for p in folder.iterdir() if p.name.startswith((".o", "o."))]


def test_data_and_list(folder: Path) -> None:
    done = tool(folder, "data", "inspect", "films")
    assert done.returncode == 0, done.stderr
    assert "2 usable files" in done.stdout
    assert "80 frames" in done.stdout
    one_sentence(tool(folder, "data", "prepare", "bike.mp4"), "did you mean bikes.mp4")
    one_sentence(tool(folder, "data", "inspect", "nowhere"), "nowhere")


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_config_names_what_exists(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each YAML parses against the real signatures."""
    with pytest.raises(SystemExit) as stop:
        train.main(["fit", "--config", str(config), "--print_config"])
    assert not stop.value.code
    assert "class_path" in capsys.readouterr().out
