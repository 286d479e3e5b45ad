"""Films leave no memory behind: nothing for the garbage collector, no buffer of a dropped loop."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import MakeFilm

from zoo.data import cutting, film, reader
from zoo.data.container import open_video
from zoo.data.film import open_film
from zoo.data.reader import FrameReader
from zoo.data.video import VideoWriter, probe, read_clip

Garbage = Callable[[], Counter[str]]


@pytest.fixture
def garbage() -> Iterator[Garbage]:
    """Counts by type PyAV's objects that only the garbage collector would have freed."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)

    def found() -> Counter[str]:
        gc.collect()
        kinds = (type(item) for item in gc.garbage)
        return Counter(kind.__name__ for kind in kinds if kind.__module__.startswith("av."))

    yield found
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()
    gc.collect()


def test_frames_are_freed_as_they_go(tmp_path: Path, make_film: MakeFilm, garbage: Garbage) -> None:
    path = make_film(tmp_path / "film.mp4", frames=40)
    probe(path)
    read_clip(path, frames=9, start=0.5)
    read_clip(path, frames=4, rate=5.0, short_side=16)
    with open_film(path, start=0.4, fps=10) as frames:
        next(frames)
    list(cutting.cut(path, cutting.plan(path, seconds=0.5)))
    with VideoWriter(tmp_path / "new.mp4", width=48, height=32, rate=Fraction(25)) as writer:
        writer.write(np.zeros((32, 48, 3), np.uint8))
    assert garbage() == Counter()


class _Loop:
    """Packets that know whether they came to an end, like PyAV's don't when they are dropped."""

    def __init__(self, packets: Any) -> None:
        self.packets = packets
        self.ended = False

    def __iter__(self) -> _Loop:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.packets)
        except StopIteration:
            self.ended = True
            raise

    def close(self) -> None:
        self.packets.close()
        self.ended = True


class _Container:
    """An open film that counts its loops."""

    def __init__(self, container: Any, loops: list[_Loop]) -> None:
        self.container = container
        self.loops = loops

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)

    def __enter__(self) -> _Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def demux(self, *streams: Any) -> _Loop:
        self.loops.append(_Loop(self.container.demux(*streams)))
        return self.loops[-1]


@pytest.mark.parametrize("path", ["read", "sought", "dropped", "cut", "measured"])
def test_no_loop_over_packets_is_left_open(
    tmp_path: Path,
    make_film: MakeFilm,
    encode: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    """Buffers of a loop that PyAV's `demux` didn't end stay for good."""
    loops: list[_Loop] = []

    def opened(*given: Any, **named: Any) -> tuple[Any, Any]:
        container, stream = open_video(*given, **named)
        return _Container(container, loops), stream

    for module in (reader, cutting, film):
        monkeypatch.setattr(module, "open_video", opened)
    source = make_film(tmp_path / ("film.mkv" if path == "measured" else "film.mp4"), frames=200)
    if path == "read":
        read_clip(source, frames=3)
    elif path == "sought":
        read_clip(source, frames=3, start=6.0)
    elif path == "dropped":
        frames = FrameReader(source)
        next(frames)
        del frames
        gc.collect()  # a reader that nobody closed holds itself
    elif path == "cut":
        black = np.zeros((32, 48, 3), np.uint8)
        source = encode(tmp_path / "cut.mp4", [black] * 200, gop=20)
        pieces = cutting.plan(source, seconds=2.0)
        assert len(pieces) > 1
        assert next(cutting.cut(source, pieces)).copied
    else:
        with open_film(source) as opened_film:
            next(opened_film)
    assert loops
    assert all(loop.ended for loop in loops)
