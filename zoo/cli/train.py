"""`zoo train`: LightningCLI over the zoo's one module and one data module."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_only

from zoo.cli import say
from zoo.cli.finish import finish
from zoo.cli.slurm import requeue, was_requeued
from zoo.cli.train_parser import RunParser, mistake_behind, names_module
from zoo.data.datamodule import ZooDataModule
from zoo.errors import RunError, UserError, closest
from zoo.hub import load
from zoo.kernels.allocator import keep_memory
from zoo.kernels.precision import bfloat16_of_cpu
from zoo.lit.callbacks import EMA, Samples, Speed
from zoo.lit.checkpoints import Checkpoints, WholeFiles, newest_whole, previous
from zoo.lit.loggers import SteadyCSVLogger, SteadyTensorBoardLogger
from zoo.lit.module import ZooModule
from zoo.lit.peers import Peers
from zoo.lit.sharding import gathered
from zoo.lit.tokenizer import TokenizerModule
from zoo.nets.pickles import load_pickle
from zoo.paths import data_folder

_LOG = logging.getLogger("zoo")
CHECKPOINT = "last.ckpt"

EXAMPLES = """examples:
  zoo train                                             the quickstart
  zoo train fit --config configs/cdt/tiny.yaml --out runs/mine
  zoo train fit --config configs/cdt/tiny.yaml --ckpt_path last
  zoo train fit --config configs/cdt/tiny.yaml --init_from dir:runs/mine/export
  zoo train fit --config configs/tiue/tiue_tiny.yaml --model.init_args.teacher dir:TEACHER
