"""What a run has measured so far: rows appended to one file, features and pictures beside it."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from zoo.benchmark.models import Candidate
from zoo.errors import RunError, UserError

try:
    import fcntl
except ImportError:  # Windows: two runs into one folder aren't kept apart
    fcntl = None  # type: ignore[assignment]

ROWS = "rows.jsonl"
SHARED_BY = "PCA-16"  # whose best and worst clips are shown for all
Row = dict[str, Any]


class Store:
    """The folder of a run.

    A row is on the disk when `append` returns. A killed run leaves at most one torn line, which
    the next run cuts off.

    Args:
        folder: --out.
        header: the first row: the protocol. A folder with another one is refused.
    """

    def __init__(self, folder: Path, header: Row) -> None:
        self.folder = folder
        self.path = folder / ROWS
        self.rows: list[Row] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # unbuffered: what failed to be written must not come back when the file is closed
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise UserError(
                f"can't write to {folder} ({error.strerror}): give another --out"
            ) from (error)
        self._lock()
        self._read()
        if not self.rows:
            self.append(header)
        found = self.rows[0]
        if found.get("protocol_hash") != header["protocol_hash"]:
            raise UserError(
                f"{folder} holds results of another protocol ({_short(found)}), not of "
                f"{_short(header)}: give another --out"
            )

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another benchmark is writing to {self.folder}: wait, or give another --out"
            ) from error
        except OSError:  # a disk without locks
            return

    def _read(self) -> None:
        self._file.seek(0)
        text = self._file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            self._file.truncate(whole)
        for number, line in enumerate(text[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"line {number} of {self.path} is not JSON: remove it, or give another --out"
                ) from error
            self.rows.append(row)

    def append(self, row: Row) -> None:
        """Add a row for good.

        Raises:
            RunError: the disk is full or gone; the rows before are kept.
        """
        place = self._file.seek(0, os.SEEK_END)
        try:
            line = json.dumps(row).encode() + b"\n"
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            self._undo(place)
            raise RunError(_full(self.path, error)) from error
        self.rows.append(row)

    def _undo(self, place: int) -> None:
        """Cut off a torn line."""
        with suppress(OSError):  # the next run cuts it off
            self._file.truncate(place)

    def close(self) -> None:
        """Let others write."""
        self._file.close()

    def of_kind(self, kind: str) -> Iterator[Row]:
        """Rows of a kind, in their order."""
        return (row for row in self.rows if row["kind"] == kind)

    def features(self, owner: str, clip: str) -> dict[str, NDArray[np.float32]]:
        """Features of a clip by network; empty when there are none (or a torn file)."""
        path = self.folder / "features" / owner / f"{clip}.npz"
        try:
            with np.load(path) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError):
            return {}

    def keep_features(self, owner: str, clip: str, arrays: Mapping[str, Any]) -> None:
        """Write the features of a clip.

        Raises:
            RunError: the disk is full or gone.
        """
        with whole_file(self.folder / "features" / owner / f"{clip}.npz") as file:
            np.savez(file, **arrays)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears whole or not at all.

    Raises:
        RunError: the disk is full or gone.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        raise RunError(_full(path, error)) from error
    finally:
        if part.parent.is_dir():
            part.unlink(missing_ok=True)


def is_row_of(known: Row, row: Candidate) -> bool:
    """Whether a stored row is of this model, these weights and this number of steps."""
    mine = (row.label, row.fingerprint, row.steps)
    return (known["label"], known["fingerprint"], known["steps"]) == mine


def owner(row: Candidate) -> str:
    """The folder name of what belongs to a model."""
    stem = re.sub("[^A-Za-z0-9_.-]", "_", row.label)
    return f"{stem}-{row.fingerprint[:8]}-{row.steps}"


def _full(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {path} is full: make room and run the same command, nothing is lost"
    return f"{path} can't be written ({error.strerror}): run the same command to go on"


def _short(header: Row) -> str:
    rules = header.get("protocol", {})
    return (
        f"{rules.get('name')}, {header.get('definition')}, {rules.get('frames')} frames, "
        f"{rules.get('size')} pixels, {header.get('protocol_hash')}"
    )
