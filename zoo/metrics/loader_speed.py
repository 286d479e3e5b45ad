"""Clips a second of one worker: the zoo's sources beside the loops that people write."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.container import open_container
from zoo.data.source import Source
from zoo.data.writer import VideoWriter

Load = Callable[[int], Tensor]
"""Makes clip number n: float [3, T, size, size] in [-1, 1]."""


@dataclass
class LoaderTiming:
    """Clips a second in every repetition, and megabytes resident before and after all of them."""

    speeds: list[float] = field(default_factory=list)
    before_mb: float = 0.0
    after_mb: float = 0.0

    @property
    def median(self) -> float:
        """Of the repetitions."""
        return median(self.speeds)


def plain_pyav(paths: list[Path], *, frames: int, size: int, seed: int = 0) -> Load:
    """The loop of many a repository: seek, decode, convert at full size, scale with torch."""

    def load(number: int) -> Tensor:
        rng = np.random.default_rng((seed, number))
        path = paths[int(rng.integers(len(paths)))]
        with open_container(path) as container:
            stream = container.streams.video[0]
            gap = 1 / float(stream.average_rate or 25)
            length = float((stream.duration or 0) * (stream.time_base or Fraction(1)))
            start = float(rng.random()) * max(0.0, length - (frames + 1) * gap)
            container.seek(int(start / (stream.time_base or Fraction(1))), stream=stream)
            taken = []
            for frame in container.decode(stream):
                if frame.time is not None and frame.time >= start - 1e-3:
                    taken.append(frame.to_ndarray(format="rgb24"))
                    if len(taken) == frames:
                        break
        return _fit(torch.from_numpy(np.stack(taken)).permute(0, 3, 1, 2), size)

    return load


def plain_torchcodec(paths: list[Path], *, frames: int, size: int, seed: int = 0) -> Load:
    """The same by torchcodec."""
    from torchcodec.decoders import VideoDecoder

    def load(number: int) -> Tensor:
        rng = np.random.default_rng((seed, number))
        path = paths[int(rng.integers(len(paths)))]
        decoder: Any = VideoDecoder(str(path))
        start = int(rng.integers(max(1, len(decoder) - frames)))
        return _fit(decoder.get_frames_in_range(start, start + frames).data, size)

    return load


def of_source(source: Source) -> Load:
    """A source as the loader's worker calls it, in the order of its epochs."""
    source.prepare()

    def load(number: int) -> Tensor:
        return source[divmod(number, len(source))].pixels

    return load


def _fit(video: Tensor, size: int) -> Tensor:
    """uint8 [T, 3, H, W] scaled and cut to float [3, T, size, size]."""
    scale = size / min(video.shape[2:])
    height, width = (max(size, round(side * scale)) for side in video.shape[2:])
    video = F.interpolate(video.float(), size=(height, width), mode="bilinear", antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    video = video[..., top : top + size, left : left + size]
    return (video / 127.5 - 1).transpose(0, 1).contiguous()


def compare_loaders(
    loads: Mapping[str, Load],
    *,
    clips: int,
    repetitions: int,
    report: Callable[[], object] = lambda: None,
) -> dict[str, LoaderTiming]:
    """Time them in turn, so that drift of the machine hits all alike; each loads a clip before.

    Args:
        loads: by name.
        clips: clips of a repetition.
        repetitions: of each.
        report: called after every repetition.
    """
    timings = {name: LoaderTiming() for name in loads}
    for load in loads.values():
        load(0)
    for repetition in range(repetitions):
        for name, load in loads.items():
            timing = timings[name]
            gc.collect()
            if not repetition:
                timing.before_mb = resident_mb()
            begin = time.perf_counter()
            for number in range(repetition * clips, (repetition + 1) * clips):
                load(number)
            timing.speeds.append(clips / (time.perf_counter() - begin))
            timing.after_mb = resident_mb()
            report()
    return timings


def resident_mb() -> float:
    """Megabytes of this process that are in memory (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return float("nan")


def make_long_film(path: Path, *, seconds: int = 600, width: int = 1280, height: int = 720) -> Path:
    """A film of any length: 10 s of drifting noise encoded once, its packets repeated.

    Args:
        path: where it goes, .mp4.
        seconds: its length, in whole tens.
        width: pixels.
        height: pixels.
    """
    piece = path.with_name("piece.mp4")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    base = torch.from_numpy(coarse).permute(2, 0, 1)[None].float()
    smooth = F.interpolate(base, size=(height, width), mode="bicubic").clamp(0, 255)
    picture = smooth[0].byte().permute(1, 2, 0).numpy()
    with VideoWriter(piece, width=width, height=height, rate=Fraction(25), quality=23) as writer:
        for number in range(250):
            writer.write(np.roll(picture, (2 * number, 3 * number), axis=(0, 1)))
    with open_container(piece) as source:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        span = int(10 / (stream.time_base or Fraction(1)))
        with av.open(str(path.absolute()), "w") as target:
            written: Any = target.add_stream_from_template(stream)
            for turn in range(max(1, seconds // 10)):
                for packet in packets:
                    assert packet.pts is not None and packet.dts is not None  # noqa: PT018
                    stamps = packet.pts, packet.dts
                    packet.pts, packet.dts = stamps[0] + turn * span, stamps[1] + turn * span
                    packet.stream = written
                    target.mux(packet)
                    packet.stream = stream
                    packet.pts, packet.dts = stamps
    piece.unlink()
    return path
