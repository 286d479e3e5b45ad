"""`zoo benchmark films`: score generators of films on the same prompts and seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoo.cli import Parser, say
from zoo.cli.device import checked_device
from zoo.errors import UserError

if TYPE_CHECKING:
    from zoo.benchmark.film_generation import Advance

EXAMPLES = """examples:
  zoo benchmark films --models dir:runs/emoji_cdt/export dir:runs/emoji_klvae/export \\
      --data emoji-anim/train --out runs/films
  the same command goes on where it was stopped, and adds nothing when all is measured
data:
  a folder of films with a captions.jsonl (lines with file and text); the films' beginnings are the
  real ones, their captions the prompts
"""


def main(arguments: Sequence[str]) -> int:
    """Score generators of films; see EXAMPLES."""
    parser = Parser(
        prog="zoo benchmark films",
        description="Score generators of films, their tokenizers' reconstructions beside them.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL")
    parser.add_argument("--data", required=True, help="see below")
    parser.add_argument("--captions", help="a captions.jsonl, or 'names': the films' names")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and results")
    parser.add_argument("--frames", type=int, default=17, help="of every film (default 17)")
    parser.add_argument("--size", type=int, default=64, help="pixels of both sides (default 64)")
    parser.add_argument("--prompts", type=int, default=64, help="at most so many (default 64)")
    parser.add_argument("--repeats", type=int, default=2, help="films a prompt (default 2)")
    parser.add_argument("--steps", type=int, default=30, help="passes a chunk (default 30)")
    parser.add_argument("--guidance", type=float, default=3.0, help="1: none (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first film")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    checked_device(options.device)

    # imported late: torchmetrics alone takes seconds, and a mistake above needs none of it
    from zoo.benchmark.film_generation import Benchmark, RealFilms, Rules, markdown, results
    from zoo.metrics.networks import load_networks
    from zoo.objectives.perceptual import Perceptual

    names = ("frames", "size", "prompts", "repeats", "steps", "guidance", "seed")
    rules = Rules(**{name: getattr(options, name) for name in names})
    real = RealFilms(options.data, rules, captions=options.captions)
    networks, missing = load_networks(options.device, video=True)
    lpips: Perceptual | None = Perceptual("alexnet")
    try:
        assert lpips is not None
        lpips(real.clips[:1, :, 0], real.clips[:1, :, 0])
    except UserError as error:
        lpips, missing["diversity"] = None, str(error)
    with _progress() as advance:
        benchmark = Benchmark(
            options.out,
            rules,
            real,
            networks,
            lpips=lpips,
            device=options.device,
            advance=advance,
        )
        rows = [benchmark.real_row()]
        for name in options.models:
            rows += [row for row in benchmark.row(name) if row not in rows]
    found = results(benchmark, rows, missing)
    for name, text in (("results.json", json.dumps(found, indent=2)), ("results.md", None)):
        part = options.out / f".{name}.part"
        part.write_text(markdown(found) if text is None else f"{text}\n")
        part.replace(options.out / name)
    say(markdown(found))
    say(str(options.out / "results.md"))
    return 0


@contextmanager
def _progress() -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks = {}

        def advance(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=total)
            bar.update(tasks[label], completed=done)

        yield advance
