"""The TiUE sampler against diffusers' DDIM loop and against itself in other batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tests.nets.toy_unet import inputs, toy
from zoo.diffusion.samplers import DDIMPlan, ddim_closed_form, tiue_sample
from zoo.errors import UserError
from zoo.nets.tiue import TiUEUNet

STEPS = 4


def scheduler(prediction: str, **changes: Any) -> DDIMScheduler:
    """Stable Diffusion's schedule with DDIM."""
    values = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction,
    }
    made = DDIMScheduler(**values | changes)
    made.set_timesteps(STEPS)
    return made


def plan_of(made: DDIMScheduler) -> DDIMPlan:
    return DDIMPlan.of(
        made.alphas_cumprod,
        made.timesteps.tolist(),
        final_alpha_bar=float(made.final_alpha_cumprod),
        prediction=made.config.prediction_type,
    )


def closed(made: DDIMScheduler, z: Tensor, outputs: Tensor) -> Tensor:
    return ddim_closed_form(z, outputs, plan_of(made).coefficients())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_closed_form_is_diffusers_ddim(prediction: str, spacing: str, zero_snr: bool) -> None:
    made = scheduler(prediction, timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr)
    z = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    outputs = torch.randn(STEPS, *z.shape, dtype=torch.float64)
    if zero_snr and prediction == "epsilon":
        # diffusers keeps a tiny alpha at pure noise, where noise predictions amount to a division
        # by it; an exact zero is refused
        with pytest.raises(UserError, match="use v_prediction"):
            DDIMPlan((999,), (0.0, 1.0))
        return
    x = z
    for t, output in zip(made.timesteps, outputs, strict=True):
        x = made.step(output, t, x).prev_sample
    assert torch.allclose(closed(made, z, outputs), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_batches_change_rounding_only(prediction: str) -> None:
    net = TiUEUNet.from_unet(toy())
    z, _, text = inputs(net)
    plan = plan_of(scheduler(prediction))
    whole = tiue_sample(net, z, text, plan)
    assert whole.predictions.shape == (STEPS, *z.shape)
    for at_once in (1, 2, 3, 9):
        other = tiue_sample(net, z, text, plan, at_once=at_once)
        assert (other.sample - whole.sample).abs().max() < 1e-5
        assert (other.predictions - whole.predictions).abs().max() < 1e-5
    single = torch.cat([tiue_sample(net, z[i : i + 1], text[i : i + 1], plan)[0] for i in range(3)])
    assert (single - whole.sample).abs().max() < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_as_many_anchors_as_steps_is_the_plain_model(prediction: str) -> None:
    parent = toy()
    net = TiUEUNet.from_unet(parent)
    z, _, text = inputs(parent)
    made = scheduler(prediction)
    x = z
    for t in made.timesteps:
        x = made.step(parent(x, t, text).sample, t, x).prev_sample
    result = tiue_sample(net, z, text, plan_of(made), anchors=STEPS).sample
    assert (result - x).abs().max() < 1e-5
    fewer = tiue_sample(net, z, text, plan_of(made), anchors=1).sample
    assert (fewer - x).abs().max() > 1e-3


class Log(NamedTuple):
    """Features that only remember what they are of."""

    x: Tensor

    def repeat(self, times: int) -> Log:
        return Log(self.x.repeat(times, 1))


class Recorder:
    """A net that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    def encode(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Log:
        assert len(sample) == len(timestep) == len(text)
        self.calls.append(("encode", sorted(set(timestep.tolist()))))
        return Log(sample)

    def decode(self, features: Log, timesteps: Tensor, text: Tensor) -> Tensor:
        assert len(features.x) == len(timesteps) == len(text)
        self.calls.append(("decode", timesteps.tolist()))
        return features.x * text


@pytest.mark.parametrize(
    ("anchors", "at_once", "calls"),
    [
        (1, None, [("encode", [9]), ("decode", [9, 9, 7, 7, 5, 5, 2, 2])]),
        (1, 3, [("encode", [9]), ("decode", [9, 9, 7, 7, 5, 5]), ("decode", [2, 2])]),
        (
            3,
            None,
            [
                ("encode", [9]),
                ("decode", [9, 9, 7, 7]),
                ("encode", [5]),
                ("decode", [5, 5]),
                ("encode", [2]),
                ("decode", [2, 2]),
            ],
        ),
    ],
)
def test_passes(anchors: int, at_once: int | None, calls: list[Any]) -> None:
    plan = DDIMPlan.of(torch.linspace(0.99, 0.01, 10), [9, 7, 5, 2])
    net, told = Recorder(), []
    z = torch.randn(2, 3)
    tiue_sample(
        net,
        z,
        torch.tensor([[1.0], [2.0]]),
        plan,
        anchors=anchors,
        at_once=at_once,
        report=lambda *n: told.append(n),
    )
    assert net.calls == calls
    assert told[-1] == (4, 4)


def test_gradients_reach_the_net() -> None:
    net = TiUEUNet.from_unet(toy().requires_grad_(True))
    z, _, text = inputs(net, batch=1)
    plan = plan_of(scheduler("epsilon"))
    tiue_sample(net, z, text, plan).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_what_does_not_fit_is_named() -> None:
    alphas = torch.linspace(0.99, 0.01, 10)
    for steps, said in (
        ([], "at least one step"),
        ([10, 3], r"\[10, 3\] leave the schedule: give 0 to 9"),
        ([3, 3], "don't fall"),
    ):
        with pytest.raises(UserError, match=said):
            DDIMPlan.of(alphas, steps)
    with pytest.raises(UserError, match="unknown prediction type 'flow'"):
        DDIMPlan.of(alphas, [3], prediction="flow")
    plan = DDIMPlan.of(alphas, [9, 3])
    z = torch.randn(1, 3)
    for anchors in (0, 3):
        with pytest.raises(UserError, match=f"{anchors} anchors for 2 time steps"):
            tiue_sample(Recorder(), z, z, plan, anchors=anchors)
    with pytest.raises(UserError, match="0 decoder passes"):
        tiue_sample(Recorder(), z, z, plan, at_once=0)


def test_half_precision_is_summed_in_float32() -> None:
    made = scheduler("epsilon")
    z = torch.randn(1, 4, 8, 8).bfloat16()
    outputs = torch.randn(STEPS, *z.shape[0:]).bfloat16()
    exact = closed(made, z.double(), outputs.double())
    got = closed(made, z, outputs)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.to(torch.bfloat16)) or (got - exact).abs().max() < 2**-7 * 4
