"""Consistency distillation: what a perfect student is, and what it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.test_distillation import TEXT, Gaussian, bars
from zoo.errors import UserError
from zoo.objectives.consistency import ConsistencyObjective


class Constant:
    """The v-prediction whose x_0 is `value` everywhere."""

    def __init__(self, value: Tensor, alpha_bars: Tensor) -> None:
        self.value, self.alpha_bars = value, alpha_bars

    def __call__(self, x_t: Tensor, index: Tensor, text: Tensor) -> Tensor:
        bar = self.alpha_bars[index].view(-1, 1, 1, 1)
        return (bar.sqrt() * x_t - self.value) / (1 - bar).sqrt()


def loss(student: Any, teacher: Any, alpha_bars: Tensor, **settings: Any) -> Any:
    latents = torch.full((64, 1, 2, 2), 0.5)
    return ConsistencyObjective(guidance=1, **settings)(
        latents,
        TEXT.expand(64, 1, 1),
        TEXT,
        student=student,
        teacher=teacher,
        prediction="v_prediction",
        alpha_bars=alpha_bars,
    )


def test_the_true_solution_is_the_only_one_without_loss() -> None:
    """Data at one point: every trajectory ends there, so that a student must say the point."""
    alpha_bars = bars()
    teacher = Constant(torch.tensor(0.5), alpha_bars)
    perfect = loss(Constant(torch.tensor(0.5), alpha_bars), teacher, alpha_bars)
    assert perfect.total < 1e-5
    # another constant agrees with itself, but not with the end of the trajectory
    wrong = loss(Constant(torch.tensor(0.0), alpha_bars), teacher, alpha_bars, solver_steps=2)
    assert wrong.total > 0.1


def test_a_student_learns_where_trajectories_end() -> None:
    alpha_bars = bars()
    teacher = Gaussian("v_prediction", alpha_bars, own=0.5, teacher=0.5, std=1e-3)
    value = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([value], 0.02)
    torch.manual_seed(0)
    for _ in range(80):
        optimizer.zero_grad()
        loss(Constant(value, alpha_bars), teacher, alpha_bars, solver_steps=4).total.backward()
        optimizer.step()
    assert float(value.detach()) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"guidance": -2.0}, "guidance = -2.0: give 1 for none"),
        ({"solver_steps": 1}, "solver_steps = 1"),
        ({"huber": 0.0}, "huber = 0.0"),
    ],
)
def test_numbers_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ConsistencyObjective(**settings)


def test_more_solver_steps_than_the_schedule_has() -> None:
    with pytest.raises(UserError, match="solver_steps = 2000: the schedule has 1000"):
        loss(Constant(torch.tensor(0.5), bars()), None, bars(), solver_steps=2000)
