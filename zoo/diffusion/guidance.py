"""Classifier-free guidance around any denoiser with two halves."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.diffusion.samplers import EncoderDecoder
from zoo.errors import UserError


class GuidedFeatures(NamedTuple):
    """Features of `batch` samples without the text and, behind them, with it."""

    features: Any
    batch: int

    def repeat(self, times: int, /) -> GuidedFeatures:
        """For `times` decoder passes."""
        return GuidedFeatures(self.features.repeat(times), self.batch)


class Guided:
    """A denoiser whose predictions are e + w (c - e) (arXiv 2207.12598), both in one batch.

    Args:
        net: the denoiser.
        empty: states of the empty text, [1,L,D].
        scale: w; 1 is the net itself, 0 the net without a text.

    Raises:
        UserError: a scale below 0 or not finite.
    """

    def __init__(self, net: EncoderDecoder[Any], empty: Tensor, *, scale: float) -> None:
        self.net, self.empty, self.scale = net, empty, checked_guidance(scale)

    def encode(self, sample: Tensor, timestep: Tensor, text: Tensor, /) -> GuidedFeatures:
        """Features of samples [B,...], [2 * B,...] inside."""
        batch = len(sample)
        both = torch.cat([self.empty.expand_as(text), text])
        features = self.net.encode(torch.cat([sample, sample]), timestep.repeat(2), both)
        return GuidedFeatures(features, batch)

    def decode(self, features: GuidedFeatures, timesteps: Tensor, text: Tensor, /) -> Tensor:
        """The guided prediction."""
        inner, batch = features
        passes = len(timesteps) // batch
        # a pass holds its samples without the text, then those with it
        times = timesteps.view(passes, 1, batch).expand(-1, 2, -1)
        given = text.view(passes, batch, *text.shape[1:])
        both = torch.stack([self.empty.expand_as(text).view_as(given), given], dim=1)
        out = self.net.decode(inner, times.flatten(), both.flatten(0, 2))
        empty, guided = out.view(passes, 2, batch, *out.shape[1:]).unbind(1)
        return (empty + self.scale * (guided - empty)).flatten(0, 1)


def checked_guidance(scale: float) -> float:
    """The scale.

    Raises:
        UserError: it is below 0 or not finite.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise UserError(f"guidance = {scale:g}: give a number of at least 0 (1 is no guidance)")
    return scale
