"""Distribution matching against Gaussians whose scores are known, and its regulariser."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tests.nets.toy_unet import toy
from zoo.diffusion.predictions import to_epsilon
from zoo.diffusion.samplers import DDIMPlan, tiue_sample
from zoo.diffusion.schedule import ddim_scheduler
from zoo.errors import UserError
from zoo.nets.tiue import TiUEUNet
from zoo.objectives.distillation import (
    DistillationObjective,
    check_widths,
    guided,
    noise_predictions,
    prediction_kl,
)

TEXT = torch.zeros(1, 1, 1)


def bars(schedule: str = "cosine", prediction: str = "v_prediction") -> Tensor:
    alphas: Tensor = ddim_scheduler(schedule, prediction=prediction).alphas_cumprod
    return alphas.float()


def plan(steps: int, schedule: str = "cosine", prediction: str = "v_prediction") -> DDIMPlan:
    scheduler = ddim_scheduler(schedule, prediction=prediction)
    scheduler.set_timesteps(steps)
    return DDIMPlan.of(
        scheduler.alphas_cumprod, scheduler.timesteps.tolist(), prediction=prediction
    )


class Gaussian:
    """The exact denoiser of N(mean, std^2): both roles of a score net."""

    def __init__(self, kind: str, alpha_bars: Tensor, own: float, teacher: float, std: float):
        self.kind, self.alpha_bars, self.own, self.its, self.std = (
            kind,
            alpha_bars,
            own,
            teacher,
            std,
        )

    def says(self, mean: float, x_t: Tensor, index: Tensor) -> Tensor:
        bar = self.alpha_bars[index].view(-1, 1, 1, 1)
        a, s = bar.sqrt(), (1 - bar).sqrt()
        noise = s * (x_t - a * mean) / (a**2 * self.std**2 + s**2)
        x0 = mean + a * self.std**2 * (x_t - a * mean) / (a**2 * self.std**2 + s**2)
        return {"epsilon": noise, "sample": x0, "v_prediction": a * noise - s * x0}[self.kind]

    def __call__(self, x_t: Tensor, index: Tensor, text: Tensor) -> Tensor:
        return self.says(self.own, x_t, index)

    def teacher(self, x_t: Tensor, index: Tensor, text: Tensor) -> Tensor:
        return self.says(self.its, x_t, index)


def losses(objective: DistillationObjective, x0: Tensor, score: Any, how: DDIMPlan) -> Any:
    text = TEXT.expand(len(x0), 1, 1)
    return objective.student(
        x0,
        text,
        TEXT,
        score=score,
        plan=how,
        alpha_bars=score.alpha_bars,
        z=torch.randn_like(x0),
        predictions=torch.randn(1, *x0.shape),
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_gradient_is_that_of_the_two_scores(kind: str) -> None:
    """sigma^2 (eps_teacher - eps_own) = sigma^3 a (own - teacher) / (a^2 std^2 + sigma^2), for any
    noise; the loss is half its mean square, its gradient that over the number of elements."""
    schedule = "sd" if kind == "epsilon" else "cosine"
    score = Gaussian(kind, bars(schedule, kind), own=0.5, teacher=-1.0, std=0.7)
    at = 400 / 1000
    objective = DistillationObjective(
        teacher_guidance=1, score_guidance=1, times=(at, at + 0.001), kl_weight=0
    )
    x0 = torch.randn(3, 2, 4, 4, requires_grad=True)
    found = losses(objective, x0, score, plan(1, schedule, kind))
    bar = float(score.alpha_bars[400])
    a, s = bar**0.5, (1 - bar) ** 0.5
    push = s**3 * a * (0.5 - -1.0) / (a**2 * 0.49 + s**2)
    assert found.total.item() == pytest.approx(0.5 * push**2, rel=1e-3)
    found.total.backward()
    assert x0.grad is not None
    assert torch.allclose(x0.grad, torch.full_like(x0, push / x0.numel()), rtol=1e-3)


def test_a_student_moves_to_its_teacher_and_stays() -> None:
    """One number for a student, the exact score of its samples: its mean becomes the teacher's."""
    alpha_bars = bars()
    objective = DistillationObjective(teacher_guidance=1, score_guidance=1, kl_weight=0)
    mean = torch.zeros((), requires_grad=True)
    torch.manual_seed(0)
    for _ in range(60):
        score = Gaussian("v_prediction", alpha_bars, mean.item(), 2.0, std=0.5)
        x0 = mean + 0.5 * torch.randn(8, 1, 4, 4)
        (gradient,) = torch.autograd.grad(losses(objective, x0, score, plan(1)).total, mean)
        mean = (mean - gradient).detach().requires_grad_(True)
    assert float(mean) == pytest.approx(2.0, abs=0.05)


