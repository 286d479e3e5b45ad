"""`zoo benchmark speed`: TiUE beside plain steps; tokenizers; loaders beside plain loops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn

from zoo.cli import Parser, say
from zoo.cli.benchmarks import loader
from zoo.cli.benchmarks.files import machine, write_text
from zoo.cli.device import checked_device
from zoo.errors import UserError

PARTS = ("encode", "decode", "stream", "train", "train-checkpointing")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

if TYPE_CHECKING:
    from zoo.metrics.speed import Timing
    from zoo.nets.tiue.unet import TiUEUNet

EXAMPLES = """examples:
  zoo benchmark speed --models tiue_sd15 --plain-steps 1 4
  zoo benchmark speed --loader FILMS --clips 64
  zoo benchmark speed --models tiue_sd15 dir:runs/tiue --plain-steps 1 4 25 --batch 1 8 32 --compile

  zoo benchmark speed --models cdt_small cdt_base --size 17x128x128
  zoo benchmark speed --models cdt_small --against CHECKOUT --dtype fp32 bf16 --parts decode stream
  zoo benchmark speed --models cdt_small --parts stream --compile   # beside its plain calls

Presets run with random weights, which cost the same. Variants take turns in every repetition, so
ratios hold where seconds drift. Without --size a CPU measures 32x32 latents, a GPU the net's own,
tokenizers 17x128x128 pixels. --against runs code of a checkout of github.com/ali-vilab/CDT: each
side in a process of its own, with the same weights, noise and allocator settings.
"""


def main(arguments: Sequence[str]) -> int:
    """Measure; see EXAMPLES."""
    gpu = torch.cuda.is_available()
    parser = Parser(
        prog="zoo benchmark speed",
        description="FLOPs, latencies and memory of TiUE, plain sampling, tokenizers, loaders.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--models", nargs="+", help="presets, NAMES or dir:PATH")
    parser.add_argument("--loader", metavar="DATA", help="a folder of films, or made-up: 10 min")
    parser.add_argument("--loader-size", type=int, default=128, help="pixels of its clips' sides")
    parser.add_argument("--loader-workers", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--clips", type=int, default=32, help="of a worker and repetition")
    parser.add_argument("--plain-steps", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=4, help="TiUE's decoder passes (default 4)")
    parser.add_argument("--size", nargs="+", help="latents' side; tokenizers: FRAMESxHxW of pixels")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="the released CDT's code")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["encode", "decode", "stream"])
    parser.add_argument("--dtype", nargs="+", choices=tuple(DTYPES), help="default fp32; GPU bf16")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--repetitions", type=int, default=20 if gpu else 3)
    parser.add_argument(
        "--compile",
        nargs="?",
        const="inductor",
        metavar="BACKEND",
        help="torch.compile; of streams on CUDA also CUDA graphs",
    )
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    options = parser.parse_args(arguments)
    if (options.models is None) == (options.loader is None):
        raise UserError("give either --models, or --loader with a folder of films")
    if options.loader is not None:
        _check(options)
        return loader.measure(
            options.loader,
            size=options.loader_size,
            clips=options.clips,
            repetitions=options.repetitions,
            workers=options.loader_workers,
            out=options.out,
        )
    checked_device(options.device)
    _check(options)
    cpu = torch.device(options.device).type == "cpu"
    dtypes = options.dtype or ["fp32" if cpu else "bf16"]
    if cpu and "fp16" in dtypes:
        raise UserError("--dtype fp16 is not for a CPU: use fp32 or bf16, or a GPU")
    # every name is looked up before the first second is spent
    names = [_known(name) for name in options.models]
    tokenizers = [name for name in names if _is_tokenizer(name)]
    if tokenizers and len(tokenizers) < len(names):
        raise UserError(f"--models mixes tokenizers ({tokenizers[0]}) and UNets: run them apart")
    if tokenizers:
        if options.compile and options.parts != ["stream"]:
            raise UserError("--compile is for a tokenizer's streaming step: give --parts stream")
        from zoo.cli.benchmarks.tokenizer_speed import measure

        return _write(measure(tokenizers, options, dtypes), options)
    if options.against is not None:
        raise UserError(f"--against times CDTs, and {names[0]} is a UNet: leave it out")
    from zoo.metrics.speed import Case, Halves, flops, interleaved

    asked = [_side(text) for text in options.size or []]
    steps = sorted(set(options.plain_steps))
    variants = ["parallel", "sequential", *(f"plain {k}" for k in steps)]
    runs = []
    for name in names:
        net, own = _net(name, options.device)
        sizes = asked or [min(own, 32) if cpu else own]
        counted = {s: flops(net, size=s, steps=options.steps) for s in sorted({own, *sizes})}
        for dtype, size, batch in product(dtypes, sizes, options.batch):
            # not the net's own `to`, which warns of what doesn't concern it
            halves = Halves(nn.Module.to(net, DTYPES[dtype]), compiled=options.compile)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
                total = len(variants) * (options.repetitions + 1)
                task = bar.add_task(f"{name} {size}x{size} {dtype} batch {batch}", total=total)
                timings = interleaved(
                    variants,
                    halves,
                    Case.of(net, size=size, batch=batch),
                    steps=options.steps,
                    repetitions=options.repetitions,
                    report=lambda bar=bar, task=task: bar.advance(task),  # type: ignore[misc]
                )
            runs.append(
                {
                    "model": name,
                    "size": size,
                    "own_size": own,
                    "dtype": dtype,
                    "batch": batch,
                    "compiled": options.compile is not None,
                    "flops_plain_pass": counted[size][0],
                    "flops_tiue": counted[size][1],
                    "flops_own_size": counted[own],
                    "variants": _rows(timings, counted[size], options.steps),
                }
            )
            _show(runs[-1], options.steps)
    return _write(runs, options)


def _write(runs: list[dict[str, Any]], options: Any) -> int:
    result = {"schema": 1, "steps": options.steps, "machine": machine(options.device), "runs": runs}
    write_text(options.out / "speed.json", json.dumps(result, indent=2) + "\n")
    say(str(options.out / "speed.json"))
    return 0


def _check(options: Any) -> None:
    for name, values in (
        ("steps", [options.steps]),
        ("plain-steps", options.plain_steps),
        ("repetitions", [options.repetitions]),
        ("batch", options.batch),
    ):
        if min(values) < 1:
            raise UserError(f"--{name} {min(values)}: give at least 1")
    if max(options.steps, *options.plain_steps) > 999:
        raise UserError("--steps and --plain-steps: the schedule has 1000, give at most 999")


def _side(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--size {text}: give the side of a UNet's latents, as 64")
    return int(text)


def _known(name: str) -> str:
    from zoo.hub import find_folder
    from zoo.registry import presets

    if name not in presets():
        find_folder(name)
    return name


def _is_tokenizer(name: str) -> bool:
    from zoo.hub import find_folder, unet_folder
    from zoo.registry import presets

    if name in presets():
        return presets()[name].family != "tiue"
    folder = find_folder(name)
    # a folder that isn't one is told so by `load`
    return (folder / "config.json").is_file() and unet_folder(folder) is None


def _net(name: str, device: str) -> tuple[TiUEUNet, int]:
    """The net on its device, and the side of its own latents."""
    from zoo.hub import load
    from zoo.nets.tiue.unet import TiUEUNet
    from zoo.registry import create, presets

    with torch.device(device):
        net = create(name).eval() if name in presets() else load(name, device=device)
    if not isinstance(net, TiUEUNet):
        raise UserError(f"{name} is not a UNet: speed takes such as tiue_sd15 or dir:PATH")
    side: Any = net.config.sample_size
    return net.requires_grad_(False), side if isinstance(side, int) else max(side)


def _rows(timings: dict[str, Timing], counted: tuple[int, int], steps: int) -> dict[str, Any]:
    """Seconds, FLOPs and ratios to every plain variant, repetition by repetition."""
    plain = [v for v in timings if v.startswith("plain")]
    rows = {}
    for variant, timing in timings.items():
        passes = int(variant.split()[1]) if variant in plain else 0
        rows[variant] = {
            "encoder_passes": passes or 1,
            "decoder_passes": passes or steps,
            "flops": passes * counted[0] if passes else counted[1],
            "seconds": timing.seconds,
            "median_seconds": timing.median,
            "peak_memory_bytes": timing.peak,
            "ratios": {
                base: [a / b for a, b in zip(timing.seconds, timings[base].seconds, strict=True)]
                for base in plain
            },
        }
    return rows


def _show(run: dict[str, Any], steps: int) -> None:
    rows = run["variants"]
    plain = [v for v in rows if v.startswith("plain")]
    title = f"{run['model']}, {run['size']}x{run['size']} latents, {run['dtype']}, "
    title += f"batch {run['batch']}" + (", compiled" if run["compiled"] else "")
    table = Table("variant", "encoder + decoder", "GFLOPs a picture", "median s", title=title)
    for base in plain:
        table.add_column(f"x {base}")
    for variant, row in rows.items():
        table.add_row(
            variant,
            f"{row['encoder_passes']} + {row['decoder_passes']}",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['median_seconds']:.3f}",
            *(f"{median(row['ratios'][base]):.3f}" for base in plain),
        )
    Console().print(table)
    say("ratios are medians; every repetition:")
    for variant, base in product(rows, plain):
        if variant != base:
            each = " ".join(f"{r:.3f}" for r in rows[variant]["ratios"][base])
            say(f"  {variant} / {base}: {each}")
    one, tiue = run["flops_own_size"]
    own = run["own_size"]
    say(
        f"FLOPs at {own}x{own}: TiUE with {steps} decoders {tiue / 1e9:.1f} G, "
        f"{tiue / (steps * one):.4f} of {steps} plain steps, {tiue / one:.3f} of one"
    )
    if run["size"] != own:
        say(f"timed at {run['size']}x{run['size']}: --size {own} is the net's own")
