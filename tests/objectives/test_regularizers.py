"""The family of regularizers against quadrature, closed forms and torch's own divergences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import zoo
from tests.nets.zoo_of_nets import published_vae, video
from zoo.errors import UserError
from zoo.nets.posterior import Posterior
from zoo.objectives import (
    KL,
    MMD,
    CauchySchwarz,
    DenoisingObjective,
    ReconstructionObjective,
    Regularizer,
    SplitKL,
)

FAMILY: list[Regularizer] = [KL(), KL(free_bits=0.5), CauchySchwarz(), SplitKL(codes=16), MMD()]
GRID = np.linspace(-30, 30, 400_001)
STEP = float(GRID[1] - GRID[0])


def posterior(seed: int = 0, *, channels: int = 3) -> Posterior:
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, 2, channels, 2, 3, 4, generator=generator)
    return Posterior(mean, logvar)


def density(mean: float, std: float) -> np.ndarray:
    return np.exp(-0.5 * ((GRID - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def integral(values: np.ndarray) -> float:
    return float(values.sum() * STEP)


def two_bumps(distance: float, std: float, *, channels: int, count: int) -> Posterior:
    """Half of the codes at -distance, half at +distance, in all channels alike."""
    side = torch.tensor([-1.0, 1.0]).repeat(count // 2) * distance
    mean = side.expand(1, channels, count)[..., None, None].contiguous()
    return Posterior(mean, torch.full_like(mean, 2 * math.log(std)))


def test_kl_is_that_of_torch() -> None:
    q = posterior()
    reference = kl_divergence(Normal(q.mean, q.std), Normal(0, 1)).sum() / 2
    value = KL()(q, q.sample(), pixels=100)
    assert value.item() == pytest.approx(reference.item() / 100, rel=1e-5)


def test_free_bits_cost_nothing() -> None:
    q = posterior()
    by_channel = kl_divergence(Normal(q.mean, q.std), Normal(0, 1)).mean(dim=(0, 2, 3, 4))
    floor = float(by_channel.sort().values[:2].mean())  # between the first and the second
    expected = by_channel.clamp_min(floor).sum() * 24 / 100
    assert KL(free_bits=floor)(q, q.mean, pixels=100).item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    mean = q.mean.clone().requires_grad_()
    KL(free_bits=floor)(Posterior(mean, q.logvar), mean, pixels=100).backward()
    assert mean.grad is not None
    free = by_channel < floor
    assert not mean.grad[:, free].any()
    assert mean.grad[:, ~free].all()


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.5), (0.3, 0.02)])
def test_cauchy_schwarz_is_that_of_quadrature(mean: float, std: float) -> None:
    p, q = density(mean, std), density(0, 1)
    reference = math.log(integral(p**2) * integral(q**2) / integral(p * q) ** 2)
    given = Posterior(torch.full((1, 1, 1, 1, 1), mean), torch.full((1,) * 5, 2 * math.log(std)))
    value = CauchySchwarz()(given, given.mean, pixels=1)
    assert value.item() == pytest.approx(reference, rel=1e-4, abs=1e-6)


def test_split_kl_adds_up_to_the_kl_of_its_codes() -> None:
    q = posterior(1)
    z = q.sample()
    parts = SplitKL(codes=48).split(q, z)
    log_ratio = Normal(q.mean, q.std).log_prob(z) - Normal(0, 1).log_prob(z)
    assert sum(parts).item() == pytest.approx(log_ratio.sum(1).mean().item(), rel=1e-4)
    whole = SplitKL(codes=48)(q, z, pixels=10).item()
    assert whole == pytest.approx(24 / 10 * sum(parts).item(), rel=1e-4)


def test_split_kl_is_that_of_quadrature() -> None:
    torch.manual_seed(0)
    distance, std = 1.0, 0.6
    mixture = 0.5 * density(-distance, std) + 0.5 * density(distance, std)
    entropy = -integral(mixture * np.log(mixture.clip(1e-300)))
    information = entropy - 0.5 * math.log(2 * math.pi * math.e * std**2)
    ratio = np.log(mixture.clip(1e-300)) - np.log(density(0, 1).clip(1e-300))
    to_prior = integral(mixture * ratio)
    q = two_bumps(distance, std, channels=1, count=3000)
    parts = SplitKL(codes=3000).split(q, q.sample())
    assert parts[0].item() == pytest.approx(information, abs=0.03)
    assert parts[1].item() == pytest.approx(0, abs=1e-4)
    assert parts[2].item() == pytest.approx(to_prior, abs=0.05)
    # two channels that say the same: one bit of information, which is all correlation
    q = two_bumps(3.0, 0.1, channels=2, count=200)
    parts = SplitKL(codes=200).split(q, q.sample())
    assert parts[0].item() == pytest.approx(math.log(2), abs=1e-3)
    assert parts[1].item() == pytest.approx(math.log(2), abs=1e-3)


def test_weights_of_the_split() -> None:
    q = posterior(2)
    z = q.sample()
    information, correlation, dimensions = SplitKL(codes=48).split(q, z)
    dts = SplitKL(codes=48, information=-0.5, correlation=4.0, dimensions=2.0)
    expected = -0.5 * information + 4 * correlation + 2 * dimensions
    assert torch.allclose(dts(q, z, pixels=24), expected, rtol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5), (0.0, 0.0)])
def test_mmd_is_that_of_quadrature(mean: float, std: float) -> None:
    torch.manual_seed(0)
    scales = (0.2, 2.0)

    def expected(shift: float, spread: float) -> float:
        """E k(a, b) where a - b is N(shift, spread^2)."""
        if not spread:
            return float(len(scales))
        kernel = sum(2 * s / (2 * s + GRID**2) for s in scales)
        return integral(kernel * density(shift, spread))

    reference = (
        expected(0, math.sqrt(2) * std)
        + expected(0, math.sqrt(2))
        - 2 * expected(mean, math.hypot(std, 1))
    )
    z = mean + std * torch.randn(1, 1, 3000, 1, 1)
    value = MMD(scales=scales, codes=3000)(Posterior(z), z, pixels=1)
    assert value.item() == pytest.approx(reference, abs=0.03)


@pytest.mark.parametrize("regularizer", FAMILY, ids=lambda r: f"{r.name}-{type(r).__name__}")
@pytest.mark.parametrize("logvar", [-30.0, -7.0, 20.0])
@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_at_extremes(
    regularizer: Regularizer, logvar: float, mean: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    m = (mean * torch.randn(2, 3, 1, 2, 2)).to(dtype).requires_grad_()
    v = torch.full_like(m, logvar, requires_grad=True)
    q = Posterior(m, v)
    value = regularizer(q, q.sample(), pixels=12)
    assert value.isfinite()
    value.backward()
    for gradient in (m.grad, v.grad):
        assert gradient is None or gradient.isfinite().all()


def test_weight_grows_over_the_warmup() -> None:
    beta = KL(weight=2.0, warmup=0.1)
    assert [beta.weight_at(p) for p in (0.0, 0.05, 0.1, 1.0)] == [0.0, 1.0, 2.0, 2.0]
    assert KL(weight=2.0).weight_at(0.0) == 2.0


@pytest.mark.parametrize("regularizer", FAMILY, ids=lambda r: f"{r.name}-{type(r).__name__}")
def test_vae_and_cdt_take_any_member(regularizer: Regularizer) -> None:
    torch.manual_seed(0)
    x = video(5)
    nets = published_vae(), zoo.create("cdt_tiny", context_dim=8, unet_dim=8)
    objectives = (
        ReconstructionObjective(lpips_weight=0, regularizer=regularizer),
        DenoisingObjective(lpips_weight=0, regularizer=regularizer),
    )
    for net, objective in zip(nets, objectives, strict=True):
        losses = objective(net, x, progress=1.0)  # type: ignore[operator]
        expected = losses.terms["mse"] + regularizer.weight * losses.terms[regularizer.name]
        assert torch.allclose(losses.total, expected)
        losses.total.backward()


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"kl_weight = 0\.1 and a regularizer"):
        ReconstructionObjective(kl_weight=0.1, regularizer=KL())
    with pytest.raises(UserError, match="warmup = 2"):
        KL(warmup=2)
    with pytest.raises(UserError, match="weight = -1"):
        CauchySchwarz(weight=-1)
    with pytest.raises(UserError, match="codes = 1"):
        SplitKL(codes=1)
    with pytest.raises(UserError, match="latent_noise = -1"):
        ReconstructionObjective(latent_noise=-1)
    z: Tensor = torch.zeros(2, 3, 1, 2, 2)
    for regularizer in (KL(), KL(free_bits=1.0), CauchySchwarz(), SplitKL()):
        with pytest.raises(UserError, match="deterministic"):
            regularizer(Posterior(z), z, pixels=1)
    # weight 0 leaves it out, as a decoder on a frozen encoder wants it
    assert not KL(weight=0).add_to(z, {}, posterior=Posterior(z), z=z, pixels=1, progress=1).any()
