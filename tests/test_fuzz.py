"""200 rounds of tools/fuzz.py, and that it finds what it looks for."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def test_200_rounds_find_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), "--rounds", "200", "--seed", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        env=env, capture_output=True, text=True, timeout=220, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert sum(result["counts"].values()) == 200
    ended = {name.split()[1] for name in result["counts"]}
    assert ended == {"read", "refused"}


def explode(case: Path, chosen: Path, unchanged: bool) -> str | None:
    raise KeyError("nobody caught this")


def hang(case: Path, chosen: Path, unchanged: bool) -> str | None:
    time.sleep(60)
    return None


def die(case: Path, chosen: Path, unchanged: bool) -> str | None:
    os.abort()


def grow(case: Path, chosen: Path, unchanged: bool) -> str | None:
    # not malloc: an earlier test may have told it to keep what is freed, which is no growth
    memory = mmap.mmap(-1, 400 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(bytes([1]) * len(memory))
    return None


def lie(case: Path, chosen: Path, unchanged: bool) -> str | None:
    return "frames were lost"


@pytest.mark.parametrize(
    ("read", "ended", "finding"),
    [
        (explode, "exception", "nobody caught this"),
        (hang, "hang", "no end within 1 s"),
        (die, "crash", "signal 6"),
        (grow, "read", "MiB more than before"),
        (lie, "read", "frames were lost"),
    ],
)
def test_every_kind_of_finding_is_found(
    read: Any, ended: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import fuzz
    from fuzz_targets import FuzzTarget

    monkeypatch.setattr(fuzz, "SECONDS", 1.0 if read is hang else 20.0)
    monkeypatch.setattr(fuzz, "GROWTH", 200 << 20)
    target = FuzzTarget("toy", 1.0, lambda folder: None, read)
    row = fuzz.in_child(target, tmp_path, tmp_path / "x", False)
    assert row["ended"] == ended
    assert finding in row["finding"]
