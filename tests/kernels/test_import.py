"""`import zoo` is quick and silent, whatever xformers does when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.paths import PACKAGE

# user time of this process, which other jobs on the machine don't stretch
PROGRAM = """
import resource, sys, torch
begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime
import zoo
spent = resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin
heavy = {"xformers", "triton", "diffusers", "transformers", "lightning"} & set(sys.modules)
assert spent < 2.5, f"import zoo took {spent:.1f} s of its own"
assert "xformers" not in heavy, heavy
"""


@pytest.mark.parametrize("installed", [False, True])
def test_import_is_quick_and_silent(installed: bool, tmp_path: Path) -> None:
    noisy = "print('hello'); import time, warnings; warnings.warn('no CUDA'); time.sleep(5)"
    blocked = "raise ImportError('not installed here')"
    (tmp_path / "xformers.py").write_text(noisy if installed else blocked)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PACKAGE.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
