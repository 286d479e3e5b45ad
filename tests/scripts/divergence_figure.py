"""Draws .github/divergences.svg: what each divergence makes of a teacher with two modes.

    python -m tests.scripts.divergence_figure

The student is one Gaussian and the teacher two, so that densities, scores and ratio are known
(tests/objectives/mixture.py); dashed: the same with a ratio head that learns beside the student.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from tests.objectives.mixture import (
    MEANS,
    SHARES,
    STD,
    Student,
    divergence,
    draw_p,
    fit,
    fit_with_head,
    mode_shares,
)
from zoo.benchmark.figures import Axis
from zoo.objectives.divergence import DivergenceName

OUT = Path(__file__).parents[2] / ".github" / "divergences.svg"
TITLES: dict[DivergenceName, tuple[str, str]] = {
    "reverse_kl": ("reverse KL (VSD)", "h = 1"),
    "softened_rkl": ("softened reverse KL", "h = 1 / (r + 1)"),
    "js": ("Jensen-Shannon", "h = r / (r + 1)"),
    "hellinger": ("squared Hellinger", "h = sqrt(r) / 4"),
    "jeffreys": ("Jeffreys", "h = r + 1"),
    "forward_kl": ("forward KL", "h = r"),
}
WIDTH, HEIGHT, HEAD, GAP = 250, 176, 22, 16
BLUE, ORANGE, GREY, INK = "#2457c5", "#d9480f", "#98a2ae", "#14171c"


def ellipse(x: Axis, y: Axis, student: Student, *, style: str) -> str:
    """Where a Gaussian's density is that of 2 standard deviations."""
    (cx, cy), (sx, sy) = student.mean.tolist(), (2 * student.log_std.exp()).tolist()
    return (
        f'<ellipse cx="{x(cx):.1f}" cy="{y(cy):.1f}" rx="{x(sx) - x(0):.1f}" '
        f'ry="{y(0) - y(sy):.1f}" fill="none" {style}/>'
    )


def panel(left: float, top: float, name: DivergenceName) -> tuple[list[str], str]:
    """One divergence: its picture, and a line of numbers for the terminal."""
    x = Axis(-4.6, 4.6, left, left + WIDTH)
    scale = WIDTH / 9.2
    middle = top + HEAD + (HEIGHT - HEAD - 26) / 2
    y = Axis(-1.0, 1.0, middle + scale, middle - scale)
    exact = fit(name)
    title, weight = TITLES[name]
    parts = [
        f'<text x="{left}" y="{top + 14}" font-weight="600">{title}</text>'
        f'<text x="{left + WIDTH}" y="{top + 14}" text-anchor="end" fill="#5b6470">{weight}</text>'
    ]
    dots = "".join(
        f"M{x(point[0]):.0f} {y(point[1]):.0f}h0"
        for point in draw_p(300, torch.Generator().manual_seed(1)).tolist()
    )
    parts.append(f'<path d="{dots}" stroke="{GREY}" stroke-width="2.6" stroke-linecap="round"/>')
    parts.append(ellipse(x, y, exact, style=f'stroke="{BLUE}" stroke-width="2.2"'))
    said = f"{name}: D = {divergence(name, torch.cat([exact.mean, exact.log_std])):.4f}"
    shares = [f"{share:.0%}" for share in mode_shares(exact)]
    said += f", near the modes {' '.join(shares)}"
    if name != "reverse_kl":
        learned, _ = fit_with_head(name)
        style = f'stroke="{ORANGE}" stroke-width="1.6" stroke-dasharray="5 4"'
        parts.append(ellipse(x, y, learned, style=style))
        value = divergence(name, torch.cat([learned.mean, learned.log_std]))
        said += f"; with a learned ratio {' '.join(f'{s:.0%}' for s in mode_shares(learned))}"
        said += f", D = {value:.4f}"
    for mean, share in zip(MEANS.tolist(), shares, strict=True):
        at = top + HEIGHT - 8
        parts.append(
            f'<text x="{x(mean[0]):.1f}" y="{at}" text-anchor="middle" fill="{BLUE}">{share}</text>'
        )
    return parts, said


def main() -> None:
    """Draw it."""
    width, height = 3 * WIDTH + 4 * GAP, 2 * (HEIGHT + GAP) + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, name in enumerate(TITLES):
        left = GAP + number % 3 * (WIDTH + GAP)
        drawn, said = panel(left, 8 + number // 3 * (HEIGHT + GAP), name)
        print(said)
        parts += drawn
    near = [f"{0.8647 * share:.0%}" for share in SHARES.tolist()]
    notes = (
        f"Grey: the teacher, two Gaussians of standard deviation {STD:g} with shares "
        f"{SHARES[0]:g} and {SHARES[1]:g}. Blue: one Gaussian as the student, its 2 sigma ellipse.",
        "Dashed: with a learned ratio in place of the true one. Percentages: student samples "
        f"within 2 sigma of each mode (teacher: {near[0]} and {near[1]}).",
    )
    for number, note in enumerate(notes):
        parts.append(
            f'<text x="{GAP}" y="{height - 26 + 17 * number}" font-size="11" fill="#5b6470">'
            f"{note}</text>"
        )
    assert set(TITLES) == set(get_args(DivergenceName))
    OUT.write_text("\n".join([*parts, "</svg>", ""]))


if __name__ == "__main__":
    main()
