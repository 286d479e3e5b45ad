"""What a user's mistake and a failed run raise; command-line tools print one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend: the message is one sentence with the value and the remedy."""


class Unavailable(UserError):
    """Something of the network's that could not be reached now; nothing was found wrong with it."""


class RunError(RuntimeError):
    """A run that cannot go on (non-finite loss, too many broken files): one sentence, status 1."""


class StepError(RunError):
    """A step that failed in every process alike: they can still save together, then end."""


def closest(word: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """The `count` known words nearest to `word`, best first (never empty when `known` is not)."""
    return difflib.get_close_matches(word, list(known), n=count, cutoff=0.0)
