"""Folders that diffusers' `save_pretrained` wrote: what is in them, and loading it strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from zoo.errors import UserError

CONFIG_FILE = "config.json"


def class_name(folder: Path) -> str:
    """The diffusers class that a folder's config.json names.

    Raises:
        UserError: there is no such file, or it names none.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} is not a folder of a diffusers model: it has no {CONFIG_FILE}")
    try:
        kind = json.loads(path.read_text())["_class_name"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not JSON with a _class_name ({error}): save it again"
        ) from error
    if not isinstance(kind, str):
        raise UserError(f"{path} names no class, its _class_name is {kind!r}: save it again")
    return kind


def load_module(kind: Any, folder: Path) -> Any:
    """A module of class `kind` from its folder, in eval mode, dtype as stored; nothing is fetched.

    Raises:
        UserError: weights that are missing, broken or don't fit their config; keys are named.
    """
    try:
        dtype = _stored_dtype(folder)
        net, loading = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} can't be loaded ({_first_line(error)})") from error
    faults = [f"missing {key}" for key in sorted(loading["missing_keys"])]
    faults += [f"unexpected {key}" for key in sorted(loading["unexpected_keys"])]
    faults += [f"another shape of {key[0]}" for key in loading["mismatched_keys"]]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(f"{folder} doesn't fit its config: {'; '.join(faults[:5])}{more}")
    # diffusers widens everything to float32; the way back is exact
    return nn.Module.to(net, dtype).eval()


def _stored_dtype(folder: Path) -> torch.dtype | None:
    """The type of the first tensor that isn't of integers (they count); None for old folders.

    Old folders hold pickles, which are read as tensors alone.
    """
    for path in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                dtype: torch.dtype = file.get_tensor(name).dtype
                if dtype.is_floating_point:
                    return dtype
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
