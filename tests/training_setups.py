"""Small trainings of every family that exists, for the tests of processes, resuming and faults.

A new family joins with one entry of SETUPS; every test of `tests/lit/test_processes.py` and
`test_resume.py` then runs on it.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from tests import prompted_setups as prompted
from tests.waves import FilmWaves, NamedWaves, Waves
from zoo.data.datamodule import ZooDataModule
from zoo.data.source import Source
from zoo.lit.callbacks import EMA
from zoo.lit.checkpoints import Checkpoints, WholeFiles
from zoo.lit.module import ZooModule
from zoo.lit.peers import Peers
from zoo.lit.tokenizer import TokenizerModule
from zoo.nets.cdt import CDT, CDTConfig
from zoo.nets.cdt_decoder import CDTDecoder, decoder_config
from zoo.nets.discriminator import PatchDiscriminator
from zoo.nets.kl_vae import KLVAE, KLVAEConfig
from zoo.nets.kl_vae_video import KLVAEVideo, KLVAEVideoConfig
from zoo.objectives import KL, Adversarial, DenoisingObjective, ReconstructionObjective

warnings.filterwarnings("ignore", module="lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


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


@dataclass(frozen=True)
class Setup:
    """A family: `module` may put files into a folder, `source` is called as `Waves` is."""

    module: Callable[[Path], ZooModule]
    source: Callable[..., Source] = Waves


_named = partial(NamedWaves, frames=1, size=8)
SETUPS: dict[str, Setup] = {
    "cdt": Setup(lambda _: _module(cdt(), DenoisingObjective(lpips_weight=0))),
    "cdt_decoder": Setup(_decoder),
    "kl_vae": Setup(_image, partial(Waves, frames=1)),
    "kl_vae_video": Setup(lambda _: _module(vae(), _reconstruction())),
    "adversarial": Setup(_adversarial),
    "text_to_image": Setup(prompted.text_to_image, _named),
    "distillation": Setup(prompted.distillation, _named),
    "divergence": Setup(prompted.divergence, _named),
    "consistency": Setup(prompted.consistency, _named),
    "latent_video": Setup(prompted.latent_video, FilmWaves),
}


SLOW = ("text_to_image", "divergence", "consistency")
"""Left out of the plain run: distillation has their parts, too, and two optimisers."""


def families(*, slow: tuple[str, ...] = ()) -> list[Any]:
    """All families, for parametrize; those in `slow` and `SLOW` are marked so."""
    late = slow + SLOW
    return [pytest.param(name, marks=[pytest.mark.slow] if name in late else []) for name in SETUPS]


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
    with prompted.words(), tempfile.TemporaryDirectory(dir=folder) as made:
        module = setup.module(Path(made))
        module.take_over(trainer)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=False)
    return trainer
