"""Loading a UNet from a diffusers folder, strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from zoo.errors import UserError
from zoo.kernels.processor import set_attention
from zoo.nets.tiue.unet import TiUEUNet, refuse_other_conditions

_CLASSES = ("UNet2DConditionModel", "TiUEUNet")


def load_unet(folder: Path) -> TiUEUNet:
    """A diffusers UNet folder as a TiUEUNet in eval mode, with our attention; dtype as stored.

    Raises:
        UserError: no such folder, another architecture, conditions that TiUE would drop, or weights
            that are broken or don't fit their config.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a UNet folder: it has no config.json")
    try:
        kind = json.loads(path.read_text())["_class_name"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not JSON with a _class_name ({error}): save it again"
        ) from error
    if kind not in _CLASSES:
        raise UserError(
            f"{path} describes a {kind}: TiUE needs a UNet2DConditionModel, as Stable Diffusion "
            "1.x and 2.x have"
        )
    try:
        dtype = _stored_dtype(folder)
        net, loading = TiUEUNet.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} can't be loaded ({_first_line(error)})") from error
    faults = [f"missing {key}" for key in sorted(loading["missing_keys"])]
    faults += [f"unexpected {key}" for key in sorted(loading["unexpected_keys"])]
    faults += [f"another shape of {key[0]}" for key in loading["mismatched_keys"]]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(f"{folder} doesn't fit its config: {'; '.join(faults[:5])}{more}")
    refuse_other_conditions(net)
    set_attention(net)
    # diffusers widens everything to float32; the way back is exact
    return cast(TiUEUNet, nn.Module.to(net, dtype).eval())


def _stored_dtype(folder: Path) -> torch.dtype | None:
    """The type of the first tensor; None for old folders with pickles (read as tensors alone)."""
    for path in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                dtype: torch.dtype = file.get_tensor(name).dtype
                return dtype
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
