"""Watching which convolution a call takes."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from zoo.kernels.conv3d import Edge, causal_conv3d


def calls_taken(
    module: ModuleType, weight: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """A function that convolves x causally and says how often `module.conv` was called for it."""
    taken: list[torch.Size] = []
    inside = module.conv

    def spy(x: Tensor, *args: object, **options: object) -> Tensor:
        taken.append(x.shape)
        y: Tensor = inside(x, *args, **options)
        return y

    monkeypatch.setattr(module, "conv", spy)

    def count(x: Tensor, *, stride: int = 1, edge: Edge = "replicate") -> int:
        taken.clear()
        y = causal_conv3d(x, weight.to(x.dtype), edge=edge, space_stride=stride)
        assert y.shape[2:] == (x.shape[2], x.shape[3] // stride, x.shape[4] // stride)
        return len(taken)

    return count
