"""The one shape in which all sources hand over their samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """One clip or image: `pixels` float [C, T, H, W] in [-1, 1]; `key` says where it is from.

    From a source of latents, `pixels` holds latents float [c, t, h, w] instead.
    """

    pixels: Tensor
    prompt: str
    key: str


class Batch(NamedTuple):
    """B samples: `pixels` float [B, C, T, H, W] in [-1, 1]; an image has T = 1."""

    pixels: Tensor
    prompt: list[str]
    key: list[str]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one shape into a `Batch`."""
    return Batch(
        pixels=torch.stack([sample.pixels for sample in samples]),
        prompt=[sample.prompt for sample in samples],
        key=[sample.key for sample in samples],
    )
