"""Reading pickles from elsewhere: tensors and plain containers alone, nothing is run."""

from __future__ import annotations

import pickle
import re
import struct
from pathlib import Path
from typing import Any

import torch

from zoo.errors import UserError

_DAMAGE: tuple[type[Exception], ...] = (RuntimeError, EOFError, LookupError, MemoryError)
_DAMAGE += (AttributeError, TypeError, ValueError, OverflowError, AssertionError, struct.error)


def load_pickle(path: Path, *, device: str = "cpu") -> Any:
    """What torch pickled into a file.

    Args:
        path: the file.
        device: where its tensors go; "meta" reads none of their values.

    Raises:
        UserError: no such file, damage, or a pickle that asks for anything but tensors and plain
            containers; nothing it asks for is run.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: give the checkpoint's path")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # a name that is cut off names nothing
        asked = re.search(r"GLOBAL (\w[\w.]*)|unrecognized function (\S+)", str(error))
        if asked is not None:
            raise UserError(
                f"the pickle {path} asks for {asked[1] or asked[2]}, which a file of weights has "
                "no use for; nothing of it was run: do not trust it"
            ) from error
        raise UserError(f"{path} is not a whole checkpoint: fetch it again") from error
    except OSError as error:
        raise UserError(f"can't read {path} ({error.strerror or error}): check the path") from error
    except _DAMAGE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0][:120]
        raise UserError(f"{path} is not a whole checkpoint ({why}): fetch it again") from error
