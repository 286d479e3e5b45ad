"""Charts as inline SVG. Colours are CSS variables, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from zoo.benchmark.results import Results
from zoo.benchmark.tables import DIGITS, HIGHER, Column, columns, name_of

Model = dict[str, Any]
WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 16, 48
COLOURS = 8
_LETTER = 7.2  # pixels a letter of a label, about


@dataclass(frozen=True)
class Axis:
    """A mapping of [low, high] to pixels [start, end]; `log` by decades."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high = (math.log10(v) if self.log else v for v in (self.low, self.high))
        place = math.log10(value) if self.log else value
        share = (place - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Round numbers within the range."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 3 else (1,)
            found = [s * 10.0**d for d in decades for s in steps]
        else:
            raw = (self.high - self.low) / max(1, count)
            unit = 10 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
            step = next(s * unit for s in (1, 2, 2.5, 5, 10) if s * unit >= raw * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            found = [first * step]
            while found[-1] + step <= self.high + 1e-9 * step:
                found.append(found[-1] + step)
        slack = 1e-9 * abs(self.high)
        return [t for t in found if self.low - slack <= t <= self.high + slack]


def spread_range(values: Sequence[float], *, pad: float = 0.08) -> tuple[float, float]:
    """A range with room around the values."""
    low, high = min(values), max(values)
    room = (high - low) * pad or abs(high) * 0.05 or 1.0
    return low - room, high + room


def number(value: float) -> str:
    """A tick's label."""
    return f"{value:.10g}".replace("-", "\N{MINUS SIGN}")


def colour(place: int, model: Model) -> str:
    """A CSS colour: grey for the trivial codes, then one for each model."""
    return "var(--muted)" if model["baseline"] else f"var(--c{place % COLOURS})"


def places(results: Results) -> dict[str, int]:
    """Colour numbers of the models by label."""
    nets = [model["label"] for model in results["models"] if not model["baseline"]]
    return {label: place for place, label in enumerate(nets)}


def svg(parts: Sequence[str], *, height: float = HEIGHT, title: str) -> str:
    """The chart; the title is for screen readers and tooltips."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def text(
    x: float, y: float, content: str, *, anchor: str = "start", kind: str = "", style: str = ""
) -> str:
    """A label."""
    looks = f' style="{style}"' if style else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{looks}>'
        f"{escape(content)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, *, kind: str = "grid", style: str = "") -> str:
    """A straight line."""
    looks = f' style="{style}"' if style else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{looks}/>'


def frame(x: Axis, y: Axis, *, x_title: str, y_title: str, bottom: float) -> list[str]:
    """Grid, ticks and titles of a chart with numbers on both axes."""
    parts = []
    for tick in y.ticks():
        parts.append(line(x.start, y(tick), x.end, y(tick)))
        parts.append(text(x.start - 8, y(tick) + 4, number(tick), anchor="end", kind="tick"))
    for tick in x.ticks():
        parts.append(line(x(tick), bottom, x(tick), bottom + 4, kind="axis"))
        parts.append(text(x(tick), bottom + 18, number(tick), anchor="middle", kind="tick"))
    parts.append(line(x.start, bottom, x.end, bottom, kind="axis"))
    parts.append(text((x.start + x.end) / 2, bottom + 38, x_title, anchor="middle", kind="name"))
    parts.append(
        f'<text transform="translate(14 {(y.start + y.end) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle" class="name">{escape(y_title)}</text>'
    )
    return parts


DECODER = ("tflops_decode", "decoder TFLOPs a clip")


def quality_over_cost(
    results: Results, metric: str, *, cost: tuple[str, str] = DECODER, title: str = ""
) -> str | None:
    """Quality against cost; the trivial codes as lines. None without a net.

    Args:
        results: to show.
        metric: key of the quality.
        cost: key and title of the cost, log scale.
        title: of the quality; empty: its column's in the reconstruction table.
    """
    key, cost_title = cost
    nets = [m for m in results["models"] if not m["baseline"] and metric in m["metrics"]]
    nets = [m for m in nets if m[key] > 0]
    if not nets:
        return None
    lines = [m for m in results["models"] if m["baseline"] and metric in m["metrics"]]
    title = title or next(c.title for c in columns(results) if c.key == metric)
    costs = [m[key] for m in nets]
    values = [m["metrics"][metric][k] for m in nets for k in ("low", "high", "mean")]
    values = [v for v in values if v is not None] + [m["metrics"][metric]["mean"] for m in lines]
    bottom = HEIGHT - BOTTOM
    x = Axis(min(costs) / 2.5, max(costs) * 2.5, LEFT, WIDTH - RIGHT, log=True)
    y = Axis(*spread_range(values), bottom, TOP)
    parts = frame(x, y, x_title=f"{cost_title} (log)", y_title=title, bottom=bottom)
    for model in lines:
        at = y(model["metrics"][metric]["mean"])
        parts.append(line(x.start, at, x.end, at, kind="reference"))
        parts.append(text(x.end, at - 5, model["label"], anchor="end", kind="tick"))
    taken, labels = places(results), list[tuple[float, float, float]]()
    for model in nets:
        entry, look = model["metrics"][metric], colour(taken[model["label"]], model)
        at_x, at_y = x(model[key]), y(entry["mean"])
        if entry["low"] is not None:
            style = f"stroke:{look}"
            parts.append(
                line(at_x, y(entry["low"]), at_x, y(entry["high"]), kind="bar", style=style)
            )
        parts.append(
            f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5.5" style="fill:{look}">'
            f"<title>{escape(name_of(model))}: {entry['mean']:.4g} at "
            f"{model[key]:.4g} {cost_title}</title></circle>"
        )
        right, width = at_x < WIDTH * 0.62, _LETTER * len(name_of(model))
        left = at_x + 11 if right else at_x - 11 - width
        height = free_height(at_y + 4, left, left + width, labels)
        labels.append((left, left + width, height))
        parts.append(
            text(
                *(at_x + (11 if right else -11), height, name_of(model)),
                anchor="start" if right else "end",
                kind="label",
            )
        )
    return svg(parts, title=f"{title} against {cost_title}")


def free_height(
    wanted: float, left: float, right: float, labels: Sequence[tuple[float, float, float]]
) -> float:
    """The height nearest to the wanted one where a label touches no other (left, right, height)."""
    near = [at for start, end, at in labels if start < right and left < end]
    shifts = sorted((step * side for step in range(len(near) + 1) for side in (-14, 14)), key=abs)
    free = (wanted + s for s in shifts if all(abs(wanted + s - at) >= 13.5 for at in near))
    return next(free, wanted)


def forest(results: Results, metric: str, *, column: Column | None = None) -> str | None:
    """Paired differences to the baseline with their intervals.

    Args:
        results: to show.
        metric: key of the differences.
        column: how they are named and read; None: as in the reconstruction table, clip by clip.
    """
    models = [
        m for m in results["models"] if (m["difference"].get(metric) or {}).get("mean") is not None
    ]
    if not models:
        return None
    if column is None:
        title = next(c.title for c in columns(results) if c.key == metric)
        digits, higher, same = DIGITS[metric], HIGHER[metric], "clip"
    else:
        title, digits, higher, same = column.title, column.digits, column.better > 0, "prompts"
    step, top = 30, 14
    bottom = top + step * len(models)
    entries = [m["difference"][metric] for m in models]
    values = [e[k] for e in entries for k in ("low", "mean", "high") if e[k] is not None]
    x = Axis(*spread_range([0.0, *values]), 150, WIDTH - 84)
    parts = [line(x(0), top - 6, x(0), bottom, kind="zero")]
    for tick in x.ticks(5):
        parts.append(line(x(tick), bottom, x(tick), bottom + 4, kind="axis"))
        parts.append(text(x(tick), bottom + 18, number(tick), anchor="middle", kind="tick"))
    parts.append(line(x.start, bottom, x.end, bottom, kind="axis"))
    better = "right is better" if higher else "left is better"
    caption = f"{title} minus that of {results['baseline']} on the same {same} ({better})"
    parts.append(text((x.start + x.end) / 2, bottom + 38, caption, anchor="middle", kind="name"))
    taken = places(results)
    for row, (model, entry) in enumerate(zip(models, entries, strict=True)):
        at, look = top + step * (row + 0.5), colour(taken.get(model["label"], 0), model)
        parts.append(text(142, at + 4, name_of(model), anchor="end", kind="label"))
        if entry["low"] is not None:
            style = f"stroke:{look}"
            parts.append(line(x(entry["low"]), at, x(entry["high"]), at, kind="bar", style=style))
        parts.append(
            f'<circle cx="{x(entry["mean"]):.1f}" cy="{at:.1f}" r="5" style="fill:{look}"/>'
        )
        shown = f"{entry['mean']:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
        parts.append(text(WIDTH - 4, at + 4, shown, anchor="end", kind="value"))
    return svg(parts, height=bottom + 46, title=caption)


def distribution(results: Results, metric: str) -> str | None:
    """Every clip's value as a dot, with the quartiles."""
    models = [m for m in results["models"] if metric in m["values"]]
    everything = [v for m in models for v in m["values"][metric] if v is not None]
    if not everything:
        return None
    title = next(c.title for c in columns(results) if c.key == metric)
    step, top = 42, 8
    bottom = top + step * len(models)
    x = Axis(*spread_range(everything, pad=0.04), 150, WIDTH - RIGHT)
    parts = []
    for tick in x.ticks():
        parts.append(line(x(tick), top, x(tick), bottom))
        parts.append(text(x(tick), bottom + 18, number(tick), anchor="middle", kind="tick"))
    parts.append(line(x.start, bottom, x.end, bottom, kind="axis"))
    caption = f"{title} of each clip; box: quartiles, bar: median"
    parts.append(text((x.start + x.end) / 2, bottom + 38, caption, anchor="middle", kind="name"))
    taken = places(results)
    for row, model in enumerate(models):
        at, look = top + step * (row + 0.5), colour(taken.get(model["label"], 0), model)
        values = [v for v in model["values"][metric] if v is not None]
        parts.append(text(142, at + 4, name_of(model), anchor="end", kind="label"))
        # at most 400 dots, the order statistics: a file of 5,000 pictures stays light
        shown = np.quantile(values, np.linspace(0, 1, min(len(values), 400)))
        for place, value in enumerate(shown):
            # a fixed pattern in place of random jitter: the same result draws the same picture
            offset = ((place * 0.618034) % 1 - 0.5) * 20
            parts.append(
                f'<circle cx="{x(float(value)):.1f}" cy="{at + offset:.1f}" r="2" class="dot" '
                f'style="fill:{look}"/>'
            )
        low, middle, high = (float(v) for v in np.quantile(values, (0.25, 0.5, 0.75)))
        parts.append(
            f'<rect x="{x(low):.1f}" y="{at - 12:.1f}" width="{max(1.0, x(high) - x(low)):.1f}" '
            f'height="24" rx="2" class="box" style="stroke:{look}"/>'
        )
        parts.append(
            line(x(middle), at - 12, x(middle), at + 12, kind="bar", style=f"stroke:{look}")
        )
    return svg(parts, height=bottom + 46, title=caption)
