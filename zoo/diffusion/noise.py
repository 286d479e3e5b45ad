"""The noise that pictures begin with: one generator a picture, so that batches change nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.errors import UserError


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that no generator takes.

    Raises:
        UserError: one is below 0 or above 2^63 - 1.
    """
    if wrong := [s for s in seeds if not 0 <= s < 2**63]:
        raise UserError(f"seeds {wrong[:3]}: give numbers from 0 to 2^63 - 1")


def noise_generators(
    count: int,
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> tuple[list[torch.Generator], list[int] | None]:
    """Where the noise of each picture comes from, and the seeds.

    Raises:
        UserError: seeds or generators that are not one a picture, or both.
    """
    if seed is not None and generator is not None:
        raise UserError("seed and generator both say where the noise is from: give one of them")
    if isinstance(generator, torch.Generator):
        generators, seeds = [generator] * count, None
    elif generator is not None:
        generators, seeds = list(generator), None
    else:
        first = random.SystemRandom().randrange(2**31 - count) if seed is None else seed
        seeds = [first + i for i in range(count)] if isinstance(first, int) else list(first)
        check_seeds(seeds)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
    if len(generators) != count:
        raise UserError(
            f"{len(generators)} seeds or generators for {count} pictures: give one each"
        )
    return generators, seeds


def draw_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal [count,*shape] in float32, on the generators' device."""
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])
