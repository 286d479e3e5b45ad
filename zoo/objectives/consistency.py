"""Latent consistency distillation (LCM, arXiv 2310.04378): a baseline that needs pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.diffusion.predictions import to_epsilon, to_x0
from zoo.diffusion.schedule import add_noise
from zoo.errors import UserError
from zoo.objectives.distillation import Predict, guided
from zoo.objectives.losses import Losses


class ConsistencyObjective:
    """The student says the same x_0 at two neighbouring points of the teacher's trajectory.

    From x_t of a real latent, the guided teacher takes one DDIM step to the next lower of
    `solver_steps` points; the student's x_0 there, without gradient, is the goal of its x_0 at
    x_t. At the end of the trajectory x_0 is the point itself, which is the paper's boundary
    condition (its c_skip is below 1e-5 elsewhere). The goal comes from the student itself, not an
    average of it (arXiv 2310.14189).

    Args:
        guidance: classifier-free, of the teacher; it is distilled into the student.
        solver_steps: points of the trajectory.
        huber: c of the pseudo-Huber loss sqrt(d^2 + c^2) - c.

    Raises:
        UserError: a number outside its range.
    """

    def __init__(
        self, *, guidance: float = 4.5, solver_steps: int = 50, huber: float = 0.001
    ) -> None:
        if not 0 <= guidance < float("inf"):
            raise UserError(f"guidance = {guidance}: give 1 for none, 2 to 8 for more of it")
        if solver_steps < 2 or huber <= 0:
            raise UserError(
                f"solver_steps = {solver_steps}, huber = {huber}: give at least 2, and above 0"
            )
        self.guidance, self.solver_steps, self.huber = guidance, solver_steps, huber

    def __call__(
        self,
        latents: Tensor,
        text: Tensor,
        empty: Tensor,
        *,
        student: Predict,
        teacher: Predict,
        prediction: str,
        alpha_bars: Tensor,
    ) -> Losses:
        """Losses on clean latents [B,c,h,w].

        Args:
            latents: of real pictures.
            text, empty: states of their captions [B,L,D] and of the empty one [1,L,D].
            student, teacher: nets.
            prediction: what both predict.
            alpha_bars: the schedule [T], float32.
        """
        total = len(alpha_bars)
        if self.solver_steps > total:
            raise UserError(f"solver_steps = {self.solver_steps}: the schedule has {total}")
        # points counted from the clean end: point 0 is x_0 itself
        points = torch.linspace(0, total, self.solver_steps + 1, device=latents.device).long() - 1
        upper = torch.randint(1, self.solver_steps + 1, (len(latents),), device=latents.device)
        t, s = points[upper], points[upper - 1]
        here = alpha_bars[t]
        there = torch.where(s < 0, 1.0, alpha_bars[s.clamp_min(0)])
        x_t = add_noise(latents, torch.randn_like(latents), here)
        with torch.no_grad():
            said = guided(teacher, x_t, t, text, empty, self.guidance).float()
            clean = to_x0(prediction, said, x_t, here)
            noise = to_epsilon(prediction, said, x_t, here)
            x_s = add_noise(clean, noise, there)
            again = to_x0(prediction, student(x_s, s.clamp_min(0), text).float(), x_s, there)
            end = (s < 0).view(-1, *(1,) * (latents.ndim - 1))
            goal = torch.where(end, x_s, again)
        x0 = to_x0(prediction, student(x_t, t, text).float(), x_t, here)
        squared = (x0 - goal).square()
        by_sample = ((squared + self.huber**2).sqrt() - self.huber).flatten(1).mean(1)
        terms = {"consistency": by_sample.mean(), "mse": squared.mean().detach()}
        time: Any = t / (total - 1)
        return Losses(terms["consistency"], terms, time=time, by_clip=by_sample.detach(), output=x0)
