"""Weights of the f-divergences, against the divergences themselves, and the ratio they need."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.objectives.mixture import (
    MEANS,
    SHARES,
    STD,
    Student,
    distillation_gradient,
    divergence,
    fit,
    fit_with_head,
    log_p,
    mode_shares,
)
from zoo.errors import UserError
from zoo.nets.ratio_head import RatioHead
from zoo.objectives.divergence import Divergence, DivergenceName, f_generator, ratio_weight

NAMES = get_args(DivergenceName)
LOG_RATIOS = torch.linspace(-6, 6, 49, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_divergence_weight_is_r_squared_times_the_second_derivative(name: DivergenceName) -> None:
    r = LOG_RATIOS.exp().requires_grad_()
    first = torch.autograd.grad(f_generator(name, r.log()).sum(), r, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), r)[0]
    expected = (r.square() * second).detach()
    assert torch.allclose(ratio_weight(name, LOG_RATIOS), expected, rtol=1e-9, atol=0)
    assert f_generator(name, torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(0)


def test_divergence_formulas_as_written() -> None:
    r = LOG_RATIOS.exp()
    f = {
        "reverse_kl": -r.log(),
        "forward_kl": r * r.log(),
        "js": r * r.log() - (r + 1) * ((r + 1) / 2).log(),
        "jeffreys": (r - 1) * r.log(),
        "softened_rkl": (r + 1) * (0.5 + 0.5 / r).log(),
        "hellinger": 1 - r.sqrt(),
    }
    h = {
        "reverse_kl": torch.ones_like(r),
        "forward_kl": r,
        "js": r / (r + 1),
        "jeffreys": r + 1,
        "softened_rkl": 1 / (r + 1),
        "hellinger": r.sqrt() / 4,
    }
    for name in NAMES:
        assert torch.allclose(f_generator(name, LOG_RATIOS), f[name], rtol=1e-9, atol=1e-12)
        assert torch.allclose(ratio_weight(name, LOG_RATIOS), h[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_divergence_gradient_is_that_of_the_divergence(name: DivergenceName) -> None:
    """-E_q[h(r) (s_p - s_q) dG] against central differences of D_f, on the known mixture."""
    parameters = torch.tensor([0.6, 0.2, 0.1, -0.2], dtype=torch.float64)
    steps = 1e-4 * torch.eye(4, dtype=torch.float64)
    numeric = torch.stack(
        [
            (divergence(name, parameters + e) - divergence(name, parameters - e)) / 2e-4
            for e in steps
        ]
    )
    assert numeric.abs().max() > 0.2
    assert torch.allclose(distillation_gradient(name, parameters), numeric, atol=1e-6)


def test_divergence_reverse_kl_drops_a_mode_and_forward_kl_covers_both() -> None:
    dropping, covering = fit("reverse_kl"), fit("forward_kl")
    # all of it sits on the heavier mode, as wide as that mode
    left, right = mode_shares(dropping)
    assert left < 0.001
    assert right == pytest.approx(0.865, abs=0.01)
    assert torch.allclose(dropping.mean, MEANS[1], atol=0.01)
    assert torch.allclose(dropping.log_std.exp(), torch.full((2,), STD).double(), atol=0.01)
    # the best Gaussian by forward KL has the teacher's own mean and variance
    mean = SHARES @ MEANS
    variance = STD**2 + SHARES @ MEANS.square() - mean.square()
    assert torch.allclose(covering.mean, mean, atol=1e-3)
    assert torch.allclose(covering.log_std.exp(), variance.sqrt(), atol=1e-3)
    assert min(mode_shares(covering)) > 0.14
    # from the middle, JS, Hellinger and Jeffreys descend to a student on both modes
    assert min(mode_shares(fit("softened_rkl"))) < 0.001
    for name in ("js", "hellinger", "jeffreys"):
        assert min(mode_shares(fit(name))) > 0.12  # type: ignore[arg-type]


def test_divergence_with_a_learned_ratio_covers_too() -> None:
    student, choice = fit_with_head("forward_kl")
    exact = fit("forward_kl")
    assert torch.allclose(student.mean, exact.mean, atol=0.1)
    assert torch.allclose(student.log_std, exact.log_std, atol=0.05)
    # the head's ratio is the true one where there are samples
    x = student.draw(torch.randn(2000, 2, generator=torch.Generator().manual_seed(5)).double())
    true = (log_p(x) - student.log_q(x)).clamp(-5, 5)
    t, text = torch.zeros(2000), torch.zeros(2000, 1, 1)
    learned = choice.log_ratio(x, t, text).clamp(-5, 5)
    assert torch.corrcoef(torch.stack([true, learned.detach()]))[0, 1] > 0.97
    assert (true - learned).abs().median() < 0.25
    assert torch.equal(choice.weight(x, t, text), learned.exp().detach())


def shifted(text: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher's and student's latents [B,2,4,4], and the true log ratio as a function."""
    sign = text[:, 0, :1, None, None].sign()
    shape = (len(text), 2, 4, 4)
    teacher = 0.4 * sign + torch.randn(shape, generator=generator)
    return teacher, torch.randn(shape, generator=generator), sign


