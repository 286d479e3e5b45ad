"""`zoo benchmark`: one subcommand a module of zoo.cli.benchmarks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from zoo.cli import say
from zoo.errors import UserError, closest

SUBCOMMANDS: dict[str, str] = {
    "speed": "FLOPs, interleaved latencies and memory of UNets and tokenizers",
    "features": "how much a UNet's features change between time steps",
    "generation": "compare text-to-image models on the same prompts and noise",
    "plan": "memory, FLOPs, data rate and days of a training run, before it",
    "reconstruction": "score tokenizers on clips under a frozen protocol",
    "films": "score generators of films on the same prompts and seeds",
    "compare": "merge results of one protocol into one table and report",
}


def main(arguments: Sequence[str]) -> int:
    """`zoo benchmark SUBCOMMAND ...`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: zoo benchmark SUBCOMMAND [options]\n")
        for name, what in SUBCOMMANDS.items():
            say(f"  {name:16} {what}")
        say("\nzoo benchmark SUBCOMMAND --help shows examples.")
        return 0
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        near = closest(name, SUBCOMMANDS)[0]
        raise UserError(f"unknown benchmark '{name}': did you mean '{near}'?")
    status: int = importlib.import_module(f"zoo.cli.benchmarks.{name}").main(rest)
    return status
