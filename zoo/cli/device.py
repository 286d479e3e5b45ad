"""The --device option."""

from __future__ import annotations

import torch

from zoo.errors import UserError


def checked_device(name: str) -> str:
    """`name`, if tensors can be made there; UserError with torch's reason if not."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name} can't be used here: {reason}") from error
    return name
