"""The tokenizers' half of `zoo benchmark speed`: ours, alone or in turn with another side.

The other side is the released CDT (--against), or our own plain calls where ours are compiled.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable
from itertools import product
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from zoo.cli import say
from zoo.cli.benchmarks.speed import DTYPES
from zoo.errors import UserError


def measure(names: list[str], options: Any, dtypes: list[str]) -> list[dict[str, Any]]:
    """Every model, dtype, size and batch; tables are shown as they are made."""
    sizes = [video_size(text) for text in options.size or ["17x128x128"]]
    if options.against is not None and not (options.against / "model" / "cdt.py").is_file():
        raise UserError(
            f"--against {options.against} holds no model/cdt.py: give a checkout of "
            "github.com/ali-vilab/CDT"
        )
    for name, size in product(names, sizes):
        _check(name, size, options)
    runs = []
    for name, dtype, size, batch in product(names, dtypes, sizes, options.batch):
        numbers = str(DTYPES[dtype]).removeprefix("torch.")
        config = {"model": name, "dtype": numbers, "size": size, "batch": batch}
        runs.append(_measure(config, options))
        _show(runs[-1])
    return runs


def video_size(text: str) -> tuple[int, int, int]:
    """Frames, height and width of "17x128x128"."""
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text) is None:
        raise UserError(f"--size {text}: give FRAMESxHEIGHTxWIDTH for tokenizers, as 17x128x128")
    frames, height, width = map(int, text.split("x"))
    return frames, height, width


def _check(name: str, size: tuple[int, int, int], options: Any) -> None:
    from zoo.convert.cdt import to_reference
    from zoo.nets.cdt import CDT

    net = _shapes_of(name)
    if options.against is not None:
        if not isinstance(net, CDT):
            raise UserError(f"--against times CDTs, and {name} is none: leave it out")
        to_reference(net)
    elif any(part.startswith("train") for part in options.parts) and not isinstance(net, CDT):
        raise UserError(f"--parts train times CDTs, and {name} is none: leave it out")
    time, height, width = net.compression
    if (size[0] - 1) % time or size[1] % height or size[2] % width:
        raise UserError(
            f"--size {'x'.join(map(str, size))} doesn't fit {name}: give 1 + a multiple of {time} "
            f"frames of multiples of {height} by {width}"
        )


def _shapes_of(name: str) -> Any:
    """The net without data, for presets; else the net itself."""
    from zoo.hub import load
    from zoo.registry import create, presets

    with torch.device("meta"):
        return create(name).eval() if name in presets() else load(name)


def _flops(name: str, size: tuple[int, int, int], batch: int) -> dict[str, int | None]:
    """Operations of encode and decode, by torch's counter; 2 for a multiply-add."""
    from zoo.registry import presets

    if name not in presets():
        return {}  # weights are on their device: only nets without data are counted
    net = _shapes_of(name)
    time, height, width = net.compression
    latents = (1 + (size[0] - 1) // time, size[1] // height, size[2] // width)
    with torch.device("meta"):
        x = torch.empty(batch, 3, *size)
        z = torch.empty(batch, net.latent_channels, *latents)
        counts: dict[str, int | None] = {}
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: net.train().encode(x),
            "decode": lambda: net.decode(z),
        }
        for part, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            counts[part] = counter.get_total_flops()
    return counts


def _measure(config: dict[str, Any], options: Any) -> dict[str, Any]:
    from zoo.metrics.tokenizer_speed import Worker

    label = f"{config['model']} {'x'.join(map(str, config['size']))} {config['dtype']}"
    sides: dict[str, dict[str, Any]] = {"ours": {"checkout": "", "compiled": options.compile}}
    if options.against:
        sides["released"] = {"checkout": str(options.against.resolve()), "compiled": None}
    elif options.compile:
        sides["plain"] = {"checkout": "", "compiled": None}
    parts: dict[str, list[str]] = {
        part: [s for s in sides if s == "ours" or part != "train-checkpointing"]
        for part in options.parts
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar,
    ):
        task = bar.add_task(label, total=sum(map(len, parts.values())) * (options.repetitions + 1))
        common = config | {"device": options.device, "out": folder}
        seconds: dict[str, dict[str, list[float]]] = {}
        busy: dict[str, dict[str, list[float]]] = {}
        memory: dict[str, dict[str, int | None]] = {part: {} for part in parts}
        workers = {s: Worker(common | side) for s, side in sides.items()}
        try:
            outputs = _interleaved(
                workers, parts, options.repetitions, seconds, busy, lambda: bar.advance(task)
            )
        finally:
            for worker in workers.values():
                worker.close()
        for side, settings in sides.items():
            worker = Worker(common | settings, exact_memory=True)
            try:
                for part in (p for p, measured in parts.items() if side in measured):
                    memory[part][side] = worker.ask(f"memory {part}")["bytes"]
                    bar.advance(task)
            finally:
                worker.close()
        counted = _flops(config["model"], config["size"], config["batch"])
        return config | {
            # the folder of another machine says nothing: its name alone
            "against": options.against.resolve().name if options.against else None,
            "compiled": options.compile is not None,
            "parts": {
                part: {
                    "seconds": seconds[part],
                    "median_seconds": {s: median(v) for s, v in seconds[part].items()},
                    "ratios": _ratios(seconds[part]),
                    "processor_seconds": busy[part],
                    "processor_ratios": _ratios(busy[part]),
                    "flops": counted.get(part),
                    "peak_memory_bytes": memory[part],
                    "output_difference": _difference(outputs[part]),
                }
                for part in parts
            },
        }


