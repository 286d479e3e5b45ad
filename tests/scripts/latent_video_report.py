"""Are CDT's latents better to generate in? The same generator on several tokenizers' latents.

    python -m tests.scripts.latent_video_report --out runs/latent_video \\
        --tokenizers cdt_tiny.clips klvae_video_tiny.clips
    python -m tests.scripts.latent_video_report --smoke --out runs/smoke --tokenizers dir:A dir:B

The first takes a day of a core: 20,000 steps for each of two tokenizers and three seeds (--steps).
Options this script doesn't know go to each training (`--ema.decay 0.995`).
For each tokenizer: encodes the films, trains `configs/latent_video/emoji_cdt.yaml` once a seed, and
scores the averaged net at every validation with `zoo benchmark films`, prompts and seeds paired.
What is done is kept: a stopped run goes on with the same command, and seeds whose numbers are in
--out's report.json aren't run again. Writes report.md, report.json and curves.svg to --out.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "latent_video" / "emoji_cdt.yaml"
# quantiles .975 of Student's t by degrees of freedom
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def tool(name: str, *arguments: object, log: Path) -> None:
    """Run a tool; what it says goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    with log.open("a") as out:
        done = subprocess.run(command, stdout=out, stderr=out, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed, see {log}")


def slug(name: str) -> str:
    """A tokenizer's name as a folder's."""
    return Path(name.removeprefix("dir:")).name if name.startswith("dir:") else name


def train(tokenizer: str, seed: int, data: Path, out: Path, options: argparse.Namespace) -> Path:
    """The run folder of one training; encoded first."""
    latents = out / "latents" / slug(tokenizer)
    for split in ("train", "val"):
        if not (latents / split / "done").is_file():
            encode = ("encode", data / split, "--model", tokenizer, "-o", latents / split)
            tool("data", *encode, log=out / "logs" / f"encode-{slug(tokenizer)}-{split}.log")
            (latents / split / "done").touch()
    run = out / "runs" / f"{slug(tokenizer)}-{seed}"
    if (run / "export" / "config.json").is_file():
        return run
    settings: list[object] = [
        *("--seed_everything", seed, "--out", run, "--model.init_args.keep_exports", "true"),
        *("--trainer.max_steps", options.steps),
        *("--trainer.val_check_interval", max(1, options.steps // options.points)),
        *("--trainer.limit_val_batches", 1, "--data.batch_size", options.batch_size),
        *("--model.init_args.frames", 5 if options.smoke else 17),
    ]
    settings += options.further
    for split in ("train", "val"):
        settings += [f"--data.{split}.init_args.root={latents / split}"]
    if (run / "last.ckpt").is_file():
        settings += ["--ckpt_path", run / "last.ckpt"]
    log = out / "logs" / f"train-{slug(tokenizer)}-{seed}.log"
    tool("train", "fit", "--config", CONFIG, *settings, log=log)
    return run


def score(run: Path, data: Path, out: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of every export of a run, with their step; and of its tokenizer."""
    exports = sorted((run / "exports").iterdir())
    bench = out / "bench" / run.name
    sizes = ("--prompts", options.prompts, "--repeats", 2, "--steps", options.sampling_steps)
    tool(
        *("benchmark", "films", "--data", data / "train", "--out", bench),
        *sizes,
        *("--models", *(f"dir:{path}" for path in exports)),
        log=out / "logs" / f"bench-{run.name}.log",
    )
    rows: list[dict[str, Any]] = json.loads((bench / "results.json").read_text())["rows"]
    for row in rows:
        if "/step-" in row["label"]:
            row["step"] = int(row["label"].rpartition("-")[2])
    return rows


def spread(values: list[float]) -> str:
    """Mean over the seeds and its 95 % interval by Student's t."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3g} (one seed)"
    half = (
        STUDENT.get(len(values) - 1, 2.0) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    )
    return f"{mean:.3g} ± {half:.2g}"


def value(row: dict[str, Any], metric: str) -> float:
    """A number of a row."""
    found = row[metric]
    return float(found["value"] if "value" in found else found["mean"])


def report(found: dict[str, dict[int, list[dict[str, Any]]]], out: Path) -> str:
    """Table of the ends, paired differences to the first tokenizer, and the curve's points."""
    any_rows = next(iter(next(iter(found.values())).values()))
    metrics = [m for m in ("FVD-TransNetV2", "FVD", "KID-MobileNetV2") if m in any_rows[-1]]
    metrics += ["flicker", "diversity"] if "diversity" in any_rows[-1] else ["flicker"]
    scale = {
        m: 1000.0 if m.startswith("KID") else 100.0 if m == "diversity" else 1.0 for m in metrics
    }
    titles = [f"{m} x{scale[m]:g}" if scale[m] != 1 else m for m in metrics]
    lines = ["| latents of | " + " | ".join(titles) + " |", "|" + "---|" * (1 + len(metrics))]
    ends: dict[str, dict[str, list[float]]] = {}
    for name, seeds in found.items():
        last = {
            s: max((r for r in rows if "step" in r), key=lambda r: r["step"])
            for s, rows in seeds.items()
        }
        ends[name] = {m: [scale[m] * value(row, m) for row in last.values()] for m in metrics}
        lines.append(f"| {name} | " + " | ".join(spread(ends[name][m]) for m in metrics) + " |")
        ceiling = next(r for r in next(iter(seeds.values())) if "reconstruction" in r["label"])
        cells = [f"{scale[m] * value(ceiling, m):.3g}" if m in ceiling else "" for m in metrics]
        lines.append(f"| its reconstruction of the real films | {' | '.join(cells)} |")
    first, *others = ends
    for name in others:
        apart = [
            spread([b - a for a, b in zip(ends[first][m], ends[name][m], strict=True)])
            for m in metrics
        ]
        lines.append(f"| {name} less {first}, seeds paired | {' | '.join(apart)} |")
    real = next(r for r in any_rows if r["label"] == "real films")
    lines.append(f"\nFlicker of the real films: {value(real, 'flicker'):.1f}.")
    draw(found, out / "curves.svg", metrics[0])
    return "\n".join(lines) + "\n"


def draw(found: dict[str, dict[int, list[dict[str, Any]]]], path: Path, metric: str) -> None:
    """The metric over steps, a line a seed, a colour a tokenizer."""
    points = {
        (name, seed): sorted((r["step"], value(r, metric)) for r in rows if "step" in r)
        for name, seeds in found.items()
        for seed, rows in seeds.items()
    }
    steps = max(x for line in points.values() for x, _ in line)
    most = max(y for line in points.values() for _, y in line)
    colours = dict(zip(found, ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=False))
    body = [f'<text x="40" y="16">{metric} (0 to {most:.0f}) over steps (0 to {steps})</text>']
    for (name, _), line in points.items():
        dots = " ".join(f"{40 + 420 * x / steps:.1f},{230 - 200 * y / most:.1f}" for x, y in line)
        body.append(f'<polyline points="{dots}" fill="none" stroke="{colours[name]}"/>')
    for number, (name, colour) in enumerate(colours.items()):
        body.append(f'<text x="300" y="{40 + 16 * number}" fill="{colour}">{name}</text>')
    frame = '<path d="M40 30V230H460" fill="none" stroke="#888"/>'
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="480" height="250" '
        f'font-family="sans-serif" font-size="12">{frame}{"".join(body)}</svg>\n'
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokenizers", nargs="+", required=True)
    parser.add_argument("--data", type=Path, help="folder with train and val; default: emoji-anim")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--points", type=int, default=8, help="of the curve")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--sampling-steps", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="minutes, to see that all of it runs")
    options, options.further = parser.parse_known_args()
    if options.smoke:
        options.seeds, options.steps, options.points, options.batch_size = 2, 4, 2, 2
        options.prompts, options.sampling_steps = 2, 2
    if options.data is None:
        from zoo.data.emoji_anim import prepare_emoji_anim

        options.data = prepare_emoji_anim()[0].parent
    out = options.out.absolute()
    numbers = out / "report.json"
    earlier = json.loads(numbers.read_text()) if numbers.is_file() else {}
    found: dict[str, dict[int, list[dict[str, Any]]]] = {
        name: {int(seed): rows for seed, rows in earlier.get(name, {}).items()}
        for name in options.tokenizers
    }
    for rows in (rows for seeds in found.values() for rows in seeds.values()):
        if (steps := max(row.get("step", 0) for row in rows)) != options.steps:
            sys.exit(
                f"{numbers} holds runs of {steps} steps, not {options.steps}: give another --out"
            )
    for seed in range(options.seeds):
        for tokenizer in options.tokenizers:
            if seed not in found[tokenizer]:
                run = train(tokenizer, seed, options.data.absolute(), out, options)
                found[tokenizer][seed] = score(run, options.data.absolute(), out, options)
                numbers.write_text(json.dumps(found, indent=1) + "\n")
        # seeds are paired: one that a tokenizer lacks counts for none
        text = report({n: {s: r[s] for s in range(seed + 1)} for n, r in found.items()}, out)
        (out / "report.md").write_text(text)
    print(text, flush=True)


if __name__ == "__main__":
    main()
