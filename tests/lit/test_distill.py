"""Distilling a Stable-Diffusion-like folder: the student moves, resumes exactly, is exported."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import zoo
from tests.nets.toy_unet import toy
from tests.tiny_pipelines import sd_folder
from zoo.data.caption_source import Captions
from zoo.data.datamodule import ZooDataModule
from zoo.errors import UserError
from zoo.lit.callbacks import EMA
from zoo.lit.checkpoints import Checkpoints
from zoo.lit.tiue import DistillationModule
from zoo.nets.tiue import TiUEUNet
from zoo.objectives.clip_term import ClipTerm
from zoo.objectives.distillation import DistillationObjective
from zoo.objectives.losses import Losses
from zoo.objectives.score import FullCopy, LoRA
from zoo.open_pipeline import open_pipeline


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = sd_folder(tmp_path_factory.mktemp("sd") / "sd")
    (folder.parent / "captions.txt").write_text("a\nb\na b\nb a\nb b\n")
    return folder


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.filterwarnings("ignore", module="lightning")


def module(folder: Path, **changes: Any) -> DistillationModule:
    settings: dict[str, Any] = {
        "teacher": f"dir:{folder}",
        "objective": DistillationObjective(teacher_guidance=2.0, score_guidance=1.0),
        "optimizer": lambda weights: torch.optim.AdamW(weights, 1e-3),
        "score": FullCopy(),
        "score_optimizer": lambda weights: torch.optim.AdamW(weights, 1e-3),
        "prompts": ["a b", "b"],
    }
    return DistillationModule(**(settings | changes))


def data(teacher: Path) -> ZooDataModule:
    captions = str(teacher.parent / "captions.txt")
    return ZooDataModule(Captions(captions), val=Captions(captions, limit=1), batch_size=2)


def fit(
    trained: DistillationModule,
    teacher: Path,
    folder: Path,
    *callbacks: Callback,
    steps: int = 2,
    resume: Path | None = None,
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        default_root_dir=str(folder),
        callbacks=list(callbacks),
    )
    trained.take_over(trainer)
    trainer.fit(trained, datamodule=data(teacher), ckpt_path=resume)
    return trainer


class Keep(Callback):
    """Copies of a checkpoint at some steps."""

    def __init__(self, file: Path, steps: tuple[int, ...]) -> None:
        self.file, self.steps = file, steps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps:
            shutil.copy(self.file, self.file.with_name(f"{trainer.global_step}.ckpt"))


@pytest.mark.parametrize(
    ("score", "settings"),
    [
        (FullCopy, {"score_updates": 2, "score_warmup": 3}),
        (LoRA, {"gradient_checkpointing": True, "parts": 2}),
        (LoRA, {"steps": 1}),
        (FullCopy, {"anchors": 4, "spacing": "trailing"}),
    ],
    ids=["copy", "lora", "one step", "unshared"],
)
def test_student_and_score_net_move_and_the_teacher_does_not(
    teacher: Path, tmp_path: Path, score: Any, settings: dict[str, Any]
) -> None:
    seed_everything(0)
    trained = module(teacher, score=score(), **settings)
    x, t, text = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 12, 24)
    before = {k: v.clone() for k, v in trained.net.state_dict().items()}
    assert torch.allclose(trained.score.teacher(x, t, text), toy()(x, t, text).sample, atol=1e-5)
    scores = [p.detach().clone() for p in trained.score.parameters()]
    trainer = fit(trained, teacher, tmp_path)
    assert trainer.global_step == 2
    assert trained.score_steps == 2 * settings.get("score_updates", 1) + settings.get(
        "score_warmup", 0
    )
    moved = [k for k, v in trained.net.state_dict().items() if not torch.equal(v, before[k])]
    assert len(moved) == len(before)
    pairs = zip(scores, trained.score.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert torch.allclose(trained.score.teacher(x, t, text), toy()(x, t, text).sample, atol=1e-5)
    assert (tmp_path / "samples" / "step-000002.png").is_file()

    trained.export(tmp_path / "export")
    pipeline = open_pipeline(f"dir:{tmp_path / 'export'}")
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    how = pipeline.sampling()
    assert (how.steps, how.guidance) == (settings.get("steps", 4), 1)
    assert how.anchors == settings.get("anchors", 1)
    assert pipeline("a b", seed=0).images[0].size == (32, 32)
    again = zoo.load(f"dir:{tmp_path / 'export'}")
    assert all(torch.equal(v, trained.net.state_dict()[k]) for k, v in again.state_dict().items())


def test_it_resumes_exactly(teacher: Path, tmp_path: Path) -> None:
    """Both nets, both optimisers, the average and the counters, also with a warmed-up score."""
    found = []
    for resume in (None, tmp_path / "0" / "2.ckpt"):
        seed_everything(0)
        trained = module(teacher, score=LoRA(), score_warmup=1, warmup_steps=3)
        file = tmp_path / str(len(found)) / "last.ckpt"
        file.parent.mkdir()
        callbacks = EMA(0.9), Checkpoints(file, every=1), Keep(file, (2, 5))
        fit(trained, teacher, file.parent, *callbacks, steps=5, resume=resume)
        found.append(torch.load(file.with_name("5.ckpt"), weights_only=False))
    for part in ("state_dict", "current_model_state", "averaging_state"):
        for key, value in found[0][part].items():
            assert torch.equal(value, found[1][part][key]), (part, key)
    assert len(found[0]["optimizer_states"]) == 2
    for a, b in zip(*(f["optimizer_states"] for f in found), strict=True):
        for number, state in a["state"].items():
            assert all(torch.equal(v, b["state"][number][k]) for k, v in state.items())
    assert found[0]["current_model_state"]["score_steps"] == 6
    # the teacher under the adapters isn't in it
    scores = [k for k in found[0]["state_dict"] if k.startswith("score.")]
    assert scores
    assert all("lora_" in k for k in scores)


def test_parts_are_the_whole_batch(teacher: Path, tmp_path: Path) -> None:
    """With the same noise the gradient of a batch in parts is that of the whole one."""

    class Still(DistillationObjective):
        """Nothing drawn: every sample is pulled to zero, and so is what the score net says."""

        def student(self, x0: Any, text: Any, empty: Any, **rest: Any) -> Losses:
            loss = (x0 - x0.detach() + text.mean((1, 2)).view(-1, 1, 1, 1) * x0).mean()
            return Losses(loss, {"vsd": loss})

        def score(self, x0: Any, text: Any, empty: Any, **rest: Any) -> Any:
            index = torch.zeros(len(x0), dtype=torch.long)
            return (rest["score"](torch.ones_like(x0), index, text)).square().mean()

    scores = []
    for parts in (1, 2):
        seed_everything(0)
        trained = module(teacher, parts=parts, objective=Still())
        fit(trained, teacher, tmp_path, steps=1)
        scores.append([p.detach().clone() for p in trained.score.parameters()])
    for a, b in zip(*scores, strict=True):
        assert (a - b).abs().max() < 1e-4  # Adam's first step has the size of the rate, 1e-3


def test_a_clip_term_counts(teacher: Path, tmp_path: Path) -> None:
    """A random CLIP on disk: it is read, its loss is logged and moves the student."""
    from tests.tiny_pipelines import clip_folder

    clip = ClipTerm(str(clip_folder(tmp_path / "clip")), weight=100.0, threshold=1.0)
    seed_everything(0)
    trained = module(teacher, objective=DistillationObjective(clip=clip, kl_weight=0))
    fit(trained, teacher, tmp_path, steps=1)
    assert 0 < trained.trainer.callback_metrics["train/clip"] < 2
    pixels = torch.zeros(2, 3, 32, 32, requires_grad=True)
    clip(pixels, ["a b", "b"]).backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0


def test_mistakes_are_said_before_training(teacher: Path, tmp_path: Path) -> None:
    wide = TiUEUNet.from_unet(toy(block_out_channels=(16, 32, 48)))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"net": wide}, r"block_out_channels = \[16, 32, 48\], the teacher \[16, 32, 32\]"),
        ({"teacher": f"dir:{tmp_path}"}, "is not a pipeline folder"),
        ({"steps": 0}, "0 steps"),
        ({"anchors": 3}, "anchors = 3: give 1"),
        ({"score_updates": 0}, "score_updates = 0"),
        ({"parts": 0}, "parts = 0"),
    ]
    for settings, said in cases:
        with pytest.raises(UserError, match=said):
            module(teacher, **settings)
    with pytest.raises(UserError, match=r"there is no CLIP in .*nowhere: save openai/clip"):
        ClipTerm("nowhere")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"the CLIP in .* can't be read"):
        ClipTerm(str(tmp_path)).prepare(torch.device("cpu"))


def test_a_given_student_begins_as_its_teacher(teacher: Path) -> None:
    torch.manual_seed(5)
    net = TiUEUNet.from_unet(toy())
    for weight in net.parameters():
        weight.data.normal_()
    trained = module(teacher, net=net)
    assert trained.net is net
    expected = toy().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in net.state_dict().items())
