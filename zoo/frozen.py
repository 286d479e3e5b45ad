"""Holding what a module uses but doesn't train."""

from __future__ import annotations

from typing import Any


class Frozen:
    """Parts outside the module tree: neither averaged, saved nor copied with the module."""

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no part '{name}'")
