"""What a clip costs a worker: the zoo's sources beside the loops that people write."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.container import demux, open_container
from zoo.data.source import Source
from zoo.data.sources import VideoFolder
from zoo.data.writer import VideoWriter
from zoo.errors import RunError, UserError

Load = Callable[[int], Tensor]
"""Makes clip number n: float [3, T, size, size] in [-1, 1]."""

Place = Callable[[int], tuple[Path, float]]
"""Film and second that clip number n begins at."""


@dataclass
class LoaderTiming:
    """Of every clip the processor time, of every worker clips a second and megabytes resident."""

    clip_ms: list[float] = field(default_factory=list)
    clips_per_s: list[float] = field(default_factory=list)
    before_mb: list[float] = field(default_factory=list)
    after_mb: list[float] = field(default_factory=list)

    def ratio_to(
        self, other: LoaderTiming, *, paired: bool, seed: int = 0
    ) -> tuple[float, float, float]:
        """How many times cheaper than `other` a clip is, and the 95 % bootstrap over clips.

        Args:
            other: of as many clips.
            paired: whether they are the same clips in the same order.
            seed: of the resampling.
        """
        rng = np.random.default_rng(seed)
        ours, theirs = np.array(self.clip_ms), np.array(other.clip_ms)
        drawn = []
        for _ in range(2000):
            mine = rng.integers(len(ours), size=len(ours))
            its = mine if paired else rng.integers(len(theirs), size=len(theirs))
            drawn.append(theirs[its].mean() / ours[mine].mean())
        low, high = np.percentile(drawn, (2.5, 97.5))
        return float(theirs.mean() / ours.mean()), float(low), float(high)


def places_of(films: VideoFolder) -> Place:
    """Where the clips of a folder in training lie, in the order of its epochs."""

    def place(number: int) -> tuple[Path, float]:
        epoch, index = divmod(number, len(films))
        rng = np.random.default_rng((films.seed, epoch, index, 0))
        film, start = films._locate(index, rng)
        return films.usable[film].path, start

    return place


def in_turn(films: VideoFolder, *, seed: int = 0) -> Place:
    """A clip anywhere in every film, one film after the other."""

    def place(number: int) -> tuple[Path, float]:
        file = films.usable[number % len(films.usable)]
        gap = 1 / float(Fraction(file.facts["rate"]))
        room = max(0, file.facts["frames"] - films.frames) * gap
        return file.path, float(np.random.default_rng((seed, number)).random()) * room

    return place


def plain_pyav(place: Place, *, frames: int, size: int) -> Load:
    """The loop of many a repository: seek, decode, convert at full size, scale with torch."""

    def load(number: int) -> Tensor:
        path, start = place(number)
        with open_container(path) as container:
            stream = container.streams.video[0]
            container.seek(int(start / (stream.time_base or Fraction(1))), stream=stream)
            taken = []
            for frame in container.decode(stream):
                if frame.time is not None and frame.time >= start - 1e-3:
                    taken.append(frame.to_ndarray(format="rgb24"))
                    if len(taken) == frames:
                        break
        return _fit(torch.from_numpy(np.stack(taken)).permute(0, 3, 1, 2), size)

    return load


def plain_torchcodec(place: Place, *, frames: int, size: int) -> Load:
    """The same by torchcodec."""
    from torchcodec.decoders import VideoDecoder

    def load(number: int) -> Tensor:
        path, start = place(number)
        decoder: Any = VideoDecoder(str(path))
        first = min(round(start * decoder.metadata.average_fps), len(decoder) - frames)
        return _fit(decoder.get_frames_in_range(first, first + frames).data, size)

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
    workers: int = 1,
    report: Callable[[], object] = lambda: None,
) -> dict[str, LoaderTiming]:
    """Time them in turn, so that drift of the machine hits all alike.

    Each repetition runs in forked processes of its own, which first load a clip that doesn't
    count: what a loader keeps is no memory of the others.

    Args:
        loads: by name.
        clips: clips of a worker in a repetition.
        repetitions: of each.
        workers: processes that load at the same time.
        report: called after every repetition.

    Raises:
        RunError: a loader fails on a clip.
    """
    timings = {name: LoaderTiming() for name in loads}
    for repetition in range(repetitions):
        first = repetition * clips * workers
        for name, load in loads.items():
            for found in _in_workers(name, load, first=first, clips=clips, workers=workers):
                clip_ms, seconds, before, after = found
                timing = timings[name]
                timing.clip_ms += clip_ms
                timing.clips_per_s.append(clips / seconds)
                timing.before_mb.append(before)
                timing.after_mb.append(after)
            report()
    return timings


def _in_workers(
    name: str, load: Load, *, first: int, clips: int, workers: int
) -> list[tuple[list[float], float, float, float]]:
    context = multiprocessing.get_context("fork")  # loaders are closures, which can't be sent
    running = []
    for worker in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        numbers = range(first + worker, first + clips * workers, workers)
        process = context.Process(target=_work, args=(load, numbers, theirs), daemon=True)
        process.start()
        theirs.close()
        running.append((process, ours))
    found = []
    for process, ours in running:
        try:
            answer = ours.recv()
        except EOFError:
            answer = None
        process.join()
        if answer is None:
            answer = f"its process ended with {process.exitcode}"
        if isinstance(answer, str):
            raise RunError(f"{name} failed: {answer}")
        found.append(answer)
    return found


def _work(load: Load, numbers: range, answer: Connection) -> None:
    try:
        load(numbers[0])
        before, clip_ms, begin = resident_mb(), [], time.perf_counter()
        for number in numbers:
            spent = time.process_time()
            load(number)
            clip_ms.append(1000 * (time.process_time() - spent))
        seconds = time.perf_counter() - begin
        answer.send((clip_ms, seconds, before, resident_mb()))
    except (UserError, RunError, OSError, ValueError, RuntimeError) as error:
        answer.send(f"{type(error).__name__}: {error}")


def resident_mb(process: int | str = "self") -> float:
    """Megabytes of a process (its number; this one) that are in memory (Linux)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
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
        with demux(source, stream) as found:
            packets = [packet for packet in found if packet.size]
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
