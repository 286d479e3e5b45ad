"""Tokenizers of other projects, through diffusers' classes: every row of the table is a preset."""

from __future__ import annotations

from collections.abc import Callable

from zoo.nets.foreign.net import Foreign, ForeignConfig
from zoo.nets.foreign.table import ENTRIES, Entry
from zoo.registry import register


def _builder(name: str, entry: Entry) -> Callable[..., Foreign]:
    def build(*, reduced: bool = False) -> Foreign:
        small, small_decoder = (entry.reduced, entry.decoder_reduced) if reduced else ({}, {})
        return Foreign(
            ForeignConfig(
                kind=entry.kind,
                settings={**entry.settings, **small},
                decoder=entry.decoder,
                decoder_settings={**entry.decoder_settings, **small_decoder},
            )
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = (
        f"{entry.repo}: {entry.decoder or entry.kind}, {entry.parameters:g} M parameters, random. "
        "`reduced` makes a small one, for tests."
    )
    return build


for _name, _entry in ENTRIES.items():
    register(family="foreign")(_builder(_name, _entry))

__all__ = ["ENTRIES", "Entry", "Foreign", "ForeignConfig"]
