"""What is compared: a pipeline and how it samples."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zoo.benchmark.models import Candidate
from zoo.errors import UserError, closest

_ALIAS = re.compile(r"([\w.+-]+)=(?=[\w.]+:|[\w.+-]+(?:@|$))(.*)")
_SUFFIXES = (".safetensors", ".bin", ".json", ".txt")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model samples; None is the folder's own.

    Attributes:
        steps: encoder passes; 1 for TiUE and one-step students.
        decoders: decoder passes N, `steps` of which or more; equal to it the plain model.
        guidance: scale of classifier-free guidance; 1 is none.
        parallel: the decoder passes of an encoder pass go in one batch.
    """

    steps: int | None = None
    decoders: int | None = None
    guidance: float | None = None
    parallel: bool = True


@dataclass
class Generator(Candidate):
    """A row of the table: a pipeline with its settings (`Candidate.steps` is not used)."""

    settings: Settings = dataclasses.field(default_factory=Settings)


def settings_of(text: str) -> Settings:
    """`steps=25,guidance=3`, `N=4`, `N=4,parallel=no`; what isn't said is the folder's own.

    `steps` alone is the plain sampler, `N` alone is TiUE: one encoder pass, N decoder passes.

    Raises:
        UserError: an unknown setting, a value that isn't one, or one out of its range.
    """
    known = ("steps", "N", "guidance", "parallel")
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if name not in known:
            near = closest(name, known)[0]
            raise UserError(f"unknown setting '{part}' of a model: did you mean '{near}=...'?")
        if not equals or name in found:
            raise UserError(f"setting '{part}': give {name}=VALUE once")
        found[name] = value
    for name in ("steps", "N"):
        if name in found and not (found[name].isdecimal() and int(found[name]) > 0):
            raise UserError(f"{name}={found[name]}: give a whole number of passes, at least 1")
    if found.get("parallel", "yes") not in ("yes", "no"):
        raise UserError(f"parallel={found['parallel']}: give yes or no")
    guidance = None
    if "guidance" in found:
        try:
            guidance = float(found["guidance"])
        except ValueError as error:
            raise UserError(f"guidance={found['guidance']}: give a number, such as 3") from error
        if not 0 <= guidance < math.inf:
            raise UserError(
                f"guidance={found['guidance']}: give 1 for none, about 3 to 8 for more of it"
            )
    steps = decoders = None
    if found.keys() & {"steps", "N"}:
        steps = int(found.get("steps", "1"))
        decoders = int(found.get("N", steps))
        if decoders < steps:
            raise UserError(
                f"N={decoders},steps={steps}: each of the {steps} encoder passes needs a decoder "
                "pass, give an N of at least that"
            )
    return Settings(
        steps=steps,
        decoders=decoders,
        guidance=guidance,
        parallel=found.get("parallel", "yes") == "yes",
    )


def generators(texts: list[str], *, device: str) -> list[Generator]:
    """The models of the command line: `[LABEL=]MODEL[@SETTINGS]`.

    Nothing is loaded yet, but every folder is found and its files are hashed.

    Raises:
        UserError: no such pipeline, a mistake in its settings, or two of one label.
    """
    rows: list[Generator] = []
    for text in texts:
        row = _generator(text, device=device)
        if any(row.label == other.label for other in rows):
            raise UserError(
                f"two models are called {row.label}: name one of them, as in other={text}"
            )
        rows.append(row)
    return rows


def _generator(text: str, *, device: str) -> Generator:
    alias, name = "", text
    if found := _ALIAS.fullmatch(text):
        alias, name = found[1], found[2]
    head, at, tail = name.rpartition("@")
    # a hub revision has no = in it
    name, given = (head, tail) if at and "=" in tail else (name, "")
    settings = settings_of(given)
    from zoo.open_pipeline import open_pipeline, pipeline_folder

    folder = pipeline_folder(name)
    label = name
    if name.startswith("dir:"):
        label = folder.parent.name if folder.name == "export" else folder.name
    label = alias or (f"{label}@{given}" if given else label)
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    for path in _files(folder):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    build: Any = partial(open_pipeline, name, device=device)
    return Generator(label, text, digest.hexdigest()[:16], build, settings=settings)


def _files(folder: Path) -> list[Path]:
    """What makes the pictures: not cards and metrics."""
    ignored = {"metrics.json"}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in _SUFFIXES and path.name not in ignored and path.is_file()
    )