def _interleaved(
    workers: dict[str, Any],
    parts: dict[str, list[str]],
    repetitions: int,
    seconds: dict[str, dict[str, list[float]]],
    busy: dict[str, dict[str, list[float]]],
    report: Any,
) -> dict[str, dict[str, str]]:
    """Fill `seconds` and, on a CPU, `busy`, the processor's; files of the outputs.

    Sides take turns, and who begins changes each time.
    """
    outputs: dict[str, dict[str, str]] = {}
    for part, sides in parts.items():
        seconds[part], outputs[part] = {side: [] for side in sides}, {}
        busy[part] = {side: [] for side in sides}
        for repetition in range(repetitions):
            for side in sides[:: 1 if repetition % 2 else -1]:
                answer = workers[side].ask(f"seconds {part}")
                outputs[part][side] = answer["output"]
                seconds[part][side].append(answer["seconds"])
                if answer["processor_seconds"] is not None:
                    busy[part][side].append(answer["processor_seconds"])
                report()
    return outputs


def _other(sides: Iterable[str]) -> str | None:
    """The side that ours is compared with."""
    return next((side for side in sides if side != "ours"), None)


def _ratios(seconds: dict[str, list[float]]) -> list[float]:
    """How many times as fast ours is, repetition by repetition."""
    other = _other(seconds)
    if other is None or not seconds[other]:
        return []
    return [b / a for a, b in zip(seconds["ours"], seconds[other], strict=True)]


def _difference(outputs: dict[str, str]) -> dict[str, float] | None:
    """Largest and root-mean-square difference, and the deviation of the other side's output."""
    other = _other(outputs)
    if other is None:
        return None
    ours, its = (torch.load(outputs[s], weights_only=True) for s in ("ours", other))
    error = ours - its
    return {
        "max": float(error.abs().max()),
        "rms": float(error.square().mean().sqrt()),
        "deviation": float(its.std()),
    }


def _show(run: dict[str, Any]) -> None:
    other = _other(next(iter(run["parts"].values()))["seconds"])
    title = f"{run['model']}, {'x'.join(map(str, run['size']))}, {run['dtype']}, "
    title += f"batch {run['batch']}" + (", ours compiled" if run["compiled"] else "")
    title += f", it: {other}" if other else ""
    table = Table("part", "ours s", "MB above weights", "TFLOPs", title=title)
    if other:
        for column in ("its s", "its MB", "times as fast (range)", "by processor's seconds"):
            table.add_column(column)
        table.add_column("memory")
        table.add_column("difference")
    for part, row in run["parts"].items():
        peak = row["peak_memory_bytes"]
        cells = [part, f"{row['median_seconds']['ours']:.2f}", _megabytes(peak.get("ours"))]
        cells.append(f"{row['flops'] / 1e12:.2f}" if row["flops"] else "")
        if other and row["ratios"]:
            cells += [
                f"{row['median_seconds'][other]:.2f}",
                _megabytes(peak[other]),
                _spread(row["ratios"]),
                _spread(row["processor_ratios"]),
                f"{peak['ours'] / peak[other]:.0%}" if peak[other] else "",
                f"{row['output_difference']['max']:.1e}",
            ]
        table.add_row(*cells)
    Console(width=120).print(table)
    say(f"medians of {len(next(iter(run['parts'].values()))['seconds']['ours'])} repetitions")


def _spread(ratios: list[float]) -> str:
    if not ratios:
        return ""
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _megabytes(count: int | None) -> str:
    return "not counted here" if count is None else f"{count / 1e6:.0f}"
