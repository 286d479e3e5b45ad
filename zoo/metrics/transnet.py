"""The trunk of TransNetV2 (arXiv 2008.04838), a shot-boundary net, as a source of clip features.

Layer names are those of the published weights, so that they load strictly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = (27, 48)
DIMENSIONS = 256
_DILATIONS = (1, 2, 4, 8)


class _Dilated(nn.Module):
    """Four factorised 3D convolutions that see 3, 5, 9 and 17 frames, side by side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        for dilation in _DILATIONS:
            space = nn.Conv3d(inputs, 2 * width, (1, 3, 3), padding=(0, 1, 1), bias=False)
            time = nn.Conv3d(
                *(2 * width, width, (3, 1, 1)),
                dilation=(dilation, 1, 1),
                padding=(dilation, 0, 0),
                bias=False,
            )
            branch = nn.Module()
            branch.layers = nn.ModuleList([space, time])
            self.add_module(f"Conv3D_{dilation}", branch)
        self.bn = nn.BatchNorm3d(4 * width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for dilation in _DILATIONS:
            y = x
            for layer in self.get_submodule(f"Conv3D_{dilation}.layers").children():
                y = layer(y)
            parts.append(y)
        result: Tensor = self.bn(torch.cat(parts, dim=1))
        return result


class _Stack(nn.Module):
    """Two of them with a shortcut around the second, then half the size."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_Dilated(inputs, width), _Dilated(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.DDCNN[0](x))
        return F.avg_pool3d(F.relu(self.DDCNN[1](first)) + first, (1, 2, 2))


class TransNetTrunk(nn.Module):
    """Clips to features."""

    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = nn.ModuleList([_Stack(3, 16), _Stack(64, 32), _Stack(128, 64)])

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Load the published state dict; what follows the trunk is left out."""
        trunk = {key: value for key, value in weights.items() if key.startswith("SDDCNN.")}
        self.load_state_dict(trunk)

    def forward(self, clips: Tensor) -> Tensor:
        """Features [B,256] of uint8 clips [B,3,T,27,48], averaged over time and space."""
        x = clips.float() / 255
        for stack in self.SDDCNN:
            x = stack(x)
        return x.mean(dim=(2, 3, 4))
