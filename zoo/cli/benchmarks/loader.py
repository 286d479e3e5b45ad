"""`zoo benchmark speed --loader`: clips a second of the sources, beside plain loops."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
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


def measure(data: str, *, size: int, clips: int, repetitions: int, out: Path) -> int:
    """Compare loaders on the films of a folder, or on one that is made up, in one process.

    Raises:
        UserError: there is no such folder.
    """
    from zoo.data.decoding import why_not_torchcodec
    from zoo.data.shard_source import ShardSource
    from zoo.data.shard_writer import ShardSettings, shard_folder
    from zoo.data.sources import VideoFolder
    from zoo.metrics import loader_speed

    if clips < 1 or size < 1:
        raise UserError(f"--clips {clips} and --loader-size {size}: give at least 1")
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
        paths = [file.path for file in films.usable]
        loads = {
            "plain PyAV loop": loader_speed.plain_pyav(paths, frames=FRAMES, size=size),
            "VideoFolder, no cache": loader_speed.of_source(films),
            "ShardSource": loader_speed.of_source(shards),
        }
        if not (why := why_not_torchcodec()):
            loads["plain torchcodec loop"] = loader_speed.plain_torchcodec(
                paths, frames=FRAMES, size=size
            )
            fast = ShardSource(str(Path(scratch) / "shards"), decoder="torchcodec", **wanted)
            loads["ShardSource, torchcodec"] = loader_speed.of_source(fast)
        cached = VideoFolder(str(folder), **wanted)
        cached.prepare()
        if cached._cached:
            loads["VideoFolder, frame cache"] = loader_speed.of_source(cached)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("loading", total=len(loads) * repetitions)
            timings = loader_speed.compare_loaders(
                loads, clips=clips, repetitions=repetitions, report=lambda: bar.advance(task)
            )
    plain = timings["plain PyAV loop"]
    rows = {}
    for name, timing in timings.items():
        ratios = [a / b for a, b in zip(timing.speeds, plain.speeds, strict=True)]
        rows[name] = {
            "clips_per_s": timing.speeds,
            "ratio_to_plain": ratios,
            "before_mb": timing.before_mb,
            "after_mb": timing.after_mb,
        }
    table = Table("one worker", "clips/s", "x the plain loop", "MB before, after")
    for name, timing in timings.items():
        ratio = sorted(rows[name]["ratio_to_plain"])[repetitions // 2]  # type: ignore[call-overload]
        memory = f"{timing.before_mb:.0f}, {timing.after_mb:.0f}"
        table.add_row(name, f"{timing.median:.1f}", f"{ratio:.2f}", memory)
    Console().print(table)
    if why:
        say(f"torchcodec: not measured ({why})")
    result = {
        "schema": 1,
        "data": data,
        "frames": FRAMES,
        "size": size,
        "clips": clips,
        "machine": machine("cpu"),
        "loaders": rows,
    }
    write_text(out / "loader.json", json.dumps(result, indent=2) + "\n")
    say(str(out / "loader.json"))
    return 0
