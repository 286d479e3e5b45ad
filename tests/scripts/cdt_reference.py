"""Key lists and goldens of the released CDT, made on a checkout of its code (none is kept here).

    git clone https://github.com/ali-vilab/CDT
    python tests/scripts/cdt_reference.py CDT          # writes tests/convert/data/*

One reference net a process: its padding mode is a class attribute that the last constructor sets.
Weights are not stored: `seeded` draws each from its key, here and in the tests. Goldens are one
pass over a whole clip, caches empty, as the released code computes it before it cuts a clip up.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parents[1] / "convert" / "data"
NOISE_SEED, GAMMA = 7, 0.8
# constructor arguments of the released loaders, then those of narrow nets of the two kinds
SETTINGS: dict[str, dict[str, Any]] = {
    "cdt_base": {
        "space_down": [0, 1, 1, 1],
        "out_channels": 16,
        "latent_dim": 16,
        "context_dim": 128,
        "new_upsample": True,
    },
    "cdt_small": {
        "space_down": [1, 1, 1, 0],
        "out_channels": 3,
        "latent_dim": 16,
        "context_dim": 64,
    },
    "narrow_base": {
        "space_down": [0, 1, 1, 1],
        "out_channels": 5,
        "latent_dim": 4,
        "context_dim": 8,
        "new_upsample": True,
        "unet_dim": 8,
    },
    "narrow_small": {
        "space_down": [1, 1, 1, 0],
        "out_channels": 3,
        "latent_dim": 4,
        "context_dim": 8,
        "unet_dim": 8,
    },
}


def seeded(key: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of a reference key: a normal draw whose seed is the key, scaled by its fan-in.

    numpy's RandomState promises the same stream for ever.
    """
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    leaf = key.rpartition(".")[2]
    if leaf == "g":
        values = 1 + 0.2 * draw
    elif leaf in ("b", "bias"):
        values = 0.2 * draw
    else:
        values = draw / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values).float()


def golden_video() -> Tensor:
    """The clip that goldens encode, [1,3,9,24,8]: 24 rows don't halve evenly four times."""
    draw = np.random.RandomState(1).uniform(-1, 1, (1, 3, 9, 24, 8))
    return torch.from_numpy(draw).float()


def golden_noise() -> Tensor:
    """Noise of the decode, frame by frame, as the zoo's samplers draw it: [1,3,9,24,8]."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    frames = [torch.randn(1, 3, 24, 8, generator=generator) for _ in range(9)]
    return torch.stack(frames, dim=2)


def record(checkout: Path, name: str) -> None:
    """Write what one reference net says."""
    sys.path.insert(0, str(checkout))
    import importlib

    module = importlib.import_module("model.cdt")
    full = name.startswith("cdt_")
    with torch.device("meta" if full else "cpu"):
        net = module.ConditionedDiffusionTokenizer(**SETTINGS[name]).eval()
    state = net.state_dict()
    DATA.mkdir(parents=True, exist_ok=True)
    if full:
        keys = {key: list(tensor.shape) for key, tensor in sorted(state.items())}
        text = json.dumps(keys, separators=(",", ":")).encode()
        (DATA / f"{name}.keys.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))
        return
    net.load_state_dict({k: seeded(k, tuple(v.shape)) for k, v in state.items()}, strict=True)
    context, diffusion = net.model.context_fn, net.model
    with torch.no_grad():
        mean, moments = context.encode(golden_video())
        context.clear_cache()
        module.CLIP_FIRST_CHUNK = True  # the whole clip is one chunk
        results = {"mean": mean, "logvar": moments.chunk(2, dim=1)[1]}
        for steps in (1, 4):
            x = GAMMA * golden_noise()
            for number in reversed(range(steps)):
                time = torch.full((1,), number, dtype=torch.long)
                x = diffusion.diffusion_decode(mean, sample_steps=steps, init=x, time=time)
                context.clear_cache()
                net.model.denoise_fn.clear_cache()
            results[f"decode{steps}"] = x
    for key, value in results.items():
        print(f"{name} {key} {tuple(value.shape)} std {value.std():.3f}")
    np.savez_compressed(DATA / f"{name}.npz", **{k: v.numpy() for k, v in results.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="folder of the released code")
    parser.add_argument("--only", choices=SETTINGS, help="record one net in this process")
    options = parser.parse_args()
    if options.only:
        record(options.checkout.resolve(), options.only)
        return
    for name in SETTINGS:
        command = [sys.executable, __file__, str(options.checkout), "--only", name]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
