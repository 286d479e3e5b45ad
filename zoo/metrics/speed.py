"""FLOPs and interleaved latencies of a UNet as TiUE and as the plain model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zoo.diffusion.samplers import DDIMPlan, tiue_sample
from zoo.nets.tiue.unet import EncoderFeatures, TiUEUNet, text_width

TOKENS = {384: 20}  # text length by width: MiniLM's preparation; CLIP's 77 otherwise


class Halves:
    """A net's halves and its plain forward; `compiled`: by this backend of torch.compile."""

    def __init__(self, net: TiUEUNet, *, compiled: str | None = None) -> None:
        self.net = net

        def plain(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
            out: Tensor = net(sample, timestep, text).sample
            return out

        # a graph for each batch size: one for all sizes would be slower
        how = partial(torch.compile, dynamic=False, backend=compiled)
        wrap: Any = how if compiled else lambda f, **_: f
        self.encode: Callable[..., EncoderFeatures] = wrap(net.encode, fullgraph=True)
        self.decode: Callable[..., Tensor] = wrap(net.decode, fullgraph=True)
        self.plain: Callable[..., Tensor] = wrap(plain)


@dataclass(frozen=True)
class Case:
    """Inputs of one size: noise, text, batch."""

    z: Tensor
    text: Tensor

    @classmethod
    def of(cls, net: TiUEUNet, *, size: int, batch: int) -> Case:
        """Random inputs on the net's device, in its dtype."""
        config: Any = net.config
        width = text_width(net)
        like: dict[str, Any] = {"device": net.device, "dtype": net.dtype}
        return cls(
            torch.randn(batch, config.in_channels, size, size, **like),
            torch.randn(batch, TOKENS.get(width, 77), width, **like),
        )


@cache
def plan_of(steps: int) -> DDIMPlan:
    """Evenly spread steps of Stable Diffusion's schedule, which doesn't matter for speed."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    times = torch.linspace(999, 0, steps + 1)[:-1].long().tolist()
    return DDIMPlan.of(torch.cumprod(1 - betas, 0), times)


@torch.no_grad()
def run(variant: str, halves: Halves, case: Case, *, steps: int) -> Tensor:
    """One sampling: "parallel", "sequential" or "plain K" (K encoder and decoder passes)."""
    if variant in ("parallel", "sequential"):
        at_once = 1 if variant == "sequential" else None
        return tiue_sample(halves, case.z, case.text, plan_of(steps), at_once=at_once).sample
    plan = plan_of(int(variant.removeprefix("plain ")))
    x = case.z
    for t, (p, q) in zip(plan.timesteps, plan.coefficients(), strict=True):
        out = halves.plain(x, torch.full((len(x),), t, device=x.device), case.text)
        x = p * x + q * out
    return x


def flops(net: TiUEUNet, *, size: int, steps: int) -> tuple[int, int]:
    """Floating-point operations of (one plain pass, TiUE with `steps` decoders), batch 1.

    Counted by torch on the meta device: multiply-adds of matrices and convolutions count twice.
    """
    with torch.device("meta"):
        twin: Any = TiUEUNet.from_config(net.config)
    case = Case.of(twin, size=size, batch=1)
    counts = []
    for variant in ("plain 1", "parallel"):
        with FlopCounterMode(display=False) as counter:
            run(variant, Halves(twin), case, steps=steps)
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


@dataclass
class Timing:
    """Seconds of every repetition, and the peak of GPU memory in bytes (None on a CPU)."""

    seconds: list[float] = field(default_factory=list)
    peak: int | None = None

    @property
    def median(self) -> float:
        """Of the repetitions."""
        return median(self.seconds)


def interleaved(
    variants: Sequence[str],
    halves: Halves,
    case: Case,
    *,
    steps: int,
    repetitions: int,
    report: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time the variants in turn, `repetitions` times, so that drift of the machine hits all alike.

    Each variant runs once before; the order is turned by one each time.
    """
    timings = {variant: Timing() for variant in variants}
    for variant in variants:
        run(variant, halves, case, steps=steps)
        report()
    for repetition in range(repetitions):
        turn = repetition % len(variants)
        for variant in (*variants[turn:], *variants[:turn]):
            timing = timings[variant]
            seconds, peak = _clock(lambda v=variant: run(v, halves, case, steps=steps), case.z)  # type: ignore[misc]
            timing.seconds.append(seconds)
            timing.peak = peak
            report()
    return timings


def _clock(work: Callable[[], object], like: Tensor) -> tuple[float, int | None]:
    if like.device.type != "cuda":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin, None
    torch.cuda.reset_peak_memory_stats(like.device)
    torch.cuda.synchronize(like.device)
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize(like.device)
    return time.perf_counter() - begin, torch.cuda.max_memory_allocated(like.device)
