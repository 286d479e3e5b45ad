"""Score nets: they begin as the teacher, learn, and leave the teacher as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.nets.toy_unet import inputs, toy
from zoo.errors import UserError
from zoo.nets.tiue import TiUEUNet
from zoo.objectives.score import FullCopy, LoRA, ScoreNet


@pytest.mark.parametrize("kind", [FullCopy, LoRA])
def test_it_learns_beside_a_teacher_that_stays(kind: type[ScoreNet]) -> None:
    plain = TiUEUNet.from_unet(toy())
    x, t, text = inputs(plain)
    expected = plain(x, t, text).sample.detach()
    score = kind(rank=4, alpha=8) if kind is LoRA else kind()
    score.attach(plain)
    assert torch.allclose(score(x, t, text), expected, atol=1e-6)
    optimizer = torch.optim.SGD(score.parameters(), 0.1)
    for _ in range(2):  # an adapter's first factor has no gradient while its second is zero
        optimizer.zero_grad()
        score(x, t, text).square().mean().backward()
        assert any(p.grad is not None and p.grad.any() for p in score.parameters())
        optimizer.step()
    assert (score(x, t, text) - expected).abs().max() > 1e-4
    assert torch.allclose(score.teacher(x, t, text), expected, atol=1e-6)
    assert all(p.requires_grad for p in score.parameters())
    trained = sum(p.numel() for p in score.parameters())
    whole = sum(p.numel() for p in toy().parameters())
    assert trained == whole if kind is FullCopy else trained < 0.2 * whole


@pytest.mark.parametrize("kind", [FullCopy, LoRA])
def test_its_state_is_its_own_weights(kind: type[ScoreNet]) -> None:
    """The teacher is neither saved nor copied; a state that is loaded acts on the predictions."""
    score = kind()
    score.attach(TiUEUNet.from_unet(toy()))
    x, t, text = inputs(toy())
    with torch.no_grad():
        for p in score.parameters():
            p.add_(0.05 * torch.randn_like(p))
    said = score(x, t, text)
    again = kind()
    again.attach(TiUEUNet.from_unet(toy()))
    assert (again(x, t, text) - said).abs().max() > 1e-3
    again.load_state_dict(score.state_dict())
    assert torch.allclose(again(x, t, text), said, atol=1e-6)
    assert len(score.state_dict()) == len(list(score.parameters()))
    assert copy.deepcopy(score).frozen_teacher is score.frozen_teacher


def test_mistakes() -> None:
    with pytest.raises(UserError, match="rank = 0: give at least 1"):
        LoRA(rank=0)
    with pytest.raises(UserError, match="no layer named to_w"):
        LoRA(targets=("to_w",)).attach(TiUEUNet.from_unet(toy()))
