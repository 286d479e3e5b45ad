"""Published weights of the foreign tokenizers: terms accepted, files fetched, folder found."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from zoo.errors import UserError
from zoo.nets.foreign.table import ENTRIES, Entry
from zoo.remote import fetch_file

_LOG = logging.getLogger("zoo")
_SUFFIX = ".official"
_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
ACCEPT = "ZOO_ACCEPT_LICENSE"
"""Environment variable: names of the table, by commas, whose terms the user accepts."""


def published() -> dict[str, Entry]:
    """Rows that `zoo.load` can fetch, by name: those with a file that diffusers reads."""
    return {f"{name}{_SUFFIX}": entry for name, entry in ENTRIES.items() if entry.on_hub}


def source_of(entry: Entry) -> str:
    """Where its weights are, for people."""
    return "/".join(filter(None, ("huggingface.co", entry.repo, entry.subfolder)))


def published_folder(name: str, *, accept_license: bool = False) -> Path:
    """The diffusers folder of published weights in the hub's cache, fetched if need be.

    Args:
        name: of `published()`.
        accept_license: the user accepts the terms; `ZOO_ACCEPT_LICENSE` says so, too.

    Raises:
        UserError: terms that aren't accepted, and what `fetch_file` raises.
    """
    entry = published()[name]
    base = name.removesuffix(_SUFFIX)
    if entry.terms:
        accepted = os.environ.get(ACCEPT, "").split(",")
        if not accept_license and base not in accepted:
            raise UserError(
                f"{name} is under the {entry.licence} ({entry.terms}): read it at "
                f"https://huggingface.co/{entry.repo}, then zoo.load('{name}', "
                f"accept_license=True), or {ACCEPT}={base} in the environment"
            )
        _LOG.warning("%s: %s (%s), accepted", name, entry.licence, entry.terms)
    if entry.revision is None:
        _LOG.info("%s: the newest revision of %s, which the zoo doesn't pin", name, entry.repo)
    folders = [_fetch(entry, entry.subfolder)]
    if entry.decoder:
        folders.append(_fetch(entry, entry.decoder_subfolder))
    return folders[-1]


def _fetch(entry: Entry, subfolder: str) -> Path:
    paths = [
        fetch_file(entry.repo, file, subfolder=subfolder or None, revision=entry.revision)
        for file in _FILES
    ]
    return paths[0].parent
