"""`zoo benchmark plan`: what a training run needs, before anything is rented."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from zoo.cli import Parser, say
from zoo.errors import UserError

EXAMPLES = """examples:
  zoo benchmark plan --model cdt_base --size 17x256x256 --gpus 64
  zoo benchmark plan --model klvae_video_small --size 17x128x128 --gpus 8 --batch 4 --strategy fsdp2

Computed on tensors without data, in a minute, on any machine. Memory leaves out LPIPS, the CUDA
context, the allocator's gaps and DDP's buckets (as large as the gradients). Days are FLOPs divided
by --tflops, which is an assumption, not a measurement.
"""


def main(arguments: Sequence[str]) -> int:
    """Plan; see EXAMPLES."""
    parser = Parser(
        prog="zoo benchmark plan",
        description="Memory, FLOPs, data rate and days of training a tokenizer.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--model", required=True, help="a preset of the families cdt and kl_vae")
    parser.add_argument("--size", required=True, help="frames x height x width, as 17x256x256")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--strategy", choices=("ddp", "fsdp2"), default="ddp")
    parser.add_argument("--batch", type=int, default=1, help="clips a GPU and step (default 1)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--clips", type=float, default=1e7, help="to train on (default 1e7)")
    parser.add_argument(
        "--tflops", type=float, default=400.0, help="TFLOP/s a GPU keeps up (default 400)"
    )
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    shape = re.fullmatch(r"(\d+)x(\d+)x(\d+)", options.size)
    if shape is None or min(map(int, shape.groups())) < 1:
        raise UserError(f"--size {options.size}: give frames x height x width, as 17x256x256")
    for name in ("gpus", "batch", "clips", "tflops"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name} {getattr(options, name)}: give a number above 0")
    frames, height, width = map(int, shape.groups())
    _check(options.model, frames)
    from zoo.metrics.training_cost import step_cost

    cost = step_cost(
        options.model,
        frames=frames,
        size=(height, width),
        batch=options.batch,
        checkpointing=options.checkpointing,
        precision=options.precision,
    )
    state = cost.state(options.strategy, options.gpus)
    seconds = cost.flops / (options.tflops * 1e12)
    clips_per_second = options.batch * options.gpus / seconds
    result = {
        **asdict(cost),
        "state": state,
        "peak": cost.memory(options.strategy, options.gpus),
        "seconds_a_step": seconds,
        "steps": options.clips / (options.batch * options.gpus),
        "data_bytes_per_second": clips_per_second * 3 * frames * height * width,
        "days": options.clips / clips_per_second / 86400,
        "assumed_tflops": options.tflops,
    }
    gigabytes = {f"{name}, float32": n for name, n in state.items()}
    gigabytes["activations kept for the backward pass"] = cost.kept
    gigabytes["transient at its peak"] = cost.transient
    table = Table(
        "on each GPU",
        "GB",
        title=f"{options.model}, {cost.parameters / 1e6:.2f} M parameters, {options.batch} x "
        f"{options.size}, {options.precision}, {options.gpus} GPUs, {options.strategy}",
    )
    for name, count in gigabytes.items():
        table.add_row(name, f"{count / 1e9:.2f}")
    table.add_row("together", f"{cost.memory(options.strategy, options.gpus) / 1e9:.2f}")
    Console().print(table)
    say(f"{cost.flops / 1e12:.2f} TFLOPs a step and GPU, {seconds:.3f} s at the assumed rate")
    say(f"{result['steps']:.3g} steps for {options.clips:.3g} clips: {result['days']:.2f} days")
    say(
        f"data: {clips_per_second:.1f} clips a second, {result['data_bytes_per_second'] / 1e6:.0f} "
        f"MB/s of pixels in all, {clips_per_second / options.gpus:.2f} clips/s on each GPU"
    )
    if options.out is not None:
        from zoo.cli.benchmarks.files import write_text

        write_text(options.out, json.dumps(result, indent=2) + "\n")
        say(str(options.out))
    return 0


def _check(name: str, frames: int) -> None:
    from zoo.hub import list_models
    from zoo.registry import presets

    trained = [*list_models(family="cdt"), *list_models(family="kl_vae")]
    if name in presets() and name not in trained:
        raise UserError(f"--model {name}: plan knows the families cdt and kl_vae, as cdt_base")
    if name not in presets():
        from zoo.errors import closest

        known = closest(name, [n for n in trained if n in presets()])
        raise UserError(f"unknown model '{name}': did you mean {', '.join(known)}?")
    if frames == 1 or not name.startswith("klvae_image"):
        return
    raise UserError(f"--size with {frames} frames: {name} is trained on pictures, give 1")
