"""`zoo reconstruct`: a film through a tokenizer and back, in constant memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from zoo.cli import Parser, say
from zoo.cli.film_options import (
    add_decoder_options,
    add_net_options,
    add_range_options,
    check,
    chunk_of,
    film_range,
    load_tokenizer,
    progress_bar,
    said_loss,
    same_file,
    set_up,
)
from zoo.data.background import WriteBehind
from zoo.data.film import open_film
from zoo.data.latents import DTYPES
from zoo.data.writer import open_writer
from zoo.errors import RunError, UserError
from zoo.films import Score, reconstruct_film
from zoo.kernels.allocator import return_memory

EXAMPLES = """examples:
  zoo reconstruct in.mp4 --model dir:runs/quickstart/export -o out.mp4
  zoo reconstruct in.mp4 --model dir:runs/quickstart/export -o out.mp4 --side-by-side --steps 4
  zoo reconstruct in.mkv --model dir:runs/quickstart/export -o out.mkv --start 60 --duration 10
  zoo reconstruct frames/ --model dir:runs/quickstart/export -o back/ --tile 512
"""
_WRITE_BEHIND = 16  # frames that wait for the writer


def main(arguments: Sequence[str]) -> int:
    """Reconstruct a film; see EXAMPLES."""
    parser = Parser(
        prog="zoo reconstruct",
        description="Encode and decode a film (also a GIF, an image, a folder of images) of any "
        "length; frames, size, rate and sound are kept.",
        epilog=EXAMPLES,
    )
    parser.add_argument("film", type=Path)
    parser.add_argument("--model", required=True, help="NAME of trained weights, or dir:PATH")
    parser.add_argument("-o", "--output", type=Path, required=True, help="film to write")
    parser.add_argument("--side-by-side", action="store_true", help="original on the left")
    add_net_options(parser)
    add_decoder_options(parser)
    add_range_options(parser)
    options = parser.parse_args(arguments)
    check(options)
    if same_file(options.output, options.film):
        raise UserError(f"{options.output} is the film itself: name another output")
    return_memory()
    net = set_up(
        load_tokenizer(options.model, options.device), options, dtype=DTYPES[options.dtype]
    )
    with open_film(options.film, **film_range(options)) as film:
        info = film.info
        # opened before any work is done: an output that can't be written is said at once
        writer = open_writer(
            options.output,
            width=info.width * (2 if options.side_by_side else 1),
            height=info.height,
            rate=info.rate,
            like=info,
            audio_from=options.film if info.has_audio else None,
            start=options.start,
            duration=options.duration,
            lossless=options.lossless,
        )
        score = Score()
        pairs = reconstruct_film(
            net,
            film,
            chunk=chunk_of(options, net, info.width, info.height),
            steps=options.steps,
            seed=options.seed,
        )
        with (
            WriteBehind(writer, depth=_WRITE_BEHIND) as out,
            progress_bar(options.film.name, info.frames) as bar,
            closing(pairs),
        ):
            for original, result in pairs:
                score.add(original.rgb, result)
                pair = [original.rgb, result] if options.side_by_side else [result]
                out.write(np.concatenate(pair, axis=1), original.time)
                bar.to(score.frames)
    say(f"{score.frames} frames, PSNR {score.mean():.2f} dB")
    say(str(options.output))
    if loss := said_loss(film.broken, truncated=film.truncated):
        raise RunError(f"{options.film}: {loss}; {options.output} holds {score.frames} frames")
    return 0
