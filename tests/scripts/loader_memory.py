"""Does a loader's memory grow? Megabytes of a training's loading process over many clips.

    python -m tests.scripts.loader_memory FOLDER --clips 10000 --out loader_memory.json

Films of FOLDER are cut into shards; the one worker of a `ZooDataModule` reads clips of 17x128x128
from them, in the order of its epochs. The first tenth is not counted: caches fill there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from zoo.data.datamodule import ZooDataModule
from zoo.data.shard_source import ShardSource
from zoo.data.shard_writer import ShardSettings, shard_folder
from zoo.metrics.loader_speed import resident_mb

BATCH = 4


def measure(folder: Path, *, clips: int, points: int = 20) -> dict[str, object]:
    """Read `clips` clips; the resident megabytes at `points` places."""
    rows: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        shard_folder(folder, Path(scratch), ShardSettings())
        source = ShardSource(scratch, frames=17, size=128, max_broken=1.0)
        data = ZooDataModule(source, batch_size=BATCH, num_workers=1)
        data.prepare_data()
        loader: Any = data.train_dataloader()
        step = max(1, clips // points)
        for number, _ in enumerate(chain.from_iterable(repeat(loader)), start=1):
            read = number * BATCH
            if read // step > len(rows):
                rows.append((read, round(resident_mb(loader._iterator._workers[0].pid), 1)))
            if read >= clips:
                break
        del loader
    steady = [mb for number, mb in rows if number > clips / 10]
    return {
        "clips": clips,
        "resident_mb": rows,
        "growth_mb": round(steady[-1] - steady[0], 1),
        "largest_mb": max(steady),
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
