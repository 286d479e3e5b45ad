"""The results as CSV, Markdown and LaTeX: one list of columns for all, the report's too."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zoo.benchmark.results import METRICS, Results

Model = dict[str, Any]
TITLES = {"psnr": "PSNR dB", "ssim": "SSIM", "lpips": "LPIPS", "flicker": "flicker"}
DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "flicker": 2}
HIGHER = {"psnr": True, "ssim": True, "lpips": False, "flicker": False}


@dataclass(frozen=True)
class Column:
    """A column: `value` is its number (None: not measured), `text` how it is shown.

    Attributes:
        digits: after the point; of a cost: significant ones.
        better: 1: more is better, -1: less is, 0: neither.
        group: columns of a group stand together in the report.
        half: half the width of its interval, or a deviation; None where there is none.
        network: whose features a distance compares.
    """

    key: str
    title: str
    value: Callable[[Model], float | None]
    digits: int
    better: int = 0
    group: str = "quality"
    half: Callable[[Model], float | None] = lambda model: None
    network: str = ""

    def text(self, model: Model) -> str:
        """The number as shown."""
        value = self.value(model)
        if value is None:
            return "-"
        if self.group == "cost":
            tiny = 0 < value < 0.0005
            return "<0.001" if tiny else f"{value:.{3 if value < 1000 else 4}g}"
        return self._number(value)

    def _number(self, value: float) -> str:
        # distances span decades
        small = self.group == "distribution" and 0 < abs(value) < 0.1
        return f"{value:.2g}" if small else f"{value:,.{self.digits}f}"

    def half_text(self, model: Model) -> str:
        """The interval's half as shown; empty where there is none."""
        half = self.half(model)
        return "" if half is None else self._number(half)


def columns(results: Results) -> list[Column]:
    """The columns that have a number in some row."""
    lpips = f"LPIPS-{ {'alexnet': 'Alex', 'vgg16': 'VGG'}[results['protocol']['lpips']] }"
    found = [
        Column("parameters", "M params", _scaled("parameters", 1e-6), 3, group="cost"),
        Column("tflops_encode", "enc TFLOPs", _scaled("tflops_encode", 1), 3, group="cost"),
        Column("tflops_decode", "dec TFLOPs", _scaled("tflops_decode", 1), 3, group="cost"),
        Column("numbers_per_pixel", "numbers/px", _scaled("numbers_per_pixel", 1), 3, group="cost"),
    ]
    for name in METRICS:
        title = lpips if name == "lpips" else TITLES[name]
        better = 1 if HIGHER[name] else -1
        found.append(
            Column(name, title, _metric(name), DIGITS[name], better, "quality", _half(name))
        )
    for name, entry in networks(results).items():
        frechet = Column(
            *(f"frechet_{name}", name, _entry(name, "frechet"), 2, -1, "distribution"),
            network=name,
        )
        kid = Column(
            *(f"kid_{name}", f"{entry['kid_name']} x1000", _entry(name, "kid", 1000), 2, -1),
            *("distribution", _entry(name, "kid_std", 1000)),
            network=name,
        )
        found += [kid, frechet] if entry["headline"] == "kid" else [frechet, kid]
        for key in ("precision", "recall", "density", "coverage"):
            value = _entry(name, key)
            found.append(Column(f"{key}_{name}", key, value, 3, 1, "manifold", network=name))
    for key, title, scale, digits in (
        ("encode_fps", "enc fps", 1.0, 1),
        ("decode_fps", "dec fps", 1.0, 1),
        ("peak_memory_bytes", "peak MB", 1e-6, 0),
    ):
        found.append(Column(key, title, _timing(key, scale), digits, group="speed"))
    return [c for c in found if any(c.value(model) is not None for model in results["models"])]


def to_csv(results: Results) -> str:
    """Every number at full precision, intervals and paired differences too."""
    out = io.StringIO()
    cells = columns(results)
    bounds = [name for name in METRICS if name in results["models"][0]["metrics"]]
    titles = ["label", "source", "fingerprint", "steps", *(c.key for c in cells)]
    titles += [f"{name}_{end}" for name in bounds for end in ("low", "high")]
    titles += [f"{name}_minus_{results['baseline']}" for name in bounds]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*titles, "clips", "protocol_hash", "data_hash"])
    for model in results["models"]:
        row = [model[key] for key in ("label", "source", "fingerprint", "steps")]
        row += [c.value(model) for c in cells]
        row += [model["metrics"][name][end] for name in bounds for end in ("low", "high")]
        row += [model["difference"].get(name, {}).get("mean") for name in bounds]
        row += [len(results["data"]["clips"]), results["protocol_hash"], results["data"]["hash"]]
        writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()


