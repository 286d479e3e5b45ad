"""Small trainings of every family that exists, for the tests of processes, resuming and faults.

A new family joins with one entry of SETUPS; every test of `tests/lit/test_processes.py` and
`test_resume.py` then runs on it.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.overrides import TorchFunctionMode

from tests.latent_videos import WordStates, generator, tokenizer
from zoo.data.batch import Sample
from zoo.data.captioned_video import Captioned
from zoo.data.datamodule import ZooDataModule
from zoo.data.source import Source
from zoo.lit.callbacks import EMA
from zoo.lit.checkpoints import Checkpoints, WholeFiles
from zoo.lit.consistency import ConsistencyModule
from zoo.lit.latent_video import LatentVideoModule
from zoo.lit.module import ZooModule
from zoo.lit.peers import Peers
from zoo.lit.text_to_image import TextToImageModule
from zoo.lit.tiue import DistillationModule
from zoo.lit.tokenizer import TokenizerModule
from zoo.nets.cdt import CDT, CDTConfig
from zoo.nets.cdt_decoder import CDTDecoder, decoder_config
from zoo.nets.discriminator import PatchDiscriminator
from zoo.nets.kl_vae import KLVAE, KLVAEConfig
from zoo.nets.kl_vae_video import KLVAEVideo, KLVAEVideoConfig
from zoo.nets.ratio_head import RatioHead
from zoo.nets.tiue import TiUEUNet, t2i_tiny
from zoo.objectives import KL, Adversarial, DenoisingObjective, ReconstructionObjective
from zoo.objectives.consistency import ConsistencyObjective
from zoo.objectives.diffusion import DiffusionObjective
from zoo.objectives.distillation import DistillationObjective
from zoo.objectives.divergence import Divergence
from zoo.objectives.latent_video import LatentVideoObjective
from zoo.objectives.score import FullCopy, LoRA
from zoo.objectives.teacher_samples import TeacherSamples
from zoo.pipelines import TiUEPipeline

warnings.filterwarnings("ignore", module="lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class Waves(Source):
    """Clips made of (pass, index) alone, without files."""

    suffixes = ()

    def __init__(self, count: int, *, frames: int = 5, size: int = 16, bad: int | None = None):
        super().__init__("waves", size=size)
        self.count, self.frames, self.bad = count, frames, bad
        self._usable = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        number, index = item if isinstance(item, tuple) else (0, item)
        rng = np.random.default_rng((number, index))
        coarse = torch.from_numpy(rng.uniform(-1, 1, (3, self.frames, 4, 4)).astype(np.float32))
        scale = self.size // 4
        pixels = coarse.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        if index == self.bad:
            pixels = pixels * torch.nan
        return Sample(pixels, "", f"{number}/{index}")

    def _probe(self, path: Path) -> dict[str, Any]:
        raise NotImplementedError

    _locate = _read = _probe  # type: ignore[assignment]


class NamedWaves(Waves):
    """With a caption each; for text to image of one frame."""

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        index = item[1] if isinstance(item, tuple) else item
        return super().__getitem__(item)._replace(prompt=self.prompts[index])

    @property
    def prompts(self) -> list[str]:
        return [f"wave {index}" for index in range(self.count)]


class FilmWaves(NamedWaves, Captioned):
    """As clips of captioned films, every third from its film's beginning."""

    film_rate = 25.0  # type: ignore[assignment]

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        index = item[1] if isinstance(item, tuple) else item
        sample = super().__getitem__(item)
        return sample._replace(key=f"{sample.key}@{index % 3}.0")


NARROW: dict[str, Any] = {
    "latent_channels": 4,
    "context_dim": 8,
    "context_mults": (1, 1),
    "context_channels": 8,
    "space_down": (1, 0),
    "time_down": (1, 1),
    "padding": "zeros",
    "block": "light",
    "patch": 4,
    "top_blocks": 1,
}
UNET: dict[str, Any] = {"unet_dim": 8, "unet_mults": (1, 1, 1), "condition_times": 2}


