"""Reading parts of files wherever they are (a disk, http, s3), with patience and its end.

Everything goes through fsspec, which starts no program and runs nothing that an address says.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import IO, Any, TypeVar

import fsspec

from zoo.errors import RunError, UserError

T = TypeVar("T")

_GIVE_UP = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_BLOCK = 2**18  # bytes a request brings when headers are read one by one


@dataclass(frozen=True)
class Patience:
    """How long to wait for storage.

    Attributes:
        attempts: tries before something is given up.
        timeout: seconds a try may take; one that hangs is left behind.
        pause: seconds before the second try, doubled before each further one.
    """

    attempts: int = 3
    timeout: float = 60.0
    pause: float = 0.5

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.timeout <= 0 or self.pause < 0:
            raise UserError(
                f"attempts={self.attempts}, timeout={self.timeout} and pause={self.pause}: give "
                "at least one attempt, a timeout above 0 and no negative pause"
            )

    def try_to(self, work: Callable[[], T], what: str) -> T:
        """The result of `work`, tried as often as it takes.

        Args:
            work: does one try.
            what: names it, for the message.

        Raises:
            RunError: no try succeeded; the last one's reason is given.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return _within(work, self.timeout)
            except (UserError, RunError):
                raise  # something was found out, which another try won't change
            except _GIVE_UP as error:
                raise RunError(f"{what} can't be read ({_reason(error)})") from error
            except Exception as error:
                if attempt == self.attempts:
                    tries = f"{attempt} attempt{'s' * (attempt > 1)}"
                    raise RunError(
                        f"{what} can't be read after {tries} ({_reason(error)})"
                    ) from error
            time.sleep(self.pause * 2 ** (attempt - 1))
        raise AssertionError("at least one attempt is made")


def _within(work: Callable[[], T], timeout: float) -> T:
    """Run in a thread, so that storage which hangs (a dead mount, a silent server) can be left."""
    answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((work(), None))
        except BaseException as error:  # noqa: BLE001  (raised in the caller's thread)
            answer.put((None, error))

    Thread(target=run, name="storage", daemon=True).start()
    try:
        result, error = answer.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(f"no answer within {timeout:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # no error: this is what `work` returned


def _reason(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0][:160]
    return said or type(error).__name__


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address or a path, and the path within it.

    Raises:
        UserError: no such protocol, or the package it needs isn't installed.
    """
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} can't be opened ({_reason(error)})") from error
    return system, path


def read_range(address: str, start: int, size: int) -> bytes:
    """`size` bytes from `start` on.

    Raises:
        OSError: there are fewer, or the server ignores that only a part was asked for.
    """
    system, path = file_system(address)
    data: bytes = system.cat_file(path, start=start, end=start + size)
    if len(data) != size:
        raise OSError(f"{len(data)} bytes came where {size} were asked for")
    return data


def read_whole(address: str, *, limit: int) -> bytes:
    """A whole file.

    Raises:
        OSError: it can't be read, or is larger than `limit` bytes.
    """
    system, path = file_system(address)
    if (size := int(system.size(path) or 0)) > limit:
        raise OSError(f"{size} bytes, more than the {limit} that are read")
    data: bytes = system.cat_file(path)
    return data


def open_for_headers(address: str) -> IO[bytes]:
    """A file to be read in small places."""
    system, path = file_system(address)
    file: IO[bytes] = system.open(path, "rb", block_size=_BLOCK)
    return file


def exists(address: str) -> bool:
    """Whether there is a file or folder."""
    system, path = file_system(address)
    return bool(system.exists(path))


def stamp(address: str) -> str:
    """What changes when a file does: its size with what else the storage says of its version."""
    system, path = file_system(address)
    facts = system.info(path)
    known = (facts.get(key) for key in ("size", "mtime", "LastModified", "ETag"))
    return " ".join(str(value) for value in known)


def join(folder: str, name: str) -> str:
    """The address of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def tars_in(folder: str) -> list[str]:
    """Addresses of the .tar files of a folder, sorted."""
    system, path = file_system(folder)
    found = system.glob(join(path, "*.tar"))
    return sorted(str(system.unstrip_protocol(name)) for name in found)