def to_markdown(results: Results) -> str:
    """A table for a README, with the protocol under it."""
    cells = [c for c in columns(results) if c.group not in ("manifold", "distribution")]
    cells += [c for c in columns(results) if c.group == "distribution"]
    lines = [f"| {results['data']['name']} | " + " | ".join(c.title for c in cells) + " |"]
    lines.append("|---" * (len(cells) + 1) + "|")
    for model in results["models"]:
        shown = [_with_interval(c, model) for c in cells]
        best = [is_best(c, model, results) for c in cells]
        texts = [f"**{text}**" if top else text for text, top in zip(shown, best, strict=True)]
        lines.append(f"| {name_of(model)} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", *notes(results), ""])


def to_latex(results: Results) -> str:
    """A booktabs table: cost and quality."""
    cells = [c for c in columns(results) if c.group in ("cost", "quality")]
    arrows = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}
    head = " & ".join(["Model", *(escape_latex(c.title) + arrows[c.better] for c in cells)])
    lines = [f"% {line}" for line in notes(results)]
    lines += [
        r"\begin{tabular}{l" + "r" * len(cells) + "}",
        r"\toprule",
        head + r" \\",
        r"\midrule",
    ]
    for number, model in enumerate(results["models"]):
        if number and results["models"][number - 1]["baseline"] and not model["baseline"]:
            lines.append(r"\midrule")
        row = [escape_latex(name_of(model))]
        for c in cells:
            text = c.text(model).replace(",", "{,}").replace("<", "$<$")
            row.append(rf"\textbf{{{text}}}" if is_best(c, model, results) else text)
        lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def notes(results: Results) -> list[str]:
    """What belongs under the table, a sentence each."""
    data = results["data"]
    films = f"{data['films']:,} film{'s' * (data['films'] > 1)}"
    count = f"{len(data['clips']):,} clips of {films}"
    if results["protocol"]["frames"] == 1:
        count = f"{len(data['clips']):,} pictures"
    found = [
        f"Data: {data['name']} ({data['description']}), {count}, hash {data['hash']}; "
        f"{len(data['excluded'])} excluded.",
        f"Protocol {results['protocol']['name']} ({results['protocol_hash']}): "
        f"{results['protocol_text']}. Intervals: 95 % bootstrap over clips.",
        f"Measured on {results['device']}, {results['threads']} threads; torch "
        f"{results['versions'].get('torch')}. TFLOPs are 2 x MAC for one clip.",
    ]
    found += [f"{name}: {entry['note']}." for name, entry in networks(results).items()]
    found += [f"{name}: not measured ({why})." for name, why in results["not_measured"].items()]
    found += [f"{name}: failed ({why})." for name, why in results["failed"].items()]
    return found


def name_of(model: Model) -> str:
    """The label, with the number of sampling steps where it isn't one."""
    steps = model["steps"]
    return (
        f"{model['label']} ({steps} steps)"
        if steps > 1 and not model["baseline"]
        else str(model["label"])
    )


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    named = {"\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum"}
    plain = (f"\\{named[c]}{{}}" if c in named else c for c in text)
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in plain)


def is_best(column: Column, model: Model, results: Results) -> bool:
    """Whether a row has the best number of a column."""
    values = [v for m in results["models"] if (v := column.value(m)) is not None]
    mine = column.value(model)
    if not column.better or mine is None or min(values) == max(values):
        return False
    return mine == (max(values) if column.better > 0 else min(values))


def _with_interval(column: Column, model: Model) -> str:
    half = column.half_text(model)
    return f"{column.text(model)} ± {half}" if half else column.text(model)


def _scaled(key: str, scale: float) -> Callable[[Model], float | None]:
    return lambda model: model[key] * scale


def _metric(name: str) -> Callable[[Model], float | None]:
    return lambda model: model["metrics"].get(name, {}).get("mean")


def networks(results: Results) -> dict[str, Model]:
    """The first model's entry of each network that some model was measured with."""
    found: dict[str, Model] = {}
    for model in results["models"]:
        for entry in model["distributions"]:
            found.setdefault(entry["network"], entry)
    return found


def _half(name: str) -> Callable[[Model], float | None]:
    def value(model: Model) -> float | None:
        bounds = model["metrics"].get(name, {})
        return None if bounds.get("low") is None else (bounds["high"] - bounds["low"]) / 2

    return value


def _entry(network: str, key: str, scale: float = 1.0) -> Callable[[Model], float | None]:
    def value(model: Model) -> float | None:
        for entry in model["distributions"]:
            if entry["network"] == network and entry.get(key) is not None:
                return float(entry[key]) * scale
        return None

    return value


def _timing(key: str, scale: float) -> Callable[[Model], float | None]:
    def value(model: Model) -> float | None:
        found = model["timing"][key]
        return None if found is None else found * scale

    return value