def cdt(**changes: Any) -> CDT:
    """A narrow CDT."""
    return CDT(CDTConfig(**NARROW, **UNET, **changes))


def vae() -> KLVAEVideo:
    """A narrow video KL-VAE."""
    return KLVAEVideo(KLVAEVideoConfig(**NARROW))


def _module(net: Any, objective: Any, **named: Any) -> TokenizerModule:
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    return TokenizerModule(
        net=net, objective=objective, optimizer=optimizer, warmup_steps=2, **named
    )


def _reconstruction() -> ReconstructionObjective:
    return ReconstructionObjective(regularizer=KL(weight=1e-4), lpips_weight=0)


def _image(_: Path) -> TokenizerModule:
    config = KLVAEConfig(block_channels=(8, 16), layers=1, norm_groups=4, attention=False)
    return _module(KLVAE(config), _reconstruction())


def _decoder(_: Path) -> TokenizerModule:
    config = decoder_config(vae(), unet_dim=8, context_dim=8, context_channels=8)
    return _module(CDTDecoder(config), DenoisingObjective(kl_weight=0.0, lpips_weight=0))


def _adversarial(_: Path) -> TokenizerModule:
    stage = Adversarial(
        discriminator=PatchDiscriminator(dim=8, layers=1, time=True),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        start=3,
        warmup=3,
    )
    return _module(vae(), _reconstruction(), adversarial=stage)


TEXT = 64  # channels of captions: the net's pooled text has 64 heads
ADAM: Any = partial(torch.optim.AdamW, lr=1e-3)


class Words(WordStates):
    """A state of noise for each caption, as wide as the text-to-image nets need."""

    dim = TEXT


@contextmanager
def words() -> Iterator[None]:
    """Text encoders of noise in the place of the one that is fetched."""
    with (
        mock.patch("zoo.pipelines.text_encoder_for", lambda dim: Words()),
        mock.patch("zoo.video_pipeline.text_encoder_for", lambda dim: WordStates()),
    ):
        yield


def _unet() -> TiUEUNet:
    """Of 16x16 pixels, all of whose weights matter."""
    net = t2i_tiny(sample_size=16, channels=3, widths=(8, 8), text_dim=TEXT)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return net


def _text_to_image(_: Path) -> TextToImageModule:
    objective = DiffusionObjective()
    return TextToImageModule(
        net=_unet(), objective=objective, optimizer=ADAM, autoencoder="none", warmup_steps=2, steps=1
    )


def _teacher(folder: Path) -> str:
    """A pipeline's folder, the same whoever makes it."""
    torch.manual_seed(1)
    scheduler = DiffusionObjective().scheduler
    pipeline = TiUEPipeline(_unet(), scheduler, None, steps=2, plain=True)
    pipeline.save_pretrained(folder / "teacher")  # type: ignore[no-untyped-call]
    return f"dir:{folder / 'teacher'}"


def _distillation(folder: Path) -> DistillationModule:
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


def _divergence(folder: Path) -> DistillationModule:
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


def _consistency(folder: Path) -> ConsistencyModule:
    return ConsistencyModule(
        teacher=_teacher(folder),
        objective=ConsistencyObjective(guidance=2.0, solver_steps=5),
        optimizer=ADAM,
        steps=2,
    )


class InOrder(LatentVideoObjective):
    """Its times aren't shuffled over the clips of a process, which two would do otherwise."""

    def _order(self, count: int, chunks: int, device: torch.device) -> torch.Tensor:
        return torch.arange(count, device=device)[:, None].expand(count, chunks)


def _latent_video(folder: Path) -> LatentVideoModule:
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


@dataclass(frozen=True)
class Setup:
    """A family: `module` may put files into a folder, `source` is called as `Waves` is."""

    module: Callable[[Path], ZooModule]
    source: Callable[..., Source] = Waves


