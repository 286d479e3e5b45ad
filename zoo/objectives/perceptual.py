"""LPIPS (arXiv 1801.03924) from the lpips package, its backbone from the zoo's assets."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

Backbone = Literal["vgg16", "alexnet"]


class Perceptual:
    """A frozen LPIPS network, loaded at first use.

    Not a module on purpose: it is no part of what is trained, averaged or saved.

    Args:
        net: `vgg16` (training) or `alexnet` (evaluation).
        spatial: average a map of distances at the pictures' size, as CDT's evaluation does.
    """

    def __init__(self, net: str, *, spatial: bool = False) -> None:
        self.net = net
        self.spatial = spatial
        self._module: nn.Module | None = None

    def load(self) -> nn.Module:
        """Fetch the backbone if it isn't cached and build the network.

        Raises:
            UserError: no provider has the backbone.
        """
        if self._module is None:
            self._module = build_lpips(self.net, spatial=self.spatial)
        return self._module

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        """LPIPS distance of pictures [B,3,H,W] in [-1,1]: [B]."""
        module = self.load().to(x.device)
        # VGG in half precision loses small distances
        with torch.autocast(x.device.type, enabled=False):
            distance: Tensor = module(y.float(), x.float())
        return distance.flatten(1).mean(1)


def build_lpips(net: str, *, spatial: bool = False) -> nn.Module:
    """lpips.LPIPS with the heads of the package and the backbone of facts `lpips_NET.ckpt`."""
    import lpips

    from zoo.assets import fetch
    from zoo.objectives.backbones import load_lpips_backbone

    name: Any = net
    weights = load_lpips_backbone(name, fetch(f"lpips_{net}.ckpt"))
    short = {"vgg16": "vgg", "alexnet": "alex"}[net]
    # the package announces itself on stdout and builds its net in a deprecated way
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = lpips.LPIPS(net=short, pretrained=True, pnet_rand=True, spatial=spatial)
    convs = [m for m in module.net.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[union-attr]
    if 2 * len(convs) != len(weights):
        raise ValueError(f"lpips_{net}.ckpt has {len(weights)} tensors for {len(convs)} layers")
    with torch.no_grad():
        for index, conv in enumerate(convs):
            assert conv.bias is not None
            conv.weight.copy_(torch.from_numpy(weights[f"{index}.weight"]))
            conv.bias.copy_(torch.from_numpy(weights[f"{index}.bias"]))
    return module.eval().requires_grad_(False)
