"""A hub on this machine: one repository, served over HTTP as huggingface.co serves it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What it serves and what it was asked.

    Attributes:
        folder: the files of the repository `org/net`.
        address: for HF_ENDPOINT.
        gets: paths of files that were downloaded, in order.
        cut: names of files whose body ends half-way.
        changed: bodies in place of the files', with the files' own hash stated.
    """

    folder: Path
    address: str = ""
    gets: list[str] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    changed: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeHub]:
    """Serve `folder` as `org/net`, with branch `main`, tag `v1` and one commit."""
    hub = FakeHub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            parts = unquote(self.path.split("?")[0]).lstrip("/").split("/")
            if parts[:3] != ["org", "net", "resolve"]:
                return self.refuse("RepoNotFound")
            if parts[3] not in ("main", "v1", COMMIT):
                return self.refuse("RevisionNotFound")
            name = "/".join(parts[4:])
            path = hub.folder / name
            if not path.is_file():
                return self.refuse("EntryNotFound")
            data = path.read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            data = hub.changed.get(name, data)
            self.send_response(200)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                hub.gets.append(name)
                self.wfile.write(data[: len(data) // 2] if name in hub.cut else data)
                if name in hub.cut:
                    self.close_connection = True

        def refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
