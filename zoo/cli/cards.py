"""`zoo cards`: cards and the README's model table, made anew of checkpoints/*/metrics.json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from zoo.cards import card, with_table
from zoo.cli import Parser, say
from zoo.errors import RunError
from zoo.hub import trained
from zoo.paths import PACKAGE
from zoo.remote import read_metrics


def main(arguments: Sequence[str]) -> int:
    """Write every card and the README's table, or only say which would change."""
    parser = Parser(
        prog="zoo cards",
        description="Make the cards of checkpoints/ and the README's model table anew from "
        "metrics.json. Examples: zoo cards;  zoo cards --check",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if any differs")
    parser.add_argument("--readme", type=Path, default=PACKAGE.parent / "README.md")
    options = parser.parse_args(arguments)
    found = {folder: read_metrics(folder) for folder in trained().values()}
    texts = {folder / "README.md": card(metrics) for folder, metrics in found.items()}
    texts[options.readme] = with_table(options.readme.read_text(), list(found.values()))
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    if options.check and stale:
        names = ", ".join(str(path) for path in stale)
        raise RunError(f"not what metrics.json says: {names}; run zoo cards")
    for path in stale:
        part = path.with_name(f".{path.name}.part")
        part.write_text(texts[path])
        os.replace(part, path)
        say(str(path))
    return 0
