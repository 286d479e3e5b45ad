"""`zoo train`: LightningCLI over the zoo's one module and one data module."""

from __future__ import annotations

import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from zoo.cli import say
from zoo.cli.finish import finish
from zoo.data.caption_source import Captions
from zoo.data.captioned import CaptionedPictures
from zoo.data.datamodule import ZooDataModule
from zoo.data.mixture import Mixture
from zoo.data.sources import ImageFolder, VideoFolder
from zoo.errors import UserError, closest
from zoo.hub import load
from zoo.kernels.allocator import keep_memory
from zoo.lit.callbacks import EMA, Checkpoints, Samples, Speed
from zoo.lit.module import ZooModule
from zoo.lit.tokenizer import TokenizerModule
from zoo.nets.cdt_decoder import cdt_decoder
from zoo.nets.discriminator import PatchDiscriminator
from zoo.objectives import Adversarial, DenoisingObjective, ReconstructionObjective, Regularizer
from zoo.objectives.clip_term import ClipTerm
from zoo.objectives.consistency import ConsistencyObjective
from zoo.objectives.diffusion import DiffusionObjective
from zoo.objectives.distillation import DistillationObjective
from zoo.paths import data_folder
from zoo.registry import presets

_LOG = logging.getLogger("zoo")
CHECKPOINT = "last.ckpt"

EXAMPLES = """examples:
  zoo train                                             the quickstart
  zoo train fit --config configs/cdt/tiny.yaml --out runs/mine
  zoo train fit --config configs/cdt/tiny.yaml --ckpt_path last
  zoo train fit --config configs/cdt/tiny.yaml --init_from dir:runs/mine/export
  zoo train fit --config configs/tiue/tiue_tiny.yaml --model.init_args.teacher dir:TEACHER
"""


class _Parser(LightningArgumentParser):
    """LightningCLI's parser with errors as one sentence, the closest key named."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(explain(message, self.known_keys())) from ex

    def known_keys(self) -> list[str]:
        """Every option of this parser and its subcommands, and what the zoo's classes take."""
        subcommands = self._subcommands_action
        parsers = [self, *(subcommands.choices.values() if subcommands is not None else ())]
        options = [
            option.removeprefix("--")
            for parser in parsers
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--")
        ]
        builders: list[Callable[..., Any]] = [preset.build for preset in presets().values()]
        builders += [cdt_decoder, DenoisingObjective, ReconstructionObjective]
        builders += [VideoFolder, ImageFolder, Mixture, CaptionedPictures, Captions]
        builders += [DiffusionObjective, DistillationObjective, ConsistencyObjective, ClipTerm]
        builders += [*Regularizer.__subclasses__(), Adversarial, PatchDiscriminator]
        return options + [name for build in builders for name in signature(build).parameters]


_UNKNOWN = (
    r"[Kk]ey ['\"]([\w.]+)['\"] is not expected",
    r"[Oo]ption ['\"]([\w.]+)['\"] is not accepted",
    r"does not accept option ['\"]([\w.]+)['\"]",
    r"[Uu]nrecognized arguments: -*([\w.]+)",
)


