"""Folders of films and pictures into WebDataset shards: in parallel, resumable, with checksums.

Which files go into which shard is decided first and written down. Every shard is then one task:
it is written under a temporary name, followed by its index; where the index is, the shard is whole,
so that a run that was stopped goes on with the others. `shards.json` comes last.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, TypeVar

from zoo.data.cutting import Piece, plan
from zoo.data.latents import tar_member, write_text
from zoo.data.pictures import IMAGE_SUFFIXES, natural_order
from zoo.data.shard_samples import Raw, samples_of
from zoo.data.shards import FORMAT, MANIFEST, Member, ShardIndex, ShardSample
from zoo.data.video import VIDEO_SUFFIXES
from zoo.errors import RunError, UserError

PLAN = ".plan.json"
CAPTIONS = "captions.jsonl"

Report = Callable[[str, int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What decides the bytes of the shards.

    Attributes:
        clip_seconds: films are cut into clips of about this length; 0: one clip a film.
        shard_mb: 10^6 bytes of sources a shard.
    """

    clip_seconds: float = 10.0
    shard_mb: float = 256.0

    def __post_init__(self) -> None:
        if self.clip_seconds < 0 or not 0 < self.shard_mb <= 1e6:
            raise UserError(
                f"clips of {self.clip_seconds:g} s in shards of {self.shard_mb:g} MB aren't "
                "possible: give 0 or more seconds, and more than 0 MB"
            )


@dataclass(frozen=True)
class Unit:
    """A part of a source file: a picture (no pieces), or successive pieces of a film."""

    number: int
    path: str
    first_clip: int = 0
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Made:
    """A finished shard: what `shards.json` says of it, and what was left out of it and why."""

    name: str
    samples: int
    size: int
    sha256: str
    index_sha256: str
    copied: int
    encoded: int
    broken: dict[str, str]


