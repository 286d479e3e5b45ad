"""Does a loader's memory grow? Megabytes of one process over many clips.

    python -m tests.scripts.loader_memory FOLDER --clips 10000 --out loader_memory.json

Films of FOLDER are cut into shards, clips of 17x128x128 are read by `ShardSource` in the order of
its epochs, as in a loading process of a training (`begin_worker`). The first tenth is not counted:
caches and buffers fill there.
In use is what malloc has handed out: a leak grows it, fragments grow the resident memory alone.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import tempfile
import time
from pathlib import Path

from zoo.data.datamodule import begin_worker
from zoo.data.shard_source import ShardSource
from zoo.data.shard_writer import ShardSettings, shard_folder
from zoo.metrics.loader_speed import of_source, resident_mb


class _Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use_mb() -> float:
    """Megabytes that malloc has handed out and not got back, in heaps and in maps of their own."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    found = libc.mallinfo2()
    return float(found.uordblks + found.hblkhd) / 1e6


def measure(folder: Path, *, clips: int, points: int = 20) -> dict[str, object]:
    """Read `clips` clips; the resident megabytes at `points` places."""
    begin_worker(0)
    rows, used = [], []
    with tempfile.TemporaryDirectory() as scratch:
        shard_folder(folder, Path(scratch), ShardSettings())
        load = of_source(ShardSource(scratch, frames=17, size=128, max_broken=1.0))
        began = time.process_time()
        for number in range(clips):
            load(number)
            if (number + 1) % max(1, clips // points) == 0:
                gc.collect()
                rows.append([number + 1, round(resident_mb(), 1)])
                used.append([number + 1, round(in_use_mb(), 1)])
        seconds = time.process_time() - began
    steady = [mb for number, mb in rows if number > clips / 10]
    return {
        "clips": clips,
        "resident_mb": rows,
        "in_use_mb": used,
        "growth_mb": round(steady[-1] - steady[0], 1),
        "largest_mb": max(steady),
        "cpu_ms_per_clip": round(1000 * seconds / clips, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = measure(options.folder, clips=options.clips)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
