"""Moving squares with captions, a linear tokenizer and a generator, small enough for tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from zoo.data.latents import fingerprint
from zoo.data.writer import VideoWriter
from zoo.nets.pca import BlockPCA, PCAConfig
from zoo.nets.video_dit import VideoDiT
from zoo.nets.video_dit_config import VideoDiTConfig
from zoo.text import TextStates
from zoo.video_pipeline import VideoPipeline

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230)}
SIZE = 32


class WordStates:
    """A text encoder of noise: a state a prompt, its own; zeros for the empty one."""

    dim, tokens = 24, 2

    def __call__(self, prompts: Sequence[str]) -> TextStates:
        states = torch.zeros(len(prompts), self.tokens, self.dim)
        for state, prompt in zip(states, prompts, strict=True):
            if prompt:
                seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4])
                state.copy_(torch.randn(state.shape, generator=torch.Generator().manual_seed(seed)))
        return TextStates(states, [0] * len(prompts))


def write_films(folder: Path, *, frames: int = 21, names: Sequence[str] = tuple(COLOURS)) -> Path:
    """A film a colour, squares that move right, with captions.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for name in names:
        path = folder / f"{name}_square.mp4"
        with VideoWriter(path, width=SIZE, height=SIZE, rate=Fraction(25, 2), lossless=True) as out:
            for t in range(frames):
                picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
                picture[8:20, (4 + t) % 20 : (4 + t) % 20 + 12] = COLOURS[name]
                out.write(picture)
        lines.append(json.dumps({"file": path.name, "text": f"{name} square"}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def tokenizer(*, channels: int = 4, seed: int = 0, measured: bool = True) -> BlockPCA:
    """A linear tokenizer, fitted on noise around the squares' colours, with statistics."""
    generator = torch.Generator().manual_seed(seed)
    net = BlockPCA(PCAConfig(latent_channels=channels, compression=(4, 8, 8)))
    coarse = torch.rand(8, 3, 5, 8, 8, generator=generator) * 2 - 1
    clips = torch.nn.functional.interpolate(coarse, size=(17, SIZE, SIZE), mode="nearest")
    net.fit(list(clips.split(2)))
    if measured:
        codes = torch.cat([net.encode(c).mean.movedim(1, 0).flatten(1) for c in clips.split(2)], 1)
        net.latent_mean.copy_(codes.mean(1))
        net.latent_std.copy_(codes.std(1))
    return net


def generator(**changes: object) -> VideoDiT:
    """A small generator whose every parameter matters."""
    values: dict[str, object] = {
        "latent_channels": 4,
        "dim": 24,
        "depth": 2,
        "heads": 2,
        "text_dim": WordStates.dim,
        "latent_size": (4, 4),
    }
    torch.manual_seed(0)
    net = VideoDiT(VideoDiTConfig(**(values | changes)))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def pipeline(**changes: object) -> VideoPipeline:
    """Generator and tokenizer, bound to each other."""
    net, decoder = generator(**changes), tokenizer()
    weights = fingerprint(decoder)[1]
    net.bind(decoder, name="dir:squares", size=(4, 4), rate=12.5, weights=weights)
    return VideoPipeline(net, decoder, text=WordStates())
