"""Training loops on toy nets: a collapse that shows, overflows with a name, exact resuming."""

from __future__ import annotations

import shutil
import warnings
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from tests.training_setups import NARROW
from zoo.data.datamodule import ZooDataModule
from zoo.data.sources import VideoFolder
from zoo.data.video import VideoWriter
from zoo.errors import RunError, UserError
from zoo.lit.callbacks import EMA
from zoo.lit.checkpoints import Checkpoints
from zoo.lit.tokenizer import TokenizerModule
from zoo.nets.cdt import CDT, CDTConfig
from zoo.nets.discriminator import PatchDiscriminator
from zoo.nets.kl_vae_video import KLVAEVideo, KLVAEVideoConfig
from zoo.nets.tokenizer import Tokenizer
from zoo.objectives import KL, Adversarial, DenoisingObjective, ReconstructionObjective


def noise_films(folder: Path, *, contrast: int) -> Path:
    """Two films of noise that moves, `contrast` grey levels high."""
    folder.mkdir()
    for number in range(2):
        rng = np.random.default_rng(number)
        levels = 128 - contrast // 2 + rng.integers(0, contrast, (8, 8, 3))
        picture = levels.astype(np.uint8).repeat(4, 0).repeat(4, 1)
        with VideoWriter(folder / f"{number}.mp4", width=32, height=32, rate=Fraction(25)) as film:
            for time in range(20):
                film.write(np.roll(picture, time, axis=1))
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_films(tmp_path_factory.mktemp("films") / "full", contrast=256)


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    warnings.filterwarnings("ignore", module="lightning")


def data(films: Path, *, validate: bool = True) -> ZooDataModule:
    source = partial(VideoFolder, str(films), frames=5, size=16, short_side=32)
    val = source(train=False, short_side=16) if validate else None
    return ZooDataModule(source(clips_per_film=6), val=val, batch_size=2)


def vae(**changes: Any) -> KLVAEVideo:
    """Tiny, without a shortcut."""
    return KLVAEVideo(KLVAEVideoConfig(**(NARROW | changes)))


def cdt() -> CDT:
    return CDT(
        CDTConfig(
            latent_channels=4,
            context_dim=8,
            context_mults=(1, 1),
            context_channels=8,
            space_down=(1, 0),
            time_down=(1, 1),
            block="light",
            patch=4,
            unet_dim=8,
            unet_mults=(1, 1, 1),
            condition_times=2,
            top_blocks=1,
        )
    )


def module(
    net: Tokenizer | None = None, *, lr: float = 1e-3, kl: float = 1e-4, **arguments: Any
) -> TokenizerModule:
    return TokenizerModule(
        net=vae() if net is None else net,
        objective=ReconstructionObjective(regularizer=KL(weight=kl), lpips_weight=0),
        optimizer=partial(torch.optim.AdamW, lr=lr),
        warmup_steps=2,
        **arguments,
    )


def adversarial(**changes: Any) -> Adversarial:
    values: dict[str, Any] = {
        "discriminator": PatchDiscriminator(dim=8, layers=1, time=True),
        "optimizer": partial(torch.optim.Adam, lr=1e-3),
        "start": 3,
        "warmup": 3,
    }
    return Adversarial(**(values | changes))


def trainer(*callbacks: Callback, steps: int, **arguments: Any) -> Trainer:
    values: dict[str, Any] = {
        "max_steps": steps,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
    }
    return Trainer(callbacks=list(callbacks), **(values | arguments))


def test_beta_1_shows_the_collapse_of_a_vae(tmp_path: Path) -> None:
    """What is logged at validation tells a dead posterior from one that is alive.

    At beta 1 a direction of the pixels is worth coding where its variance is above 1/2, that of
    the likelihood; in faint films none has so much.
    """
    films = noise_films(tmp_path / "faint", contrast=24)
    logged = {}
    for beta in (1e-4, 1.0):
        seed_everything(0)
        fit = trainer(steps=100, val_check_interval=100)
        fit.fit(module(lr=1e-2, kl=beta), datamodule=data(films))
        logged[beta] = {k: float(v) for k, v in fit.callback_metrics.items()}
    alive, dead = logged[1e-4], logged[1.0]
    assert alive["val/active_units"] >= 3
    assert alive["val/mutual_information"] > 1
    assert dead["val/active_units"] == 0
    assert dead["val/mutual_information"] < 0.05
    assert dead["train/kl"] < 1e-3


def test_a_cdt_logs_its_latents_as_a_vae_does(films: Path) -> None:
    trained = module(cdt())
    trained.objective = DenoisingObjective(lpips_weight=0)
    fit = trainer(steps=1, val_check_interval=1)
    fit.fit(trained, datamodule=data(films))
    assert {"val/active_units", "val/mutual_information"} <= fit.callback_metrics.keys()


def test_fp16_overflow_of_a_vae_is_named(films: Path) -> None:
    def fit(precision: Any) -> None:
        seed_everything(0)
        trained = module()
        with torch.no_grad():
            trained.net.body.stem.weight.mul_(1e6)
        trainer(steps=1, precision=precision).fit(trained, datamodule=data(films, validate=False))

    with pytest.raises(RunError, match=r"step 0: the loss term mse is.*body\.stem.*float16.*bf16"):
        fit("16-true")
    fit("32-true")  # where the same net is fine


