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

_LOG = logging.getLogger("zoo")
_TIMEOUT_S = 10.0


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
        UserError: no network and nothing cached, another file than the pinned or first-seen one,
            or one that doesn't fit the architecture.
    """
    entry = OFFICIAL[name]
    folder = cache_root() / "models" / name
    if (folder / CONFIG_FILE).is_file():
        return folder
    path, revision = _fetch(name, entry)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _check(name, entry, folder.with_name(f"{name}.source.json"), revision=revision, digest=digest)
    adapter = importlib.import_module(f"zoo.convert.{entry.family}")
    preset, net = adapter.load_checkpoint(path)
    if preset != name.split(".")[0]:
        raise UserError(f"{entry.repo}/{entry.file} holds a {preset}, not a {name.split('.')[0]}")
    net.save_pretrained(folder)  # the config comes last: where it is, the weights are too
    _LOG.info("converted to %s", folder)
    return folder


def _fetch(name: str, entry: Official) -> tuple[Path, str]:
    """The file in the hub's own cache, and the revision that it is from."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    where = f"{entry.repo}/{entry.file} on huggingface.co"
    _LOG.info("%s: looking for %s", name, where)
    chatter = logging.getLogger("huggingface_hub")
    level = chatter.level
    chatter.setLevel(logging.ERROR)  # it tells of every retry; our one sentence says the outcome
    try:
        path = hf_hub_download(
            entry.repo, entry.file, revision=entry.revision, etag_timeout=_TIMEOUT_S
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            why = (str(error).splitlines() or [""])[0][:160]
        else:
            why = "no network, or it is offline by HF_HUB_OFFLINE"
        raise UserError(
            f"can't fetch {where} ({why}): get the file another way, then tools/convert.py "
            f"{entry.file} --family {entry.family} -o FOLDER and load dir:FOLDER"
        ) from error
    finally:
        chatter.setLevel(level)
    # .../snapshots/REVISION/FILE
    return Path(path), Path(path).parent.name


def _check(name: str, entry: Official, memo: Path, *, revision: str, digest: str) -> None:
    """Compare with what is pinned, or with what was first seen; remember the latter."""
    known = entry.sha256
    if known is None and memo.is_file():
        known = json.loads(memo.read_text())["sha256"]
    if known is not None and digest != known:
        raise UserError(
            f"{entry.repo}/{entry.file} has sha256 {digest}, not {known} as "
            + ("the zoo pins it" if entry.sha256 else f"first seen ({memo} remembers it)")
            + ": if its authors say that they changed it, delete that record and load again"
        )
    if known is not None:
        return
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
