"""`zoo data shard` and `zoo data inspect`."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zoo.cli import say
from zoo.errors import UserError

EXAMPLES = """examples:
  zoo data shard FOLDER -o shards/                          clips of about 10 s, 256 MB a shard
  zoo data shard FOLDER -o shards/ --clip-seconds 4 --workers 8
  zoo data inspect shards/                                  and their checksums
  zoo data inspect https://host/set/{000000..000009}.tar

Films are cut at key frames and their packets copied; where key frames are too far apart (more than
twice --clip-seconds) or the format doesn't allow a cut, clips are encoded anew. Sound is left out.
Captions are NAME.txt beside a file, or lines {"file": ..., "text": ...} of a captions.jsonl.
A stopped run goes on where it was when it is run again.
"""
_SHOWN = 20


def add_shard(parser: argparse.ArgumentParser) -> None:
    """The options of `shard`."""
    parser.add_argument("source", help="a folder of films or pictures, or one file")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder of the shards")
    parser.add_argument("--clip-seconds", type=float, default=10.0, help="0: films stay whole")
    parser.add_argument("--shard-mb", type=float, default=256.0, help="10^6 bytes a shard")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """The options of `inspect`."""
    parser.add_argument("folder", help="films, pictures or shards, also behind https:// or s3://")
    parser.add_argument("--sheet", type=Path, help="contact sheet (default runs/inspect/NAME.png)")


def shard(options: Any) -> int:
    """Write shards."""
    from zoo.data.shard_writer import ShardSettings, shard_folder

    settings = ShardSettings(clip_seconds=options.clip_seconds, shard_mb=options.shard_mb)
    with _bar() as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task({"plan": "reading", "shard": "writing"}[what])
            bar.update(tasks[what], completed=done, total=total)

        made = shard_folder(
            options.source, options.output, settings, workers=options.workers, report=report
        )
    size = sum(one["bytes"] for one in made["shards"]) / 1e6
    say(f"{made['samples']} samples in {len(made['shards'])} shards, {size:.1f} MB")
    if made["clips_copied"] or made["clips_encoded"]:
        say(f"{made['clips_copied']} clips copied, {made['clips_encoded']} encoded anew")
    _say_broken(made["broken"])
    say(str(options.output))
    return 0


def inspect(options: Any) -> int:
    """Say what is in a folder or in shards."""
    from zoo.data.inspection import inspect_data

    with _bar() as bar:
        task = bar.add_task("looking", total=None)
        found = inspect_data(
            options.folder,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    where = f"{found.shards} shards of " if found.shards else ""
    what = "samples" if found.shards else "files"
    say(f"{found.count} usable {what} in {where}{options.folder}, {found.size / 1e6:.1f} MB")
    if found.films:
        lengths = sorted(found.durations)
        say(f"{found.frames} frames, {found.seconds:.0f} s")
        low, middle, high = (lengths[int(share * (len(lengths) - 1))] for share in (0, 0.5, 1))
        say(f"seconds a film: {low:.2f} to {high:.2f}, median {middle:.2f}")
    sizes = sorted(found.sizes.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{w}x{h} ({count})" for (w, h), count in sizes[:8])
    say(f"sizes: {named}{' ...' if sizes[8:] else ''}")
    if found.captions:
        say(f"captions: {found.captions}")
    say(f"duplicates: {len(found.duplicates)} pairs look alike")
    for a, b, apart in found.duplicates[:_SHOWN]:
        say(f"  {a} and {b} ({apart} of 128 bits differ)")
    _more(len(found.duplicates))
    _say_broken(found.broken)
    if found.sheet is not None:
        name = re.sub(r"[^\w.-]+", "_", options.folder.rstrip("/").rpartition("/")[2]) or "sheet"
        path = options.sheet or Path("runs/inspect") / f"{name}.png"
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found.sheet.save(part, format="PNG")
            os.replace(part, path)
        except OSError as error:
            raise UserError(
                f"{path} can't be written ({error.strerror or error}): give another --sheet"
            ) from error
        finally:
            if part.parent.is_dir():
                part.unlink(missing_ok=True)
        say(f"contact sheet: {path}")
    return 0


def _say_broken(broken: dict[str, str]) -> None:
    for key, reason in list(broken.items())[:_SHOWN]:
        say(f"broken: {key}: {reason}")
    _more(len(broken))


def _more(count: int) -> None:
    if count > _SHOWN:
        say(f"  and {count - _SHOWN} more")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