class Keep(Callback):
    """A copy of the checkpoint after given steps."""

    def __init__(self, file: Path, steps: tuple[int, ...]) -> None:
        self.file, self.steps = file, steps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps:
            shutil.copy(self.file, self.file.with_name(f"{trainer.global_step}.ckpt"))


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested structures differ by a single bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [line for k in a for line in differences(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, list | tuple):
        return [
            line
            for i, pair in enumerate(zip(a, b, strict=True))
            for line in differences(*pair, f"{path}/{i}")
        ]
    return [] if a == b else [path]


def test_adversarial_stage_resumes_exactly(films: Path, tmp_path: Path) -> None:
    """Stopped in its middle, also in the middle of an epoch, it goes on to the same bits: both
    players, both optimisers, both schedules, averages, anchors and counters."""

    def run(folder: str, *, resume: Path | None) -> Path:
        seed_everything(0)
        torch.manual_seed(hash(folder) % 1000 if resume else 0)  # other noise about: no matter
        trained = module(adversarial=adversarial())
        seed_everything(0)
        file = tmp_path / folder / "last.ckpt"
        file.parent.mkdir()
        fit = trainer(
            EMA(0.9),
            Checkpoints(file, every=1),
            Keep(file, (5, 11)),
            steps=11,
            gradient_clip_val=0.5,
        )
        trained.take_over(fit)
        fit.fit(trained, datamodule=data(films), ckpt_path=resume)
        assert fit.global_step == 11
        assert trained.adversarial is not None
        return file.with_name("11.ckpt")

    whole = run("whole", resume=None)
    parts = run("parts", resume=whole.with_name("5.ckpt"))
    a, b = (torch.load(path, weights_only=False) for path in (whole, parts))
    keys = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
    for key in (*keys, "lr_schedulers", "global_step"):
        assert not differences(a[key], b[key]), key
    assert len(a["optimizer_states"]) == 2
    assert a["current_model_state"]["adversarial.steps"] == 11 - 3
    assert a["current_model_state"]["adversarial.real_mean"] != 0
    start = torch.load(whole.with_name("5.ckpt"), weights_only=False)["current_model_state"]
    for player in ("net.head.weight", "adversarial.discriminator.net.0.weight"):
        assert differences(start[player], a["current_model_state"][player])


def test_plain_vae_resumes_exactly(films: Path, tmp_path: Path) -> None:
    results = []
    for resume in (None, tmp_path / "0" / "5.ckpt"):
        seed_everything(0)
        file = tmp_path / str(len(results)) / "last.ckpt"
        file.parent.mkdir()
        callbacks = EMA(0.9), Checkpoints(file, every=1), Keep(file, (5, 11))
        fit = trainer(*callbacks, steps=11, gradient_clip_val=0.5)
        fit.fit(module(), datamodule=data(films), ckpt_path=resume)
        results.append(torch.load(file.with_name("11.ckpt"), weights_only=False))
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert not differences(results[0][key], results[1][key]), key


def test_before_its_start_the_adversarial_stage_changes_nothing(films: Path) -> None:
    """By hand or by Lightning: the same clipping, schedule and steps."""
    weights = []
    for stage in (None, adversarial(start=6)):
        seed_everything(0)
        trained = module(adversarial=stage)
        fit = trainer(steps=7, gradient_clip_val=0.01)
        trained.take_over(fit)
        keep = Weights(at=6)
        fit.callbacks.append(keep)  # type: ignore[attr-defined]
        fit.fit(trained, datamodule=data(films))
        weights.append(keep.weights)
    assert weights[0]
    assert not differences(weights[0], weights[1])


class Weights(Callback):
    """The net's weights after a step."""

    def __init__(self, *, at: int) -> None:
        self.at = at
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.at:
            self.weights = {k: v.clone() for k, v in pl_module.net.state_dict().items()}


def test_mistakes_of_the_adversarial_stage_are_said_before_training(films: Path) -> None:
    def said(match: str, *, net: Tokenizer | None = None, **arguments: Any) -> None:
        fit = trainer(**({"steps": 8} | arguments))
        with pytest.raises(UserError, match=match):
            fit.fit(module(net, adversarial=adversarial(start=8)), datamodule=data(films))
        assert fit.global_step == 0

    said("would start at step 8, after the last step 8: lower model.adversarial")
    said("CDT has no last_layer", net=cdt(), steps=100)


@pytest.mark.parametrize("broken", ["discriminator", "net"])
def test_adversarial_numbers_that_are_not_finite_end_the_run(films: Path, broken: str) -> None:
    """Before they reach any weight."""
    seed_everything(0)
    trained = module(adversarial=adversarial(start=0))
    stage = trained.adversarial
    assert stage is not None
    fit = trainer(steps=3)
    if broken == "net":
        trained.net.encoder.stem.weight.register_hook(lambda gradient: gradient * torch.nan)
        said = "step 0: the gradient of the net is not finite"
    else:
        with torch.no_grad():
            list(stage.discriminator.parameters())[-1].fill_(torch.nan)
        said = r"step 0: the loss term gan is not finite.*: net\.5 overflowed first"
    before = {k: v.clone() for k, v in trained.net.state_dict().items()}
    with pytest.raises(RunError, match=said):
        fit.fit(trained, datamodule=data(films))
    assert not differences(before, trained.net.state_dict())
