"""Distilling by a divergence that learns a density ratio beside the score net."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from tests.lit.test_distill import fit, module, teacher  # noqa: F401
from zoo.errors import UserError
from zoo.nets.ratio_head import RatioHead
from zoo.objectives.distillation import DistillationObjective
from zoo.objectives.divergence import Divergence
from zoo.objectives.score import FullCopy, LoRA
from zoo.objectives.teacher_samples import TeacherSamples
from zoo.open_pipeline import open_pipeline


def objective(samples: Path | None, name: Any = "js") -> DistillationObjective:
    return DistillationObjective(
        teacher_guidance=2.0,
        score_guidance=1.0,
        divergence=Divergence(
            name,
            head=RatioHead(channels=4, text_dim=24, width=8, blocks=2),
            optimizer=partial(torch.optim.Adam, lr=1e-3),
            samples=None if samples is None else TeacherSamples(str(samples), each=2),
        ),
    )


@pytest.mark.parametrize("score", [FullCopy, LoRA])
def test_divergence_trains_its_head_beside_the_score(
    teacher: Path,  # noqa: F811
    tmp_path: Path,
    score: Any,
) -> None:
    seed_everything(0)
    file = tmp_path / "samples" / "teacher.safetensors"
    trained = module(teacher, objective=objective(file), score=score())
    head = [p.detach().clone() for p in trained.divergence.head.parameters()]
    trainer = fit(trained, teacher, tmp_path)
    assert trainer.global_step == 2
    pairs = zip(head, trained.divergence.head.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert trainer.callback_metrics["train/ratio"] > 0
    assert any(name.startswith("divergence.head.") for name in trained.state_dict())
    # five captions, two samples of each: the teacher's own, whatever hangs on it now
    kept = trained.divergence.samples
    pipeline = open_pipeline(f"dir:{teacher}")
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    fresh = TeacherSamples(str(tmp_path / "fresh.safetensors"), each=2)
    fresh.prepare(pipeline, ["a", "b", "a b", "b a", "b b"])
    assert kept._latents.shape == (5, 2, 4, 16, 16)
    assert torch.allclose(kept._latents, fresh._latents, atol=1e-2)
    # another run reads them
    before = file.stat().st_mtime_ns
    again = module(teacher, objective=objective(file), score=score())
    fit(again, teacher, tmp_path / "again")
    assert file.stat().st_mtime_ns == before
    assert torch.equal(again.divergence.samples._latents, kept._latents)


def test_divergence_samples_are_of_one_teacher_and_its_captions(
    teacher: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    pipeline = open_pipeline(f"dir:{teacher}")
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    file = tmp_path / "teacher.safetensors"
    done: list[tuple[int, int]] = []
    samples = TeacherSamples(str(file), batch=2)
    samples.prepare(pipeline, ["a", "b", "a", "a b"], report=lambda *x: done.append(x))
    assert done == [(2, 3), (3, 3)]
    assert samples(["a b", "a"]).shape == (2, 4, 16, 16)
    assert not torch.equal(*samples(["a b", "a"]))
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]
    for other, prompts in (
        (TeacherSamples(str(file)), ["a", "b"]),
        (TeacherSamples(str(file), seed=1), ["a", "b", "a b"]),
        (TeacherSamples(str(file), steps=7), ["a", "b", "a b"]),
    ):
        with pytest.raises(UserError, match="of another teacher, other captions or another seed"):
            other.prepare(pipeline, prompts)
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"can't be read as a teacher's samples .*delete it"):
        samples.prepare(pipeline, ["a"])


def test_divergence_mistakes_before_training(teacher: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="js learns a density ratio from samples of the teacher"):
        module(teacher, objective=objective(None))
    with pytest.raises(UserError, match=r"x\.pt can't hold a teacher's samples"):
        TeacherSamples("x.pt")
    with pytest.raises(UserError, match="each = 0"):
        TeacherSamples("x.safetensors", each=0)
