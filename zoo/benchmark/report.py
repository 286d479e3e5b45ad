"""report.html: one file without a script and without anything from outside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from zoo.benchmark.figures import (
    colour,
    distribution,
    forest,
    places,
    quality_over_cost,
)
from zoo.benchmark.pictures import ERROR_GAIN
from zoo.benchmark.results import Results
from zoo.benchmark.store import SHARED_BY
from zoo.benchmark.tables import DIGITS, Column, columns, is_best, name_of, networks, notes

Model = dict[str, Any]
STYLE = Path(__file__).with_name("report.css")
READING = (
    "Bold: the best of a column. TFLOPs are 2 x MAC; numbers/px: latents for each pixel; flicker: "
    "the error of the change from frame to frame in grey levels of 255. Peak memory on a CPU is "
    "the whole process."
)
GROUPS = {
    "cost": "Cost a clip",
    "quality": "Quality (95 % interval)",
    "distribution": "Distance of the sets",
    "manifold": "Manifolds",
    "speed": "Speed",
}


def render(results: Results, *, pictures: Sequence[Path]) -> str:
    """The report.

    Args:
        results: to show.
        pictures: run folders whose pictures/ hold the strips of clips.
    """
    data, rules = results["data"], results["protocol"]
    films = f"{data['films']:,} film{'s' * (data['films'] > 1)}"
    things = "pictures" if rules["frames"] == 1 else f"clips of {films}"
    shape = f"{rules['size']}x{rules['size']}"
    shape = shape if rules["frames"] == 1 else f"{rules['frames']} frames, {shape}"
    sections = [
        _findings(results),
        "<h2>Results</h2>",
        _table(results, ("cost", "quality", "speed")),
        f'<p class="note under">{escape(READING)}</p>',
        _charts(results),
        _by_film(results),
        _distributions(results),
        _seeds(results),
        _clips(results, pictures),
        _details(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Reconstruction: {escape(data['name'])}</title>"
        f"<style>{STYLE.read_text()}</style></head><body>"
        '<header><p class="kicker">Reconstruction benchmark</p>'
        f"<h1>{escape(data['name'])}</h1>"
        f'<p class="soft">{len(data["clips"]):,} {things}, {shape}. Protocol '
        f"<code>{escape(rules['name'])} {results['protocol_hash']}</code>, data "
        f"<code>{data['hash']}</code>.</p></header>"
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def _findings(results: Results) -> str:
    """A sentence a model: what it scores and what that is worth over the baseline."""
    taken, items = places(results), []
    for model in results["models"]:
        gain = model["difference"].get("psnr")
        if model["baseline"] or not gain or gain["mean"] is None:
            continue
        bounds = ""
        if gain["low"] is not None:
            bounds = f" [{gain['low']:+.2f}, {gain['high']:+.2f}]"
        what = (
            f"{model['metrics']['psnr']['mean']:.2f} dB, {gain['mean']:+.2f} dB{bounds} to "
            f"{results['baseline']} on the same clips, ahead on {gain['wins']:.0%} of them"
        )
        mark = colour(taken[model["label"]], model)
        items.append(
            f'<li style="--mark:{mark}"><b>{escape(name_of(model))}</b>: {escape(what)}.</li>'
        )
    return f'<ul class="findings">{"".join(items)}</ul>' if items else ""


def _distributions(results: Results) -> str:
    """Distances between the set of originals and the set of reconstructions."""
    tables = "".join(
        f'<h3 class="group">{escape(name)} <span class="soft">{escape(entry["note"])}</span></h3>'
        + _table(results, ("distribution", "manifold"), network=name)
        for name, entry in networks(results).items()
    )
    missing = "".join(
        f"<li>{escape(name)}: not measured ({escape(why)})</li>"
        for name, why in results["not_measured"].items()
    )
    if not tables and not missing:
        return ""
    note = (
        "The distance to read first stands first. Kernel distances: ± their deviation over "
        "subsets. Neighbours: 3 for precision and recall, 5 for density and coverage."
    )
    return (
        f"<h2>Distributions</h2>{tables}"
        f'<p class="note under">{note if tables else ""}</p>'
        f'<ul class="note">{missing}</ul>'
    )


def _by_film(results: Results) -> str:
    """Mean PSNR of each film's clips, where there are few films with several clips."""
    films = [key.rsplit("#", 1)[0] for key in results["data"]["clips"]]
    names = list(dict.fromkeys(films))
    if not 1 < len(names) <= 16 or len(names) == len(films):
        return ""
    head = "".join(f"<th>{escape(name)}<br>{films.count(name)}</th>" for name in names)
    rows = []
    for model in results["models"]:
        cells = ""
        for name in names:
            pairs = zip(films, model["values"]["psnr"], strict=True)
            values = [value for film, value in pairs if film == name and value is not None]
            cells += f"<td>{sum(values) / len(values):.2f}</td>" if values else "<td>-</td>"
        rows.append(f"<tr{_row_kind(results, model)}><td>{escape(name_of(model))}</td>{cells}</tr>")
    return (
        '<h2>PSNR dB by film</h2><div class="scroll"><table><thead><tr><th>Model<br>clips</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row_kind(results: Results, model: Model) -> str:
    number = results["models"].index(model)
    kinds = ["baseline"] if model["baseline"] else []
    if number and results["models"][number - 1]["baseline"] and not model["baseline"]:
        kinds.append("first")
    return f' class="{" ".join(kinds)}"' if kinds else ""


def _table(results: Results, groups: Sequence[str], *, network: str = "") -> str:
    cells = [c for group in groups for c in columns(results) if c.group == group]
    cells = [c for c in cells if c.network == network]
    if not cells:
        return ""
    starts = {next(g).key for _, g in groupby(cells, key=lambda c: c.group)}
    head = "".join(
        f'<th colspan="{len(list(part))}" class="start" style="text-align:left">'
        f"{escape(GROUPS[group])}</th>"
        for group, part in groupby(cells, key=lambda c: c.group)
    )
    arrows = {1: "\N{UPWARDS ARROW}", -1: "\N{DOWNWARDS ARROW}", 0: ""}
    titles = "".join(
        f"<th{_start(c, starts)}>{escape(c.title)} "
        f'<span class="arrow">{arrows[c.better]}</span></th>'
        for c in cells
    )
    taken, rows = places(results), []
    for model in results["models"]:
        mark = colour(taken.get(model["label"], 0), model)
        row = f'<td style="--mark:{mark}"><span class="swatch"></span>{escape(name_of(model))}</td>'
        row += "".join(_cell(c, model, results, starts) for c in cells)
        rows.append(f"<tr{_row_kind(results, model)}>{row}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr class="groups"><th></th>{head}</tr>'
        f"<tr><th>Model</th>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(column: Column, model: Model, results: Results, starts: set[str]) -> str:
    kinds = [
        *(["start"] if column.key in starts else []),
        *(["best"] if is_best(column, model, results) else []),
    ]
    half = column.half_text(model)
    if half:
        bounds = model["metrics"].get(column.key)
        title = "deviation over subsets"
        if bounds is not None:
            title = f"[{bounds['low']:.{column.digits}f}, {bounds['high']:.{column.digits}f}]"
        half = f'<span class="half" title="{title}">±{half}</span>'
    shown = escape(column.text(model)).replace("-", "\N{MINUS SIGN}")
    return f'<td class="{" ".join(kinds)}">{shown}{half}</td>'


def _start(column: Column, starts: set[str]) -> str:
    return ' class="start"' if column.key in starts else ""


def _charts(results: Results) -> str:
    charts = [
        quality_over_cost(results, "psnr"),
        quality_over_cost(results, "lpips"),
        forest(results, "psnr"),
        forest(results, "lpips"),
        distribution(results, "psnr"),
        distribution(results, "lpips"),
    ]
    shown = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    return f'<h2>Comparison</h2><div class="charts">{shown}</div>' if shown else ""


def _seeds(results: Results) -> str:
    rows = []
    for model in results["models"]:
        for name, entry in model["seeds"].items():
            if entry is not None:
                digits = DIGITS[name] + 2
                rows.append(
                    f"<tr><td>{escape(name_of(model))}</td><td>{escape(name)}</td>"
                    f"<td>{entry['seeds']}</td><td>{entry['std']:.{digits}f}</td>"
                    f"<td>{entry['clip_std']:.{digits}f}</td></tr>"
                )
    if not rows:
        return ""
    return (
        "<h2>Spread over noise seeds</h2><table style='min-width:0'><thead><tr><th>Model</th>"
        "<th>metric</th><th>seeds</th><th>std of the mean</th><th>std of a clip</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _clips(results: Results, folders: Sequence[Path]) -> str:
    """The baseline's worst and best clip as every model makes them, then each model's own."""
    names, blocks = results["data"]["clips"], []
    shared = next((m for m in results["models"] if m["label"] == SHARED_BY), None)
    if shared is not None and "psnr" in shared["values"]:
        for place, title in zip(_extremes(shared), ("Hardest", "Easiest"), strict=False):
            shown = [_picture(m, names, place, folders) for m in results["models"]]
            blocks.append((f"{title} clip of {SHARED_BY}: {names[place]}", shown))
    for model in results["models"]:
        if not model["baseline"] and "psnr" in model["values"]:
            shown = [_picture(model, names, place, folders) for place in _extremes(model)]
            blocks.append((f"{name_of(model)}: its own worst and best clip", shown))
    parts = []
    for title, shown in blocks:
        if content := "".join(shown):
            parts.append(
                f'<h3 class="group">{escape(title)}</h3><div class="clips">{content}</div>'
            )
    if not parts:
        return ""
    return (
        "<h2>Clips</h2><p class='note'>Three frames each; rows: original, reconstruction, "
        f"absolute error x {ERROR_GAIN}.</p>{''.join(parts)}"
    )


def _extremes(model: Model) -> list[int]:
    values = [v if v is not None else 0.0 for v in model["values"]["psnr"]]
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order[0], order[-1]] if len(order) > 1 else order


def _picture(model: Model, names: list[str], place: int, folders: Sequence[Path]) -> str:
    digest = model["clip_hashes"][place]
    for folder in folders:
        path = folder / "pictures" / model["folder"] / f"{digest}.webp"
        if path.is_file():
            image = base64.b64encode(path.read_bytes()).decode()
            psnr = model["values"]["psnr"][place]
            caption = f"<b>{escape(name_of(model))}</b> {psnr:.2f} dB, {escape(names[place])}"
            alt = escape(f"{name_of(model)} on {names[place]}: original, reconstruction, error")
            return (
                f'<figure><img src="data:image/webp;base64,{image}" alt="{alt}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return ""


def _details(results: Results) -> str:
    data = results["data"]
    versions = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    entries = [("Zoo", results["zoo"]), ("Versions", versions), ("Device", results["device"])]
    for name, value in results["networks"].items():
        entries.append((name, f"weights sha256 {value}..."))
    for name, why in results["failed"].items():
        entries.append((name, f"failed: {why}"))
    for model in results["models"]:
        if not model["baseline"]:
            latents = "x".join(str(n) for n in model["latents"])
            what = f"{model['source']}, {model['fingerprint']}, latents {latents}, {model['dtype']}"
            entries.append((model["label"], what))
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in entries)
    excluded = ""
    if data["excluded"]:
        items = "".join(
            f"<dt>{escape(key)}</dt><dd>{escape(why)}</dd>" for key, why in data["excluded"].items()
        )
        excluded = (
            f"<details><summary>{len(data['excluded']):,} excluded clips or files</summary>"
            f'<dl style="margin-top:10px">{items}</dl></details>'
        )
    sentences = "".join(f"<p>{escape(line)}</p>" for line in notes(results)[:3])
    return f"<h2>Protocol and versions</h2>{sentences}<dl>{listed}</dl>{excluded}"
