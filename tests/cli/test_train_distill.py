"""Distillation and its teacher by the command: a run to its export, and mistakes said first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.film_makers import Cli
from tests.tiny_pipelines import sd_folder
from zoo.cli import train

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Stable-Diffusion-like teacher and captions; nothing is downloaded."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.setattr(train, "keep_memory", lambda: None)
    sd_folder(tmp_path / "sd")
    (tmp_path / "captions.txt").write_text("a\nb\na b\n")
    return tmp_path


def arguments(folder: Path, config: str = "tiue_tiny.yaml") -> list[object]:
    captions = "{class_path: zoo.data.caption_source.Captions, init_args: {root: %s}}"
    return [
        *("fit", "--config", CONFIGS / "tiue" / config, "--out", folder / "run"),
        *("--model.init_args.teacher", f"dir:{folder / 'sd'}"),
        *("--data.train", captions % (folder / "captions.txt")),
        *("--data.val", captions % (folder / "captions.txt")),
        *("--trainer.max_steps", 2, "--trainer.val_check_interval", 2, "--data.batch_size", 2),
        *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
        *("--trainer.log_every_n_steps", 1),
    ]


def test_from_a_stable_diffusion_folder_to_pictures(cli: Cli, folder: Path) -> None:
    """The config for Stable Diffusion (LoRA, checkpointing, parts) on a toy one, then generate."""
    status, out, err = cli(
        "train",
        *arguments(folder, "sd15.yaml"),
        *("--model.init_args.parts", 2, "--model.init_args.prompts", "[a b]"),
    )
    assert status == 0, err
    assert out.splitlines()[-1] == str(folder / "run" / "export")
    assert (folder / "run" / "samples" / "step-000002.png").is_file()
    index = json.loads((folder / "run" / "export" / "model_index.json").read_text())
    assert (index["steps"], index["plain"], index["guidance"]) == (4, False, 1.0)
    assert "train/vsd" in (folder / "run" / "csv" / "metrics.csv").read_text()
    model = f"dir:{folder / 'run' / 'export'}"
    for extra in ((), ("--steps", 6, "--anchors", 6, "--guidance", 2)):
        status, _, err = cli(
            "generate", "a b", "b", "--model", model, "--seed", 1, "-o", folder / "g.png", *extra
        )
        assert status == 0, err
        assert (folder / "g.png").is_file()
    status, _, err = cli(
        "generate", "a", "--model", model, "--guidance", -1, "-o", folder / "g.png"
    )
    assert status == 2
    assert err.strip().splitlines()[-1].startswith("error: guidance -1: give 1 for none")


def test_mistakes_are_one_sentence_before_training(cli: Cli, folder: Path) -> None:
    objective = "--model.init_args.objective.init_args"
    (folder / "broken.jsonl").write_text('"a"\n{\n')
    (folder / "empty.txt").write_text("\n")
    captions = "--data.train.init_args.root"
    clip = "{class_path: zoo.objectives.clip_term.ClipTerm, init_args: {folder: nowhere}}"
    net = ("--model.init_args.net", "null")
    cases = [
        ((), "the student has block_out_channels = [64, 128, 128], the teacher [16, 32, 32]"),
        ((*net, f"{objective}.teacher_guidance", -1), "teacher_guidance = -1"),
        ((*net, f"{objective}.score_guidance", -1), "score_guidance = -1"),
        ((*net, captions, folder / "broken.jsonl"), "broken.jsonl has broken lines: line 2 is not"),
        ((*net, captions, folder / "empty.txt"), "empty.txt holds no caption"),
        ((*net, f"{objective}.clip", clip), "there is no CLIP in nowhere: save"),
        ((*net, "--model.init_args.teacher", "tiue_tinny"), "did you mean"),
        ((*net, "--model.init_args.anchors", 3), "anchors = 3"),
        ((*net, "--model.init_args.stepz", 3), "unknown key"),
        ((*net, "--trainer.accumulate_grad_batches", 2), "distillation takes 1; use a larger"),
    ]
    for extra, said in cases:
        status, _, err = cli("train", *arguments(folder), *extra)
        assert status == 2, (extra, err)
        assert said in err, (extra, err)
        assert err.strip().splitlines()[-1].startswith("error: ")
        assert "Traceback" not in err
        assert not (folder / "run" / "last.ckpt").exists()


def test_widths_are_said_for_consistency_too(cli: Cli, folder: Path) -> None:
    status, _, err = cli("train", *arguments(folder, "lcm_tiny.yaml"))
    assert status == 2
    assert "block_out_channels" in err
    status, _, err = cli(
        "train",
        *arguments(folder, "lcm_tiny.yaml"),
        *("--model.init_args.objective.init_args.guidance", -1),
    )
    assert status == 2
    assert "guidance = -1" in err


def test_a_teacher_with_numbers_out_of_range(cli: Cli, folder: Path) -> None:
    """Said before any data is looked at."""
    fit = ("fit", "--config", CONFIGS / "t2i" / "emoji.yaml", "--out", folder / "run")
    autoencoder = "--model.init_args.autoencoder"
    cases = [
        ((autoencoder, "none"), "without an autoencoder a picture has 3 channels, the UNet works"),
        ((autoencoder, "dir:nowhere"), "nowhere"),
        ((autoencoder, f"dir:{folder / 'sd'}"), "is no autoencoder"),
        (("--model.init_args.objective.init_args.schedule", "sdd"), "unknown schedule 'sdd'"),
    ]
    for extra, said in cases:
        status, _, err = cli("train", *fit, *extra)
        assert status == 2, (extra, err)
        assert said in err, (extra, err)