def shard_folder(
    source: str | Path,
    out: str | Path,
    settings: ShardSettings,
    *,
    workers: int = 1,
    report: Report = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write the films and pictures below a folder into shards.

    Args:
        source: the folder, or one file.
        out: where the shards go; a stopped run of the same source and settings is gone on with.
        settings: how.
        workers: processes.
        report: told of every finished step: what, done, total.

    Returns:
        The content of `shards.json`.

    Raises:
        UserError: nothing there, or `out` holds something else.
        RunError: the disk is full, or every file is broken.
    """
    source, out = Path(source).expanduser().absolute(), Path(out)
    if workers < 1:
        raise UserError(f"workers={workers}: give at least 1")
    files = _list(source)
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    given = {"format": FORMAT, "source": str(source), **asdict(settings), "files": stamps}
    digest = hashlib.sha256(json.dumps(given).encode()).hexdigest()
    _claim(out, digest)
    finished = out / MANIFEST
    if finished.is_file():
        report("shard", 1, 1)
        content: dict[str, Any] = json.loads(finished.read_text())
        return content
    try:
        with _pool(workers) as pool:
            tasks, unread = _planned(out, digest, files, source, settings, pool, report)
            made = _write_all(out, tasks, source, pool, report)
    except OSError as error:
        raise RunError(
            f"{out} can't be written any further ({error.strerror or error}): make room and run "
            "the same command to go on"
        ) from error
    broken = unread | {key: why for one in made for key, why in one.broken.items()}
    if not any(one.samples for one in made):
        some = "; ".join(f"{key}: {why}" for key, why in list(broken.items())[:3])
        raise RunError(f"none of the {len(files)} files of {source} can be read ({some})")
    content = {
        "format": FORMAT,
        "plan": digest,
        "settings": asdict(settings),
        "samples": sum(one.samples for one in made),
        "clips_copied": sum(one.copied for one in made),
        "clips_encoded": sum(one.encoded for one in made),
        "shards": [
            {
                "name": one.name,
                "samples": one.samples,
                "bytes": one.size,
                "sha256": one.sha256,
                "index_sha256": one.index_sha256,
            }
            for one in made
            if one.samples
        ],
        "broken": broken,
    }
    write_text(finished, json.dumps(content, indent=1) + "\n")
    for path in (out / PLAN, *out.glob(".*.made.json")):
        path.unlink()
    return content


def _pool(workers: int) -> Executor:
    if workers == 1:
        return _Here()
    # forking with FFmpeg's and torch's threads about can hang; Ctrl-C is the main process's
    ignore = (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=signal.signal, initargs=ignore
    )


class _Here(Executor):
    """Runs tasks in this process, each when its result is asked for."""

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], **_: Any) -> Iterator[T]:
        return map(fn, *iterables)


def _list(source: Path) -> list[Path]:
    known = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"there is no folder or file at {source}: correct the source")
    found = [p for p in source.rglob("*") if p.suffix.lower() in known and p.name[0] != "."]
    if not found:
        raise UserError(f"{source} holds no file whose name ends in {', '.join(known)}")
    return sorted(found, key=lambda p: (p.parent.as_posix(), natural_order(p)))


def _claim(out: Path, digest: str) -> None:
    """Make the folder, or see that it is this very run's."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = [path.name for path in out.iterdir()]
        owner = None
        for name in (MANIFEST, PLAN):
            if owner is None and name in held:
                owner = json.loads((out / name).read_text()).get("plan", "")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{out} can't be used ({error}): choose another folder") from error
    if held and owner != digest:
        raise UserError(
            f"{out} holds other files, or shards of another source or other settings: "
            "name a new folder, or empty this one"
        )
    if not held:
        write_text(out / PLAN, json.dumps({"plan": digest}) + "\n")


def _planned(
    out: Path,
    digest: str,
    files: Sequence[Path],
    source: Path,
    settings: ShardSettings,
    pool: Executor,
    report: Report,
) -> tuple[list[list[Unit]], dict[str, str]]:
    """The units of every shard, and files that can't be read with the reason."""
    known = json.loads((out / PLAN).read_text())
    if "shards" not in known:
        units: list[tuple[Unit, float]] = []
        unread: dict[str, str] = {}
        names = [str(path) for path in files]
        all_units = pool.map(partial(_units, settings), range(len(files)), names)
        for number, (path, found) in enumerate(zip(files, all_units, strict=True)):
            if isinstance(found, str):
                unread[_key(path, source)] = found
            else:
                units += found
            report("plan", number + 1, len(files))
        shards: list[list[Unit]] = [[]]
        size = 0.0
        for unit, cost in units:
            if shards[-1] and size + cost > settings.shard_mb * 1e6:
                shards.append([])
                size = 0.0
            # the clips of one film that stand in one shard are one unit
            last = shards[-1][-1] if shards[-1] else None
            if last is not None and last.number == unit.number:
                both = last.pieces + unit.pieces
                shards[-1][-1] = Unit(last.number, last.path, last.first_clip, both)
            else:
                shards[-1].append(unit)
            size += cost
        plain = [[asdict(unit) for unit in shard] for shard in shards if shard]
        known = {"plan": digest, "broken": unread, "shards": plain}
        write_text(out / PLAN, json.dumps(known) + "\n")
    tasks = [
        [Unit(**item | {"pieces": tuple(Piece(*p) for p in item["pieces"])}) for item in shard]
        for shard in known["shards"]
    ]
    return tasks, known["broken"]


def _units(settings: ShardSettings, number: int, path: str) -> list[tuple[Unit, float]] | str:
    """A file's units with their sizes in bytes, or why it can't be read."""
    size = float(os.path.getsize(path))
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return [(Unit(number, path), size)]
    try:
        pieces = plan(Path(path), seconds=settings.clip_seconds or 1e9)
    except (UserError, RunError, OSError) as error:
        return str(error)
    whole = sum(piece.seconds for piece in pieces) or 1.0
    return [
        (Unit(number, path, i, (piece,)), size * piece.seconds / whole)
        for i, piece in enumerate(pieces)
    ]


def _write_all(
    out: Path,
    tasks: list[list[Unit]],
    source: Path,
    pool: Executor,
    report: Report,
) -> list[Made]:
    write = partial(write_shard, out, source)
    made = []
    try:
        for one in pool.map(write, range(len(tasks)), tasks):
            made.append(one)
            report("shard", len(made), len(tasks))
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    return made


def write_shard(out: Path, source: Path, number: int, units: Sequence[Unit]) -> Made:
    """Write one shard and its index; does nothing where both are there.

    Raises:
        OSError: the disk is full or gone.
    """
    tar, beside = out / f"{number:06d}.tar", out / f"{number:06d}.json"
    notes = out / f".{number:06d}.made.json"
    if beside.is_file() and notes.is_file():
        return Made(**json.loads(notes.read_text()))
    part = out / f".{tar.name}.part"
    samples: list[ShardSample] = []
    broken: dict[str, str] = {}
    counts = [0, 0]
    with part.open("wb") as file:
        hashed = _Hashing(file)
        with tarfile.TarFile(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as box:  # type: ignore[arg-type]
            for unit in units:
                name = _key(Path(unit.path), source)
                try:
                    for sample, copied in _read(unit, name):
                        samples.append(_add(box, *sample))
                        if copied is not None:
                            counts[not copied] += 1
                except (UserError, RunError) as error:
                    broken[name] = str(error)
        file.flush()
        os.fsync(file.fileno())
    index = ShardIndex(samples, hashed.size, hashed.sha256.hexdigest())
    text = index.to_json()
    digest = hashlib.sha256(text.encode()).hexdigest()
    os.replace(part, tar)
    hashes, (kept, anew) = (index.sha256, digest), counts
    made = Made(tar.name, len(samples), index.size, *hashes, kept, anew, broken)
    write_text(notes, json.dumps(asdict(made)) + "\n")
    write_text(beside, text)
    return made


def _read(unit: Unit, name: str) -> Iterator[tuple[Raw, bool | None]]:
    return samples_of(
        Path(unit.path),
        name,
        number=unit.number,
        first=unit.first_clip,
        pieces=unit.pieces,
    )


def _add(
    box: tarfile.TarFile, key: str, files: dict[str, bytes], facts: dict[str, float]
) -> ShardSample:
    members = {}
    for kind, data in files.items():
        begin = box.offset + tarfile.BLOCKSIZE
        box.addfile(*tar_member(f"{key}.{kind}", data))
        members[kind] = Member(begin, len(data), zlib.crc32(data))
    return ShardSample(key, members, facts)


def _key(path: Path, source: Path) -> str:
    return path.name if path == source else path.relative_to(source).as_posix()


class _Hashing:
    """A file that is only appended to, its bytes counted and hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size
