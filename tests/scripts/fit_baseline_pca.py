"""Fit the PCA rows of the benchmark on a folder of films: the file that ships with the zoo.

python tests/scripts/fit_baseline_pca.py ../shared/data/clips/train zoo/benchmark/pca.safetensors

Fitted once, frozen with the protocol: all clips of the nine natural films, and the first clip of
every fifth fixed-camera scene (surv_*), most of whose blocks stand still. How many scenes take part
moves PCA-16 on package-clips between 26.46 dB (none) and 26.95 dB (all 150).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from zoo.benchmark.clips import ClipSet, files_below, folder_items
from zoo.benchmark.protocol import PROTOCOLS
from zoo.data.transforms import to_float
from zoo.nets.pca import BlockPCA, PCAConfig

root, out = Path(sys.argv[1]), Path(sys.argv[2])
films = files_below(root, (".mp4",))
scenes = [path for path in films if path.name.startswith("surv_")][::5]
films = [path for path in films if not path.name.startswith("surv_")]
rules = PROTOCOLS["zoo"]
count = 0


def pixels() -> Iterator[Tensor]:
    """Clips [1,3,T,H,W] in [-1,1]."""
    global count
    first = dataclasses.replace(rules, windows="first")
    for paths, protocol in ((films, rules), (scenes, first)):
        for clip in ClipSet("", "", "", protocol, folder_items(root, paths)).clips():
            count += 1
            yield to_float(clip.pixels)[None]


net = BlockPCA(PCAConfig(latent_channels=16)).fit(pixels())
names = ("first_mean", "first_basis", "mean", "basis")
save_file(
    {name: getattr(net, name).contiguous() for name in names},
    out,
    metadata={"films": ", ".join(p.name for p in (*films, *scenes)), "clips": str(count)},
)
print(f"{count} clips of {len(films) + len(scenes)} films: {out}, {out.stat().st_size} bytes")
