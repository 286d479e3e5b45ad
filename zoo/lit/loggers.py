"""Loggers that cost a run nothing when their folder is gone or the disk is full."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only

_LOG = logging.getLogger(__name__)
_said: set[str] = set()


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Turn an OSError into a warning, once for each `what`: training goes on without it."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Lightning says ValueError of whatever the TensorBoard writer raised
        if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
            raise
        if what not in _said:
            _said.add(what)
            _LOG.warning("%s can't be written (%s): training goes on without it", what, error)


class SteadyCSVLogger(CSVLogger):
    """CSVLogger that makes its folder again and survives a full disk."""

    @rank_zero_only
    def save(self) -> None:
        """Write the rows; those that can't be written are kept for the next time."""
        with tolerated("the table of metrics"):
            os.makedirs(self.log_dir, exist_ok=True)
            super().save()


class SteadyTensorBoardLogger(TensorBoardLogger):
    """TensorBoardLogger that makes its folder again and survives a full disk."""

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log; see TensorBoardLogger."""
        with self._steady():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Flush; see TensorBoardLogger."""
        with self._steady():
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close; see TensorBoardLogger."""
        with self._steady():
            super().finalize(status)

    @contextmanager
    def _steady(self) -> Iterator[None]:
        with tolerated("the TensorBoard log"):
            os.makedirs(self.log_dir, exist_ok=True)
            try:
                yield
            except (OSError, ValueError):
                self._experiment = None  # its thread has ended; the next value begins a file
                raise
