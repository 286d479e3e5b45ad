"""Losses of both players, their balance and the discriminators."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nets.zoo_of_nets import published_image_vae, published_vae
from zoo.errors import UserError
from zoo.nets.discriminator import PatchDiscriminator
from zoo.objectives import Adversarial


class Constant(nn.Module):
    """A discriminator whose verdict is its input's mean times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1).mean(1)


def stage(**changes: Any) -> Adversarial:
    values: dict[str, Any] = {
        "discriminator": Constant(),
        "optimizer": partial(torch.optim.Adam, lr=1e-3),
        "warmup": 0,
        "weight": 0.5,
    }
    return Adversarial(**(values | changes))


def clips(level: float) -> Tensor:
    return torch.full((2, 3, 1, 4, 4), level)


def test_adversarial_hinge_and_lecam_by_hand() -> None:
    judge = stage(lecam=0.1)
    total, terms = judge.judge(clips(0.4), clips(-0.2))
    # 1/2 (1 - .4) + 1/2 (1 - .2); anchors start as the first verdicts
    assert terms["disc"].item() == pytest.approx(0.7)
    assert terms["disc_lecam"].item() == pytest.approx(0.6**2 + 0.6**2)
    assert total.item() == pytest.approx(0.7 + 0.1 * 0.72)
    assert judge.steps == 1
    judge.judge(clips(0.0), clips(0.0))
    assert judge.real_mean.item() == pytest.approx(0.2)
    assert judge.fool(clips(0.3)).item() == pytest.approx(-0.3)


def test_adversarial_turns_leave_the_other_player_alone() -> None:
    judge = stage()
    y = clips(0.1).requires_grad_()
    judge.judge(clips(0.4), y)[0].backward()
    weight = judge.discriminator.weight
    assert weight.grad is not None
    assert y.grad is None
    weight.grad = None
    judge.fool(y).backward()
    assert weight.grad is None
    assert y.grad is not None


def test_adversarial_balance_is_the_ratio_of_gradients_with_a_bound() -> None:
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    other, against = layer.square().sum(), 2 * layer.sum()
    ratio = (36 + 64) ** 0.5 / 8**0.5
    balance = stage(max_balance=100).balance(other, against, layer)
    assert balance.item() == pytest.approx(0.5 * ratio, rel=1e-5)
    assert not balance.requires_grad
    assert stage(max_balance=2.0).balance(other, against, layer).item() == pytest.approx(1.0)
    # a gradient that vanishes doesn't blow up
    assert stage().balance(other, 0 * against, layer).item() == pytest.approx(5.0)


def test_adversarial_weight_grows_with_the_discriminators_own_steps() -> None:
    judge = stage(warmup=4, max_balance=1.0)
    layer = torch.tensor([1.0], requires_grad=True)
    seen = []
    for _ in range(6):
        loss = layer.square().sum()
        seen.append(judge.balance(loss, loss.clone(), layer).item())
        judge.judge(clips(0.4), clips(0.2))
    assert seen == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5], rel=1e-4)


@pytest.mark.parametrize("time", [False, True])
def test_discriminator_learns_and_judges_patches(time: bool) -> None:
    """It tells sharp clips from blurred ones after a few adversarial steps, patch by patch."""
    torch.manual_seed(0)
    judge = stage(discriminator=PatchDiscriminator(dim=8, layers=2, time=time))
    optimizer = judge.optimizer(judge.discriminator.parameters())
    for _ in range(60):
        x = torch.rand(2, 3, 9, 32, 32) * 2 - 1
        y = torch.nn.functional.avg_pool3d(x, (1, 3, 3), 1, (0, 1, 1))
        loss, terms = judge.judge(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert terms["disc_real"] > terms["disc_fake"] + 0.5
    verdicts = judge.discriminator(x)
    assert verdicts.shape[0] == (2 if time else 18)
    assert verdicts[0].numel() > 16


@pytest.mark.parametrize("build", [published_vae, published_image_vae])
def test_last_layer_of_each_vae_makes_the_pixels(build: Any) -> None:
    torch.manual_seed(0)
    net = build()
    y = net.decode(torch.randn(1, net.latent_channels, 1, 2, 2))
    (gradient,) = torch.autograd.grad(y.square().mean(), net.last_layer)
    assert gradient.any()
    assert net.last_layer.shape[0] == 3


def test_adversarial_mistakes() -> None:
    with pytest.raises(UserError, match="start = -1"):
        stage(start=-1)
    with pytest.raises(UserError, match="lecam_decay = 1"):
        stage(lecam_decay=1.0)
    with pytest.raises(UserError, match=r"\(1, 4, 1, 32, 32\)"):
        PatchDiscriminator(dim=8)(torch.zeros(1, 4, 1, 32, 32))
