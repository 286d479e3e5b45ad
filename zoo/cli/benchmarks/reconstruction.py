"""`zoo benchmark reconstruction`: score tokenizers on clips under a frozen protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from zoo.cli import Parser, say
from zoo.cli.device import checked_device
from zoo.errors import RunError, UserError

if TYPE_CHECKING:
    from zoo.benchmark.protocol import Protocol
    from zoo.benchmark.results import Results
    from zoo.benchmark.runner import Advance

_LOG = logging.getLogger("zoo")
SHOWN_EXCLUDED = 20

EXAMPLES = """examples:
  zoo benchmark reconstruction --data package-clips --out runs/bench --models cdt_tiny.clips
  zoo benchmark reconstruction --data quickstart --out runs/q --models dir:runs/quickstart/export
  zoo benchmark reconstruction --data MCL-JCV:/data/mcl_jcv --protocol vidtok --out runs/mcl \\
      --models cdt_tiny.clips my_model.py:build
  the same command goes on where it was stopped, and adds nothing when all is measured
data:
  package-clips, quickstart, a folder of films or of pictures, a shard (.tar), or NAME:FOLDER with
  COCO2017-val, WebVid-val, MCL-JCV, UCF-101, Kinetics-400-val or DAVIS
models:
  NAME of trained weights, dir:PATH, or FILE.py:FUNCTION that returns an object with encode(x) and
  decode(z), x [B,3,T,H,W] in [-1,1]; decode may take size, steps and generator
"""


def main(arguments: Sequence[str]) -> int:
    """Score tokenizers; see EXAMPLES."""
    parser = Parser(
        prog="zoo benchmark reconstruction",
        description="Score tokenizers on clips under a frozen protocol, trivial codes beside them.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--models", nargs="*", default=[], metavar="MODEL", help="see below")
    parser.add_argument("--data", required=True, help="see below")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and results")
    parser.add_argument("--protocol", default="zoo", help="zoo (default), cdt or vidtok")
    parser.add_argument("--size", type=int, help="pixels of both sides (default: the protocol's)")
    parser.add_argument("--frames", type=int, help="frames a clip (default: the protocol's)")
    parser.add_argument("--limit", type=int, help="only the first clips")
    parser.add_argument("--steps", type=int, default=1, help="sampling steps (default 1)")
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="noise seeds (default 1)")
    parser.add_argument("--baseline", default="PCA-16", help="row that differences are taken to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    checked_device(options.device)
    for name in ("steps", "seeds", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: give at least 1")

    # imported late: torchmetrics alone takes seconds, and a mistake above needs none of it
    from zoo.benchmark.data import open_data
    from zoo.benchmark.models import candidates
    from zoo.benchmark.outputs import write_outputs
    from zoo.benchmark.protocol import protocol
    from zoo.benchmark.results import collect, header_row
    from zoo.benchmark.runner import Runner, Survey
    from zoo.benchmark.store import Store
    from zoo.metrics.evaluation import Scorer
    from zoo.metrics.networks import load_networks

    rows = candidates(options.models, steps=options.steps, device=options.device)
    if options.baseline not in {row.label for row in rows}:
        known = ", ".join(row.label for row in rows)
        raise UserError(f"--baseline {options.baseline} is no row of the table: {known}")

    def rules_for(**changes: Any) -> Protocol:
        # what the data set changes, then what the user asked for; a picture has one frame
        asked = {"frames": options.frames, "size": options.size}
        if changes.get("frames") == 1:
            asked["frames"] = None
        return protocol(options.protocol, **changes | {k: v for k, v in asked.items() if v})

    for name in ("frames", "size"):
        protocol(options.protocol, **{name: getattr(options, name)})
    data = open_data(options.data, rules_for, limit=options.limit)
    store = Store(options.out, header_row(data))
    try:
        with progress() as advance:
            survey = Survey(data)
            survey.read(advance)
            rules = data.protocol
            scorer = Scorer(lpips=rules.lpips, spatial=rules.lpips_spatial)
            networks, missing = load_networks(options.device, video=rules.frames > 1)
            runner = Runner(
                *(store, survey, scorer, networks, options.device),
                *(options.seeds, advance),
            )
            before = len(store.rows)
            try:
                runner.run(rows)
            except KeyboardInterrupt:
                _LOG.info("%d rows are kept: the same command goes on", len(store.rows))
                raise
        _LOG.info("%d rows added to %s", len(store.rows) - before, store.path)
        if options.baseline in runner.failures:
            raise RunError("; ".join(runner.failures.values()))
        results = collect(
            runner, rows, baseline=options.baseline, missing=missing, header=store.rows[0]
        )
        report = write_outputs(results, options.out, pictures=[options.out])
    finally:
        store.close()
    show(results)
    for key, reason in list(data.excluded.items())[:SHOWN_EXCLUDED]:
        _LOG.info("excluded %s: %s", key, reason)
    if len(data.excluded) > SHOWN_EXCLUDED:
        _LOG.info("and %d more: see the report", len(data.excluded) - SHOWN_EXCLUDED)
    say(str(report))
    if runner.failures:
        raise RunError("; ".join(runner.failures.values()))
    return 0


@contextmanager
def progress() -> Iterator[Advance]:
    """A progress bar on stderr; yields what tells it the label, the clips done and to do."""
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, int] = {}

        def advance(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=total or None)
            bar.update(bar.task_ids[list(tasks).index(label)], completed=done)

        yield advance


def show(results: Results) -> None:
    """Print the table and what belongs under it."""
    from zoo.benchmark.tables import columns, name_of, notes

    cells = [c for c in columns(results) if c.group in ("quality", "distribution", "speed")]
    table = Table("model", *(c.title for c in cells), title=results["data"]["name"])
    for model in results["models"]:
        table.add_row(name_of(model), *(c.text(model) for c in cells))
    Console(width=None if Console().is_terminal else 200).print(table)
    for line in notes(results):
        say(line)
