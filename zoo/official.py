"""Weights that their authors released: fetched, converted once, and then found in the cache."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from zoo.assets import cache_root
from zoo.errors import UserError
from zoo.nets.pretrained import CONFIG_FILE
from zoo.remote import fetch_file

_LOG = logging.getLogger("zoo")


@dataclass(frozen=True)
class Official:
    """A file of a hub repository.

    Attributes:
        repo, file: where it is on huggingface.co.
        family: whose adapter (`zoo.convert.FAMILY`) reads it.
        licence: as its authors state it.
        revision, sha256: what the zoo pins; None where it could not see the file yet: then the
            first one fetched is trusted, said so and remembered.
    """

    repo: str
    file: str
    family: str
    licence: str
    revision: str | None = None
    sha256: str | None = None


OFFICIAL = {
    f"cdt_{size}.official": Official("yangnianzu/CDT", f"cdt_{size}.ckpt", "cdt", "MIT (its code)")
    for size in ("base", "small")
}


def official_folder(name: str) -> Path:
    """The model folder of released weights, in the cache; fetched and converted first if need be.

    Raises:
        UserError: what `fetch_file` raises; another file than the pinned or first-seen one, or one
            that is damaged or doesn't fit the architecture.
    """
    entry = OFFICIAL[name]
    folder = cache_root() / "models" / name
    if (folder / CONFIG_FILE).is_file():
        return folder
    _LOG.info("%s: looking for %s/%s on huggingface.co", name, entry.repo, entry.file)
    path = fetch_file(
        entry.repo,
        entry.file,
        revision=entry.revision,
        otherwise=f"get the file another way, then tools/convert.py {entry.file} --family "
        f"{entry.family} -o FOLDER and load dir:FOLDER",
    )
    revision = path.parent.name  # .../snapshots/REVISION/FILE
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    memo = folder.with_name(f"{name}.source.json")
    known = _check(entry, memo, digest=digest)
    adapter = importlib.import_module(f"zoo.convert.{entry.family}")
    preset, net = adapter.load_checkpoint(path)
    if preset != name.split(".")[0]:
        raise UserError(f"{entry.repo}/{entry.file} holds a {preset}, not a {name.split('.')[0]}")
    if not known:  # only now: a file that broke off must not be what the next one is held to
        _remember(name, entry, memo, revision=revision, digest=digest)
    net.save_pretrained(folder)  # the config comes last: where it is, the weights are too
    _LOG.info("converted to %s", folder)
    return folder


def _check(entry: Official, memo: Path, *, digest: str) -> bool:
    """Compare with what is pinned, or with what was first seen; False where neither is known."""
    known = entry.sha256
    if known is None and memo.is_file():
        try:
            known = json.loads(memo.read_text())["sha256"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{memo} can't be read ({error!r}): delete it") from error
    if known is not None and digest != known:
        raise UserError(
            f"{entry.repo}/{entry.file} has sha256 {digest}, not {known} as "
            + ("the zoo pins it" if entry.sha256 else f"first seen ({memo} remembers it)")
            + ": if its authors say that they changed it, delete that record and load again"
        )
    return known is not None


def _remember(name: str, entry: Official, memo: Path, *, revision: str, digest: str) -> None:
    """Keep what a file was when it was first seen; say so."""
    _LOG.warning(
        "%s: %s at revision %s, sha256 %s: not pinned by the zoo, trusted on first use",
        name,
        entry.repo,
        revision,
        digest,
    )
    facts = {"repo": entry.repo, "file": entry.file, "revision": revision, "sha256": digest}
    memo.parent.mkdir(parents=True, exist_ok=True)
    part = memo.with_name(f".{memo.name}.{os.getpid()}.part")
    part.write_text(json.dumps(facts, indent=2) + "\n")
    os.replace(part, memo)
