"""Fit the PCA rows of the benchmark on a folder of films: the file that ships with the zoo.

python tests/scripts/fit_baseline_pca.py ../shared/data/clips/train zoo/benchmark/pca.safetensors

Fitted once; the bases are frozen with the protocol. Fixed-camera scenes (surv_*) are left out: most
of their blocks stand still, and package-clips' don't.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from zoo.benchmark.clips import ClipSet, files_below, folder_items
from zoo.benchmark.protocol import PROTOCOLS
from zoo.data.transforms import to_float
from zoo.nets.pca import BlockPCA, PCAConfig

root, out = Path(sys.argv[1]), Path(sys.argv[2])
films = [p for p in files_below(root, (".mp4",)) if not p.name.startswith("surv_")]
data = ClipSet("fit", "fit", "fit", PROTOCOLS["zoo"], folder_items(root, films))
clips = 0


def pixels():
    global clips
    for clip in data.clips():
        clips += 1
        yield to_float(clip.pixels)[None]


net = BlockPCA(PCAConfig(latent_channels=16)).fit(pixels())
names = ("first_mean", "first_basis", "mean", "basis")
save_file(
    {name: getattr(net, name).contiguous() for name in names},
    out,
    metadata={"films": ", ".join(p.name for p in films), "clips": str(clips)},
)
print(f"{clips} clips of {len(films)} films: {out}, {out.stat().st_size} bytes")
