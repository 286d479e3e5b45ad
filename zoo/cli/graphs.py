"""`zoo graphs`: a tokenizer as ONNX or torch.export files that run without the zoo."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from zoo.cli import Parser, say
from zoo.cli.benchmarks.tokenizer_speed import video_size
from zoo.errors import RunError, UserError

EXAMPLES = """examples:
  zoo graphs klvae_video_tiny.clips --size 17x128x128 -o graphs/        encode.onnx, decode.onnx
  zoo graphs cdt_tiny.clips --size 1x128x128 --chunk 1 -o stream/      a frame, then 4 at a time
  zoo graphs cdt_tiny.clips --size 17x128x128 --format torch -o pt2/   for torch.export.load

graphs.json beside the files says what goes in and comes out. A diffusion decoder's noise goes in.
"""
LIMIT = 1e-4
"""Largest difference from the net, as a share of the largest output."""


def main(arguments: Sequence[str]) -> int:
    """Write graphs and compare them with the net; see EXAMPLES."""
    parser = Parser(
        prog="zoo graphs",
        description="Write a tokenizer as graphs of one size, and compare each with the net.",
        epilog=EXAMPLES,
    )
    parser.add_argument("model", help="name of the zoo, dir:PATH or hf:ORG/REPO@REVISION")
    parser.add_argument("-o", "--out", required=True, help="new folder")
    parser.add_argument("--size", default="17x128x128", help="frames x height x width")
    parser.add_argument("--batch", type=int, default=1, help="clips at once")
    parser.add_argument("--steps", type=int, default=1, help="sampling steps of a CDT")
    parser.add_argument("--chunk", type=int, help="write a stream's graphs, of so many latents")
    parser.add_argument("--format", default="onnx", help="onnx or torch")
    options = parser.parse_args(arguments)
    from zoo.graphs import write
    from zoo.hub import load
    from zoo.nets.tokenizer import Tokenizer

    # it warns of each part of a graph that it doesn't fold
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    net = load(options.model, dtype=torch.float32)
    if not isinstance(net, Tokenizer):
        raise UserError(f"{options.model} is a {type(net).__name__}, not a tokenizer")
    rows = write(
        net,
        options.out,
        size=video_size(options.size),
        batch=options.batch,
        steps=options.steps,
        chunk=options.chunk,
        format=options.format,
    )
    for row in rows:
        told = "not compared: pip install onnxruntime" if row.error is None else f"{row.error:.1e}"
        say(f"{row.file}: largest difference from the net, by its largest output: {told}")
    worst = max(row.error or 0.0 for row in rows)
    if worst > LIMIT:
        raise RunError(f"a graph differs from its net by {worst:.1e}, over {LIMIT:.0e}")
    say(options.out)
    return 0
