"""What the data code keeps in the user's cache: an index of every folder, and decoded films."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.assets import cache_root
from zoo.data.video import read_frames
from zoo.errors import UserError

_LOG = logging.getLogger(__name__)
_VERSION = 1  # part of every key: raise it when what is stored changes
_NPY_HEADER = 128  # bytes numpy gives the header of such an array

Facts = dict[str, Any]


def index_files(
    files: Sequence[Path], *, name: str, probe: Callable[[Path], Facts]
) -> dict[Path, Facts]:
    """Facts about every file; only files that are new or changed since last time are probed.

    Args:
        files: absolute paths.
        name: what the index is kept under, one for each root.
        probe: measures a file; its facts must survive JSON. A UserError or OSError it raises is
            kept as `{"error": message}`.

    Returns:
        The facts by path, in the order of `files`.
    """
    store = cache_root() / "index" / f"{_digest(name)}.json"
    known = _load(store)
    entries: dict[str, Facts] = {}
    for file in files:
        stamp = _stamp(file)
        entry = known.get(str(file))
        if entry is None or entry["stamp"] != stamp:
            try:
                facts = probe(file)
            except (UserError, OSError) as error:
                facts = {"error": str(error)}
            entry = {"stamp": stamp, "facts": facts}
        entries[str(file)] = entry
    if any(known.get(path) != entry for path, entry in entries.items()):
        # Files this source leaves out stay: another source may use the other part of the root.
        others = {path: entry for path, entry in known.items() if Path(path).exists()}
        text = json.dumps({"version": _VERSION, "name": name, "files": others | entries})
        try:
            store.parent.mkdir(parents=True, exist_ok=True)
            part = _part(store)
            part.write_text(text, encoding="utf-8")
            os.replace(part, store)
        except OSError as error:
            _LOG.warning("%s can't be written (%s): the next run probes again", store, error)
    return {Path(path): entry["facts"] for path, entry in entries.items()}


def cached_film(
    path: Path, *, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A film decoded once and then memory-mapped, shared by workers, processes and runs.

    Args:
        path: the film.
        size: (width, height) in pixels it is kept at.

    Returns:
        Frames uint8 [T, H, W, 3] and their times float64 [T] in seconds. Writing to the frames
        changes this process's view only.

    Raises:
        UserError: not a film, or no frame in it.
        OSError: the cache can't be written.
    """
    width, height = size
    digest = _digest(f"{path} {_stamp(path)} {width}x{height}")
    store = cache_root() / "frames" / f"{digest}.npy"
    beside = store.with_suffix(".times.npy")
    if not store.exists():
        store.parent.mkdir(parents=True, exist_ok=True)
        part, part_beside = _part(store), _part(beside)
        try:
            times = []
            with part.open("wb") as out:
                # Plain writes: a full disk is an error here and a bus error in a memory map.
                out.seek(_NPY_HEADER)
                for frame in read_frames(path, size=size):
                    out.write(frame.rgb.tobytes())
                    times.append(frame.time)
                if not times:
                    raise UserError(f"{path} holds no frame that can be decoded; remove it")
                out.seek(0)
                shape = (len(times), height, width, 3)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, header)
                assert out.tell() == _NPY_HEADER, f"numpy's header took {out.tell()} bytes"
            with part_beside.open("wb") as out:
                np.save(out, np.array(times))
            # The frames come last: where they are, their times are too.
            os.replace(part_beside, beside)
            os.replace(part, store)
        finally:
            part.unlink(missing_ok=True)
            part_beside.unlink(missing_ok=True)
    # "c": torch warns about read-only arrays.
    return np.load(store, mmap_mode="c"), np.load(beside)


def _load(store: Path) -> dict[str, Facts]:
    try:
        content = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        return {}
    files: dict[str, Facts] = content["files"]
    return files


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _digest(text: str) -> str:
    return hashlib.sha256(f"{_VERSION} {text}".encode()).hexdigest()[:24]


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
