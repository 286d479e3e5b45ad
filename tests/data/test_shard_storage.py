"""Shards behind HTTP and fsspec, and shards that are slow, missing or damaged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from shard_sets import opened, same

from zoo.data.storage import Patience
from zoo.errors import RunError


class Ranges(SimpleHTTPRequestHandler):
    """A server of parts of files that fails `broken` times, and never answers for `dead`."""

    broken = 0
    dead: tuple[str, ...] = ()
    served: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.endswith(self.dead) and self.dead:
            threading.Event().wait(1.5)
            return
        if Ranges.broken > 0:
            Ranges.broken -= 1
            self.send_error(503)
            return
        path = Path(self.directory) / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, span = path.read_bytes(), self.headers.get("Range")
        status, first, last = 200, 0, len(data) - 1
        if span is not None:
            low, _, high = span.removeprefix("bytes=").partition("-")
            status, first, last = 206, int(low), min(int(high or last), last)
        part = data[first : last + 1]
        Ranges.served.append(f"{self.path} {len(part)}")
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    servers = []
    Ranges.broken, Ranges.dead, Ranges.served = 0, (), []

    def start(folder: Path) -> str:
        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """The client may be gone."""

        server = Server(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


def test_shards_behind_http(pictures: Path, serve: Callable[[Path], str]) -> None:
    address = serve(pictures)
    far, near = opened(address, train=False), opened(pictures, train=False)
    assert len(far) == 37
    assert all(same(far[i], near[i]) for i in (0, 5, 36))
    assert not any(int(line.split()[1]) > 2000 for line in Ranges.served if ".tar" in line)
    for path in pictures.glob("*.json"):
        path.unlink()
    bare = opened(f"{address}/{{000000..000002}}.tar", train=False)
    assert same(bare[4], near[4])


def test_shards_in_memory_of_fsspec(pictures: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for path in pictures.iterdir():
        system.pipe_file(f"/set/{path.name}", path.read_bytes())
    far, near = opened("memory://set", train=False), opened(pictures, train=False)
    assert len(far) == len(near)
    assert same(far[7], near[7])


def test_a_failing_shard_is_tried_again(pictures: Path, serve: Callable[[Path], str]) -> None:
    source = opened(serve(pictures), train=False)
    Ranges.broken = 1
    assert source[3].key == opened(pictures, train=False)[3].key
    assert Ranges.broken == 0
    assert not source.broken


def test_a_slow_shard_is_left_out_and_named(
    pictures: Path, serve: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    patience = Patience(attempts=2, timeout=0.4, pause=0.01)
    source = opened(serve(pictures), train=False, patience=patience, max_broken=0.5)
    Ranges.dead = ("000001.tar",)
    keys = [source[i].key for i in range(37)]
    assert not any(key.startswith("000001.tar") for key in keys)
    assert len(keys) == 37
    assert "000001.tar is left out from now on" in caplog.text
    assert "no answer within 0.4 s" in caplog.text
    assert caplog.text.count("left out") == 1, "it is given up once, not for every sample"
    assert source.broken["000001.tar"] == "failed when read"
    source.max_broken = 0.05
    with pytest.raises(RunError, match=r"5 of 37 samples .* are lost.*000001\.tar"):
        source.check()


def test_shards_missing_or_damaged_at_the_start(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "000002.tar").write_bytes((pictures / "000002.tar").read_bytes()[:700])
    (pictures / "000003.json").write_text("{}")
    with pytest.raises(RunError, match=r"of 37 samples .* are lost"):
        opened(pictures)
    source = opened(pictures, train=False, max_broken=0.5)
    assert "000003.json is no index" in caplog.text
    assert "000003.tar" in source.broken
    keys = [source[i].key for i in range(len(source))]
    assert "000002.tar" in source.broken  # found out when it was read
    assert not any(key.startswith("000003") for key in keys)


def test_one_flipped_bit_is_noticed(pictures: Path) -> None:
    source = opened(pictures, train=False, max_broken=0.5)
    member = source._table.media(0)
    data = bytearray((pictures / "000000.tar").read_bytes())
    data[member.offset + member.size // 2] ^= 1
    (pictures / "000000.tar").write_bytes(data)
    assert source[0].key != "000000.tar/000000"
    assert "CRC-32" in source.broken["000000.tar/000000"]
