"""`zoo generate` with a film as output: films of prompts, of any length."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zoo.cli import Parser, say
from zoo.cli.device import checked_device
from zoo.cli.film_options import parse_rate, parse_size, progress_bar
from zoo.cli.prompts import given_prompts
from zoo.errors import UserError

if TYPE_CHECKING:
    from zoo.video_pipeline import VideoPipeline

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".gif")
EXAMPLES = """examples:
  zoo generate "woman running" --model dir:runs/emoji_cdt/export --frames 33 -o out.mp4
  zoo generate "rainbow" "red heart" --model dir:runs/emoji_cdt/export --number 4 -o out/films.gif
  zoo generate "rainbow" --model dir:runs/emoji_cdt/export --frames 4001 -o long.mp4

A film is made chunk by chunk in constant memory, whatever its length. A single one gets the name
given; several get their number, prompt and seed into theirs. NAME.png beside it shows the first,
middle and last frame of each, a row a film. The same seed gives the same film.
"""


def wanted(arguments: Sequence[str]) -> bool:
    """Whether the output named is a film, or an option is asked for that only films have."""
    for place, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option == "--frames":
            return True
        if option in ("-o", "--output"):
            value = value if equals else (arguments[place + 1 : place + 2] or [""])[0]
            if Path(value).suffix.lower() in SUFFIXES:
                return True
    return False


def main(arguments: Sequence[str]) -> int:
    """Generate films; see EXAMPLES."""
    parser = Parser(prog="zoo generate", description="Films of prompts.", epilog=EXAMPLES)
    parser.add_argument("prompt", nargs="*", help="what to show")
    parser.add_argument("--prompts", type=Path, help="file: one prompt a line, or .jsonl")
    parser.add_argument("--model", required=True, help="NAME, or dir:PATH")
    parser.add_argument("--tokenizer", help="NAME or dir:PATH (default: the generator's own)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="film: .mp4, .gif, ...")
    parser.add_argument("--frames", type=int, default=17, help="of each film (default 17)")
    parser.add_argument("--number", type=int, default=1, help="films a prompt (default 1)")
    parser.add_argument("--seed", type=int, help="of the first film; the others count up")
    parser.add_argument("--steps", type=int, default=30, help="passes a chunk (default 30)")
    parser.add_argument("--guidance", type=float, default=3.0, help="1: none (default 3)")
    parser.add_argument("--shift", type=float, default=1.0, help="over 1: more steps near noise")
    parser.add_argument("--size", type=parse_size, metavar="WxH", help="default: as trained")
    parser.add_argument("--fps", type=parse_rate, help="default: that of the training films")
    parser.add_argument("--batch", type=int, default=4, help="films at once (default 4)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    prompts = given_prompts(options, what="film")
    for name in ("number", "batch"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: give at least 1")
    if options.output.suffix.lower() not in SUFFIXES:
        raise UserError(f"{options.output} is no film: end its name in {', '.join(SUFFIXES)}")
    checked_device(options.device)

    from zoo.diffusion.noise import check_seeds
    from zoo.diffusion.paths import sampling_times
    from zoo.video_pipeline import VideoPipeline

    pipeline = VideoPipeline.from_pretrained(
        options.model, tokenizer=options.tokenizer, device=options.device
    )
    # mistakes are said before any work
    pipeline.count(options.frames)
    size = None if options.size is None else (options.size[1], options.size[0])
    pipeline.grid(size)
    sampling_times(options.steps, shift=options.shift)
    _check_output(options.output)

    jobs = [text for text in prompts for _ in range(options.number)]
    first = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    check_seeds(range(first, first + len(jobs)))
    paths = _paths(options.output, jobs, first)
    rows: list[list[Any]] = []
    with progress_bar("frames", options.frames * len(jobs)) as bar:
        for begin in range(0, len(jobs), options.batch):
            texts = jobs[begin : begin + options.batch]
            frames = pipeline.films(
                texts,
                frames=options.frames,
                seeds=[first + begin + i for i in range(len(texts))],
                size=size,
                steps=options.steps,
                guidance=options.guidance,
                shift=options.shift,
            )
            rows += _write(
                pipeline, frames, paths[begin : begin + len(texts)], options, size, bar, begin
            )
    for path in paths:
        say(str(path))
    _save_sheet(rows, options.output.with_suffix(".png"))
    say(str(options.output.with_suffix(".png")))
    return 0


def _write(
    pipeline: VideoPipeline,
    pieces: Iterator[torch.Tensor],
    paths: list[Path],
    options: Any,
    size: tuple[int, int] | None,
    bar: Any,
    begin: int,
) -> list[list[Any]]:
    """Write films that are made together; returns each one's first, middle and last frame."""
    from zoo.data.transforms import to_uint8

    _, height, width = pipeline.pixels(size)
    rate = options.fps or Fraction(pipeline.net.config.rate).limit_denominator(1001)
    shown = (0, (options.frames - 1) // 2, options.frames - 1)
    kept: list[list[Any]] = [[] for _ in paths]
    done = 0
    with _writers(paths, width=width, height=height, rate=rate) as writers:
        for piece in pieces:
            for frame in to_uint8(piece).permute(2, 0, 3, 4, 1).cpu().numpy():
                for writer, own, picture in zip(writers, kept, frame, strict=True):
                    writer.write(picture)
                    own += [np.array(picture)] * shown.count(done)
                done += 1
            bar.to(begin * options.frames + done * len(paths))
    return kept


@contextmanager
def _writers(paths: list[Path], *, width: int, height: int, rate: Fraction) -> Iterator[list[Any]]:
    from zoo.data.writer import open_writer

    with ExitStack() as stack:
        yield [
            stack.enter_context(open_writer(path, width=width, height=height, rate=rate))
            for path in paths
        ]


def _save_sheet(rows: list[list[Any]], path: Path) -> None:
    from PIL import Image

    from zoo.data.sheet import grid, save_png

    save_png(grid([Image.fromarray(picture) for row in rows for picture in row], 3), path)


def _check_output(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a film inside it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}): choose another") from error


def _paths(output: Path, jobs: list[str], first: int) -> list[Path]:
    """NAME.mp4 for one film, else NAME-003-red-heart-seed17.mp4."""
    if len(jobs) == 1:
        return [output]
    paths = []
    for number, prompt in enumerate(jobs):
        words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:40].rstrip("-")
        name = f"{output.stem}-{number:03d}-{words}-seed{first + number}{output.suffix}"
        paths.append(output.with_name(name))
    return paths
