"""Loading a UNet from a diffusers folder, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from zoo.errors import UserError
from zoo.kernels.processor import set_attention
from zoo.nets.diffusers_folder import CONFIG_FILE, class_name, load_module
from zoo.nets.tiue.unet import TiUEUNet, refuse_other_conditions

_CLASSES = ("UNet2DConditionModel", "TiUEUNet")


def load_unet(folder: Path) -> TiUEUNet:
    """A diffusers UNet folder as a TiUEUNet in eval mode, with our attention; dtype as stored.

    Raises:
        UserError: no such folder, another architecture, conditions that TiUE would drop, or weights
            that are broken or don't fit their config.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} is not a UNet folder: it has no {CONFIG_FILE}")
    kind = class_name(folder)
    if kind not in _CLASSES:
        raise UserError(
            f"{path} describes a {kind}: TiUE needs a UNet2DConditionModel, as Stable Diffusion "
            "1.x and 2.x have"
        )
    net = cast(TiUEUNet, load_module(TiUEUNet, folder))
    refuse_other_conditions(net)
    set_attention(net)
    return net
