"""Foreign tokenizers at the command line: films through one that streams and one that can't."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from zoo.benchmark.models import candidate
from zoo.cli.data import main as data
from zoo.cli.list import main as listing
from zoo.cli.reconstruct import main as reconstruct
from zoo.data.film import open_film
from zoo.data.video import VideoWriter
from zoo.errors import UserError


@pytest.fixture
def film(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "in.mp4", width=48, height=32, rate=Fraction(25)) as writer:
        for _ in range(21):
            writer.write(rng.integers(0, 256, (32, 48, 3), np.uint8))
    return tmp_path / "in.mp4"


def frames(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    with open_film(path) as opened:
        return np.stack([frame.rgb for frame in opened])


@pytest.mark.parametrize("name", ["wan21_vae", "hunyuan_vae"])
def test_foreign_nets_code_films(
    name: str, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = zoo.create(name, reduced=True).eval()
    net.vae.save_pretrained("model")
    model = ["--model", "dir:model", "--device", "cpu", "--dtype", "fp32"]
    assert reconstruct([str(film), *model, "-o", "out.mp4"]) == 0
    assert frames(Path("out.mp4")).shape == (21, 32, 48, 3)
    assert data(["encode", str(film), *model, "-o", "latents"]) == 0
    # of a single film -o is the film
    assert data(["decode", "latents", "-o", "back.mp4", "--device", "cpu"]) == 0
    back = Path("back.mp4")
    assert frames(back).shape == (21, 32, 48, 3)
    # what went through the latents (fp16) is what went straight through, but for rounding
    difference = frames(back).astype(int) - frames(Path("out.mp4"))
    assert np.abs(difference).mean() < 3
    row = candidate("dir:model", device="cpu")
    assert isinstance(row.build(), type(net))


def test_foreign_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing(["taesd", "--family", "foreign"]) == 0
    assert "2.45 M" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"is a preset with random weights.*wan21_vae\.official"):
        candidate("wan21_vae", device="cpu")
