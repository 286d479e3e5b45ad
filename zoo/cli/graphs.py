"""`zoo graphs`: tokenizers and UNets as ONNX or torch.export files that run without the zoo."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.cli import Parser, say
from zoo.cli.benchmarks.tokenizer_speed import video_size
from zoo.errors import RunError, UserError

if TYPE_CHECKING:
    from zoo.graphs import Graph

EXAMPLES = """examples:
  zoo graphs klvae_video_tiny.clips --size 17x128x128 -o graphs/        encode.onnx, decode.onnx
  zoo graphs cdt_tiny.clips --size 1x128x128 --chunk 1 -o stream/      a frame, then 4 at a time
  zoo graphs cdt_tiny.clips --size 17x128x128 --format torch -o pt2/   for torch.export.load
  zoo graphs tiue_tiny.emoji --steps 4 --tokens 20 -o unet/             TiUE's two halves

graphs.json beside the files says what goes in and comes out. A diffusion decoder's noise goes in.
"""
LIMIT = 1e-4
"""Largest difference from the net, as a share of the largest output."""


def main(arguments: Sequence[str]) -> int:
    """Write graphs and compare them with the net; see EXAMPLES."""
    parser = Parser(
        prog="zoo graphs",
        description="Write a net as graphs of one size, and compare each with the net.",
        epilog=EXAMPLES,
    )
    parser.add_argument("model", help="name of the zoo, dir:PATH or hf:ORG/REPO@REVISION")
    parser.add_argument("-o", "--out", required=True, help="new folder")
    parser.add_argument(
        "--size",
        help="frames x height x width (default 17x128x128); of a UNet's "
        "latents height x width (default: its own)",
    )
    parser.add_argument("--batch", type=int, default=1, help="clips or pictures at once")
    parser.add_argument(
        "--steps", type=int, help="sampling steps of a CDT (default 1), of a UNet's decoder (4)"
    )
    parser.add_argument("--chunk", type=int, help="write a stream's graphs, of so many latents")
    parser.add_argument("--tokens", type=int, default=77, help="of a UNet's prompt")
    parser.add_argument("--format", default="onnx", help="onnx or torch")
    options = parser.parse_args(arguments)
    from zoo.graphs import write
    from zoo.hub import load

    # it warns of each part of a graph that it doesn't fold
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    net = load(options.model, dtype=torch.float32)
    every, facts = _graphs(net, options)
    rows = write(every, options.out, facts=facts, format=options.format)
    for row in rows:
        told = "not compared: pip install onnxruntime" if row.error is None else f"{row.error:.1e}"
        say(f"{row.file}: largest difference from the net, by its largest output: {told}")
    worst = max(row.error or 0.0 for row in rows)
    if worst > LIMIT:
        raise RunError(f"a graph differs from its net by {worst:.1e}, over {LIMIT:.0e}")
    say(options.out)
    return 0


def _graphs(net: nn.Module, options: Namespace) -> tuple[list[Graph], dict[str, Any]]:
    from zoo.graphs import facts_of, graphs, unet_graphs
    from zoo.nets.tiue.unet import TiUEUNet
    from zoo.nets.tokenizer import Tokenizer

    if isinstance(net, Tokenizer):
        steps = 1 if options.steps is None else options.steps
        size = video_size(options.size or "17x128x128")
        made = graphs(net, size=size, batch=options.batch, steps=steps, chunk=options.chunk)
        return made, facts_of(net) | {"steps": steps}
    if not isinstance(net, TiUEUNet):
        raise UserError(
            f"{options.model} is a {type(net).__name__}: graphs are of tokenizers and UNets"
        )
    if options.chunk is not None:
        raise UserError(f"--chunk {options.chunk}: a UNet has no stream, leave it out")
    side: Any = net.config["sample_size"]
    text = options.size or (f"{side}x{side}" if isinstance(side, int) else "x".join(map(str, side)))
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*", text) is None:
        raise UserError(f"--size {text}: give HEIGHTxWIDTH of a UNet's latents, as 64x64")
    height, width = map(int, text.split("x"))
    steps = 4 if options.steps is None else options.steps
    made = unet_graphs(
        net, size=(height, width), batch=options.batch, steps=steps, tokens=options.tokens
    )
    return made, {"net": "TiUEUNet", "steps": steps}
