"""Saving and loading a net: config.json beside model.safetensors, strict both ways."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from zoo.errors import UserError, closest

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class Pretrained(nn.Module):
    """A net built from one frozen dataclass, saved with it.

    A subclass sets `config_class` and `architecture` (its name in config.json) and takes the
    config as its only argument.
    """

    architecture: ClassVar[str]
    config_class: ClassVar[type[Any]]
    by_name: ClassVar[dict[str, type[Pretrained]]] = {}

    config: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "architecture" in cls.__dict__:
            Pretrained.by_name[cls.architecture] = cls

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors; each appears whole or not at all.

        Raises:
            UserError: the folder can't be written, or the net has int8 weights.
        """
        if any(isinstance(module, ParametrizationList) for module in self.modules()):
            raise UserError(
                "a net with int8 weights isn't saved: save the original, quantise later"
            )
        folder = Path(folder)
        text = {"architecture": self.architecture, "config": dataclasses.asdict(self.config)}
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        part = folder / f".{WEIGHTS_FILE}.{os.getpid()}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata={"format": "pt"})
            os.replace(part, folder / WEIGHTS_FILE)
            part.write_text(json.dumps(text, indent=2) + "\n")
            os.replace(part, folder / CONFIG_FILE)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"can't write the model to {folder} ({error}): give another folder"
            ) from error
        finally:
            # a folder that could not be made has no part either
            if part.parent.is_dir():
                part.unlink(missing_ok=True)

    def push_to_hub(self, repo: str, *, card: str | Path, private: bool = False) -> str:
        """Upload weights and config with the card and metrics that were made of these weights.

        Args:
            repo: `ORG/REPO`, made if it isn't there.
            card: folder with README.md and metrics.json, such as one of checkpoints/.
            private: whether a new repository is.

        Returns:
            The address of the commit.

        Raises:
            UserError: no card, licence or metrics, metrics of other weights, or the hub refuses.
        """
        from zoo.remote import push_folder

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / Path(card).resolve().name
            self.save_pretrained(folder)
            for name in ("README.md", "metrics.json"):
                if (Path(card) / name).is_file():
                    shutil.copyfile(Path(card) / name, folder / name)
            return push_folder(folder, repo, private=private)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load from a folder that `save_pretrained` wrote: eval mode, float as stored, strict.

        `hf:ORG/REPO@REVISION` is fetched first.

        Raises:
            UserError: a file is missing or broken, the config has an unknown key or a wrong type,
                or weights and net don't match (each key named).
        """
        if str(folder).startswith("hf:"):
            from zoo.remote import fetch_repo, parse_source

            folder = fetch_repo(*parse_source(str(folder).removeprefix("hf:")))
        folder = Path(folder)
        text = read_config(folder)
        kind = Pretrained.by_name.get(text["architecture"])
        if kind is None:
            known = closest(text["architecture"], Pretrained.by_name)
            raise UserError(
                f"{folder / CONFIG_FILE} names the architecture '{text['architecture']}', "
                f"which this version doesn't know; closest: {', '.join(known)}"
            )
        if not issubclass(kind, cls):
            raise UserError(f"{folder} holds a {kind.architecture}, not a {cls.__name__}")
        origin = folder / CONFIG_FILE
        try:
            with torch.device("meta"):
                net = kind(parse_config(kind.config_class, text["config"], origin))
        except UserError:
            raise
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # numbers of the right type that no layer can be built with, zero groups for instance
            raise UserError(
                f"{origin} describes no net that can be built ({error}): export the model again"
            ) from error
        load_strict(net, folder / WEIGHTS_FILE)
        return net.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a model folder, with `architecture` and `config`."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} is not a model folder: it has no {CONFIG_FILE} "
            "(train.py prints the folder that it exports to)"
        )
    try:
        text = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): export the model again") from error
    if (
        not isinstance(text, dict)
        or not isinstance(text.get("architecture"), str)
        or not isinstance(text.get("config"), dict)
    ):
        raise UserError(f"{path} lacks 'architecture' or 'config': export the model again")
    return text


def parse_config(kind: type[Any], values: dict[str, Any], origin: object) -> Any:
    """A config dataclass from plain values; unknown keys and wrong types are named."""
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise UserError(
                f"unknown key '{key}' in {origin}: did you mean '{closest(key, hints)[0]}'?"
            )
        if not _fits(value, hints[key]):
            raise UserError(f"{key} = {value!r} in {origin}: expected {_spell(hints[key])}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(v, arguments[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def load_strict(net: nn.Module, path: Path) -> None:
    """Fill `net` (built on meta or not) from a safetensors file; every key must match.

    Raises:
        UserError: the file is missing or broken, or a key is missing, unexpected or of another
            shape; keys are named.
    """
    tensors = read_weights(path)
    faults = key_faults(net.state_dict(), tensors)
    if faults:
        raise UserError(f"{path} doesn't fit its config: {some(faults)}")
    net.load_state_dict(tensors, strict=True, assign=True)


def key_faults(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Every key that is missing, unexpected or of another shape, sorted; empty when all fit."""
    faults = [f"missing {name}" for name in wanted.keys() - given.keys()]
    faults += [f"unexpected {name}" for name in given.keys() - wanted.keys()]
    faults += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if wanted[name].shape != given[name].shape
    ]
    return sorted(faults)


def some(faults: list[str], *, count: int = 5) -> str:
    """The first few of a list for a message, and how many more there are."""
    more = f" and {len(faults) - count} more" if len(faults) > count else ""
    return "; ".join(faults[:count]) + more


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the model folder is not complete")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error