_named = partial(NamedWaves, frames=1)
SETUPS: dict[str, Setup] = {
    "cdt": Setup(lambda _: _module(cdt(), DenoisingObjective(lpips_weight=0))),
    "cdt_decoder": Setup(_decoder),
    "kl_vae": Setup(_image, partial(Waves, frames=1)),
    "kl_vae_video": Setup(lambda _: _module(vae(), _reconstruction())),
    "adversarial": Setup(_adversarial),
    "text_to_image": Setup(_text_to_image, _named),
    "distillation": Setup(_distillation, _named),
    "divergence": Setup(_divergence, _named),
    "consistency": Setup(_consistency, _named),
    "latent_video": Setup(_latent_video, FilmWaves),
}


def families(*, slow: tuple[str, ...] = ()) -> list[Any]:
    """All families, for parametrize; those in `slow` are marked so."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in SETUPS]


class GlobalNoise(TorchFunctionMode):
    """Noise of the whole batch, of which a process gets the rows of its clips.

    So two processes draw what one does: what then differs is not the noise.
    """

    DRAWS = (torch.rand, torch.randn, torch.randint, torch.randn_like, torch.rand_like)

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.rank, self.ranks = rank, ranks
        self.generator = torch.Generator()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.DRAWS or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        drawn: torch.Tensor
        kind = func
        if func in (torch.randn_like, torch.rand_like):
            kind = torch.randn if func is torch.randn_like else torch.rand
            args, kwargs = (args[0].shape,), {"dtype": args[0].dtype}
        # numbers to draw between come before the shape, which may be given one by one
        place = len(args) - 1 if func is torch.randint else 0
        sizes = args[place:]
        shape = list(sizes[0] if isinstance(sizes[0], tuple | list | torch.Size) else sizes)
        shape[0] *= self.ranks
        drawn = kind(*args[:place], shape, **(kwargs | {"generator": self.generator}))
        return drawn[self.rank :: self.ranks].contiguous()


class Diary(Callback):
    """Appends `step loss` in hexadecimal digits and the keys of the batch after every step."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        loss = float(trainer.callback_metrics["train/loss"]).hex()
        line = f"{trainer.global_step} {loss} {','.join(batch.key)}\n"
        with self.file.open("a") as file:
            file.write(line)


class Stop(Callback):
    """Ends a run early, as a signal does: schedules still aim at max_steps."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


def train(
    family: str,
    folder: Path,
    *,
    steps: int,
    count: int = 22,
    batch: int = 2,
    every: int = 1,
    resume: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    last: tuple[Callback, ...] = (),
    diary: bool = True,
    stop: int | None = None,
    bad: int | None = None,
    workers: int = 0,
    **arguments: Any,
) -> Trainer:
    """Train a family of SETUPS; `folder` gets last.ckpt and a diary for each rank.

    `callbacks` act before a step is saved, those in `last` after it.
    """
    seed_everything(0)
    setup = SETUPS[family]
    data = ZooDataModule(
        setup.source(count, bad=bad), val=setup.source(3), batch_size=batch, num_workers=workers
    )
    values: dict[str, Any] = {
        "max_steps": steps,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "val_check_interval": 7,
        "check_val_every_n_epoch": None,
        "gradient_clip_val": 0.5,
        "plugins": [WholeFiles()],
        "default_root_dir": folder,
    }
    trainer = Trainer(**(values | arguments))
    folder.mkdir(parents=True, exist_ok=True)
    trainer.callbacks += [  # type: ignore[attr-defined]
        EMA(0.9),
        *([Diary(folder / f"diary{trainer.global_rank}")] if diary else []),
        *callbacks,
        Stop(stop),
        Checkpoints(folder / "last.ckpt", every=every),
        Peers(),
        *last,
    ]
    with words(), tempfile.TemporaryDirectory(dir=folder) as made:
        module = setup.module(Path(made))
        module.take_over(trainer)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=False)
    return trainer
