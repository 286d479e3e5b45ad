"""Multistep consistency sampling of LCM (arXiv 2310.04378), by diffusers' own scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor

from zoo.diffusion.samplers import EncoderDecoder


def consistency_sample(
    net: EncoderDecoder[Any],
    z: Tensor,
    text: Tensor,
    scheduler: LCMScheduler,
    *,
    steps: int,
    generators: Sequence[torch.Generator],
    report: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Predict the picture, add noise again, `steps` times; each step has its own encoder pass.

    Args:
        net: a consistency model.
        z: noise [B,...].
        text: what the net is conditioned on, [B,...].
        scheduler: LCM's; its state is not changed.
        steps: passes.
        generators: one a sample: the fresh noise of a picture depends on its seed alone.
        report: told (passes done, steps).
    """
    made: Any = LCMScheduler.from_config(scheduler.config)  # type: ignore[attr-defined]
    made.set_timesteps(steps, device="cpu")
    x, picture = z, z
    for done, t in enumerate(made.timesteps, 1):
        times = torch.full((len(z),), int(t), device=z.device)
        out = net.decode(net.encode(x, times, text), times, text)
        x, picture = made.step(out, t, x, generator=list(generators), return_dict=False)
        if report is not None:
            report(done, steps)
    return picture


def fresh_generators(
    given: torch.Generator | Sequence[torch.Generator] | None,
    seeds: Sequence[int] | None,
    count: int,
) -> list[torch.Generator]:
    """One generator a picture for noise drawn on the way.

    Args:
        given: the caller's, which go on; used where there are no seeds.
        seeds: of the pictures; the stream is another one than the first noise's.
        count: of pictures.
    """
    if seeds is not None:
        return [torch.Generator().manual_seed(seed ^ (1 << 40)) for seed in seeds]
    assert given is not None
    return [given] * count if isinstance(given, torch.Generator) else list(given)
