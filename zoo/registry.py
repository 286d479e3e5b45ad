"""Names of the zoo: presets register themselves beside their net."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from typing import Any, TypeVar

from torch import nn

from zoo.errors import UserError, closest

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Preset:
    """A function that builds a net with random weights, and the family it belongs to."""

    name: str
    family: str
    build: Callable[..., nn.Module]


_PRESETS: dict[str, Preset] = {}


def register(*, family: str) -> Callable[[Builder], Builder]:
    """Decorator: the function's name becomes a name of the zoo."""

    def add(build: Builder) -> Builder:
        name = build.__name__
        assert name not in _PRESETS, f"two presets named {name}"
        _PRESETS[name] = Preset(name, family, build)
        return build

    return add


@cache
def presets() -> dict[str, Preset]:
    """All presets by name. Importing the nets fills the registry."""
    package = importlib.import_module("zoo.nets")
    for module in pkgutil.iter_modules(package.__path__, "zoo.nets."):
        importlib.import_module(module.name)
    return dict(sorted(_PRESETS.items()))


def matching(pattern: str, family: str | None) -> list[str]:
    """Names of presets that match a shell pattern, sorted."""
    return [
        name
        for name, preset in presets().items()
        if fnmatch(name, pattern) and family in (None, preset.family)
    ]


def preset(name: str) -> Preset:
    """The preset `name`; UserError with the closest three when there is none."""
    if name not in presets():
        raise UserError(
            f"unknown model '{name}': did you mean {' or '.join(closest(name, presets()))}?"
        )
    return presets()[name]


def create(name: str, **overrides: Any) -> nn.Module:
    """Build preset `name` with random weights; unknown overrides are named with the closest."""
    builder = preset(name).build
    known = inspect.signature(builder).parameters
    for key in overrides:
        if key not in known:
            raise UserError(
                f"{name} has no setting '{key}': did you mean '{closest(key, known)[0]}'?"
            )
    return builder(**overrides)
