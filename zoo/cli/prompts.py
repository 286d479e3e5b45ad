"""Prompts from the command line or from a file."""

from __future__ import annotations

from typing import Any

from zoo.data.captions import read_captions
from zoo.errors import UserError


def given_prompts(options: Any, *, what: str) -> list[str]:
    """The words of `prompt`, or the captions of the file `prompts`.

    Args:
        options: parsed arguments with both.
        what: "picture" or "film", for messages.

    Raises:
        UserError: both, none, or an empty one (its number is given).
    """
    if options.prompts is not None and options.prompt:
        raise UserError("prompts come from the command line or from --prompts: give one of them")
    prompts = options.prompt if options.prompts is None else read_captions(options.prompts)
    if not prompts:
        raise UserError(f"there is no prompt: describe a {what}, or give a file with --prompts")
    for number, text in enumerate(prompts, start=1):
        if not text.strip():
            raise UserError(f"prompt {number} of {len(prompts)} is empty: describe the {what}")
    return list(prompts)
