"""Samplers as pure functions of their inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from zoo.diffusion.predictions import to_x0
from zoo.diffusion.schedule import add_noise
from zoo.errors import UserError

Noise = Callable[[Tensor, int], Tensor]
"""Where a decoder's noise comes from: called with `like` and `frames`, as `frame_noise` is."""

PREDICTIONS = ("epsilon", "v_prediction", "sample")

CoefficientList = Sequence[tuple[float, float]]


class Repeatable(Protocol):
    """Features of a batch that can be handed to several decoder passes."""

    def repeat(self, times: int, /) -> Self:
        """[B,...] to [times * B,...]: the whole batch `times` times in a row."""


Features = TypeVar("Features", bound=Repeatable)


class EncoderDecoder(Protocol[Features]):
    """A denoiser whose halves can be called apart, such as TiUEUNet."""

    def encode(self, sample: Tensor, timestep: Tensor, text: Tensor, /) -> Features:
        """Features of noisy `sample` [B,...] at `timestep` [B]."""

    def decode(self, features: Features, timesteps: Tensor, text: Tensor, /) -> Tensor:
        """The prediction at `timesteps` [B]."""


def ddim_step(
    x: Tensor,
    x0: Tensor,
    *,
    alpha_bar: float,
    next_alpha_bar: float,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """One DDIM step from a predicted x0 (eq. 12 and 16 of arXiv 2010.02502).

    Args:
        x: noisy pixels at `alpha_bar`, [B,...].
        x0: their predicted clean version.
        next_alpha_bar: 1 on the last step, which then returns `x0` itself.
        eta: share of the fresh noise that ancestral sampling (eta = 1) adds; 0 is deterministic.
        noise: standard normal, as `x`; needed where eta > 0.
    """
    if next_alpha_bar == 1.0:
        return x0
    predicted = (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
    sigma = eta * ((1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha_bar / next_alpha_bar)) ** 0.5
    remaining = max(0.0, 1 - next_alpha_bar - sigma**2)
    following: Tensor = next_alpha_bar**0.5 * x0 + remaining**0.5 * predicted
    if sigma == 0:
        return following
    assert noise is not None
    return following.add(noise, alpha=sigma)


def frame_noise(like: Tensor, frames: int, *, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise [B,3,frames,H,W] drawn frame by frame.

    A stream that draws its noise chunk by chunk gets what one call for the whole would have drawn.

    Args:
        like: [B,3,*,H,W] giving batch, size, dtype and device.
        frames: how many.
        generator: None draws from the device's global one.
    """
    device = like.device if generator is None else generator.device
    size = (like.shape[0], like.shape[1], *like.shape[-2:])
    drawn = [torch.randn(size, generator=generator, device=device) for _ in range(frames)]
    return torch.stack(drawn, dim=2).to(like)


def generator_noise(generator: torch.Generator | None) -> Noise:
    """Noise drawn from a generator; None: the device's global one."""
    return partial(frame_noise, generator=generator)


class NoiseField:
    """The noise of one chunk of whole frames, for decoders that see windows of it.

    It is drawn once, by whoever asks first, so that a window's noise is what the undivided frame
    has at that place and neighbours agree where they overlap.

    Args:
        noise: source of the whole frames' noise.
        height, width: of the whole frame in pixels.
    """

    def __init__(self, noise: Noise, *, height: int, width: int) -> None:
        self._noise = noise
        self._size = height, width
        self._drawn: list[Tensor] = []

    def window(self, top: int, left: int) -> Noise:
        """The source for a decoder whose frame begins at row `top` and column `left`."""
        calls = 0

        def cut(like: Tensor, frames: int) -> Tensor:
            nonlocal calls
            if calls == len(self._drawn):
                # a size without memory behind it: only shape, type and device are looked at
                whole = like[..., :1, :1].expand(*like.shape[:-2], *self._size)
                self._drawn.append(self._noise(whole, frames))
            field = self._drawn[calls]
            calls += 1
            assert field.shape[2] == frames, f"windows of one chunk of {field.shape[2]} frames"
            return field[..., top : top + like.shape[-2], left : left + like.shape[-1]]

        return cut


@dataclass(frozen=True)
class DDIMPlan:
    """The time steps of a deterministic DDIM sampler, noisiest first.

    Attributes:
        timesteps: what the net is told at each of N steps.
        alpha_bars: N + 1 numbers: alpha_bar at each step, and where the last step ends.
        prediction: what the net predicts: "epsilon", "v_prediction" or "sample" (x0).
    """

    timesteps: tuple[int, ...]
    alpha_bars: tuple[float, ...]
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise UserError(
                f"unknown prediction type '{self.prediction}': use one of {', '.join(PREDICTIONS)}"
            )
        if not self.timesteps or len(self.alpha_bars) != len(self.timesteps) + 1:
            raise UserError(
                f"{len(self.timesteps)} time steps with {len(self.alpha_bars)} alphas: give at "
                "least one step, and an alpha for each step and for the end"
            )
        if self.prediction == "epsilon" and 0.0 in self.alpha_bars[:-1]:
            raise UserError(
                "a schedule that reaches pure noise (alpha_bar = 0) can't be sampled from noise "
                "predictions, which say nothing of the picture there: use v_prediction"
            )

    @classmethod
    def of(
        cls,
        alphas_cumprod: Tensor,
        timesteps: Sequence[int],
        *,
        final_alpha_bar: float = 1.0,
        prediction: str = "epsilon",
    ) -> DDIMPlan:
        """Look the alphas of `timesteps` up in a schedule [T].

        Raises:
            UserError: a time step outside the schedule, or time steps that don't fall.
        """
        steps = tuple(int(t) for t in timesteps)
        if any(not 0 <= t < len(alphas_cumprod) for t in steps):
            raise UserError(
                f"time steps {list(steps)} leave the schedule: give 0 to {len(alphas_cumprod) - 1}"
            )
        if any(a <= b for a, b in itertools.pairwise(steps)):
            raise UserError(f"time steps {list(steps)} don't fall: give the noisiest first")
        alphas = [float(alphas_cumprod[t]) for t in steps]
        return cls(steps, (*alphas, float(final_alpha_bar)), prediction)

    def coefficients(self) -> list[tuple[float, float]]:
        """(p, q) of every step: x_next = p x + q net(x), eq. 12 of arXiv 2010.02502, eta = 0."""
        return [
            _ddim_coefficients(a, b, self.prediction)
            for a, b in itertools.pairwise(self.alpha_bars)
        ]


def _ddim_coefficients(alpha_bar: float, following: float, prediction: str) -> tuple[float, float]:
    """How much of x and of the net's output the next x is, in double precision."""
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    b, r = following**0.5, (1 - following) ** 0.5
    if prediction == "epsilon":  # x0 = (x - s eps) / a
        return b / a, r - b * s / a
    if prediction == "v_prediction":  # x0 = a x - s v and eps = s x + a v
        return b * a + r * s, r * a - b * s
    return (r / s, b - r * a / s) if s else (0.0, b)  # eps = (x - a x0) / s


def ddim_closed_form(z: Tensor, predictions: Tensor, coefficients: CoefficientList) -> Tensor:
    """All steps at once: x_N = (prod p_i) z + sum_i q_i (prod_{j > i} p_j) prediction_i.

    Args:
        z: where the first step starts, [B,...].
        predictions: the net's outputs, [N,B,...].
        coefficients: of `DDIMPlan.coefficients`, N of them.

    Returns:
        [B,...] in the dtype of `z`, summed in float32 or better.
    """
    assert len(predictions) == len(coefficients)
    weight, weights = 1.0, []
    for p, q in reversed(coefficients):
        weights.append(q * weight)
        weight *= p
    wide = torch.promote_types(z.dtype, torch.float32)
    x = weight * z.to(wide)
    for w, prediction in zip(reversed(weights), predictions, strict=True):
        x = x + w * prediction.to(wide)
    return x.to(z.dtype)


class GuidedFeatures(NamedTuple):
    """Features of a batch with its text, and with the empty one."""

    text: Any
    empty: Any

    def repeat(self, times: int) -> GuidedFeatures:
        """Repeat both."""
        return GuidedFeatures(self.text.repeat(times), self.empty.repeat(times))


class Guided:
    """A net under classifier-free guidance: empty + guidance (text - empty), eq. 6 of
    arXiv 2207.12598 with w = guidance - 1.

    Args:
        net: what is guided.
        empty: states of the empty prompt, [1,L,D].
        guidance: 1 is the net itself, 0 the net without text.
    """

    def __init__(self, net: EncoderDecoder[Any], empty: Tensor, guidance: float) -> None:
        self.net, self.empty, self.guidance = net, empty, guidance

    def encode(self, sample: Tensor, timestep: Tensor, text: Tensor) -> GuidedFeatures:
        """Features with and without the text."""
        empty = self.empty.expand_as(text)
        return GuidedFeatures(
            self.net.encode(sample, timestep, text), self.net.encode(sample, timestep, empty)
        )

    def decode(self, features: GuidedFeatures, timesteps: Tensor, text: Tensor) -> Tensor:
        """The guided prediction."""
        without = self.net.decode(features.empty, timesteps, self.empty.expand_as(text))
        towards = self.net.decode(features.text, timesteps, text)
        return without + self.guidance * (towards - without)


class TiUESample(NamedTuple):
    """What `tiue_sample` returns: `sample` [B,...] and the net's `predictions` [N,B,...]."""

    sample: Tensor
    predictions: Tensor


def tiue_sample(
    net: EncoderDecoder[Any],
    z: Tensor,
    text: Tensor,
    plan: DDIMPlan,
    *,
    anchors: int = 1,
    at_once: int | None = None,
    report: Callable[[int, int], object] | None = None,
) -> TiUESample:
    """Few encoder passes, a decoder pass for each time step (TiUE, arXiv 2505.21960).

    The steps are cut into `anchors` runs. At the first step of a run the encoder sees x_t; all
    steps of the run decode its features, and the DDIM updates follow in closed form. One anchor is
    TiUE, as many anchors as steps are the plain model.

    Args:
        net: anything with TiUEUNet's `encode` and `decode`.
        z: noise [B,...].
        text: what the net is conditioned on, [B,...].
        plan: the N time steps.
        anchors: encoder passes, 1 to N.
        at_once: decoder passes in one batch; None takes all of a run, 1 goes one by one. Memory
            grows with it, the result changes by rounding only.
        report: told (decoder passes done, N) after every batch.

    Raises:
        UserError: anchors or at_once outside their range.
    """
    steps = len(plan.timesteps)
    if not 1 <= anchors <= steps:
        raise UserError(f"{anchors} anchors for {steps} time steps: give 1 to {steps}")
    if at_once is not None and at_once < 1:
        raise UserError(f"{at_once} decoder passes at once: give at least 1")
    coefficients, predictions = plan.coefficients(), []
    x, begin = z, 0
    for anchor in range(anchors):
        # runs as equal as can be, longer ones first
        length = steps // anchors + (anchor < steps % anchors)
        run = range(begin, begin + length)
        begin += length
        # filled on the device: no copy to wait for, and a CUDA graph can hold it
        times = [torch.full((len(z),), plan.timesteps[i], device=z.device) for i in run]
        features = net.encode(x, times[0], text)
        decoded: list[Tensor] = []
        for first in range(0, length, at_once or length):
            mine = times[first : first + (at_once or length)]
            count = len(mine)
            out = net.decode(
                features.repeat(count),
                torch.cat(mine),
                text.repeat(count, *(1,) * (text.ndim - 1)),
            )
            decoded.append(out.reshape(count, *z.shape))
            if report is not None:
                report(run[first] + count, steps)
        together = torch.cat(decoded)
        x = ddim_closed_form(x, together, coefficients[run[0] : run[-1] + 1])
        predictions.append(together)
    return TiUESample(x, torch.cat(predictions))


def consistency_sample(
    net: EncoderDecoder[Any],
    z: Tensor,
    text: Tensor,
    plan: DDIMPlan,
    *,
    draw: Callable[[], Tensor],
    report: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Multistep consistency sampling (algorithm 1 of arXiv 2303.01469): x_0, fresh noise, x_0, ...

    Args:
        net: predicts x_0 at every time step, in the plan's parametrisation.
        z: noise [B,...].
        text: what the net is conditioned on, [B,...].
        plan: the N time steps.
        draw: fresh noise, as `z`, after each step but the last.
        report: told (steps done, N) after every step.
    """
    x = z
    for i, (step, alpha_bar) in enumerate(zip(plan.timesteps, plan.alpha_bars, strict=False)):
        times = torch.full((len(z),), step, device=z.device)
        said = net.decode(net.encode(x, times, text), times, text)
        here = torch.full((len(z),), alpha_bar, device=z.device)
        x0 = to_x0(plan.prediction, said.float(), x.float(), here)
        following = plan.alpha_bars[i + 1]
        last = i + 1 == len(plan.timesteps)
        x = (x0 if last else add_noise(x0, draw().float(), torch.full_like(here, following))).to(z)
        if report is not None:
            report(i + 1, len(plan.timesteps))
    return x
