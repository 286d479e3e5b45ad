"""Training a teacher: it learns which caption has which picture, resumes exactly, is exported."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image

from tests.lit.test_distill import Keep
from zoo.data.captioned import CaptionedPictures
from zoo.data.datamodule import ZooDataModule
from zoo.lit.callbacks import EMA
from zoo.lit.checkpoints import Checkpoints
from zoo.lit.consistency import ConsistencyModule
from zoo.lit.text_to_image import TextToImageModule
from zoo.nets.tiue import t2i_tiny
from zoo.objectives.consistency import ConsistencyObjective
from zoo.objectives.diffusion import DiffusionObjective
from zoo.open_pipeline import open_pipeline
from zoo.text import MiniLMText, TextStates

WIDTH = 64  # of the text: the pooled one has 64 heads
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of two captions."""
    path = tmp_path_factory.mktemp("pictures") / "colours.tar"
    with tarfile.open(path, "w") as out:
        for number in range(8):
            word = ("red", "blue")[number % 2]
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), COLOURS[word], np.uint8)).save(file, "PNG")
            row = json.dumps({"text": word}).encode()
            for suffix, content in ((".png", file.getvalue()), (".json", row)):
                info = tarfile.TarInfo(f"{number}{suffix}")
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def _words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A text encoder of a few channels in the place of the one that is fetched."""
    warnings.filterwarnings("ignore", module="lightning")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))

    def encode(self: MiniLMText, prompts: Sequence[str]) -> TextStates:
        states = torch.zeros(len(prompts), 2, WIDTH)
        for row, prompt in zip(states, prompts, strict=True):
            if prompt:
                row[:, 3 + 2 * (prompt == "red")] = 2.0
        return TextStates(states, [0] * len(prompts))

    monkeypatch.setattr(MiniLMText, "dim", WIDTH)
    monkeypatch.setattr(MiniLMText, "__call__", encode)


def fit(trained: Any, shard: Path, folder: Path, *, steps: int, resume: Path | None = None) -> None:
    source = CaptionedPictures(str(shard), size=8)
    val = CaptionedPictures(str(shard), size=8, train=False)
    file = folder / "last.ckpt"
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        default_root_dir=str(folder),
        callbacks=[
            EMA(0.9),
            *([Checkpoints(file, every=1), Keep(file, (3,))] if steps < 10 else []),
        ],
    )
    trained.take_over(trainer)
    data = ZooDataModule(source, val=val, batch_size=8)
    trainer.fit(trained, datamodule=data, ckpt_path=resume)


def teacher() -> TextToImageModule:
    seed_everything(0)
    net = t2i_tiny(sample_size=8, channels=3, widths=(16, 16), text_dim=WIDTH)
    return TextToImageModule(
        net=net,
        objective=DiffusionObjective(),
        optimizer=lambda weights: torch.optim.AdamW(weights, 5e-3),
        autoencoder="none",
        warmup_steps=5,
        prompts=["red", "blue"],
        steps=6,
        guidance=2.0,
    )


def test_captions_decide_the_picture(shard: Path, tmp_path: Path) -> None:
    """Sampled from pure noise with guidance, from the exported folder."""
    trained = teacher()
    fit(trained, shard, tmp_path, steps=150)
    assert (tmp_path / "samples" / "step-000150.png").is_file()
    trained.export(tmp_path / "export")
    pipeline = open_pipeline(f"dir:{tmp_path / 'export'}")
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    how = pipeline.sampling()
    assert (how.steps, how.anchors, how.guidance) == (6, 6, 2.0)
    pixels = pipeline(["red", "blue"], seed=0, output_type="pt").images.mean((2, 3))
    assert pixels[0, 0] > pixels[0, 2] + 0.8
    assert pixels[1, 2] > pixels[1, 0] + 0.8

    # consistency distillation of it: a run, and a folder that is sampled its own way
    student = ConsistencyModule(
        teacher=f"dir:{tmp_path / 'export'}",
        objective=ConsistencyObjective(guidance=2.0, solver_steps=5),
        optimizer=lambda weights: torch.optim.AdamW(weights, 1e-4),
        steps=2,
        prompts=["red"],
    )
    (tmp_path / "lcm").mkdir()
    fit(student, shard, tmp_path / "lcm", steps=3)
    student.export(tmp_path / "lcm" / "export")
    again = open_pipeline(f"dir:{tmp_path / 'lcm' / 'export'}")
    again.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    assert again.config.sampler == "consistency"
    one, two = (again("red", seed=0, output_type="pt").images for _ in range(2))
    assert torch.equal(one, two)
    assert one.mean((2, 3))[0, 0] > one.mean((2, 3))[0, 2] + 0.5


def test_it_resumes_exactly(shard: Path, tmp_path: Path) -> None:
    found = []
    for resume in (None, tmp_path / "0" / "3.ckpt"):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        fit(teacher(), shard, folder, steps=5, resume=resume)
        found.append(torch.load(folder / "last.ckpt", weights_only=False))
    for part in ("state_dict", "current_model_state"):
        for key, value in found[0][part].items():
            assert torch.equal(value, found[1][part][key]), (part, key)


def test_kept_latents_are_those_made_afresh(shard: Path, tmp_path: Path) -> None:
    trained = teacher()
    fit(trained, shard, tmp_path, steps=1)
    batch = next(iter(trained.trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    kept = trained.latents_of(batch)
    assert trained._kept.train.keys() == set(batch.key)
    trained._kept.train.clear()
    assert torch.equal(kept, trained.latents_of(batch))
    assert torch.equal(kept, batch.pixels[:, :, 0])
