"""Small sets of shards for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zoo.data.batch import Sample
from zoo.data.shard_source import ShardSource
from zoo.data.storage import Patience

QUICK = Patience(attempts=2, timeout=5, pause=0.01)


def picture(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(path)


def opened(root: Path | str, **settings: object) -> ShardSource:
    given = {"frames": 1, "size": 16, "patience": QUICK, "max_broken": 0.0}
    source = ShardSource(str(root), **{**given, **settings})  # type: ignore[arg-type]
    source.prepare()
    return source


def same(one: Sample, two: Sample) -> bool:
    return one.key == two.key and torch.equal(one.pixels, two.pixels)
