"""Memory of reconstruct, encode and decode over a long film, against a short one.

    python tests/scripts/film_memory.py [MODEL] [--frames 10000] [-o .github/film_memory]

Runs the tools on films of moving noise, 128x96, and samples their resident memory. Writes OUT.json
(peaks) and OUT.png (a plot), prints the peaks, and exits with 1 when a long film takes over
10 % more than one of 200 frames. Without MODEL, a `cdt_tiny` of width 8 is made: what grows with
the film would grow with it, too. Not a test: it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import zoo
from zoo.data.writer import VideoWriter

TOOLS = Path(__file__).parents[2] / "tools"
WIDTH, HEIGHT, SHORT = 128, 96, 200
COLOURS = {"reconstruct": "#1f77b4", "encode": "#d62728", "decode": "#2ca02c"}
Curve = list[tuple[float, float]]


def write(path: Path, frames: int) -> Path:
    """A film of moving noise: nothing in it compresses to nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    with VideoWriter(path, width=WIDTH, height=HEIGHT, rate=Fraction(25)) as writer:
        for t in range(frames):
            writer.write(np.roll(noise, t, axis=1))
    return path


def export(folder: Path) -> str:
    """A narrow net with random weights."""
    torch.manual_seed(0)
    net = zoo.create("cdt_tiny", context_dim=8, unet_dim=8)
    net.pca.fit([torch.rand(2, 3, 17, 64, 64) * 2 - 1])  # type: ignore[union-attr,operator]
    net.save_pretrained(folder)  # type: ignore[operator]
    return f"dir:{folder}"


def measure(tool: str, *arguments: object) -> tuple[float, Curve]:
    """Peak resident memory in MB of one run, and (seconds, MB) through it."""
    process = subprocess.Popen(
        [sys.executable, str(TOOLS / tool), *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    curve: Curve = []
    begun, over = time.monotonic(), threading.Event()

    def sample() -> None:
        page = os.sysconf("SC_PAGE_SIZE") / 1e6
        while not over.wait(0.25):
            try:
                resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                return
            curve.append((time.monotonic() - begun, resident * page))

    thread = threading.Thread(target=sample)
    thread.start()
    _, status, usage = os.wait4(process.pid, 0)
    over.set()
    thread.join()
    if status:
        raise SystemExit(f"{tool} {arguments} failed")
    return usage.ru_maxrss * 1024 / 1e6, curve


def plot(curves: dict[str, Curve], frames: int, path: Path) -> None:
    """Memory over the share of each run that is done."""
    width, height, left, bottom = 680, 240, 48, 32
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    top = 100 * np.ceil(max(mb for curve in curves.values() for _, mb in curve) / 100)
    for mb in np.arange(0, top + 1, 200):
        y = (height - bottom) * (1 - mb / top)
        draw.line([(left, y), (width, y)], fill="#dddddd")
        draw.text((4, max(0, y - 6)), f"{mb:.0f} MB", fill="black")
    for number, (name, curve) in enumerate(curves.items()):
        end = curve[-1][0]
        points = [
            (left + (width - left) * t / end, (height - bottom) * (1 - mb / top)) for t, mb in curve
        ]
        draw.line(points, fill=COLOURS[name], width=2)
        said = f"{name}, {frames:,} frames in {end:.0f} s"
        draw.text((left + 8 + 212 * number, height - 22), said, fill=COLOURS[name])
    image.save(path, optimize=True)


def main() -> int:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("-o", "--output", type=Path, default=Path(".github/film_memory"))
    options = parser.parse_args()
    peaks: dict[str, dict[int, float]] = {name: {} for name in COLOURS}
    curves: dict[str, Curve] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or export(folder / "export")
        for frames in (SHORT, options.frames):
            film = write(folder / f"{frames}.mp4", frames)
            latents, out = folder / f"latents{frames}", folder / "out.mp4"
            runs = {
                "reconstruct": ("reconstruct.py", film, "--model", model, "-o", out),
                "encode": ("data.py", "encode", film, "--model", model, "-o", latents),
                "decode": ("data.py", "decode", latents, "-o", out),
            }
            for command, arguments in runs.items():
                peaks[command][frames], curves[command] = measure(*arguments)
                print(
                    f"{command}: {frames} frames, peak {peaks[command][frames]:.0f} MB", flush=True
                )
    ratios = {command: peak[options.frames] / peak[SHORT] for command, peak in peaks.items()}
    for command, ratio in ratios.items():
        print(f"{command}: {options.frames} frames take {ratio:.3f} times what {SHORT} take")
    values = {"size": [WIDTH, HEIGHT], "model": options.model or "cdt_tiny of width 8"}
    text = json.dumps({**values, "peaks_mb": peaks, "ratios": ratios}, indent=2)
    options.output.with_suffix(".json").write_text(text + "\n")
    plot(curves, options.frames, options.output.with_suffix(".png"))
    return int(max(ratios.values()) > 1.1)


if __name__ == "__main__":
    raise SystemExit(main())