def test_divergence_ratio_head_learns_a_conditional_ratio() -> None:
    """Teacher N(0.4 c, 1), student N(0, 1), c the text's sign: log r = 0.4 c sum(x) - 2.56."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    head = RatioHead(channels=2, text_dim=8, width=16, blocks=2)
    choice = Divergence("js", head=head, optimizer=partial(torch.optim.Adam, lr=3e-3))
    assert choice.optimizer is not None
    optimizer = choice.optimizer(head.parameters())
    vector = torch.randn(8, generator=generator)
    vector[0] = 1.0

    def texts(count: int) -> Tensor:
        sign = torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1
        text = torch.zeros(count, 5, 8)  # padding after the third word
        text[:, :3] = sign[:, None, None] * vector
        return text

    t = torch.full((128,), 500)
    assert choice.weight(torch.randn(128, 2, 4, 4), t, texts(128)).unique().item() == 0.5
    for _ in range(250):
        text = texts(128)
        teacher, student, _ = shifted(text, generator)
        loss, terms = choice.loss(teacher, student, t, text)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert terms["ratio_teacher"] > 0.5 > -0.5 > terms["ratio_student"]
    text = texts(128)
    _, x, sign = shifted(text, generator)
    true = 0.4 * (sign * x).flatten(1).sum(1) - 0.5 * 0.16 * 32
    learned = choice.log_ratio(x, t, text).detach()
    assert torch.corrcoef(torch.stack([true, learned]))[0, 1] > 0.9
    # a ratio of conditional densities: the other text turns it round
    other = choice.log_ratio(x, t, -text).detach()
    assert torch.corrcoef(torch.stack([learned, other]))[0, 1] < -0.5


def test_divergence_loss_trains_the_head_alone_and_the_weight_is_bounded() -> None:
    torch.manual_seed(0)
    head = RatioHead(channels=2, text_dim=8, width=8, blocks=3)
    choice = Divergence("forward_kl", head=head, optimizer=torch.optim.Adam, max_log_ratio=2.0)
    x = torch.randn(6, 2, 5, 3, requires_grad=True)
    t, text = torch.arange(6), torch.zeros(6, 4, 8)
    choice.loss(x.detach(), x, t, text)[0].backward()
    assert x.grad is None
    assert head.conv_in.weight.grad is not None
    weight = choice.weight(x, t, text)
    assert weight.shape == (6,)
    assert not weight.requires_grad
    for bias, bound in ((100.0, 2.0), (-100.0, -2.0)):
        torch.nn.init.constant_(head.out.bias, bias)
        assert torch.allclose(choice.weight(x, t, text), torch.full((6,), bound).exp())
    torch.nn.init.normal_(head.out.weight)
    torch.nn.init.zeros_(head.out.bias)
    # one time step is not another
    log_ratio = choice.log_ratio(x[:1].expand(2, -1, -1, -1), torch.tensor([0, 900]), text[:2])
    assert log_ratio[0] != log_ratio[1]


def test_divergence_reverse_kl_is_vsd() -> None:
    choice = Divergence()
    assert choice.data_free
    assert list(choice.parameters()) == []
    x = torch.randn(3, 4, 2, 2)
    assert torch.equal(choice.weight(x, torch.zeros(3), torch.zeros(3, 1, 1)), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("reverse_kl", {"head": RatioHead(width=8)}, "a ratio head with reverse_kl has nothing"),
        ("reverse_kl", {"optimizer": torch.optim.Adam}, "leave the head out"),
        ("js", {}, "js weights samples by a density ratio: give it a ratio head"),
        ("js", {"head": RatioHead(width=8)}, "and the head's optimizer"),
        ("foward_kl", {}, "unknown divergence 'foward_kl': did you mean 'forward_kl'"),
        (
            "js",
            {"head": RatioHead(width=8), "optimizer": torch.optim.Adam, "max_log_ratio": 0.0},
            "max_log_ratio = 0.0: give a bound above 0",
        ),
    ],
)
def test_divergence_mistakes(name: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        Divergence(name, **arguments)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"width = 12, blocks = 3: give a multiple of 8"):
        RatioHead(width=12)


def test_divergence_students_of_the_plane_have_a_density() -> None:
    """The helper's own densities integrate to 1, else nothing above means anything."""
    from tests.objectives.mixture import quadrature

    x, area = quadrature()
    student = Student.of(torch.tensor([0.3, 0.1, 0.4, -0.3], dtype=torch.float64))
    for log_density in (log_p(x), student.log_q(x)):
        assert (log_density.exp().sum() * area).item() == pytest.approx(1, abs=1e-7)
