"""Writing a result: results.json, .csv, .md, .tex and report.html, each whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from zoo.benchmark.report import render
from zoo.benchmark.results import Results
from zoo.benchmark.store import whole_file
from zoo.benchmark.tables import to_csv, to_latex, to_markdown


def write_outputs(results: Results, folder: Path, *, pictures: list[Path]) -> Path:
    """Write all files.

    Args:
        results: as `zoo.benchmark.results.collect` or `merge` makes them.
        folder: --out.
        pictures: run folders whose pictures/ the report may show.

    Returns:
        The report.

    Raises:
        RunError: the disk is full or gone.
    """
    texts = {
        "results.json": json.dumps(results, indent=1) + "\n",
        "results.csv": to_csv(results),
        "results.md": to_markdown(results),
        "results.tex": to_latex(results),
        "report.html": render(results, pictures=pictures),
    }
    for name, text in texts.items():
        with whole_file(folder / name) as file:
            file.write(text.encode())
    return folder / "report.html"
