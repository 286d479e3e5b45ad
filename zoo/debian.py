"""Reading one file out of a Debian package: an `ar` archive around a compressed tar."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_MAGIC, _HEADER = b"!<arch>\n", 60


class _Window(io.RawIOBase):
    """`size` bytes of a file from its present place on."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


@contextmanager
def open_members(path: Path, names: set[str]) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Iterate over the named files in their order in the package; a name in .gz comes unpacked.

    The package is read once and never unpacked to disk.

    Raises:
        tarfile.TarError: not a Debian package.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise tarfile.ReadError(f"{path.name} is no ar archive")
        while len(header := file.read(_HEADER)) == _HEADER:
            name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                break
            file.seek(size + size % 2, 1)
        else:
            raise tarfile.ReadError(f"{path.name} has no data.tar")
        # "|": as a stream, for a window into the archive can't be sought
        with tarfile.open(fileobj=io.BufferedReader(_Window(file, size)), mode="r|*") as box:

            def members() -> Iterator[tuple[str, IO[bytes]]]:
                left = set(names)
                for info in box:
                    if info.name in left and (member := box.extractfile(info)) is not None:
                        left.remove(info.name)
                        packed = info.name.endswith(".gz")
                        file_out: Any = gzip.open(member) if packed else member  # noqa: SIM115
                        yield info.name, file_out
                        if not left:
                            return
                raise KeyError(f"{sorted(left)[0]} isn't in it")

            yield members()
