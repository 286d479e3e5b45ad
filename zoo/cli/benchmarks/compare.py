"""`zoo benchmark compare`: one table and report of several results of the same protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.cli import Parser, say
from zoo.errors import UserError

EXAMPLES = """examples:
  zoo benchmark compare runs/a runs/b
  zoo benchmark compare runs/a/results.json runs/b/results.json --out runs/both --baseline cdt_tiny
"""


def main(arguments: Sequence[str]) -> int:
    """Merge results; see EXAMPLES."""
    parser = Parser(
        prog="zoo benchmark compare",
        description="Merge results of one protocol and the same clips; others are refused.",
        epilog=EXAMPLES,
    )
    parser.add_argument("results", nargs="+", type=Path, help="results.json, or its folder")
    parser.add_argument("--out", type=Path, help="folder for the merged files and report")
    parser.add_argument("--baseline", default="PCA-16", help="row that differences are taken to")
    options = parser.parse_args(arguments)

    from zoo.benchmark.outputs import write_outputs
    from zoo.benchmark.results import load_results, merge
    from zoo.cli.benchmarks.reconstruction import show

    if options.out is not None and (options.out / "rows.jsonl").exists():
        raise UserError(f"{options.out} is the folder of a run: give another --out")
    parts = [(str(path), load_results(path)) for path in options.results]
    results = merge(parts, baseline=options.baseline)
    show(results)
    if options.out is not None:
        folders = [path if path.is_dir() else path.parent for path in options.results]
        say(str(write_outputs(results, options.out, pictures=folders)))
    return 0
