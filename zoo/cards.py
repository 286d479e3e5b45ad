"""Cards of models and the README's table of them: text made of metrics.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from zoo.errors import UserError

Metrics = dict[str, Any]

BEGIN, END = "<!-- models: made by `zoo cards` -->", "<!-- /models -->"

_TITLES = {
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "lpips": "LPIPS-Alex",
    "FVD-TransNetV2": "FVD-TransNetV2",
    "FVD": "FVD",
    "film_flicker": "flicker",
    "diversity": "diversity (LPIPS)",
}
_DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3, "diversity": 3}
_KID = 1000


def card(metrics: Metrics) -> str:
    """README.md of a model folder, with the hub's front matter.

    Args:
        metrics: of `zoo.release.release`.
    """
    return "\n".join(_lines(metrics)).rstrip() + "\n"


def _lines(m: Metrics) -> Iterator[str]:
    name, about, took = m["name"], m["about"], m["training"]
    yield from ("---", f"license: {_spdx(m['licence'])}", "library_name: zoo", "---")
    yield from (f"# {name}", "", about["title"], "", "## Use", "", about["use"], "")
    yield from ("```python", *_snippet(m), "```", "")
    yield from ("## Metrics", "")
    for table in m["metrics"]:
        yield from (*_measured(table), "")
    if "sampling" in m:
        yield from (*_sampling(m["sampling"]), "")
    yield from ("## Training", "")
    yield f"Data: {'; '.join(about['data'])}."
    yield (
        f"{took['steps']:,} steps, seed {took['seed']}, {_duration(took['seconds'])} "
        f"({_sittings(took['sittings'])}) on {took['hardware']}; "
        f"{', '.join(f'{k} {v}' for k, v in took['versions'].items())}. Log: training.csv. "
        "In one command:"
    )
    yield from ("", "```", f"python tools/train.py fit --config {took['config']}", "```")
    if took["changed"]:
        yield ""
        yield "The run differed from that file in:"
        yield from (f"- `{key}`: {value}" for key, value in took["changed"].items())
    yield from ("", "## Limits", "", *(f"- {limit}" for limit in about["limits"]))
    yield from ("", "## Weights", "")
    yield f"float16 safetensors, {m['bytes'] / 1e6:.1f} MB, sha256 `{m['sha256']}`."
    yield f"Licence: {m['licence']}."


def _spdx(licence: str) -> str:
    """The hub knows licences by identifiers in lower case; others go by `other`."""
    first = licence.split()[0].rstrip(",;").lower()
    return first if first in ("apache-2.0", "mit", "bsd-3-clause") else "other"


def _snippet(m: Metrics) -> list[str]:
    kinds = {table["kind"] for table in m["metrics"]}
    if "films" in kinds:
        return [
            "import torch",
            "from zoo.video_pipeline import VideoPipeline",
            "",
            f'pipe = VideoPipeline.from_pretrained("{m["name"]}")',
            'chunks = pipe.films(["woman running"], frames=17, seeds=[0])',
            "film = torch.cat(list(chunks), dim=2)  # [1,3,17,64,64] near [-1,1]",
        ]
    if "generation" in kinds:
        return [
            "from zoo.open_pipeline import open_pipeline",
            "",
            f'pipe = open_pipeline("{m["name"]}")',
            'pipe("red apple, 3d", seed=0).images[0].save("apple.png")',
        ]
    return [
        "import torch",
        "import zoo",
        "",
        f'net = zoo.load("{m["name"]}")',
        "x = torch.rand(1, 3, 5, 64, 64) * 2 - 1  # [B,3,T,H,W] in [-1,1]",
        "z = net.encode(x).mean",
        "y = net.decode(z, size=(5, 64, 64))",
    ]


def _measured(table: Metrics) -> Iterator[str]:
    data = table["data"]
    if table["kind"] == "films":
        rules = table["protocol"]
        yield (
            f"{rules['prompts']} captions of {data['name']}, {rules['repeats']} films each of "
            f"{rules['frames']}x{rules['size']}x{rules['size']}, {rules['steps']} steps a chunk, "
            f"guidance {rules['guidance']:g}, against {data['count']} real films. Flicker: second "
            "difference in time, in grey levels, to be compared with the real films'."
        )
    elif table["kind"] == "generation":
        yield (
            f"{data['count']} prompts of {data['prompts']} against {data['reference_count']} "
            f"pictures ({data['reference']}); seed {table['protocol']['seed']}; diversity on "
            f"{data['diverse']} prompts, {table['protocol']['repeats']} pictures each."
        )
    else:
        rules = table["protocol"]
        yield (
            f"{data['name']}: {data['description']}, "
            f"{rules['frames']}x{rules['size']}x{rules['size']}, one sampling step."
        )
    yield f"Protocol {table['protocol_hash']}, measured on {table['device']}. 95 % intervals."
    yield ""
    columns = _columns(table["rows"])
    yield f"| | {' | '.join(title for _, title, _ in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for row in table["rows"]:
        shown = f"**{row['label']}**" if row["label"] == table["row"] else row["label"]
        yield f"| {shown} | {' | '.join(_cell(row, *column) for column in columns)} |"


def _columns(rows: Sequence[Metrics]) -> list[tuple[str, str, float]]:
    """(key, title, scale) of what some row has."""
    found = [(k, t, 1.0) for k, t in _TITLES.items() if any(k in row["metrics"] for row in rows)]
    kids = {key for row in rows for key in row["metrics"] if key.startswith("kid_")}
    found += [(key, f"KID-{key.removeprefix('kid_FD-')} x1000", _KID) for key in sorted(kids)]
    if not kids:  # of reconstructions: with a deviation over subsets
        named = {d["kid_name"] for row in rows for d in row.get("distances", [])}
        found += [(name, f"{name} x1000", _KID) for name in sorted(named)]
    return found


def _cell(row: Metrics, key: str, title: str, scale: float) -> str:
    for distance in row.get("distances", []):
        if distance["kid_name"] == key:
            return f"{distance['kid'] * scale:.2f} ± {distance['kid_std'] * scale:.2f}"
    value = row["metrics"].get(key)
    if value is None:
        return "not measured"
    digits = _DIGITS.get(key, 2)
    text = f"{value['mean'] * scale:.{digits}f}"
    if value.get("low") is None:
        return text
    return f"{text} ({value['low'] * scale:.{digits}f} to {value['high'] * scale:.{digits}f})"


def _sampling(found: Metrics) -> Iterator[str]:
    yield (
        f"How the decoder uses its noise, on every {found['every']}th clip of {found['data']} "
        f"({found['clips']} clips): at t = 0.05 the true x_t is worth "
        f"{found['xt_gain_db']:+.2f} dB over noise in its place. PSNR dB / LPIPS-Alex by steps:"
    )
    steps = sorted({row["steps"] for row in found["rows"]})
    yield ""
    titles = (f"{n} steps" if n > 1 else "1 step" for n in steps)
    yield f"| gamma | {' | '.join(titles)} |"
    yield "|---" * (len(steps) + 1) + "|"
    for gamma in dict.fromkeys(row["gamma"] for row in found["rows"]):
        mine = {row["steps"]: row for row in found["rows"] if row["gamma"] == gamma}
        cells = (
            f"{mine[n]['psnr']:.2f} / " + (f"{mine[n]['lpips']:.3f}" if "lpips" in mine[n] else "-")
            for n in steps
        )
        yield f"| {gamma:g} | {' | '.join(cells)} |"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _sittings(count: int) -> str:
    return "one sitting" if count == 1 else f"{count} sittings"


def model_table(models: Sequence[Metrics]) -> str:
    """The README's table: a row a model, its headline numbers."""
    lines = [
        "| model | what | M params | MB | measured on | PSNR dB | LPIPS-Alex | KID x1000 | run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for m in models:
        table = m["metrics"][0]
        row = next(r for r in table["rows"] if r["label"] == table["row"])
        data = table["data"]
        where = data.get("name", data.get("prompts", ""))
        known = "count" in data and table["kind"] != "films"
        count = f"{where}, {data['count'] if known else table_clips(row)}"
        kid = next((c for c in _columns([row]) if "KID" in c[1]), None)
        cells = (
            f"[{m['name']}](checkpoints/{m['name']}/README.md)",
            m["about"]["title"].rstrip("."),
            f"{row['parameters'] / 1e6:.2f}",
            f"{m['bytes'] / 1e6:.1f}",
            count,
            *(
                f"{row['metrics'][key]['mean']:.{_DIGITS[key]}f}" if key in row["metrics"] else "-"
                for key in ("psnr", "lpips")
            ),
            "-" if kid is None else _cell(row, *kid),
            f"{m['training']['steps']:,} steps, {_duration(m['training']['seconds'])}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_clips(row: Metrics) -> int:
    """Of how many clips a row's means are."""
    count: int = next(iter(row["metrics"].values()))["n"]
    return count


def with_table(readme: str, models: Sequence[Metrics]) -> str:
    """The README with its model table made anew.

    Raises:
        UserError: the README has no place for it.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"README.md has no place for the models: write {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{model_table(models)}\n{END}{after}"
