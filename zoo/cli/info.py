"""`zoo info`: what is known of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence

from zoo.cli import Parser, say
from zoo.hub import info


def main(arguments: Sequence[str]) -> int:
    """Print a model's entry as JSON."""
    parser = Parser(
        prog="zoo info",
        description="What is known of a model, as JSON. Example: zoo info cdt_tiny.clips",
    )
    parser.add_argument("name", help="a name that zoo list prints, with or without weights")
    entry = info(parser.parse_args(arguments).name)
    known = {key: value for key, value in vars(entry).items() if value not in ("", None, {})}
    say(json.dumps(known, indent=2, default=str))
    return 0
