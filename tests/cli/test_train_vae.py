"""Training KL-VAEs by the command: what it leaves behind, and mistakes said before it starts."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli import train
from zoo.data.video import VideoWriter
from zoo.errors import UserError

SMOKE = Path(__file__).parents[2] / "configs" / "smoke"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A film and pictures of 64 pixels, a cache of its own; nothing is downloaded."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.setattr(train, "keep_memory", lambda: None)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "films").mkdir()
    with VideoWriter(tmp_path / "films" / "a.mp4", width=64, height=64, rate=Fraction(25)) as film:
        for _ in range(20):
            film.write(rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1))
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path


def fit(config: str, *extra: object, root: str = "films") -> int:
    arguments = [
        *("fit", "--config", SMOKE / config, "--out", "run", "--model.pca_clips", 8),
        *("--data.train.init_args.root", root, "--data.val.init_args.root", root),
        *("--model.objective.init_args.lpips_weight", 0),
        *("--trainer.max_steps", 2, "--trainer.val_check_interval", 2),
        *("--trainer.log_every_n_steps", 1),
    ]
    return train.main([*map(str, arguments), *map(str, extra)])


def test_image_vae_trains_on_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table and export, with the PCA of the same block and the same count of numbers."""
    images = "{class_path: zoo.data.sources.ImageFolder, init_args: {root: pictures, size: 64"
    fit(
        "kl_vae_image.yaml",
        *("--data.train", images + "}}", "--data.val", images + ", train: false}}"),
    )
    rows = json.loads((folder / "run" / "metrics.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["average pool 4", "PCA-2", "PCA-4", "KLVAE"]
    out = capsys.readouterr().out
    assert "not measured" in out  # LPIPS: its weights would be downloaded
    said = out.splitlines()[-2:]
    assert [Path(line).exists() for line in said] == [True, True]
    net = zoo.load(f"dir:{folder / 'run' / 'export'}")
    assert (net.latent_std != 1).all()
    logged = (folder / "run" / "csv" / "metrics.csv").read_text()
    assert "val/active_units" in logged
    assert "val/mutual_information" in logged


def test_adversarial_stage_by_the_command(folder: Path) -> None:
    """It starts from exported weights and keeps the count of the net's steps."""
    net = "--model.net.init_args.context_dim", "8"
    fit("kl_vae_video.yaml", *net, "--evaluate", "false")
    fit(
        "kl_vae_video_gan.yaml",
        *net,
        *("--evaluate", "false", "--init_from", "dir:run/export", "--out", "gan"),
        *("--model.adversarial.init_args.start", 1, "--trainer.max_steps", 3),
    )
    header, *lines = (folder / "gan" / "csv" / "metrics.csv").read_text().splitlines()
    gan = header.split(",").index("train/gan_balance")
    step = header.split(",").index("step")
    seen = {line.split(",")[step]: line.split(",")[gan] for line in lines if line.split(",")[gan]}
    assert list(seen) == ["1", "2"]
    assert sorted(p.name for p in (folder / "gan" / "export").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--model.adversarial.init_args.start", 2], "start at step 2, after the last step 2"),
        (["--data.train.init_args.size", 96], "size 96 is larger than everything in films.* 64"),
        (["--init_from", "dir:films"], "films is not a model folder: it has no config.json"),
        (["--trainer.accumulate_grad_batches", 2], "accumulate_grad_batches = 2"),
        (["--model.adversarial.init_args.wieght", 1], "'wieght': did you mean 'weight'"),
    ],
)
def test_adversarial_mistakes_are_said_before_training(
    folder: Path, extra: list[object], said: str
) -> None:
    net = "--model.net.init_args.context_dim", "8"
    short = [] if "96" not in map(str, extra) else ["--data.train.init_args.short_side", 96]
    with pytest.raises(UserError, match=said):
        fit("kl_vae_video_gan.yaml", *net, "--evaluate", "false", *short, *extra)
