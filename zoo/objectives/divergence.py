"""Which divergence a distilled student minimises (f-distill, arXiv 2502.15681).

With p_t the teacher's noised distribution, q_t the student's, r = p_t / q_t, s their scores and
x = G(z) the student's sample,

    grad D_f(p_t || q_t) = -E_z[ h(r) (s_p - s_q) grad G ],   h(r) = r^2 f''(r),

where D_f(p || q) = E_q[f(r)]. Variational score distillation (arXiv 2305.16213) is h = 1, the
reverse KL; every other choice weights its gradient, sample by sample, by the density ratio. All
functions take log r: a ratio of noised densities over- and underflows early.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError, closest
from zoo.objectives.adversarial import OptimizerFactory
from zoo.objectives.teacher_samples import TeacherSamples

DivergenceName = Literal["reverse_kl", "forward_kl", "js", "jeffreys", "softened_rkl", "hellinger"]
_LOG_2 = 0.6931471805599453

_GENERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda log_r: -log_r,
    "forward_kl": lambda log_r: log_r.exp() * log_r,
    "js": lambda log_r: log_r.exp() * log_r - (log_r.exp() + 1) * (F.softplus(log_r) - _LOG_2),
    "jeffreys": lambda log_r: log_r.expm1() * log_r,
    "softened_rkl": lambda log_r: (log_r.exp() + 1) * (F.softplus(-log_r) - _LOG_2),
    "hellinger": lambda log_r: -(log_r / 2).expm1(),
}
_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": torch.exp,
    "js": torch.sigmoid,
    "jeffreys": lambda log_r: log_r.exp() + 1,
    "softened_rkl": lambda log_r: torch.sigmoid(-log_r),
    "hellinger": lambda log_r: (log_r / 2).exp() / 4,
}


def f_generator(name: DivergenceName, log_ratio: Tensor) -> Tensor:
    """f(r) of D_f(p || q) = E_q[f(r)], f(1) = 0.

    reverse_kl: -log r. forward_kl: r log r. js, twice the Jensen-Shannon divergence:
    r log r - (r + 1) log((r + 1) / 2). jeffreys, the sum of both KLs: (r - 1) log r. softened_rkl:
    (r + 1) log(1/2 + 1 / (2 r)). hellinger, half the squared distance: 1 - sqrt(r).

    Args:
        name: of the divergence.
        log_ratio: log r, any shape and floating dtype.

    Raises:
        UserError: unknown name.
    """
    return _GENERATORS[checked_name(name)](log_ratio)


def ratio_weight(name: DivergenceName, log_ratio: Tensor) -> Tensor:
    """h(r) = r^2 f''(r), above 0, in the shape of `log_ratio`.

    1, r, r / (r + 1), r + 1, 1 / (r + 1) and sqrt(r) / 4 in the order of `DivergenceName`.

    Raises:
        UserError: unknown name.
    """
    return _WEIGHTS[checked_name(name)](log_ratio)


def checked_name(name: str) -> str:
    """The name, if there is such a divergence.

    Raises:
        UserError: there is none.
    """
    if name not in _WEIGHTS:
        near = closest(name, _WEIGHTS)[0]
        known = ", ".join(get_args(DivergenceName))
        raise UserError(f"unknown divergence '{name}': did you mean '{near}'? (one of {known})")
    return name


class Divergence(nn.Module):
    """The weight h(r) of a student's samples, and the training of the ratio it needs.

    r = D / (1 - D), where D tells the teacher's noised samples from the student's; `head` gives
    log r, D's logit. Everything but the reverse KL needs samples of the teacher, so only the
    reverse KL is data-free. A module, so that a checkpoint holds the head.

    Args:
        name: of the divergence.
        head: (x_t [B,...], t [B], text [B,L,D]) to log r [B], such as
            `zoo.nets.ratio_head.RatioHead`; None for the reverse KL.
        optimizer: called with the head's parameters; needed with a head.
        samples: of the teacher, which training needs beside the head (`weight` and `loss` don't).
        max_log_ratio: log r is clamped to [-max, max]: forward_kl's and jeffreys' weights grow
            like r, and a single sample must not own the batch.

    Raises:
        UserError: unknown name, a head (or an optimiser) for the reverse KL, none for another, or a
            bound that isn't above 0.
    """

    def __init__(
        self,
        name: DivergenceName = "reverse_kl",
        *,
        head: nn.Module | None = None,
        optimizer: OptimizerFactory | None = None,
        samples: TeacherSamples | None = None,
        max_log_ratio: float = 5.0,
    ) -> None:
        super().__init__()
        self.name: Any = checked_name(name)
        given = (head, optimizer, samples)
        if name == "reverse_kl" and any(part is not None for part in given):
            raise UserError(
                "a ratio head with reverse_kl has nothing to do, as its weight is 1 whatever the "
                "ratio: leave the head out, or choose another divergence"
            )
        if name != "reverse_kl" and (head is None or optimizer is None):
            raise UserError(
                f"{name} weights samples by a density ratio: give it a ratio head and the head's "
                "optimizer, or choose reverse_kl, which needs neither"
            )
        if not max_log_ratio > 0:
            raise UserError(f"max_log_ratio = {max_log_ratio}: give a bound above 0")
        self.head = head
        self.optimizer = optimizer
        self.samples = samples
        self.max_log_ratio = max_log_ratio

    @property
    def data_free(self) -> bool:
        """Whether captions alone are enough: no sample of the teacher is asked for."""
        return self.head is None

    def log_ratio(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """log p_t(x_t | text) / q_t(x_t | text) as the head sees it, [B] in float32 or better.

        Args:
            x_t: noised samples (latents) [B,...].
            t: time steps [B].
            text: [B,L,D].
        """
        assert self.head is not None, "the reverse KL has no ratio"
        logit: Tensor = self.head(x_t, t, text)
        return logit.to(torch.promote_types(logit.dtype, torch.float32))

    @torch.no_grad()
    def weight(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """h(r) of the student's noised samples, [B], detached: it multiplies s_p - s_q.

        Arguments as in `log_ratio`.
        """
        if self.head is None:
            return torch.ones(len(x_t), device=x_t.device)
        bound = self.max_log_ratio
        return ratio_weight(self.name, self.log_ratio(x_t, t, text).clamp(-bound, bound))

    def loss(
        self, teacher_x_t: Tensor, student_x_t: Tensor, t: Tensor, text: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The head's logistic loss, E_p softplus(-log r) + E_q softplus(log r), halved.

        Its minimum over all functions is the true log ratio (arXiv 1406.2661, proposition 1); 0.693
        is what a head that knows nothing has. Both sets share time steps and texts, so that the
        ratio is that of the conditional densities.

        Args:
            teacher_x_t: noised samples of the teacher [B,...], guided as the teacher's score is.
            student_x_t: noised samples of the student, likewise; no gradient goes through them.
            t: time steps [B] of both.
            text: [B,L,D] of both.

        Returns:
            A scalar with gradient to the head, and detached terms: `ratio`, the loss;
            `ratio_teacher` and `ratio_student`, the mean log r of both sets.
        """
        teacher = self.log_ratio(teacher_x_t.detach(), t, text)
        student = self.log_ratio(student_x_t.detach(), t, text)
        loss = 0.5 * (F.softplus(-teacher).mean() + F.softplus(student).mean())
        terms = {
            "ratio": loss.detach(),
            "ratio_teacher": teacher.detach().mean(),
            "ratio_student": student.detach().mean(),
        }
        return loss, terms
