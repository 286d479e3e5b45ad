"""Command line: `zoo COMMAND` and the scripts in tools/ are the same functions."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from zoo.errors import RunError, UserError, closest

COMMANDS = {
    "train": "train a model (no arguments: the quickstart)",
    "reconstruct": "encode and decode a film of any length",
    "generate": "make pictures of prompts",
    "benchmark": "score reconstruction and speed, compare results",
    "convert": "turn released checkpoints into model folders, and back",
    "graphs": "write a tokenizer as ONNX or torch.export files",
    "data": "fetch and inspect data, films to latents and back",
    "doctor": "versions, devices, kernels: what serves which call, and why",
    "swap": "fit a linear map between two tokenizers' latents, and tell its loss",
    "list": "list the models",
    "info": "what is known of a model: config, weights, licence, metrics",
    "pull": "fetch a model to a folder or to the cache",
    "push": "publish a model folder on the hub",
    "release": "ship the weights of a training run with their card",
    "cards": "make the cards and the README's model table anew from metrics.json",
    "verify": "check shipped weights, and measure their cards' numbers again on a few clips",
}

Command = Callable[[Sequence[str]], int]


def say(text: str) -> None:
    """Print a line that other programs may read: never wrapped, never coloured."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Parser(argparse.ArgumentParser):
    """argparse with errors as one sentence and examples printed as they are written."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage."""
        raise UserError(f"{message} (see {self.prog} --help)")


def run(command: Command, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed, 2 a user's mistake, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("zoo").setLevel(logging.INFO)
    try:
        status = command(sys.argv[1:] if arguments is None else arguments)
    except (UserError, RunError) as error:
        sys.stderr.write(f"error: {error}\n")
        status = 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        status = 130
    except BrokenPipeError:
        # the reader of our output is gone: nothing is left to say, and to nobody
        sys.stderr.close()
        status = 141
    raise SystemExit(status)


def find(name: str) -> Command:
    """The function behind a command's name."""
    module = importlib.import_module(f"zoo.cli.{name}")
    command: Command = module.main
    return command


def dispatch(arguments: Sequence[str]) -> int:
    """`zoo COMMAND ...`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: zoo COMMAND [options]\n")
        for name, what in COMMANDS.items():
            say(f"  {name:12} {what}")
        say("\nzoo COMMAND --help shows examples.")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}': did you mean '{closest(name, COMMANDS)[0]}'?")
    return find(name)(rest)


def main() -> NoReturn:
    """Entry point of the console script."""
    run(dispatch)
