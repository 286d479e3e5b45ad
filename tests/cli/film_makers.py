"""Films, good and bad, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from zoo.data.video import read_frames
from zoo.data.writer import VideoWriter

Cli = Callable[..., tuple[int, str, str]]
MODEL = ("--model", "dir:export")


def picture(t: int, width: int, height: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    wave = 128 + 80 * np.sin((x + y + 3 * t) / 6)
    noise = np.random.default_rng(t).integers(-8, 9, (height, width, 3))
    return (wave[..., None] + noise).clip(0, 255).astype(np.uint8)


def write_film(path: Path, *, frames: int = 20, width: int = 64, height: int = 48) -> Path:
    with VideoWriter(path, width=width, height=height, rate=Fraction(30000, 1001)) as writer:
        for t in range(frames):
            writer.write(picture(t, width, height))
    return path


def write_packets(path: Path, *, frames: int, corrupt: tuple[int, ...] = ()) -> Path:
    """An mp4 of key frames only, its index in front, with some frames' bytes overwritten."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "1", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(t, 64, 48), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        spots = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for number in corrupt:
        place, size = spots[number]
        content[place : place + size] = b"\xff" * size
    path.write_bytes(content)
    return path


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    return [frame.rgb for frame in read_frames(path)]


def write_uneven(path: Path, stamps: list[int], *, seconds_of_sound: float) -> Path:
    """A film whose frames begin at `stamps` ms, with a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, width=64, height=48, time_base=Fraction(1, 1000)
        )
        stream.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for t, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(t, 64, 48), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        tone = np.sin(np.arange(int(16000 * seconds_of_sound)) / 5).astype(np.float32)
        samples = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 16000, 0
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    return path
