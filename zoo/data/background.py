"""Decoding ahead of the work and writing behind it, each in a thread of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from zoo.data.frame_writer import FrameWriter

T = TypeVar("T")


class _End(NamedTuple):
    """The last thing in a queue: why there is nothing more."""

    error: BaseException | None


def read_ahead(iterable: Iterable[T], *, depth: int) -> Generator[T]:
    """Iterate in a daemon thread that is up to `depth` items ahead.

    The thread starts at once. An exception of the iterable is raised after the items before it.
    `close()` (or dropping the generator) stops the thread, closes the iterable where it has a
    `close` and returns when both are done: after the item that is in the making.

    Args:
        iterable: what to iterate over; used by the thread alone from now on.
        depth: items held at most, 1 or more.

    Returns:
        A generator of the same items in the same order.
    """
    assert depth >= 1, f"reading ahead needs a depth of 1 or more, got {depth}"
    queue: Queue[T | _End] = Queue(maxsize=depth)
    stop = Event()

    def fill() -> None:
        error: BaseException | None = None
        try:
            for item in iterable:
                queue.put(item)
                if stop.is_set():
                    break
        except BaseException as caught:  # noqa: BLE001  (raised in the reader's thread instead)
            error = caught
        try:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()
        except BaseException as caught:  # noqa: BLE001  (as above; the first error counts)
            error = error or caught
        queue.put(_End(error))

    thread = Thread(target=fill, name="read-ahead", daemon=True)

    def items() -> Generator[T | None]:
        ended: _End | None = None
        try:
            yield None
            while True:
                item = queue.get()
                if isinstance(item, _End):
                    ended = item
                    break
                yield item
        finally:
            stop.set()
            while ended is None:  # room for a thread that waits to put
                item = queue.get()
                ended = item if isinstance(item, _End) else None
            thread.join()
        if ended.error is not None:
            raise ended.error

    thread.start()
    generator = items()
    next(generator)  # started: closing it stops the thread even when nothing was asked of it
    return generator  # type: ignore[return-value]  # no None comes after the first


class WriteBehind:
    """A writer that works in a daemon thread, up to `depth` frames behind; a context manager.

    An error of the writer is raised by the next `write` or by `close`, whichever comes first;
    then, or when the block ends with an exception, the writer leaves nothing behind.

    Args:
        writer: from now on used by the thread alone, until `close`.
        depth: frames held at most, 1 or more.
    """

    def __init__(self, writer: FrameWriter, *, depth: int) -> None:
        assert depth >= 1, f"writing behind needs a depth of 1 or more, got {depth}"
        self._writer = writer
        self._queue: Queue[tuple[NDArray[np.uint8], float | None] | None] = Queue(maxsize=depth)
        self._stop = Event()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, name="write-behind", daemon=True)
        self._thread.start()

    @property
    def frames(self) -> int:
        """How many were written; complete after `close`."""
        return self._writer.frames

    def write(self, rgb: NDArray[np.uint8], time: float | None = None) -> None:
        """As `FrameWriter.write`; waits while `depth` frames are waiting.

        Args:
            rgb: uint8 [H, W, 3]; it must not be changed afterwards.
            time: seconds.

        Raises:
            RunError: of this frame or of one before.
            UserError: likewise.
        """
        if self._error is not None:
            raise self._error
        assert self._thread.is_alive(), "a frame was written after close"
        self._queue.put((rgb, time))

    def close(self) -> None:
        """Wait for the frames that are waiting, finish and give it its name.

        Raises:
            RunError: of any frame, or of the end.
            UserError: likewise.
        """
        try:
            self._join()
        except BaseException:  # Ctrl-C while the last frames are written
            self.discard()
            raise
        if self._error is not None:
            self._writer.discard()
            raise self._error
        self._writer.close()

    def discard(self) -> None:
        """Give up: nothing of it is left behind."""
        self._stop.set()
        self._join()
        self._writer.discard()

    def _join(self) -> None:
        if self._stop.is_set():
            with suppress(Empty):  # frames that nobody wants any more
                while True:
                    self._queue.get_nowait()
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None or self._stop.is_set():
                continue  # the frames still in the queue: nobody must wait for room in it
            try:
                self._writer.write(*item)
            except BaseException as caught:  # noqa: BLE001  (raised in the caller's thread)
                self._error = caught

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.close()
        else:
            self.discard()
