"""Bad input of the film tools: one sentence, the right status, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.film_makers import MODEL, Cli, frames_of
from zoo.data.latents import LatentFolder
from zoo.data.writer import VideoWriter

BAD: list[tuple[tuple[str, ...], int, str]] = [
    # input that is no film
    (("reconstruct", "text.mp4", *MODEL, "-o", "new/o.mp4"), 2, "text.mp4 can't be read"),
    (("data", "encode", "text.mp4", *MODEL, "-o", "new/l"), 2, "text.mp4 can't be read"),
    (("reconstruct", "header.mp4", *MODEL, "-o", "new/o.mp4"), 2, "header.mp4"),
    (("data", "encode", "header.mp4", *MODEL, "-o", "new/l"), 2, "header.mp4"),
    (("data", "encode", "nowhere.mp4", *MODEL, "-o", "new/l"), 2, "nowhere.mp4"),
    (("data", "encode", "empty", *MODEL, "-o", "new/l"), 2, "holds neither films nor images"),
    # films that are damaged: what can be decoded is kept
    (("reconstruct", "cut.mp4", *MODEL, "-o", "kept/cut.mp4"), 1, "cut.mp4"),
    (("data", "encode", "cut.mp4", *MODEL, "-o", "kept/cut"), 1, "cut.mp4"),
    (("reconstruct", "corrupt.mp4", *MODEL, "-o", "kept/corrupt.mp4"), 1, "2 frames"),
    (("data", "encode", "corrupt.mp4", *MODEL, "-o", "kept/corrupt"), 1, "2 frames"),
    # models
    (("reconstruct", "in.mp4", "--model", "dir:scorer", "-o", "new/o.mp4"), 2, "no tokenizer"),
    (("data", "encode", "in.mp4", "--model", "dir:scorer", "-o", "new/l"), 2, "no tokenizer"),
    (("data", "encode", "in.mp4", "--model", "cdt_tinny", "-o", "new/l"), 2, "unknown model"),
    (("data", "decode", "latents", "--model", "dir:other", "-o", "new/o.mp4"), 2, "other (cdt"),
    (("data", "decode", "latents", "--model", "dir:vae", "-o", "new/o.mp4"), 2, "vae (kl_vae"),
    (("data", "encode", "in.mp4", "--model", "dir:other", "-o", "latents"), 2, "other (cdt"),
    (("data", "encode", "in.mp4", *MODEL, "-o", "latents", "--dtype", "fp32"), 2, "dtype = fp16"),
    (("data", "decode", "export", "-o", "new/o.mp4"), 2, "no folder of latents"),
    # options
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--start", "9"), 2, "start"),
    (("data", "encode", "in.mp4", *MODEL, "-o", "new/l", "--start", "9"), 2, "start"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--start", "-1"), 2, "--start -1"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--duration", "0"), 2, "--duration 0"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--size", "64"), 2, "640x360"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--fps", "0"), 2, "more than 0"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--tile", "100"), 2, "96 or 104"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--chunk", "0"), 2, "--chunk 0"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--device", "gpu"), 2, "--device gpu"),
    (
        ("reconstruct", "in.mp4", "--model", "dir:vae", "-o", "new/o.mp4", "--gamma", "1"),
        2,
        "draws no noise",
    ),
    (("data", "encode", "in.mp4", *MODEL, "-o", "new/l", "--dtype", "int8"), 2, "int8"),
    (("data", "decode", "latents", "-o", "new/o.mp4", "--start", "9"), 2, "behind the end of in"),
    # output
    (("reconstruct", "in.mp4", *MODEL, "-o", "nowhere/o.mp4"), 2, "nowhere"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.xyz"), 2, "o.xyz"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "in.mp4"), 2, "is the film itself"),
    (("data", "encode", "in.mp4", *MODEL, "-o", "text.mp4/l"), 2, "can't be written"),
    (("data", "encode", "in.mp4", *MODEL, "-o", "."), 2, "holds other files"),
    (("data", "decode", "latents", "-o", "nowhere/o.mp4"), 2, "nowhere"),
]


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    BAD,
    ids=lambda v: " ".join(v[:3]) if isinstance(v, tuple) else None,
)
def test_bad_input(
    cli: Cli, base: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    for name in ("empty", "new", "kept"):
        (base / name).mkdir(exist_ok=True)
    if not (base / "latents").exists():
        assert cli("data", "encode", "in.mp4", *MODEL, "-o", "latents")[0] == 0
    before = listing(base)
    code, _, errors = cli(*arguments)
    assert code == status, errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    assert said in lines[0]
    assert errors.splitlines()[-1] == lines[0]
    assert "Traceback" not in errors
    after = listing(base)
    if status == 2:
        assert after == before
    else:
        new = {Path(name) for name in after.keys() - before.keys()}
        assert not [path for path in new if ".part" in path.name]
        output = base / arguments[arguments.index("-o") + 1]
        kept = len(frames_of(output)) if output.suffix else LatentFolder(output).films[0].frames
        assert kept == 28 if "corrupt" in output.name else 15 <= kept < 30


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_or_will_be(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        status, said, errors = cli("data", "encode", "in.mp4", *MODEL, "-o", tmp_path / "l")
        assert status == 2
        assert "(5.0 kB free)" in said
        assert "needs about" in errors
        assert "make room" in errors
    with monkeypatch.context() as patch:
        patch.setattr("tarfile.TarFile.addfile", full)
        status, _, errors = cli("data", "encode", "in.mp4", *MODEL, "-o", tmp_path / "l")
        assert status == 1
        assert "No space left" in errors.splitlines()[-1]
    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "_append", full)
        status, _, errors = cli("reconstruct", "in.mp4", *MODEL, "-o", tmp_path / "o.mp4")
        assert status == 1
        assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
