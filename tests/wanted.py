"""Files that tests fetch: only their absence skips a test, never a wrong file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from zoo.errors import Unavailable

Result = TypeVar("Result")


def or_skip(get: Callable[[], Result]) -> Result:
    """What `get` returns; the test is skipped, with the reason, where no provider answers."""
    try:
        return get()
    except Unavailable as error:
        pytest.skip(str(error))
