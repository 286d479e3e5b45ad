"""What all writers of frames share: checks before any work, a temporary name until the end."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from numpy.typing import NDArray

from zoo.errors import RunError, UserError


class FrameWriter(ABC):
    """Takes a film's frames one by one; a context manager.

    What is written has a temporary name beside `path` and gets its own when the block ends
    without an exception; otherwise nothing is left behind.

    Args:
        path: what to write; an old file there is replaced at the end.
        width: pixels.
        height: pixels.
        rate: frames a second, for frames written without a time.
        base: seconds that time stamps are counted in.

    Attributes:
        path: as given.
        frames: how many were written.

    Raises:
        UserError: before any frame is asked for, when it can't be written there or so.
    """

    def __init__(
        self, path: str | Path, *, width: int, height: int, rate: Fraction, base: Fraction
    ) -> None:
        self.path = Path(path)
        self.frames = 0
        if not self.path.parent.is_dir():
            raise UserError(f"the folder {self.path.parent} doesn't exist; create it first")
        if width < 1 or height < 1:
            raise UserError(f"a film of {width}x{height} pixels can't be written; use at least 1x1")
        if rate <= 0:
            raise UserError(f"a rate of {rate} frames a second can't be written; use more than 0")
        self._shape = (height, width, 3)
        self._rate = Fraction(rate)
        self._base = base
        self._gap = max(1, round(1 / self._rate / base))  # how long the last frame is shown
        self._first: float | None = None
        self._least = 1  # ticks from one frame to the next
        self._stamp = 0
        self._over = False
        # The suffix stays last so that the container is recognised; the dot hides it from folders.
        self._part = self.path.with_name(f".{self.path.stem}.part{self.path.suffix}")

    def _touch(self) -> None:
        """Find out now whether the place can be written."""
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; name a file inside it")
        try:
            self._part.open("wb").close()
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror}); choose another folder"
            ) from error

    def __enter__(self) -> Self:
        return self

    def write(self, rgb: NDArray[np.uint8], time: float | None = None) -> None:
        """Append one frame.

        Args:
            rgb: uint8 [H, W, 3], H and W as given to the writer.
            time: seconds, on any clock that the other frames share: the first frame is the new
                film's beginning. None: one frame's time after the last one.

        Raises:
            RunError: the disk is full or gone.
            UserError: one frame too many for what is written.
        """
        assert rgb.dtype == np.uint8, f"a frame must be uint8, got {rgb.dtype}"
        assert rgb.shape == self._shape, f"a frame must be {self._shape}, got {rgb.shape}"
        if self._first is None:
            self._first = time or 0.0
        moment = self.frames / self._rate if time is None else Fraction(time - self._first)
        # Two frames that share a tick of a coarse clock become neighbours: none is lost.
        self._stamp = max(
            round(moment / self._base), self._stamp + self._least if self.frames else 0
        )
        try:
            self._append(rgb, self._stamp)
        except (av.FFmpegError, OSError) as error:
            raise RunError(f"{self.path} can't be written any further ({error})") from error
        self.frames += 1

    def close(self) -> None:
        """Finish and give it its name; closing twice does nothing.

        Raises:
            UserError: no frame was written.
            RunError: the disk is full or gone.
        """
        if self._over:
            return
        try:
            if not self.frames:
                raise UserError(f"{self.path} would be a film without frames; give it at least one")
            self._finish()
            self._publish()
        except (av.FFmpegError, OSError) as error:
            self.discard()
            raise RunError(f"{self.path} can't be written any further ({error})") from error
        except BaseException:
            self.discard()
            raise
        self._over = True

    def discard(self) -> None:
        """Give up: nothing of it is left behind."""
        if not self._over:
            self._over = True
            self._drop()

    @abstractmethod
    def _append(self, rgb: NDArray[np.uint8], stamp: int) -> None:
        """Write a frame that begins at `stamp` ticks."""

    def _finish(self) -> None:  # noqa: B027  (most have nothing left to write)
        """Write what is still held and close the part."""

    def _publish(self) -> None:
        os.replace(self._part, self.path)

    def _drop(self) -> None:
        self._part.unlink(missing_ok=True)

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
