"""Peak memory of `tools/reconstruct.py` on a 200-frame and a 2,000-frame film of the same size.

    python tests/scripts/reconstruct_memory.py dir:runs/quickstart/export

Prints both peaks (resident set of the process) and exits with 1 when the long film takes over 10 %
more. Not a test: it takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np

from zoo.data.writer import VideoWriter

TOOL = Path(__file__).parents[2] / "tools" / "reconstruct.py"
WIDTH, HEIGHT = 128, 96


def write(path: Path, frames: int) -> None:
    """A film of moving noise: nothing in it compresses to nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    with VideoWriter(path, width=WIDTH, height=HEIGHT, rate=Fraction(25)) as writer:
        for t in range(frames):
            writer.write(np.roll(noise, t, axis=1))


def peak(film: Path, model: str, out: Path) -> float:
    """Peak resident memory of one run, in MB."""
    process = subprocess.Popen(
        [sys.executable, str(TOOL), str(film), "--model", model, "-o", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"reconstruct failed on {film}")
    return usage.ru_maxrss / 1024


def main(model: str) -> int:
    """Measure and compare."""
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for frames in (200, 2000):
            film = Path(folder) / f"{frames}.mp4"
            write(film, frames)
            peaks.append(peak(film, model, Path(folder) / "out.mp4"))
            print(f"{frames} frames of {WIDTH}x{HEIGHT}: peak {peaks[-1]:.0f} MB")
    ratio = peaks[1] / peaks[0]
    print(f"ratio {ratio:.3f}")
    return int(ratio > 1.1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