def explain(message: str, known: Iterable[str]) -> str:
    """jsonargparse's message as one sentence; an unknown key is named with the closest."""
    known = list(known)
    if found := re.search(r"NestedArg\(key='([\w.]+)', val='?([^')]*)", message):
        # so jsonargparse says of a class's setting that comes from the command line
        key, value = found[1], found[2]
        if key in known:
            return f"{key} = {value}: the value doesn't fit"
        known = [k for k in known if "." not in k]
        return f"unknown key '{key}': did you mean '{closest(key, known, count=1)[0]}'?"
    for pattern in _UNKNOWN:
        if found := re.search(pattern, message):
            key = found[1].removeprefix("fit.")
            # a setting of a class is named without the path to it, an option with its path
            hint = closest(key, [k for k in known if ("." in k) == ("." in key)], count=1)
            return f"unknown key '{key}': did you mean '{hint[0] if hint else '?'}'?"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return ": ".join(lines[:1] + lines[-1:]) if len(lines) > 1 else lines[0]


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
        if config.ckpt_path == "last":
            config.ckpt_path = str(latest_checkpoint(wanted))
        if config.ckpt_path:
            checkpoint = Path(config.ckpt_path)
            if not checkpoint.is_file():
                raise UserError(f"no checkpoint at {checkpoint}: give a file, or 'last'")
            self.out = checkpoint.parent
        else:
            self.out = free_folder(wanted)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "config.yaml").write_text(
                self.parser.dump(self.config, skip_none=False).replace("fit:\n", "", 1)
            )
        except OSError as error:
            raise UserError(f"can't write to {self.out} ({error}): give another --out") from error
        if config.trainer.precision is None:
            config.trainer.precision = best_precision(config.trainer.accelerator)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer whose loggers and callbacks write to the run folder."""
        config = self.config_init.fit
        self.checkpoints = Checkpoints(self.out / CHECKPOINT, every=config.save_every)
        # text-to-image modules write their own pictures
        self.samples = Samples(self.out / "samples") if self._tokenizes() else None
        kwargs.update(
            default_root_dir=str(self.out),
            logger=[
                TensorBoardLogger(self.out, name="", version="tensorboard"),
                CSVLogger(self.out, name="", version="csv"),
            ],
            callbacks=[
                *(config.trainer.callbacks or []),
                config.ema,
                Speed(),
                *([] if self.samples is None else [self.samples]),
                self.checkpoints,
                TQDMProgressBar(refresh_rate=10),
            ],
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Load start weights."""
        config = self.config_init.fit
        if config.init_from:
            skipped = init_from(self.model.net, config.init_from, strict=config.init_strict)
            for line in skipped:
                _LOG.info("init_from skips %s", line)
        self.model.take_over(self.trainer)
        size = sum(p.numel() for p in self.model.net.parameters()) / 1e6
        _LOG.info(
            "%s, %.2f M parameters, %s precision, to %s",
            type(self.model.net).__name__,
            size,
            self.trainer.precision,
            self.out,
        )

    def after_fit(self) -> None:
        """Export, score, and say where everything is."""
        if self.checkpoints.signal is not None:
            say(f"stopped at step {self.trainer.global_step}; go on with --ckpt_path")
            say(str(self.out / CHECKPOINT))
            raise SystemExit(128 + self.checkpoints.signal)
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


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first wanted-2, wanted-3, ... without a run in it."""
    number, folder = 1, wanted
    while (folder / "config.yaml").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def latest_checkpoint(wanted: Path) -> Path:
    """The newest checkpoint of the runs in `wanted`, wanted-2, ..."""
    found = [
        p
        for p in wanted.parent.glob(f"{wanted.name}*/{CHECKPOINT}")
        if re.fullmatch(re.escape(wanted.name) + r"(-\d+)?", p.parent.name)
    ]
    if not found:
        raise UserError(f"no {CHECKPOINT} in {wanted}: start without --ckpt_path")
    return max(found, key=lambda p: p.stat().st_mtime)


def best_precision(accelerator: str) -> str:
    """bf16-mixed where the hardware multiplies in bf16, else 32-true.

    A CPU without bf16 instructions emulates them, measured 170 times slower than float32.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return (
            "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        )
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


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
        if place and args[place - 1] in ("--config", "-c") and not Path(value).exists():
            packaged = configs / Path(*[p for p in Path(value).parts if p != "configs"])
            if not packaged.is_file():
                known = [f"configs/{p.relative_to(configs)}" for p in configs.rglob("*.yaml")]
                near = closest(value, known, count=1)
                raise UserError(f"no config {value}: did you mean {near[0]}?")
            args[place] = str(packaged)
    return args


def _names_module(args: Sequence[str]) -> bool:
    """Whether a config says what kind of training it is (model.class_path); else a tokenizer's."""
    follows = [b for a, b in itertools.pairwise(args) if a in ("--config", "-c")]
    for path in [*follows, *(a.partition("=")[2] for a in args if a.startswith("--config="))]:
        try:
            read = yaml.safe_load(Path(path).read_text())
        except (OSError, ValueError, yaml.YAMLError):
            continue  # jsonargparse says what is wrong with it
        model = read.get("model") if isinstance(read, dict) else None
        if isinstance(model, dict) and "class_path" in model:
            return True
    return False


def mistake_behind(error: BaseException) -> BaseException:
    """The UserError that jsonargparse wrapped while it built a class; else the error itself.

    Where a setting takes one of several classes or none, it tries all of them and says, at length,
    that none fits; what the right one said is the cause.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__
    return error


def main(arguments: Sequence[str]) -> int:
    """Train; see EXAMPLES."""
    keep_memory()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    args = _with_defaults(arguments)
    named = _names_module(args)
    try:
        ZooCLI(
            ZooModule if named else TokenizerModule,
            ZooDataModule,
            subclass_mode_model=named,
            args=args,
            seed_everything_default=0,
            save_config_callback=None,
            parser_class=_Parser,
            auto_configure_optimizers=False,
            parser_kwargs={
                "prog": "zoo train",
                "fit": {"prog": "zoo train fit", "epilog": EXAMPLES},
            },
        )
    except ValueError as error:
        raise mistake_behind(error) from None
    return 0
