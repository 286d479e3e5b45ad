"""Predictions against diffusers, guidance, consistency sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from tests.nets.toy_unet import toy
from zoo.diffusion.predictions import target, to_epsilon, to_x0
from zoo.diffusion.samplers import DDIMPlan, Guided, consistency_sample, tiue_sample
from zoo.diffusion.schedule import add_noise, ddim_scheduler
from zoo.errors import UserError
from zoo.nets.tiue import TiUEUNet


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_true_prediction_gives_back_what_was_mixed(kind: str) -> None:
    x0, noise = torch.randn(2, 3, 4, 4, 4, dtype=torch.double).unbind()
    alpha_bar = torch.tensor([0.9, 0.5, 0.01], dtype=torch.double)
    x_t = add_noise(x0, noise, alpha_bar)
    said = target(kind, x0, noise, alpha_bar)
    assert torch.allclose(to_x0(kind, said, x_t, alpha_bar), x0)
    assert torch.allclose(to_epsilon(kind, said, x_t, alpha_bar), noise)


def test_velocity_is_diffusers() -> None:
    scheduler = ddim_scheduler("cosine", prediction="v_prediction")
    theirs: Any = DDPMScheduler.from_config(scheduler.config)
    x0, noise = torch.randn(2, 4, 3, 8, 8).unbind()
    t = torch.tensor([0, 300, 900, 999])
    bar = theirs.alphas_cumprod[t]
    assert torch.allclose(target("v_prediction", x0, noise, bar), theirs.get_velocity(x0, noise, t))


def test_the_cosine_schedule_ends_in_pure_noise() -> None:
    scheduler = ddim_scheduler("cosine", prediction="v_prediction")
    assert float(scheduler.alphas_cumprod[-1]) == 0
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert 0 < float(ddim_scheduler("sd", prediction="epsilon").alphas_cumprod[-1]) < 0.005
    with pytest.raises(UserError, match="schedule = 'cosine' ends in pure noise"):
        ddim_scheduler("cosine", prediction="epsilon")
    with pytest.raises(UserError, match="unknown schedule 'linear'"):
        ddim_scheduler("linear", prediction="epsilon")


def four_steps() -> DDIMPlan:
    scheduler = ddim_scheduler("cosine", prediction="v_prediction")
    scheduler.set_timesteps(4)
    return DDIMPlan.of(
        scheduler.alphas_cumprod, scheduler.timesteps.tolist(), prediction="v_prediction"
    )


def test_guidance_is_diffusers_loop() -> None:
    """DDIM step by step with the two predictions mixed by hand."""
    parent = toy()
    net = TiUEUNet.from_unet(toy())
    torch.manual_seed(0)
    z, text, empty = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24), torch.randn(1, 5, 24)
    plan = four_steps()
    scheduler: Any = ddim_scheduler("cosine", prediction="v_prediction")
    scheduler.set_timesteps(4)
    x = z
    for t in scheduler.timesteps:
        without = parent(x, t, empty.expand_as(text)).sample
        said = without + 3 * (parent(x, t, text).sample - without)
        x = scheduler.step(said, t, x).prev_sample
    got = tiue_sample(Guided(net, empty, 3.0), z, text, plan, anchors=4).sample
    assert torch.allclose(got, x, atol=1e-4)
    one = tiue_sample(Guided(net, empty, 1.0), z, text, plan, at_once=2).sample
    assert torch.allclose(one, tiue_sample(net, z, text, plan).sample, atol=1e-5)


def test_consistency_sampling_of_a_perfect_net() -> None:
    """A net that always says the same x_0 ends there; what it sees is x_0 noised afresh."""
    x0 = torch.full((2, 1, 4, 4), 0.3)
    seen: list[Tensor] = []

    class Perfect:
        def encode(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            seen.append(x)
            return x

        def decode(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            bar = plan.alpha_bars[plan.timesteps.index(int(t[0]))]
            a, s = bar**0.5, (1 - bar) ** 0.5
            return (a * x - x0) / s  # so that a x - s v = x_0

    plan = four_steps()
    fresh = [torch.full_like(x0, float(n)) for n in range(3)]
    queue = iter(fresh)
    got = consistency_sample(
        Perfect(),  # type: ignore[arg-type]
        torch.randn_like(x0),
        torch.zeros(2, 1, 1),
        plan,
        draw=lambda: next(queue),
    )
    assert torch.allclose(got, x0, atol=1e-5)
    assert next(queue, None) is None
    for noise, x, bar in zip(fresh, seen[1:], plan.alpha_bars[1:4], strict=True):
        assert torch.allclose(x, add_noise(x0, noise, torch.full((2,), bar)), atol=1e-5)
