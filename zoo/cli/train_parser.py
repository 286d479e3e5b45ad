"""Reading a training run's config: classes by name, unknown keys with the closest known one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from zoo.data.caption_source import Captions
from zoo.data.captioned import CaptionedPictures
from zoo.data.captioned_video import CaptionedFilms, CaptionedLatents
from zoo.data.mixture import Mixture
from zoo.data.shard_source import ShardSource
from zoo.data.sources import ImageFolder, VideoFolder
from zoo.errors import UserError, closest
from zoo.nets.cdt_decoder import cdt_decoder
from zoo.nets.discriminator import PatchDiscriminator
from zoo.objectives import Adversarial, DenoisingObjective, ReconstructionObjective, Regularizer
from zoo.objectives.clip_term import ClipTerm
from zoo.objectives.consistency import ConsistencyObjective
from zoo.objectives.diffusion import DiffusionObjective
from zoo.objectives.distillation import DistillationObjective
from zoo.objectives.latent_video import LatentVideoObjective
from zoo.registry import presets


class RunParser(LightningArgumentParser):
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
        builders += [VideoFolder, ImageFolder, ShardSource, Mixture, CaptionedPictures, Captions]
        builders += [DiffusionObjective, DistillationObjective, ConsistencyObjective, ClipTerm]
        builders += [LatentVideoObjective, CaptionedLatents, CaptionedFilms]
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
        key, value = found[1].rpartition("init_args.")[2], found[2]
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


def names_module(args: Sequence[str]) -> bool:
    """Whether a config says what kind of training it is (model.class_path); else a tokenizer's."""
    follows = [b for a, b in itertools.pairwise(args) if a in ("--config", "-c")]
    for path in [*follows, *(a.partition("=")[2] for a in args if a.startswith("--config="))]:
        try:
            read = yaml.safe_load(Path(path).read_text())
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
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
