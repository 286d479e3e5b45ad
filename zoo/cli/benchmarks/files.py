"""What benchmarks write: files that appear whole, line plots, the machine they ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from zoo.errors import UserError

_COLOURS = ("#1b6ca8", "#d1495b", "#2e7d32", "#8e44ad")


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it; UserError where that's impossible."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror}): choose another --out"
        ) from error


def machine(device: str) -> dict[str, Any]:
    """What a measurement depends on, for the result file."""
    cuda = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def line_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x: str, y: str
) -> str:
    """An SVG of labelled curves of (x, y) points; axes begin and end at the data."""
    width, height, left, top, right, bottom = 560, 360, 64, 40, 90, 48
    points = [p for curve in curves.values() for p in curve]
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    y0, y1 = y0 - 0.05 * (y1 - y0 or 1), y1 + 0.05 * (y1 - y0 or 1)

    def place(px: float, py: float) -> tuple[float, float]:
        fx, fy = (px - x0) / (x1 - x0 or 1), (py - y0) / (y1 - y0)
        return left + fx * (width - left - right), height - bottom - fy * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="20" font-size="13">{escape(title)}</text>',
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">'
        f"{escape(x)}</text>",
        f'<text transform="translate(14 {height / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>",
    ]
    for tick in sorted({p[0] for p in points}):
        px, py = place(tick, y0)
        parts.append(f'<text x="{px:.1f}" y="{py + 16:.1f}" text-anchor="middle">{tick:g}</text>')
    for i in range(5):
        value = y0 + i * (y1 - y0) / 4
        px, py = place(x0, value)
        parts.append(
            f'<line x1="{px:.1f}" y1="{py:.1f}" x2="{width - right}" y2="{py:.1f}" stroke="#ddd"/>'
            f'<text x="{px - 6:.1f}" y="{py + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for (label, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        placed = [place(*p) for p in sorted(curve)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in placed]
        parts.append(
            f'<text x="{placed[-1][0] + 8:.1f}" y="{placed[-1][1] + 4:.1f}" fill="{colour}">'
            f"{escape(label)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])
