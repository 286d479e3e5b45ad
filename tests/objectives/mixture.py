"""A teacher of two modes in the plane and a student that is one Gaussian: all known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from zoo.objectives.divergence import Divergence, DivergenceName, f_generator, ratio_weight

MEANS = torch.tensor([[-2.0, 0.5], [2.0, -0.5]], dtype=torch.float64)
SHARES = torch.tensor([0.4, 0.6], dtype=torch.float64)
STD = 0.6


def log_p(x: Tensor) -> Tensor:
    """Of the teacher at [...,2]: two round Gaussians."""
    squares = (x[..., None, :] - MEANS).square().sum(-1)
    logs = SHARES.log() - squares / (2 * STD**2) - math.log(2 * math.pi * STD**2)
    return logs.logsumexp(-1)


def draw_p(count: int, generator: torch.Generator) -> Tensor:
    """Samples of the teacher, [count,2]."""
    which = torch.multinomial(SHARES, count, replacement=True, generator=generator)
    noise = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    return MEANS[which] + STD * noise


@dataclass(frozen=True)
class Student:
    """x = mean + exp(log_std) z, z ~ N(0, I): its four parameters are the generator's.

    Attributes:
        mean, log_std: [2] each.
    """

    mean: Tensor
    log_std: Tensor

    @classmethod
    def of(cls, parameters: Tensor) -> Student:
        """From [4]."""
        return cls(parameters[:2], parameters[2:])

    def draw(self, z: Tensor) -> Tensor:
        """Samples of noise [B,2]."""
        return self.mean + self.log_std.exp() * z

    def log_q(self, x: Tensor) -> Tensor:
        """Log density at [...,2]."""
        z = (x - self.mean) / self.log_std.exp()
        return -0.5 * z.square().sum(-1) - self.log_std.sum() - math.log(2 * math.pi)


def score_p(x: Tensor) -> Tensor:
    """Gradient of the teacher's log density."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_p(x).sum(), x)[0]


def quadrature(side: int = 100, reach: float = 9.0) -> tuple[Tensor, float]:
    """Points [side^2,2] of a square grid and the area that each stands for."""
    line = torch.linspace(-reach, reach, side, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).flatten(0, 1)
    return points, float(line[1] - line[0]) ** 2


def divergence(name: DivergenceName, parameters: Tensor) -> Tensor:
    """D_f(p || q) = E_q[f(p / q)] by quadrature."""
    x, area = quadrature()
    log_q = Student.of(parameters).log_q(x)
    return (log_q.exp() * f_generator(name, log_p(x) - log_q)).sum() * area


def distillation_gradient(name: DivergenceName, parameters: Tensor) -> Tensor:
    """-E_q[h(r) (s_p - s_q) dG/dtheta], the gradient that distillation follows, by quadrature."""
    x, area = quadrature()
    student = Student.of(parameters.detach())
    std = student.log_std.exp()
    z = (x - student.mean) / std
    log_q = student.log_q(x)
    pull = ratio_weight(name, log_p(x) - log_q)[:, None] * (score_p(x) + z / std)
    by_parameter = torch.cat([pull, pull * z * std], dim=1)
    return -(log_q.exp()[:, None] * by_parameter).sum(0) * area


def fit(
    name: DivergenceName, *, steps: int = 160, start: tuple[float, ...] = (0.6, 0.0, 0.0, 0.0)
) -> Student:
    """Follow the distillation gradient to its end, with the exact ratio and scores."""
    parameters = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameters], lr=0.05)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        parameters.grad = distillation_gradient(name, parameters)
        optimizer.step()
        plan.step()
    return Student.of(parameters.detach())


class PlaneHead(nn.Module):
    """A ratio head for points in the plane; time and text change nothing here."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        ).double()

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        out: Tensor = self.net(x_t)[:, 0]
        return out


def fit_with_head(name: DivergenceName, *, steps: int = 800) -> tuple[Student, Divergence]:
    """As `fit`, but with samples and with the ratio that a head learns beside the student."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    adam = partial(torch.optim.Adam, lr=3e-3)
    choice = Divergence(name, head=PlaneHead(), optimizer=adam)
    assert choice.head is not None
    assert choice.optimizer is not None
    of_head = choice.optimizer(choice.head.parameters())
    parameters = torch.tensor([0.6, 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    of_student = torch.optim.Adam([parameters], lr=0.02)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(of_student, steps)
    count = 512
    t, text = torch.zeros(count), torch.zeros(count, 1, 1)
    for _ in range(steps):
        student = Student.of(parameters)
        x = student.draw(torch.randn(count, 2, dtype=torch.float64, generator=generator))
        of_head.zero_grad()
        choice.loss(draw_p(count, generator), x, t, text)[0].backward()
        of_head.step()
        score_q = -(x - student.mean) / (2 * student.log_std).exp()
        pull = choice.weight(x, t, text)[:, None] * (score_p(x) - score_q.detach())
        of_student.zero_grad()
        (-(pull * x).sum(1).mean()).backward()
        of_student.step()
        plan.step()
    return Student.of(parameters.detach()), choice


def mode_shares(student: Student, *, count: int = 20_000) -> list[float]:
    """Share of the student's samples within 2 standard deviations of each of p's modes.

    A sample of p is there with probability 0.865 times the mode's share.
    """
    z = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = torch.cdist(student.draw(z), MEANS) < 2 * STD
    return near.double().mean(0).tolist()