def test_a_divergence_weights_each_sample() -> None:
    class Twice:
        def weight(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
            assert x_t.shape[1:] == (2, 4, 4)
            assert t.shape == (len(x_t),)
            return torch.tensor([2.0, 0.0])

    score = Gaussian("v_prediction", bars(), own=0.5, teacher=-1.0, std=0.7)
    x0 = torch.randn(2, 2, 4, 4)
    gradients = []
    for divergence in (None, Twice()):
        torch.manual_seed(0)
        given = x0.clone().requires_grad_(True)
        objective = DistillationObjective(kl_weight=0, divergence=divergence)
        losses(objective, given, score, plan(1)).total.backward()
        gradients.append(given.grad)
    assert torch.allclose(gradients[1], gradients[0] * torch.tensor([2.0, 0]).view(2, 1, 1, 1))
    assert gradients[0][0].abs().min() > 0


def test_guidance_of_each() -> None:
    def net(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return x + text.mean((1, 2)).view(-1, 1, 1, 1)

    x, t = torch.randn(2, 1, 4, 4), torch.tensor([1, 2])
    text, empty = torch.full((2, 3, 5), 2.0), torch.full((1, 3, 5), -1.0)
    assert torch.allclose(guided(net, x, t, text, empty, 4.5), x - 1 + 4.5 * 3)
    assert torch.equal(guided(net, x, t, text, empty, 1), x + 2)
    assert torch.allclose(guided(net, x, t, text, empty, 0), x - 1)


def test_kl_is_that_of_gaussians() -> None:
    noises = 0.3 + 0.8 * torch.randn(4, 3, 2, 16, 16)
    flat = noises.flatten(2)
    fitted = torch.distributions.Normal(flat.mean(-1), flat.std(-1, correction=0))
    expected = torch.distributions.kl_divergence(fitted, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(prediction_kl(noises), expected, atol=1e-6)


def test_noise_predictions_follow_the_sampler() -> None:
    """With an encoder pass a step, what each output says is asked of diffusers' own DDIM chain."""
    torch.manual_seed(0)
    net = TiUEUNet.from_unet(toy())
    how = plan(4)
    z, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24)
    sample = tiue_sample(net, z, text, how, anchors=4)
    scheduler: Any = DDIMScheduler.from_config(
        ddim_scheduler("cosine", prediction="v_prediction").config
    )
    scheduler.set_timesteps(4)
    x = z
    found = noise_predictions(z, sample.predictions, how)
    for step, said, noise in zip(how.timesteps, sample.predictions, found, strict=True):
        bar = scheduler.alphas_cumprod[step].repeat(2).float()
        assert torch.allclose(noise, to_epsilon("v_prediction", said, x, bar), atol=1e-5)
        x = scheduler.step(said, step, x).prev_sample
    assert torch.allclose(x, sample.sample, atol=1e-4)


def kl_gradient(prediction: str, schedule: str, steps: int) -> float:
    """The largest gradient of the KL term over a student's weights."""
    torch.manual_seed(0)
    net = TiUEUNet.from_unet(toy()).requires_grad_(True)
    how = plan(steps, schedule, prediction)
    z, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24)
    sample = tiue_sample(net, z, text, how)
    kl = prediction_kl(noise_predictions(z, sample.predictions, how)).mean()
    gradients = torch.autograd.grad(kl, list(net.parameters()), allow_unused=True)
    return max(float(g.abs().max()) for g in gradients if g is not None)


def test_kl_has_a_gradient_where_noise_is_predicted_and_none_where_it_is_given() -> None:
    assert kl_gradient("epsilon", "sd", 1) > 1e-3
    assert kl_gradient("epsilon", "sd", 4) > 1e-3
    # pure noise: the noise is z itself, whatever a v-predicting net says
    assert kl_gradient("v_prediction", "cosine", 1) == 0
    assert kl_gradient("v_prediction", "cosine", 4) > 1e-4


def test_kl_weight_pulls_noise_predictions_to_a_standard_normal() -> None:
    """The paper's lambda_kl where it matters: a noise-predicting student, nothing else asked."""
    results = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        net = TiUEUNet.from_unet(toy()).requires_grad_(True)
        how = plan(2, "sd", "epsilon")
        score = Gaussian("epsilon", bars("sd", "epsilon"), 0.0, 0.0, std=1.0)
        objective = DistillationObjective(kl_weight=weight, teacher_guidance=1, score_guidance=1)
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(12):
            z, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24)
            sample = tiue_sample(net, z, text, how)
            found = objective.student(
                sample.sample,
                text,
                TEXT,
                score=score,  # type: ignore[arg-type]
                plan=how,
                alpha_bars=score.alpha_bars,
                z=z,
                predictions=sample.predictions,
            )
            optimizer.zero_grad()
            found.total.backward()
            optimizer.step()
        results[weight] = float(found.terms["kl"])
    assert results[1.0] < 0.5 * results[0.0], results


