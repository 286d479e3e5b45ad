"""Files out of Debian packages: read as a stream, checked like every other asset."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_assets import Server
from zoo import assets
from zoo.asset_list import Asset, DebianFile
from zoo.debian import open_members
from zoo.errors import UserError

FILES = {"./usr/a.bin": b"a" * 70_001, "./usr/b.mp4.gz": gzip.compress(b"b" * 50_000)}


def make_package(path: Path) -> bytes:
    """A .deb of FILES, made by `ar` where there is one, else by hand (its format is that plain)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    # an odd size before the data: padding must be stepped over
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()}
    if shutil.which("ar"):
        for name, content in parts.items():
            path.with_name(name).write_bytes(content)
        subprocess.run(["ar", "rc", path.name, *parts], cwd=path.parent, check=True)
    else:
        with path.open("wb") as out:
            out.write(b"!<arch>\n")
            for name, content in parts.items():
                out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode())
                out.write(content + b"\n" * (len(content) % 2))
    return path.read_bytes()


def test_members_come_out_unpacked(tmp_path: Path) -> None:
    make_package(tmp_path / "p.deb")
    with open_members(tmp_path / "p.deb", set(FILES)) as members:
        found = {name: file.read() for name, file in members}
    assert found == {"./usr/a.bin": b"a" * 70_001, "./usr/b.mp4.gz": b"b" * 50_000}
    with (
        pytest.raises(KeyError, match="none"),
        open_members(tmp_path / "p.deb", {"none"}) as members,
    ):
        list(members)
    (tmp_path / "no.deb").write_bytes(b"no package at all")
    with pytest.raises(tarfile.TarError), open_members(tmp_path / "no.deb", {"x"}):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_one_download_brings_all_files_of_a_package(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    package = make_package(tmp_path / "p.deb")
    digest = hashlib.sha256(package).hexdigest()
    address = server.url(package).address
    for name, content in (("a", b"a" * 70_001), ("b", b"b" * 50_000)):
        member = next(key for key in FILES if f"/{name}." in key)
        provider = DebianFile(address, digest, len(package), member)
        own = hashlib.sha256(content).hexdigest()
        asset = Asset(name, f"{name}.bin", own, len(content), "none", "a thing", (provider,))
        monkeypatch.setitem(assets.ASSETS, name, asset)
    assert assets.fetch("b").read_bytes() == b"b" * 50_000
    assert assets.fetch("a").read_bytes() == b"a" * 70_001
    assert len(server.requests) == 1
    other = dataclasses.replace(provider, archive_sha256="0" * 64)
    asset = Asset("c", "c.bin", "0" * 64, 1, "none", "a thing", (other,))
    monkeypatch.setitem(assets.ASSETS, "c", asset)
    with pytest.raises(UserError, match="another archive than the pinned one"):
        assets.fetch("c")
    assert not (tmp_path / "cache" / "assets" / "c.bin").exists()
