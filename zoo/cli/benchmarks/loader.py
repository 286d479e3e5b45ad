"""`zoo benchmark speed --loader`: what a clip costs the sources, beside plain loops."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from zoo.cli import say
from zoo.cli.benchmarks.files import machine, write_text
from zoo.errors import UserError

MADE_UP = "made-up"
FRAMES = 17
PLAIN, SAME = "plain PyAV loop", "plain PyAV loop, VideoFolder's clips"


def measure(
    data: str, *, size: int, clips: int, repetitions: int, workers: list[int], out: Path
) -> int:
    """Compare loaders on the films of a folder, or on one that is made up.

    Raises:
        UserError: there is no such folder.
    """
    from zoo.data.decoding import why_not_torchcodec
    from zoo.data.shard_source import ShardSource
    from zoo.data.shard_writer import ShardSettings, shard_folder
    from zoo.data.sources import VideoFolder
    from zoo.metrics import loader_speed

    if clips < 1 or size < 1 or min(workers) < 1:
        counts = " ".join(map(str, workers))
        raise UserError(
            f"--clips {clips}, --loader-size {size}, --loader-workers {counts}: give at least 1"
        )
    if not hasattr(os, "fork"):
        raise UserError("--loader forks its workers: run it on Linux or macOS")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="zoo-loader-") as scratch:
        folder = Path(data).expanduser()
        if data == MADE_UP:
            folder = Path(scratch) / "films"
            folder.mkdir()
            loader_speed.make_long_film(folder / "long.mp4")
        wanted: dict[str, Any] = {"frames": FRAMES, "size": size, "max_broken": 1.0}
        films = VideoFolder(str(folder), cache_gb=0, **wanted)
        films.prepare()
        shard_folder(folder, Path(scratch) / "shards", ShardSettings())
        shards = ShardSource(str(Path(scratch) / "shards"), decoder="pyav", **wanted)
        each, same = loader_speed.in_turn(films), loader_speed.places_of(films)
        loads = {
            PLAIN: loader_speed.plain_pyav(each, frames=FRAMES, size=size),
            "ShardSource": loader_speed.of_source(shards),
            SAME: loader_speed.plain_pyav(same, frames=FRAMES, size=size),
            "VideoFolder, no cache": loader_speed.of_source(films),
        }
        if not (why := why_not_torchcodec()):
            loads["plain torchcodec loop"] = loader_speed.plain_torchcodec(
                each, frames=FRAMES, size=size
            )
            fast = ShardSource(str(Path(scratch) / "shards"), decoder="torchcodec", **wanted)
            loads["ShardSource, torchcodec"] = loader_speed.of_source(fast)
        cached = VideoFolder(str(folder), **wanted)
        cached.prepare()
        if cached._cached:
            loads["VideoFolder, frame cache"] = loader_speed.of_source(cached)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        timings = {}
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("loading", total=len(loads) * repetitions * len(workers))
            for count in workers:
                timings[count] = loader_speed.compare_loaders(
                    loads,
                    clips=clips,
                    repetitions=repetitions,
                    workers=count,
                    report=lambda: bar.advance(task),
                )
    heads = ("workers", "", "processor ms a clip", "x the plain loop (95 %)")
    table = Table(*heads, "clips/s of a worker", "MB after the first clip, at the end")
    rows: dict[str, dict[str, Any]] = {}
    for count, found in timings.items():
        rows[str(count)] = {}
        for name, timing in found.items():
            paired = name.startswith("VideoFolder")  # it draws by length, shards each film once
            plain = found[SAME if paired or name == SAME else PLAIN]
            ratio, low, high = timing.ratio_to(plain, paired=paired)
            rows[str(count)][name] = asdict(timing) | {"ratio_to_plain": [ratio, low, high]}
            table.add_row(
                str(count),
                name,
                f"{mean(timing.clip_ms):.1f}",
                f"{ratio:.2f} ({low:.2f} to {high:.2f})",
                f"{median(timing.clips_per_s):.1f}",
                f"{mean(timing.before_mb):.0f}, {mean(timing.after_mb):.0f}",
            )
    Console().print(table)
    if why:
        say(f"torchcodec: not measured ({why})")
    result = {
        "schema": 2,
        "data": data,
        "frames": FRAMES,
        "size": size,
        "clips": clips,
        "machine": machine("cpu"),
        "workers": rows,
    }
    write_text(out / "loader.json", json.dumps(result, indent=2) + "\n")
    say(str(out / "loader.json"))
    return 0
