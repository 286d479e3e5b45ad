from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from zoo.data.background import WriteBehind, read_ahead
from zoo.data.frame_writer import FrameWriter
from zoo.data.writer import open_writer
from zoo.errors import RunError

PICTURE = np.zeros((32, 48, 3), np.uint8)


@pytest.fixture(autouse=True)
def _no_threads_stay() -> Iterator[None]:
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


class Source:
    """Counts what was asked of it; fails at `fail`."""

    def __init__(self, count: int, fail: int | None = None) -> None:
        self.count, self.fail = count, fail
        self.made = 0
        self.closed = threading.Event()
        self.thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[int]:
        self.thread = threading.current_thread()
        for i in range(self.count):
            if i == self.fail:
                raise RunError("the source broke")
            self.made += 1
            yield i

    def close(self) -> None:
        self.closed.set()


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.002)
    assert condition()  # type: ignore[operator]


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_items_come_in_order_from_another_thread(depth: int) -> None:
    source = Source(50)
    assert list(read_ahead(source, depth=depth)) == list(range(50))
    assert source.thread is not threading.current_thread()
    assert source.thread is not None
    assert source.thread.daemon
    assert source.closed.is_set()
    assert list(read_ahead([], depth=depth)) == []


def test_a_slow_consumer_bounds_what_is_read_ahead() -> None:
    source = Source(1000)
    items = read_ahead(source, depth=4)
    wait_until(lambda: source.made == 5)  # four wait and one is held by the thread
    time.sleep(0.05)
    assert source.made == 5
    assert next(items) == 0
    wait_until(lambda: source.made == 6)
    items.close()
    assert source.made <= 7 + 4
    assert source.closed.is_set()


def test_an_error_comes_after_the_items_before_it() -> None:
    source = Source(10, fail=7)
    items = read_ahead(source, depth=20)
    wait_until(source.closed.is_set)
    assert [next(items) for _ in range(7)] == list(range(7))
    with pytest.raises(RunError, match="the source broke"):
        next(items)
    assert list(items) == []


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_early_stops_the_thread(taken: int) -> None:
    source = Source(10**9)
    items = read_ahead(source, depth=2)
    for i in range(taken):
        assert next(items) == i
    items.close()
    assert source.closed.is_set()
    assert source.thread is None or not source.thread.is_alive()
    dropped = Source(10**9)
    items = read_ahead(dropped, depth=2)
    del items
    assert dropped.closed.is_set()


def test_an_error_of_the_consumer_stops_the_thread() -> None:
    source = Source(10**9)

    def work() -> None:
        items = read_ahead(source, depth=2)
        try:
            for item in items:
                if item == 3:
                    raise KeyboardInterrupt
        finally:
            items.close()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert source.closed.is_set()


class Recorder(FrameWriter):
    """Keeps what is written; fails at frame `fail`, or at the end for -1."""

    def __init__(self, path: Path, *, fail: int | None = None, delay: float = 0.0) -> None:
        super().__init__(path, width=48, height=32, rate=Fraction(25), base=Fraction(1, 25))
        self._touch()
        self.fail, self.delay = fail, delay
        self.stamps: list[int] = []
        self.discarded = False

    def _append(self, rgb: NDArray[np.uint8], stamp: int) -> None:
        time.sleep(self.delay)
        if self.frames == self.fail:
            raise OSError("no space left")
        self.stamps.append(stamp)

    def _finish(self) -> None:
        if self.fail == -1:
            raise OSError("no space left")

    def _drop(self) -> None:
        self.discarded = True
        super()._drop()


def test_frames_are_written_in_order(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "film")
    with WriteBehind(recorder, depth=3) as out:
        for i in range(20):
            out.write(PICTURE, i / 5)
    assert recorder.stamps == [5 * i for i in range(20)]
    assert out.frames == 20
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["film"]


def test_a_slow_writer_bounds_what_waits(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "film", delay=0.01)
    with WriteBehind(recorder, depth=2) as out:
        for i in range(12):
            out.write(PICTURE)
            assert i + 1 - len(recorder.stamps) <= 4  # two wait, one is written, one was just put
    assert len(recorder.stamps) == 12


@pytest.mark.parametrize("fail", [0, 3, 19])
def test_an_error_surfaces_and_leaves_nothing(tmp_path: Path, fail: int) -> None:
    recorder = Recorder(tmp_path / "film", fail=fail)

    def work() -> None:
        with WriteBehind(recorder, depth=2) as out:
            for _ in range(20):
                out.write(PICTURE)

    with pytest.raises(RunError, match="no space left"):
        work()
    assert recorder.discarded
    assert [file for file in tmp_path.iterdir() if file.is_file()] == []


def test_an_error_of_the_last_frame_or_of_the_end_surfaces_in_close(tmp_path: Path) -> None:
    for fail in (0, -1):
        out = WriteBehind(Recorder(tmp_path / "film", fail=fail), depth=2)
        out.write(PICTURE)
        with pytest.raises(RunError, match="no space left"):
            out.close()
        assert [file for file in tmp_path.iterdir() if file.is_file()] == []


def test_an_exception_of_the_caller_drops_what_waits(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "film", delay=0.02)

    def work() -> None:
        with WriteBehind(recorder, depth=50) as out:
            for _ in range(50):
                out.write(PICTURE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert recorder.discarded
    assert len(recorder.stamps) < 10
    assert [file for file in tmp_path.iterdir() if file.is_file()] == []


def test_a_real_film_is_the_same_in_a_thread(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(8)]
    for name, threaded in (("a.mkv", False), ("b.mkv", True)):
        plain = open_writer(tmp_path / name, width=48, height=32, rate=Fraction(25), lossless=True)
        with WriteBehind(plain, depth=2) if threaded else plain as out:
            for picture in read_ahead(pictures, depth=2) if threaded else pictures:
                out.write(picture)
    sizes = [(tmp_path / name).stat().st_size for name in ("a.mkv", "b.mkv")]
    assert sizes[0] == sizes[1] > 0
