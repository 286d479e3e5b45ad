"""Small trainings of the nets that take text: see `tests.training_setups.SETUPS`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.latent_videos import WordStates, generator, tokenizer
from zoo.lit.consistency import ConsistencyModule
from zoo.lit.latent_video import LatentVideoModule
from zoo.lit.text_to_image import TextToImageModule
from zoo.lit.tiue import DistillationModule
from zoo.nets.ratio_head import RatioHead
from zoo.nets.tiue import TiUEUNet, t2i_tiny
from zoo.objectives.consistency import ConsistencyObjective
from zoo.objectives.diffusion import DiffusionObjective
from zoo.objectives.distillation import DistillationObjective
from zoo.objectives.divergence import Divergence
from zoo.objectives.latent_video import LatentVideoObjective
from zoo.objectives.score import FullCopy, LoRA
from zoo.objectives.teacher_samples import TeacherSamples
from zoo.pipelines import TiUEPipeline

TEXT = 64  # channels of captions: the net's pooled text has 64 heads
# Weights before a normalisation have no gradient but rounding errors, which differ between one
# process and two: Adam would make whole steps of them with a smaller eps.
ADAM: Any = partial(torch.optim.AdamW, lr=1e-3, eps=1e-3)


class Words(WordStates):
    """A state of noise for each caption, as wide as the text-to-image nets need."""

    dim = TEXT


@contextmanager
def words() -> Iterator[None]:
    """Text encoders of noise in the place of the one that is fetched."""
    with (
        mock.patch("zoo.pipelines.text_encoder_for", return_value=Words()),
        mock.patch("zoo.video_pipeline.text_encoder_for", return_value=WordStates()),
    ):
        yield


def _unet() -> TiUEUNet:
    """Of 8x8 pixels, all of whose weights matter."""
    net = t2i_tiny(sample_size=8, channels=3, widths=(16, 16), text_dim=TEXT)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return net


def text_to_image(_: Path) -> TextToImageModule:
    objective = DiffusionObjective()
    return TextToImageModule(
        net=_unet(),
        objective=objective,
        optimizer=ADAM,
        autoencoder="none",
        warmup_steps=2,
        steps=1,
    )


def _teacher(folder: Path) -> str:
    """A pipeline's folder, the same whoever makes it."""
    torch.manual_seed(1)
    scheduler = DiffusionObjective().scheduler
    pipeline = TiUEPipeline(_unet(), scheduler, None, steps=2, plain=True)
    pipeline.save_pretrained(folder / "teacher")  # type: ignore[no-untyped-call]
    return f"dir:{folder / 'teacher'}"


def distillation(folder: Path) -> DistillationModule:
    """Two optimisers; the score net has a lead."""
    return DistillationModule(
        teacher=_teacher(folder),
        objective=DistillationObjective(teacher_guidance=2.0, score_guidance=1.0),
        optimizer=ADAM,
        score=FullCopy(),
        score_optimizer=ADAM,
        steps=2,
        score_warmup=2,
        warmup_steps=2,
    )


def divergence(folder: Path) -> DistillationModule:
    """Three optimisers; adapters on the teacher; batches in two parts."""
    divergence = Divergence(
        "js",
        head=RatioHead(channels=3, text_dim=TEXT, width=8, blocks=1),
        optimizer=ADAM,
        samples=TeacherSamples(str(folder.parent / "samples.safetensors"), each=2),
    )
    return DistillationModule(
        teacher=_teacher(folder),
        objective=DistillationObjective(
            teacher_guidance=2.0, score_guidance=1.0, divergence=divergence
        ),
        optimizer=ADAM,
        score=LoRA(rank=2, alpha=2),
        score_optimizer=ADAM,
        steps=2,
        parts=2,
    )


def consistency(folder: Path) -> ConsistencyModule:
    return ConsistencyModule(
        teacher=_teacher(folder),
        # a small c would multiply rounding errors by 1 / c
        objective=ConsistencyObjective(guidance=2.0, solver_steps=5, huber=0.1),
        optimizer=ADAM,
        steps=2,
    )


class InOrder(LatentVideoObjective):
    """Its times aren't shuffled over the clips of a process, which two would do otherwise."""

    def _order(self, count: int, chunks: int, device: torch.device) -> torch.Tensor:
        return torch.arange(count, device=device)[:, None].expand(count, chunks)


def latent_video(folder: Path) -> LatentVideoModule:
    tokenizer().save_pretrained(folder / "tokenizer")
    return LatentVideoModule(
        net=generator(),
        objective=InOrder(),
        optimizer=ADAM,
        tokenizer=f"dir:{folder / 'tokenizer'}",
        warmup_steps=2,
        frames=5,
        steps=1,
        guidance=1.0,
    )
