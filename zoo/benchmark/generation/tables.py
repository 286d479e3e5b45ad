"""Columns of the generation table, shared by report, Markdown, CSV and the terminal."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Callable
from typing import Any

from zoo.benchmark.generation.results import Results
from zoo.benchmark.tables import Column, is_best, networks

Model = dict[str, Any]
KID_SCALE = 1000.0


def scaled(results: Results) -> Results:
    """A copy whose kernel distances are in thousandths, as they are shown."""
    shown = copy.copy(results)
    shown["models"] = []
    for model in results["models"]:
        parts = {
            part: {
                name: {
                    k: v * KID_SCALE if k != "n" and v is not None else v for k, v in entry.items()
                }
                if name.startswith("kid_") and entry is not None
                else entry
                for name, entry in model[part].items()
            }
            for part in ("metrics", "difference")
        }
        shown["models"].append({**model, **parts})
    return shown


def columns(results: Results) -> list[Column]:
    """The columns that have a number in some row of `scaled` results."""
    found = [
        Column("parameters", "M params", _fact("parameters", 1e-6), 3, group="cost"),
        Column("encoder_passes", "encoder", _fact("encoder_passes"), 0, group="cost"),
        Column("decoder_passes", "decoder", _fact("decoder_passes"), 0, group="cost"),
        Column("gflops", "UNet GFLOPs", _fact("gflops"), 3, -1, group="cost"),
        Column("seconds", "s a picture", _fact("seconds"), 3, group="cost"),
    ]
    for name, entry in networks(results).items():
        kid = _measure(f"kid_{name}", f"{entry['kid_name']} x1000", 2, -1, "distribution", name)
        frechet = Column(
            *(f"frechet_{name}", name, _entry(name, "frechet"), 2, -1, "distribution"), network=name
        )
        found += [kid, frechet] if entry["headline"] == "kid" else [frechet, kid]
        for key in ("precision", "recall"):
            found.append(_measure(f"{key}_{name}", key, 3, 1, "distribution", name))
    found.append(_measure("diversity", "diversity (LPIPS)", 4, 1, "quality"))
    found.append(_measure("clip", "CLIP score", 4, 1, "quality"))
    return [c for c in found if any(c.value(model) is not None for model in results["models"])]


def _measure(
    key: str, title: str, digits: int, better: int, group: str, network: str = ""
) -> Column:
    def value(model: Model) -> float | None:
        found: float | None = model["metrics"].get(key, {}).get("mean")
        return found

    def half(model: Model) -> float | None:
        bounds = model["metrics"].get(key, {})
        return None if bounds.get("low") is None else (bounds["high"] - bounds["low"]) / 2

    return Column(key, title, value, digits, better, group, half, network)


def _fact(key: str, scale: float = 1.0) -> Callable[[Model], float | None]:
    return lambda model: model[key] * scale


def _entry(network: str, key: str) -> Callable[[Model], float | None]:
    def value(model: Model) -> float | None:
        for entry in model["distributions"]:
            if entry["network"] == network and entry.get(key) is not None:
                return float(entry[key])
        return None

    return value


def notes(results: Results) -> list[str]:
    """What belongs under the table, a sentence each."""
    data, rules = results["data"], results["protocol"]
    most = max((model["batch"] for model in results["models"]), default=0)
    against = f"{data['reference_count']:,} pictures of {data['reference']}"
    found = [
        f"{data['count']:,} prompts of {data['prompts']}, one picture each, against {against} "
        f"at {rules['size']}x{rules['size']}; data {data['hash']}, protocol "
        f"{results['protocol_hash']}. All models get the same prompts and the same noise.",
        f"Diversity: {rules['diversity']}, {rules['repeats']} pictures of each of "
        f"{data['diverse']:,} prompts. Intervals: 95 % bootstrap over prompts (and originals, for "
        "kernel distances); those of precision and recall hold the manifolds fixed.",
        "UNet GFLOPs a picture are 2 x MAC of all passes, guidance's included; passes are those "
        "of the UNet's two halves. Seconds are medians of whole pictures (text, UNet, "
        f"autoencoder) in batches of up to {most}, model after model, on {results['device']}, "
        f"{results['threads']} threads; for ratios of "
        "times use `zoo benchmark speed`, which interleaves.",
    ]
    found += [
        f"{model['label']}: {model['truncated']:,} prompts are longer than its text encoder takes."
        for model in results["models"]
        if model["truncated"]
    ]
    found += [f"{name}: {entry['note']}." for name, entry in networks(results).items()]
    found += [f"{name}: not measured ({why})." for name, why in results["not_measured"].items()]
    found += [f"{name}: failed ({why})." for name, why in results["failed"].items()]
    return found


def to_markdown(results: Results) -> str:
    """A table for a README, with its notes."""
    shown = scaled(results)
    cells = columns(shown)
    lines = ["| model | " + " | ".join(c.title for c in cells) + " |", "|---" * (len(cells) + 1)]
    lines[1] += "|"
    for model in shown["models"]:
        texts = []
        for column in cells:
            half = column.half_text(model)
            text = f"{column.text(model)} ± {half}" if half else column.text(model)
            texts.append(f"**{text}**" if is_best(column, model, shown) else text)
        lines.append(f"| {model['label']} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", *notes(results), ""])


def to_csv(results: Results) -> str:
    """Every number at full precision, intervals and paired differences to the baseline too."""
    out = io.StringIO()
    cells = columns(results)
    bounds = sorted({name for model in results["models"] for name in model["metrics"]})
    titles = ["label", "source", "fingerprint", *(c.key for c in cells)]
    titles += [f"{name}_{end}" for name in bounds for end in ("low", "high")]
    base = results["baseline"]
    titles += [f"{name}_minus_{base}_{end}" for name in bounds for end in ("mean", "low", "high")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*titles, "prompts", "protocol_hash", "data_hash"])
    for model in results["models"]:
        row = [model[key] for key in ("label", "source", "fingerprint")]
        row += [c.value(model) for c in cells]
        row += [(model["metrics"].get(n) or {}).get(e) for n in bounds for e in ("low", "high")]
        row += [
            (model["difference"].get(n) or {}).get(e)
            for n in bounds
            for e in ("mean", "low", "high")
        ]
        row += [results["data"]["count"], results["protocol_hash"], results["data"]["hash"]]
        writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()
