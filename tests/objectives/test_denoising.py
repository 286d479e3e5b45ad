"""The diffusion objective, and that the decoder it trains is a diffusion decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import zoo
from zoo.errors import UserError
from zoo.metrics.reconstruction import noisy_input_gain
from zoo.nets.cdt import CDT
from zoo.objectives import DenoisingObjective


def textures(count: int, *, seed: int) -> Tensor:
    """Clips [count,3,9,32,32] of sharp textures that move: more detail than 16 numbers hold."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 24, 24, generator=generator)
    big = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="nearest") * 2 - 1
    shifts = torch.randint(0, 2, (2,), generator=generator)
    frames = [
        big.roll((int(shifts[0]) * t, int(shifts[1]) * t), dims=(2, 3))[..., :32, :32]
        for t in range(9)
    ]
    return torch.stack(frames, dim=2)


def test_share_of_pure_noise() -> None:
    objective = DenoisingObjective(lpips_weight=0, pure_noise=0.3)
    torch.manual_seed(0)
    index = objective.sample_times(8192, 20_000, torch.device("cpu"))
    assert (index == 8191).float().mean().item() == pytest.approx(0.3, abs=0.02)
    rest = index[index < 8191].float() / 8191
    assert rest.mean().item() == pytest.approx(0.5, abs=0.01)
    for times, mean, std in (("logit_normal", 0.5, 0.208), ("squared", 1 / 3, 0.298)):
        objective = DenoisingObjective(lpips_weight=0, pure_noise=0, times=times)  # type: ignore[arg-type]
        drawn = objective.sample_times(8192, 20_000, torch.device("cpu")).float() / 8191
        assert drawn.mean().item() == pytest.approx(mean, abs=0.01)
        assert drawn.std().item() == pytest.approx(std, abs=0.01)
    with pytest.raises(UserError, match=r"pure_noise = 1\.5"):
        DenoisingObjective(pure_noise=1.5)


def test_terms_add_up_and_reach_every_part() -> None:
    torch.manual_seed(0)
    net = zoo.create("cdt_tiny")
    assert isinstance(net, CDT)
    x = textures(2, seed=0)
    losses = DenoisingObjective(kl_weight=0.5, lpips_weight=0)(net, x, progress=1.0)
    assert set(losses.terms) == {"mse", "kl"}
    expected = losses.terms["mse"] + 0.5 * losses.terms["kl"]
    assert torch.allclose(losses.total, expected)
    assert torch.allclose(losses.by_clip.mean(), losses.terms["mse"])
    assert losses.time is not None
    assert ((losses.time >= 0) & (losses.time <= 1)).all()


def test_a_trained_decoder_uses_the_noisy_video() -> None:
    """After a minute of training the true x_t at small t beats noise in its place; before, and in
    a decoder that ignores x_t, it can't."""
    torch.manual_seed(0)
    net = zoo.create("cdt_tiny", context_dim=24)
    assert isinstance(net, CDT)
    assert net.pca is not None
    net.pca.fit([textures(16, seed=1)])
    objective = DenoisingObjective(lpips_weight=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    held_out = textures(4, seed=99)

    def gain() -> float:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            return float(noisy_input_gain(net.eval(), held_out, generator=generator).mean())

    assert abs(gain()) < 1e-3
    for step in range(120):
        net.train()
        losses = objective(net, textures(4, seed=2 + step), progress=0.0)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    assert gain() > 0.1