"""


class ZooCLI(LightningCLI):
    """LightningCLI with a run folder, averaged weights and a checkpoint that is always whole.

    The folder --out (default runs/CONFIG, then runs/CONFIG-2, ...) gets config.yaml, last.ckpt,
    samples/, tensorboard/, csv/ and, at the end, export/ and metrics.json.
    """

    out: Path

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only fit: evaluation of exported nets is the benchmark's."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options of ours."""
        parser.add_argument("--out", type=str | None, default=None, help="run folder")
        parser.add_argument("--save_every", type=int, default=500, help="steps between saves")
        parser.add_argument(
            "--init_from", type=str | None, default=None, help="start weights: NAME or dir:PATH"
        )
        parser.add_argument(
            "--init_strict", type=bool, default=True, help="false: skip keys that don't fit"
        )
        parser.add_argument(
            "--evaluate", type=bool, default=True, help="score the validation clips at the end"
        )
        parser.add_class_arguments(EMA, "ema")

    def before_instantiate_classes(self) -> None:
        """Choose the run folder, the precision and what to resume."""
        config = self.config.fit
        name = Path(str(config.config[0])).stem if config.get("config") else "run"
        wanted = Path(config.out or f"runs/{name}")
        if not config.ckpt_path and was_requeued() and (runs := checkpoints(wanted)):
            config.ckpt_path = str(runs[0])
        if config.ckpt_path == "last":
            config.ckpt_path = str(latest_checkpoint(wanted))
        if config.ckpt_path:
            checkpoint = Path(config.ckpt_path)
            if not checkpoint.is_file() and not previous(checkpoint).is_file():
                raise UserError(f"no checkpoint at {checkpoint}: give a file, or 'last'")
            self.out = checkpoint.parent
        else:
            self.out = free_folder(wanted)
        self.text = self.parser.dump(self.config, skip_none=False).replace("fit:\n", "", 1)
        if config.trainer.precision is None:
            config.trainer.precision = best_precision(config.trainer.accelerator)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer whose loggers and callbacks write to the run folder."""
        config = self.config_init.fit
        self.checkpoints = Checkpoints(self.out / CHECKPOINT, every=config.save_every)
        self.files = WholeFiles()
        given = config.trainer.plugins or []
        given = given if isinstance(given, list) else [given]
        # text-to-image modules write their own pictures
        self.samples = Samples(self.out / "samples") if self._tokenizes() else None
        kwargs.update(
            default_root_dir=str(self.out),
            logger=[
                SteadyTensorBoardLogger(self.out, name="", version="tensorboard"),
                SteadyCSVLogger(self.out, name="", version="csv"),
            ],
            callbacks=[
                *(config.trainer.callbacks or []),
                config.ema,
                Speed(),
                *([] if self.samples is None else [self.samples]),
                self.checkpoints,
                Peers(),
                *(
                    [TQDMProgressBar(refresh_rate=10)]
                    if config.trainer.enable_progress_bar is not False  # None is yes
                    else []
                ),
            ],
            plugins=[*given, self.files],
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, ImportError) as error:  # unknown strategies, absent accelerators
            raise UserError(" ".join(str(error).split())) from error

    def before_fit(self) -> None:
        """Load start weights."""
        config = self.config_init.fit
        if config.init_from:
            skipped = init_from(self.model.net, config.init_from, strict=config.init_strict)
            for line in skipped:
                _LOG.info("init_from skips %s", line)
        self.model.take_over(self.trainer)
        self._begin_folder()
        size = sum(p.numel() for p in self.model.net.parameters()) / 1e6
        _LOG.info(
            "%s, %.2f M parameters, %s precision, to %s",
            type(self.model.net).__name__,
            size,
            self.trainer.precision,
            self.out,
        )

    @rank_zero_only
    def _begin_folder(self) -> None:
        """Only now, when nothing is left to refuse, and in one process."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "config.yaml").write_text(self.text)
        except OSError as error:
            raise UserError(f"can't write to {self.out} ({error}): give another --out") from error

    def after_fit(self) -> None:
        """Export, score, and say where everything is."""
        if self.checkpoints.signal is not None:
            if self.trainer.is_global_zero:
                self._say_where_it_stopped()
                requeue(self.trainer, self.checkpoints.signal)
            raise SystemExit(128 + self.checkpoints.signal)
        self.model.net = gathered(self.model.net)
        if not self.trainer.is_global_zero:
            return
        if self.samples is None:
            self.model.export(self.out / "export")
            say(str(self.out / "export"))
            return
        finish(
            self.model,
            self.datamodule,
            out=self.out,
            evaluate=self.config_init.fit.evaluate,
            pictures=self.samples.latest,
        )

    def _tokenizes(self) -> bool:
        return isinstance(self.model, TokenizerModule)

    def _say_where_it_stopped(self) -> None:
        if self.files.failed:
            raise RunError(
                f"stopped at step {self.trainer.global_step}, which was not saved "
                f"({self.files.failed}): go on from the last good checkpoint"
            )
        say(f"stopped at step {self.trainer.global_step}; go on with --ckpt_path")
        say(str(self.out / CHECKPOINT))


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first wanted-2, wanted-3, ... without a run in it."""
    number, folder = 1, wanted
    while (folder / "config.yaml").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def checkpoints(wanted: Path) -> list[Path]:
    """Of the runs in `wanted`, wanted-2, ...: those that can be resumed, the newest run first.

    By the numbers of the runs, not by the clock, which may have been set back.
    """
    number = re.compile(re.escape(wanted.name) + r"(?:-(\d+))?")
    runs = []
    for folder in wanted.parent.glob(f"{wanted.name}*"):
        file = folder / CHECKPOINT
        if (found := number.fullmatch(folder.name)) and (
            file.is_file() or previous(file).is_file()
        ):
            runs.append((int(found[1] or 1), file))
    return [file for _, file in sorted(runs, reverse=True)]


def latest_checkpoint(wanted: Path) -> Path:
    """A whole checkpoint of the newest run in `wanted`, wanted-2, ...: its last or that before."""
    found = checkpoints(wanted)
    if not found:
        raise UserError(f"no {CHECKPOINT} in {wanted}: start without --ckpt_path")
    return newest_whole(found[0])


def best_precision(accelerator: str) -> str:
    """bf16-mixed where the hardware trains faster in bf16, else 32-true.

    With AMX 3D convolutions learn in float32 (`learns_in_float32`).
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return (
            "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        )
    return "bf16-mixed" if bfloat16_of_cpu() == "vectors" else "32-true"


def init_from(net: torch.nn.Module, name: str, *, strict: bool) -> list[str]:
    """Copy weights from another net; returns the keys skipped (none when strict).

    Raises:
        UserError: strict and a key is missing, unexpected or of another shape; or nothing fits.
    """
    given, wanted = load(name).state_dict(), net.state_dict()
    fits = {k for k in given.keys() & wanted.keys() if given[k].shape == wanted[k].shape}
    skipped = [f"{k} (missing in {name})" for k in sorted(wanted.keys() - given.keys())]
    skipped += [f"{k} (not in this net)" for k in sorted(given.keys() - wanted.keys())]
    skipped += [
        f"{k} ({tuple(given[k].shape)}, not {tuple(wanted[k].shape)})"
        for k in sorted((given.keys() & wanted.keys()) - fits)
    ]
    if strict and skipped:
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        raise UserError(
            f"{name} doesn't fit this net: {'; '.join(skipped[:3])}{more}; "
            "--init_strict false skips them"
        )
    if not fits:
        raise UserError(f"no weight of {name} fits this net: choose a model of its family")
    net.load_state_dict({k: given[k] for k in fits}, strict=False)
    return skipped


def _with_defaults(arguments: Sequence[str]) -> list[str]:
    """No subcommand means the quickstart; a config of the zoo is found from anywhere."""
    args = list(arguments)
    configs = data_folder("configs")
    if not any(a in ("-h", "--help") for a in args) and (not args or args[0].startswith("-")):
        own = any(a.split("=")[0] in ("--config", "-c") for a in args)
        args = ["fit", *([] if own else ["--config", str(configs / "quickstart.yaml")]), *args]
    for place, value in enumerate(args):
        if value.startswith("--ckpt_path"):
            _, joined, given = value.partition("=")
            checkpoint = Path(given if joined else [*args, ""][place + 1])
            if checkpoint.is_file():  # before Lightning, which has no sentence for a bad one
                load_pickle(checkpoint, device="meta")
        if place and args[place - 1] in ("--config", "-c") and not Path(value).exists():
            packaged = configs / Path(*[p for p in Path(value).parts if p != "configs"])
            if not packaged.is_file():
                known = [f"configs/{p.relative_to(configs)}" for p in configs.rglob("*.yaml")]
                near = closest(value, known, count=1)
                raise UserError(f"no config {value}: did you mean {near[0]}?")
            args[place] = str(packaged)
        if place and args[place - 1] in ("--config", "-c"):
            try:
                Path(args[place]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{args[place]} is no UTF-8 text ({error}): correct it") from error
    return args


def main(arguments: Sequence[str]) -> int:
    """Train; see EXAMPLES."""
    keep_memory()
    warnings.filterwarnings("ignore", module="lightning")
    # DDP, of 1x1x1 convolutions on channels-last data: a copy of a small gradient
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    args = _with_defaults(arguments)
    named = names_module(args)
    # what watches the processes that Lightning starts says in it which one has died
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)
    texts = {"prog": "zoo train", "fit": {"prog": "zoo train fit", "epilog": EXAMPLES}}
    try:
        ZooCLI(
            ZooModule if named else TokenizerModule,
            ZooDataModule,
            subclass_mode_model=named,
            args=args,
            seed_everything_default=0,
            save_config_callback=None,
            parser_class=RunParser,
            auto_configure_optimizers=False,
            parser_kwargs=texts,
        )
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except ValueError as error:
        raise mistake_behind(error) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        # torch raises this from a signal handler, maybe in the middle of a step: nothing is saved
        raise RunError(
            f"{str(error).splitlines()[0]} It may have run out of memory: lower data.num_workers "
            "and go on with --ckpt_path last"
        ) from error
    return 0
