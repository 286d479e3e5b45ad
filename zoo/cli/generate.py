"""`zoo generate`: pictures of prompts."""

from __future__ import annotations

import argparse
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoo.cli import Parser, generate_film, say
from zoo.cli.device import checked_device
from zoo.cli.prompts import given_prompts
from zoo.data.sheet import grid, save_png
from zoo.errors import RunError, UserError

EXAMPLES = """examples:
  zoo generate "red apple, 3d" --model dir:runs/tiue/export -o apple.png
  zoo generate "a cat" "a dog" --model hf:senmaonk/loopfree-sd1.5 --number 4 --seed 7 -o pets.png
  zoo generate "woman running" --model dir:runs/emoji_cdt/export --frames 33 -o run.mp4
  zoo generate --prompts captions.txt --model dir:sd15 --steps 25 --anchors 25 --guidance 5 -o g.png

An output that is a film, or --frames, makes films: zoo generate --frames 1 --help.

The grid gets the name given (a row a prompt); each picture stands beside it, with its number and
seed in its name. The same seed gives the same picture, whatever the batch.
"""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(arguments: Sequence[str]) -> int:
    """Generate pictures; see EXAMPLES."""
    if generate_film.wanted(arguments):
        return generate_film.main(arguments)
    parser = Parser(prog="zoo generate", description="Pictures of prompts.", epilog=EXAMPLES)
    parser.add_argument("prompt", nargs="*", help="what to show")
    parser.add_argument("--prompts", type=Path, help="file: one prompt a line, or .jsonl")
    parser.add_argument("--model", required=True, help="NAME, dir:PATH or hf:REPOSITORY[@REVISION]")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG of the grid")
    parser.add_argument("--number", type=int, default=1, help="pictures a prompt (default 1)")
    parser.add_argument("--seed", type=int, help="of the first picture; the others count up")
    parser.add_argument("--steps", type=int, help="decoder passes (default: the net's own)")
    parser.add_argument("--anchors", type=int, help="encoder passes (default: the net's own)")
    parser.add_argument("--guidance", type=float, help="1: none (default: the net's own)")
    parser.add_argument(
        "--sequential", action="store_true", help="decoders one by one: less memory"
    )
    parser.add_argument("--batch", type=int, default=4, help="pictures at once (default 4)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--negative-prompt", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), help="default: as stored")
    options = parser.parse_args(arguments)
    prompts = given_prompts(options, what="picture")
    for name in ("number", "batch"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: give at least 1")
    checked_device(options.device)
    _check_output(options.output)
    # imported once the arguments are known to be right: it takes seconds
    import diffusers

    from zoo.diffusion.noise import check_seeds
    from zoo.open_pipeline import open_pipeline

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    dtype = _DTYPES.get(options.dtype or "")
    pipeline = open_pipeline(options.model, device=options.device, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    sampling = pipeline.sampling(
        steps=options.steps, anchors=options.anchors, guidance=options.guidance
    )  # a mistake is said before any work

    jobs = [text for text in prompts for _ in range(options.number)]
    first = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    check_seeds(range(first, first + len(jobs)))
    pictures: list[Any] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{sampling.steps} decoder passes a picture", total=len(jobs))
        for begin in range(0, len(jobs), options.batch):
            batch = jobs[begin : begin + options.batch]

            def report(
                done: int, total: int, *, begin: int = begin, size: int = len(batch)
            ) -> None:
                bar.update(task, completed=begin + size * done / total)

            height, width = options.size or (None, None)
            try:
                out = pipeline(
                    batch,
                    seed=[first + begin + i for i in range(len(batch))],
                    steps=sampling.steps,
                    anchors=sampling.anchors,
                    guidance=sampling.guidance,
                    parallel=not options.sequential,
                    height=height,
                    width=width,
                    negative_prompt=options.negative_prompt,
                    callback=report,
                )
            except torch.OutOfMemoryError as error:
                raise RunError(
                    f"{options.device} is out of memory with {len(batch)} pictures at once: "
                    "give a smaller --batch, or --sequential"
                ) from error
            pictures += out.images
            for offset, picture in enumerate(out.images):
                path = _beside(
                    options.output, begin + offset, batch[offset], first + begin + offset
                )
                save_png(picture, path)
                say(str(path))
    save_png(grid(pictures, _columns(len(jobs), options.number)), options.output)
    say(str(options.output))
    return 0


def _check_output(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UserError(f"{path} can't be the grid: end its name in .png")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a picture inside it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.part")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}): choose another") from error


def _beside(grid_path: Path, number: int, prompt: str, seed: int) -> Path:
    """GRID-003-red-apple-seed17.png"""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:40].rstrip("-")
    return grid_path.with_name(f"{grid_path.stem}-{number:03d}-{words}-seed{seed}.png")


def _columns(count: int, number: int) -> int:
    """A row a prompt; single pictures of several prompts make a square."""
    return number if number > 1 else math.ceil(math.sqrt(count))
