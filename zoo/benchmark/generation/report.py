"""report.html of a comparison of generators: one file, no script, nothing from outside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from zoo.benchmark.figures import colour, forest, places, quality_over_cost
from zoo.benchmark.generation.claims import Verdict, to_json, to_markdown
from zoo.benchmark.generation.results import Results
from zoo.benchmark.generation.tables import columns, notes, scaled, to_csv
from zoo.benchmark.generation.tables import to_markdown as table_to_markdown
from zoo.benchmark.report import STYLE
from zoo.benchmark.store import whole_file
from zoo.benchmark.tables import Column, is_best, networks
from zoo.data.limits import open_image

Model = dict[str, Any]
ROWS = 16  # prompts of the first grid
DIVERSE_ROWS = 6  # prompts of the second
SHOWN = 128  # pixels of a picture at most
GROUPS = {"cost": "Cost a picture", "distribution": "Against real pictures", "quality": "By prompt"}
_ARROWS = {1: "\N{UPWARDS ARROW}", -1: "\N{DOWNWARDS ARROW}", 0: ""}
_EXTRA = """
.grid td, .grid th { padding: 3px; border: 0 !important; text-align: left; white-space: normal; }
.grid th { font-size: 12px; vertical-align: bottom; max-width: 130px; overflow-wrap: anywhere; }
.grid td:first-child { font-size: 12px; max-width: 180px; min-width: 110px; }
.grid img { display: block; border-radius: 3px; }
.claims td { white-space: normal; text-align: left; }
"""


def write_outputs(results: Results, verdicts: list[Verdict], folder: Path) -> Path:
    """Write results.json, .csv and .md, claims.md and report.html; return the report.

    Raises:
        RunError: the disk is full or gone.
    """
    texts = {
        "results.json": json.dumps({**results, "claims": to_json(verdicts)}) + "\n",
        "results.csv": to_csv(results),
        "results.md": table_to_markdown(results),
        "claims.md": to_markdown(verdicts),
        "report.html": render(results, verdicts, folder),
    }
    for name, text in texts.items():
        with whole_file(folder / name) as file:
            file.write(text.encode())
    return folder / "report.html"


def render(results: Results, verdicts: Sequence[Verdict], folder: Path) -> str:
    """The report; pictures are read from the run's `folder`."""
    shown, data = scaled(results), results["data"]
    size = results["protocol"]["size"]
    sections = [
        "<h2>Results</h2>",
        _table(shown),
        *(f'<p class="note under">{escape(line)}</p>' for line in notes(results)),
        _charts(shown),
        _claims(verdicts),
        _grid(results, folder),
        _diverse(results, folder),
        _details(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Generation: {escape(data['prompts'])}</title>"
        f"<style>{STYLE.read_text()}{_EXTRA}</style></head><body>"
        '<header><p class="kicker">Generation benchmark</p>'
        f"<h1>{escape(data['prompts'])}</h1>"
        f'<p class="soft">{data["count"]:,} prompts at {size}x{size}, protocol '
        f"<code>{results['protocol_hash']}</code>, data <code>{data['hash']}</code>.</p></header>"
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def _table(results: Results) -> str:
    cells = columns(results)
    cells.sort(key=lambda c: list(GROUPS).index(c.group))
    head = "".join(
        f'<th colspan="{len(list(part))}" class="start" style="text-align:left">'
        f"{escape(GROUPS[group])}</th>"
        for group, part in groupby(cells, key=lambda c: c.group)
    )
    titles = "".join(
        f'<th>{escape(c.title)} <span class="arrow">{_ARROWS[c.better]}</span></th>' for c in cells
    )
    taken, rows = places(results), []
    for model in results["models"]:
        mark = colour(taken[model["label"]], model)
        row = f'<td style="--mark:{mark}"><span class="swatch"></span>{escape(model["label"])}</td>'
        row += "".join(_cell(c, model, results) for c in cells)
        rows.append(f"<tr>{row}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr class="groups"><th></th>{head}</tr>'
        f"<tr><th>Model</th>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(column: Column, model: Model, results: Results) -> str:
    half, bounds = column.half_text(model), model["metrics"].get(column.key)
    if half and bounds is not None:
        title = f"[{bounds['low']:.{column.digits}f}, {bounds['high']:.{column.digits}f}]"
        half = f'<span class="half" title="{title}">±{half}</span>'
    best = ' class="best"' if is_best(column, model, results) else ""
    text = escape(column.text(model)).replace("-", "\N{MINUS SIGN}")
    return f"<td{best}>{text}{half}</td>"


def _charts(results: Results) -> str:
    names = list(networks(results))
    wanted = [f"kid_{names[0]}"] if names else []
    by_key = {c.key: c for c in columns(results)}
    charts = []
    for key in [*wanted, "diversity"]:
        if column := by_key.get(key):
            cost = ("gflops", "UNet GFLOPs a picture")
            charts.append(quality_over_cost(results, key, cost=cost, title=column.title))
            charts.append(forest(results, key, column=column))
    shown = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    return f'<h2>Comparison</h2><div class="charts">{shown}</div>' if shown else ""


def _claims(verdicts: Sequence[Verdict]) -> str:
    if all(v.verdict == "not measured" for v in verdicts):
        return ""
    rows = "".join(
        f"<tr><td>{escape(v.claim)}</td><td>{escape(v.measured)}</td>"
        f"<td><b>{escape(v.verdict)}</b></td></tr>"
        for v in verdicts
    )
    return (
        "<h2>What the abstract of TiUE claims</h2>"
        '<p class="note">Paired differences on the same prompts and noise, 95 % bootstrap; a claim '
        "claim holds where its whole interval is on the claimed side of 0, and is open where it "
        "spans 0.</p>"
        '<div class="scroll"><table class="claims"><thead><tr><th>Claim</th>'
        '<th style="text-align:left">measured</th><th style="text-align:left">verdict</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _grid(results: Results, folder: Path) -> str:
    """A row a prompt, a column a model, all from one noise a row."""
    prompts = _some(results["prompts"], ROWS)
    head = "".join(f"<th>{escape(m['label'])}</th>" for m in results["models"])
    rows = "".join(
        f"<tr><td>{escape(text)}</td>"
        + "".join(f"<td>{_picture(folder, m, key, 0, text)}</td>" for m in results["models"])
        + "</tr>"
        for key, text in prompts
    )
    return (
        "<h2>The same prompts and noise</h2>"
        f'<div class="scroll"><table class="grid"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _diverse(results: Results, folder: Path) -> str:
    """Several pictures of one prompt, model by model."""
    repeats = results["protocol"]["repeats"]
    first = results["models"][0] if results["models"] else None
    if repeats < 2 or first is None:
        return ""
    several = [
        (key, text)
        for key, text in results["prompts"]
        if (folder / "pictures" / first["folder"] / f"{key}-1.webp").is_file()
    ]
    parts = []
    for key, text in _some(several, DIVERSE_ROWS):
        rows = "".join(
            f"<tr><td>{escape(m['label'])}</td>"
            + "".join(f"<td>{_picture(folder, m, key, n, text)}</td>" for n in range(repeats))
            + "</tr>"
            for m in results["models"]
        )
        parts.append(
            f'<h3 class="group">{escape(text)}</h3><table class="grid" style="min-width:0">'
            f"<tbody>{rows}</tbody></table>"
        )
    return f"<h2>One prompt, {repeats} noises</h2>{''.join(parts)}" if parts else ""


def _some(prompts: Sequence[Any], count: int) -> list[tuple[str, str]]:
    count = min(count, len(prompts))
    return [tuple(prompts[i * len(prompts) // count]) for i in range(count)]


def _picture(folder: Path, model: Model, key: str, number: int, text: str) -> str:
    path = folder / "pictures" / model["folder"] / f"{key}-{number}.webp"
    with open_image(path) as image:
        picture = image.convert("RGB")
    data = path.read_bytes()
    if picture.width > SHOWN:
        out = io.BytesIO()
        picture.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS).save(out, "WEBP", quality=85)
        data = out.getvalue()
    side = min(SHOWN, max(picture.width, 72))
    return (
        f'<img width="{side}" height="{side}" alt="{escape(model["label"])}: {escape(text)}" '
        f'src="data:image/webp;base64,{base64.b64encode(data).decode()}">'
    )


def _details(results: Results) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    entries = [("Zoo", results["zoo"]), ("Versions", versions), ("Device", results["device"])]
    entries += [(k, f"weights sha256 {v}...") for k, v in results["networks"].items()]
    for model in results["models"]:
        how = ", ".join(f"{k} {v}" for k, v in model["settings"].items())
        what = f"{model['source']}; {how}; {model['sampler']}, {model['dtype']}; "
        entries.append((model["label"], what + str(model["fingerprint"])))
    entries += [(f"excluded {k}", why) for k, why in results["data"]["excluded"].items()]
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in entries)
    return f"<h2>Models and versions</h2><dl>{listed}</dl>"