def test_kl_reduction() -> None:
    """The reference's sum is N x B times the mean."""
    score = Gaussian("v_prediction", bars(), own=0.0, teacher=0.0, std=1.0)
    totals = []
    for reduction in ("mean", "sum"):
        torch.manual_seed(1)
        objective = DistillationObjective(kl_reduction=reduction)  # type: ignore[arg-type]
        found = objective.student(
            torch.randn(3, 2, 4, 4),
            TEXT.expand(3, 1, 1),
            TEXT,
            score=score,  # type: ignore[arg-type]
            plan=plan(4),
            alpha_bars=score.alpha_bars,
            z=torch.randn(3, 2, 4, 4),
            predictions=torch.randn(4, 3, 2, 4, 4),
        )
        totals.append(float(found.total - found.terms["vsd"]))
    assert totals[1] == pytest.approx(12 * totals[0], rel=1e-4)
    assert totals[0] > 1e-4


def test_the_score_net_learns_the_student() -> None:
    """Its loss is least for the exact denoiser, and weighted as asked."""
    alpha_bars = bars()
    x0 = 0.5 + 0.7 * torch.randn(4096, 1, 2, 2)
    text = TEXT.expand(len(x0), 1, 1)
    found = {}
    for weight in ("alpha_bar", "none"):
        objective = DistillationObjective(score_weight=weight)  # type: ignore[arg-type]
        for own in (0.5, 0.3, 0.7):
            torch.manual_seed(0)
            score = Gaussian("v_prediction", alpha_bars, own, 0.0, std=0.7)
            found[weight, own] = float(
                objective.score(x0, text, TEXT, score=score, plan=plan(1), alpha_bars=alpha_bars)
            )
        assert found[weight, 0.5] < min(found[weight, 0.3], found[weight, 0.7])
    assert found["alpha_bar", 0.5] < 0.7 * found["none", 0.5]


def test_widths_that_differ_are_named() -> None:
    same = TiUEUNet.from_unet(toy())
    check_widths(same, toy())
    with pytest.raises(
        UserError, match=r"block_out_channels = \[16, 32, 48\], the teacher \[16, 32, 32\]"
    ):
        check_widths(toy(block_out_channels=(16, 32, 48)), toy())
    with pytest.raises(UserError, match="cross_attention_dim = 12, the teacher 24"):
        check_widths(toy(cross_attention_dim=12), toy())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher_guidance": -1.0}, "teacher_guidance = -1.0: give 1 for none"),
        ({"score_guidance": -0.5}, "score_guidance = -0.5: give 1 for none"),
        ({"teacher_guidance": math.nan}, "teacher_guidance = nan"),
        ({"times": (0.5, 0.2)}, r"times = \(0.5, 0.2\)"),
        ({"kl_weight": -0.1}, "kl_weight = -0.1"),
        ({"dropout": 1.0}, "dropout = 1.0"),
    ],
)
def test_numbers_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        DistillationObjective(**settings)
