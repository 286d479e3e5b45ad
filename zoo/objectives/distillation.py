"""Distillation by distribution matching (VSD), with TiUE's regulariser (arXiv 2505.21960).

The student makes x_0 of noise and a caption. Its noised samples are moved from where the score of
its own distribution points to where the teacher's does; captions are all the data there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from zoo.diffusion.predictions import target, to_epsilon
from zoo.diffusion.samplers import DDIMPlan
from zoo.diffusion.schedule import add_noise
from zoo.errors import UserError
from zoo.objectives.clip_term import ClipTerm
from zoo.objectives.losses import Losses
from zoo.objectives.score import ScoreNet

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, time steps, text) to a prediction, all [B,...]."""


class Weighting(Protocol):
    """How much each sample's score difference counts: h(r) of a divergence."""

    def weight(self, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """[B], detached."""


class DistillationObjective:
    """The student's losses and those of the score net that follows it.

    Args:
        teacher_guidance, score_guidance: classifier-free guidance of both; 1 is none.
        times: share of the schedule from which the student's samples are noised, lowest and end.
        kl_weight: of TiUE's regulariser (`prediction_kl`), 0 leaves it out.
        kl_reduction: "mean" over the N x B predictions, or "sum", which is the reference's: its
            weight then grows with batch and N.
        score_weight: on the score net's squared error: "alpha_bar", the reference's, or "none".
            With v-prediction the last steps of a schedule that ends in pure noise would have next
            to no weight under alpha_bar, although one-step students are judged there.
        dropout: share of captions that the score net doesn't see, for its guidance.
        clip: an optional CLIP term.
        divergence: gives each sample's weight; None is 1, the reverse KL, which is VSD itself.

    Raises:
        UserError: a number outside its range.
    """

    def __init__(
        self,
        *,
        teacher_guidance: float = 4.5,
        score_guidance: float = 4.5,
        times: tuple[float, float] = (0.02, 0.981),
        kl_weight: float = 0.1,
        kl_reduction: Literal["mean", "sum"] = "mean",
        score_weight: Literal["alpha_bar", "none"] = "alpha_bar",
        dropout: float = 0.1,
        clip: ClipTerm | None = None,
        divergence: Weighting | None = None,
    ) -> None:
        for name, value in (
            ("teacher_guidance", teacher_guidance),
            ("score_guidance", score_guidance),
        ):
            if not 0 <= value < float("inf"):
                raise UserError(f"{name} = {value}: give 1 for none, 2 to 8 for more of it")
        if not 0 <= times[0] < times[1] <= 1:
            raise UserError(f"times = {times}: give a lowest and a higher share in [0, 1]")
        if kl_weight < 0:
            raise UserError(f"kl_weight = {kl_weight}: give 0 or more")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout = {dropout}: give a share of captions in [0, 1)")
        self.teacher_guidance, self.score_guidance = teacher_guidance, score_guidance
        self.times = times
        self.kl_weight, self.kl_reduction = kl_weight, kl_reduction
        self.score_weight, self.dropout = score_weight, dropout
        self.clip, self.divergence = clip, divergence

    def student(
        self,
        x0: Tensor,
        text: Tensor,
        empty: Tensor,
        *,
        score: ScoreNet,
        plan: DDIMPlan,
        alpha_bars: Tensor,
        z: Tensor,
        predictions: Tensor,
    ) -> Losses:
        """The student's losses, but for the CLIP term (which needs pixels).

        Args:
            x0: its samples [B,...], with gradient.
            text, empty: states of the captions [B,L,D] and of the empty one [1,L,D].
            score: the score net, with the teacher.
            plan: the student's time steps.
            alpha_bars: the schedule [T], float32.
            z: the noise it began with [B,...].
            predictions: its raw outputs [N,B,...], with gradient.
        """
        total = len(alpha_bars)
        low, high = (int(share * total) for share in self.times)
        index = torch.randint(low, max(high, low + 1), (len(x0),), device=x0.device)
        alpha_bar = alpha_bars[index]
        with torch.no_grad():
            x_t = add_noise(x0.detach().float(), torch.randn_like(x0, dtype=torch.float), alpha_bar)

            def noise_of(net: Predict, guidance: float) -> Tensor:
                said = guided(net, x_t, index, text, empty, guidance).float()
                return to_epsilon(plan.prediction, said, x_t, alpha_bar)

            wanted = noise_of(score.teacher, self.teacher_guidance)
            own = noise_of(score, self.score_guidance)
            weight = 1 - alpha_bar
            if self.divergence is not None:
                weight = weight * self.divergence.weight(x_t, index, text)
            push = weight.view(-1, *(1,) * (x0.ndim - 1)) * (wanted - own)
            push = push.nan_to_num(0.0, 0.0, 0.0)
            goal = x0.float() - push
        by_sample = 0.5 * (x0.float() - goal).square().flatten(1).mean(1)
        terms = {"vsd": by_sample.mean()}
        loss = terms["vsd"]
        kl = prediction_kl(noise_predictions(z, predictions, plan))
        terms["kl"] = kl.mean()
        if self.kl_weight:
            loss = loss + self.kl_weight * (kl.mean() if self.kl_reduction == "mean" else kl.sum())
        return Losses(loss, terms, by_clip=by_sample.detach(), output=x0)

    def score(
        self,
        x0: Tensor,
        text: Tensor,
        empty: Tensor,
        *,
        score: Predict,
        plan: DDIMPlan,
        alpha_bars: Tensor,
    ) -> Tensor:
        """The score net's denoising loss on detached samples of the student, a scalar.

        Arguments as of `student`.
        """
        x0 = x0.detach().float()
        index = torch.randint(0, len(alpha_bars), (len(x0),), device=x0.device)
        alpha_bar = alpha_bars[index]
        drop = torch.rand(len(x0), 1, 1, device=x0.device) < self.dropout
        noise = torch.randn_like(x0)
        said = score(add_noise(x0, noise, alpha_bar), index, torch.where(drop, empty, text))
        error = said.float() - target(plan.prediction, x0, noise, alpha_bar)
        by_sample = error.square().flatten(1).mean(1)
        return (by_sample * alpha_bar if self.score_weight == "alpha_bar" else by_sample).mean()


def guided(
    net: Predict, x_t: Tensor, index: Tensor, text: Tensor, empty: Tensor, guidance: float
) -> Tensor:
    """The prediction under classifier-free guidance, both halves in one batch; 1 is one half."""
    if guidance == 1:
        return net(x_t, index, text)
    both = net(x_t.repeat(2, 1, 1, 1), index.repeat(2), torch.cat([empty.expand_as(text), text]))
    without, towards = both.chunk(2)
    return without + guidance * (towards - without)


def noise_predictions(z: Tensor, predictions: Tensor, plan: DDIMPlan) -> Tensor:
    """What a student's raw outputs say about the noise, at each of its N steps: [N,B,...].

    Args:
        z: where the first step starts [B,...].
        predictions: [N,B,...].
        plan: the time steps, and what is predicted.
    """
    x, found = z.float(), []
    for alpha_bar, (p, q), said in zip(
        plan.alpha_bars, plan.coefficients(), predictions.float(), strict=False
    ):
        here = torch.full((len(z),), alpha_bar, device=z.device)
        found.append(to_epsilon(plan.prediction, said, x, here))
        x = p * x + q * said
    return torch.stack(found)


def prediction_kl(noises: Tensor) -> Tensor:
    """KL of N(mean, variance) to N(0, 1) for each prediction: [N,B,...] to [N,B].

    -(1 + log s^2 - mu^2 - s^2) / 2 with the mean and variance over all elements of a prediction.
    Where the prediction is the start noise itself, as of a v-predicting net at pure noise, it has
    no gradient: such a student's first step isn't regularised, a one-step student not at all.
    """
    flat = noises.float().flatten(2)
    mean, variance = flat.mean(-1), flat.var(-1, correction=0)
    return -0.5 * (1 + variance.log() - mean.square() - variance)


def check_widths(student: Any, teacher: Any) -> None:
    """A student begins as its teacher: both must be the same net.

    Raises:
        UserError: their configs differ where the weights do; both values are named.
    """
    keys = (
        "block_out_channels",
        "layers_per_block",
        "cross_attention_dim",
        "in_channels",
        "out_channels",
        "down_block_types",
        "addition_embed_type",
    )
    for key in keys:
        mine, its = _plain(student.config[key]), _plain(teacher.config[key])
        if mine != its:
            raise UserError(
                f"the student has {key} = {mine}, the teacher {its}: a student begins as its "
                "teacher, so give both the same, or leave net out"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
