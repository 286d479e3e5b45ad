"""How much of a net's own speed is left when films are read and written around it.

    python tests/scripts/film_speed.py dir:runs/quickstart/export [--size 256x192] [--frames 96]

In one process, round after round: the net alone on frames in memory, encoding (encode_step) and
decoding (decode_step); then the same film from its file to shards and from shards to a film, as
the tools do it. Prints frames a second of each and the ratio, medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import zoo
from zoo.data.background import WriteBehind
from zoo.data.film import open_film
from zoo.data.latent_writer import LatentWriter
from zoo.data.latents import LatentFolder, Settings
from zoo.data.writer import VideoWriter, open_writer
from zoo.films import chunk_frames, decode_film, encode_film
from zoo.nets.tokenizer import Tokenizer


def write(path: Path, frames: int, width: int, height: int) -> Path:
    """A film of moving texture, about as costly to decode as a real one."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    texture = coarse.repeat(4, 0).repeat(4, 1)[:height, :width]
    with VideoWriter(path, width=width, height=height, rate=Fraction(25)) as writer:
        for t in range(frames):
            writer.write(np.roll(texture, (t, 2 * t), axis=(0, 1)))
    return path


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--size", default="256x192")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    net = zoo.load(options.model)
    assert isinstance(net, Tokenizer)
    net.requires_grad_(False)
    chunk = chunk_frames(net, width, height)
    settings = Settings.of(net, model=options.model)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder / "film.mp4", options.frames, width, height)
        with open_film(path) as film:
            frames = torch.from_numpy(np.stack([f.rgb for f in film])).movedim(-1, 0)[None]
        pixels = (frames.float() / 127.5 - 1).split(chunk, dim=2)
        latents: list[Tensor] = []
        generator = torch.Generator().manual_seed(0)

        def encode_alone() -> None:
            latents[:] = net.stream_encode(pixels)

        def decode_alone() -> None:
            for _ in net.stream_decode(latents, generator=generator):
                pass

        def encode(out: Path) -> None:
            with open_film(path) as film, LatentWriter(out, settings) as writer:
                encode_film(net, film, writer, key="film.mp4", chunk=chunk)

        def decode(out: Path) -> None:
            shards = LatentFolder(out)
            entry = shards.films[0]
            size = {"width": entry.width, "height": entry.height, "rate": entry.fraction}
            writer = open_writer(folder / "back.mp4", **size)  # type: ignore[arg-type]
            with WriteBehind(writer, depth=16) as behind:
                for frame in decode_film(net, shards, entry, chunk=chunk):
                    behind.write(frame.rgb, frame.time)

        for number in range(options.rounds + 1):
            out = folder / f"latents{number}"
            works = {
                "encode, net alone": encode_alone,
                "encode": lambda out=out: encode(out),
                "decode, net alone": decode_alone,
                "decode": lambda out=out: decode(out),
            }
            for what, work in works.items():
                taken = timed(work)
                if number:  # the first round warms up
                    seconds.setdefault(what, []).append(taken)
    middle = {what: statistics.median(values) for what, values in seconds.items()}
    print(
        f"{options.model}, {options.frames} frames of {options.size}, chunks of {chunk}, ", end=""
    )
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds")
    for what, taken in middle.items():
        print(f"{what}: {options.frames / taken:.2f} frames a second")
    for what in ("encode", "decode"):
        print(f"{what}: {middle[f'{what}, net alone'] / middle[what]:.3f} of the net's own speed")
    alone = middle["encode, net alone"] + middle["decode, net alone"]
    print(f"both: {alone / (middle['encode'] + middle['decode']):.3f}")


if __name__ == "__main__":
    main()
