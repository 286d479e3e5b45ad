"""Distances between sets against closed forms, torch-fidelity and constructed sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from zoo.errors import UserError
from zoo.metrics.distributions import (
    KID,
    FrechetDistance,
    Manifold,
    frechet_distance,
    kid_replicates,
    manifold_members,
)
from zoo.metrics.networks import load_inception


def gaussian(count: int, size: int = 8, *, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def frechet(real: Tensor, fake: Tensor, *, pieces: int = 1) -> float:
    metric = FrechetDistance(real.shape[1])
    for rows, kind in ((real, True), (fake, False)):
        for part in rows.chunk(pieces):
            metric.update(part, real=kind)
    return float(metric.compute())


def test_frechet_is_the_closed_form_of_two_gaussians() -> None:
    first = torch.tensor([0.5, 1.0, 4.0, 0.0], dtype=torch.float64)
    second = torch.tensor([2.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    expected = shift.square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    found = frechet_distance(
        torch.zeros(4, dtype=torch.float64),
        turn @ first.diag() @ turn.T,
        turn @ shift,
        turn @ second.diag() @ turn.T,
    )
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_frechet_is_torch_fidelitys() -> None:
    real, fake = gaussian(200, 32), gaussian(150, 32, seed=1) * 1.3 + 0.2
    theirs = [fid_features_to_statistics(rows.double()) for rows in (fake, real)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert frechet(real, fake, pieces=7) == pytest.approx(expected, rel=1e-9)


def test_frechet_streams_without_losing_digits() -> None:
    # a mean of 1000 and a deviation of 0.01: float32 sums of squares would lose all of it
    real, fake = 1000 + 0.01 * gaussian(400).double(), 1000 + 0.02 * gaussian(400, seed=1).double()
    moments = [(rows.mean(0), torch.cov(rows.T)) for rows in (real, fake)]
    expected = float(frechet_distance(*moments[0], *moments[1]))
    assert frechet(real, fake, pieces=40) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UserError, match="2 samples"):
        frechet(real[:1], fake)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a randomly initialised Inception, as a file like the real one."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
    patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    torch.manual_seed(0)
    net = module.FeatureExtractorInceptionV3("any", ["2048"])
    patch.undo()
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(net.state_dict(), path)
    return path


class Pictures(torch.utils.data.Dataset):
    """Pictures as torch-fidelity wants them."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def test_rfid_and_kid_are_torch_fidelitys_with_the_same_weights_file(inception: Path) -> None:
    import torch_fidelity

    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3, 1, 24, 40), (5, 3, 1, 24, 40)]
    sets = [torch.randint(0, 256, s, generator=generator, dtype=torch.uint8) for s in shapes]
    sets[1] = (sets[1] // 2) + 60
    layer = "768"
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(sets[1][:, :, 0]),
        input2=Pictures(sets[0][:, :, 0]),
        fid=True,
        kid=True,
        kid_subset_size=5,
        kid_subsets=2,
        feature_layer_fid=layer,
        feature_layer_kid=layer,
        feature_extractor_weights_path=str(inception),
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=5,
        save_cpu_ram=True,
    )
    net = load_inception(path=inception, layer=layer)
    metric, kid = FrechetDistance(net.dimensions), KID(subset_size=5, subsets=2)
    for pixels, real in ((sets[0], True), (sets[1], False)):
        features = net(pixels / 127.5 - 1)
        metric.update(features, real=real)
        kid.update(features, real=real)
    expected = theirs["frechet_inception_distance"]
    assert expected > 1
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-4)
    expected = theirs["kernel_inception_distance_mean"]
    assert float(kid.compute()[0]) == pytest.approx(expected, rel=1e-4)


def test_a_file_that_is_no_inception_is_said(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="no Inception weights"):
        load_inception(path=path)


def kid(real: Tensor, fake: Tensor, **settings: object) -> tuple[float, float]:
    metric = KID(**settings)  # type: ignore[arg-type]
    metric.update(real, real=True)
    metric.update(fake, real=False)
    mean, deviation = metric.compute()
    return float(mean), float(deviation)


def test_kid_is_torch_fidelitys() -> None:
    metric = KID(subsets=10, subset_size=20)
    metric.update(gaussian(50), real=True)
    metric.update(gaussian(60, seed=1) + 0.5, real=False)
    real, fake = (torch.from_numpy(rows) for rows in metric.sets(paired=False))
    theirs = kid_features_to_metric(
        fake, real, kid_subsets=10, kid_subset_size=20, rng_seed=2020, verbose=False
    )
    mean, deviation = metric.compute()
    assert float(mean) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert float(deviation) == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)


def test_kid_of_equal_distributions_is_zero_on_average() -> None:
    found = np.array(
        [
            kid(gaussian(12, seed=i), gaussian(12, seed=1000 + i), subsets=1, subset_size=12)[0]
            for i in range(300)
        ]
    )
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    # the biased estimate of the same sets is far above: the test can tell
    diagonal = (gaussian(2000).square().sum(1) / 8 + 1).pow(3).mean()
    assert 2 * float(diagonal - 1) / 12 > 10 * error


def test_kid_of_pairs_is_zero_for_perfect_reconstructions_and_unbiased_for_poor_ones() -> None:
    real = gaussian(40)
    assert kid(real, real, paired=True) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-9))
    assert kid(real, real)[0] < 0  # what drawing apart says of the same set
    found = np.array(
        [
            # a reconstruction that keeps the distribution and not the sample
            kid(rows, -rows, paired=True, subsets=1, subset_size=12)[0]
            for rows in (gaussian(12, seed=i) for i in range(300))
        ]
    )
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))
    with pytest.raises(UserError, match="no pairs"):
        kid(real, real[:30], paired=True)


def manifold(real: Tensor, fake: Tensor) -> dict[str, float]:
    metric = Manifold()
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return {name: float(value) for name, value in metric.compute().items()}


def test_precision_and_recall_of_constructed_sets() -> None:
    left, right = gaussian(40, 4), gaussian(40, 4, seed=1) + 100
    dropped = manifold(torch.cat([left, right]), left + 1e-4)
    assert dropped["precision"] == 1
    assert dropped["recall"] == pytest.approx(0.5, abs=0.02)
    assert dropped["coverage"] == pytest.approx(0.5, abs=0.02)
    invented = manifold(left, torch.cat([left + 1e-4, right]))
    assert invented["precision"] == pytest.approx(0.5, abs=0.02)
    assert invented["recall"] == 1
    apart = manifold(left, right)
    assert set(apart.values()) == {0.0}
    few = manifold(left[:4], left[:4])
    assert few == {"precision": 1.0, "recall": 1.0}  # five neighbours aren't to be had


def test_precision_and_recall_are_torch_fidelitys() -> None:
    real, fake = gaussian(60, 3), gaussian(50, 3, seed=1) * 0.7 + 0.4
    theirs = prc_features_to_metric(
        fake.double(), real.double(), prc_neighborhood=3, save_cpu_ram=False, verbose=False
    )
    ours = manifold(real, fake)
    assert ours["precision"] == pytest.approx(theirs["precision"])
    assert ours["recall"] == pytest.approx(theirs["recall"])


def test_density_and_coverage_by_their_definition() -> None:
    real, fake = gaussian(30, 3).double().numpy(), gaussian(25, 3, seed=1).double().numpy() + 0.3
    radii = [np.sort(np.linalg.norm(real - x, axis=1))[5] for x in real]
    inside = np.array(
        [[np.linalg.norm(y - x) <= r for x, r in zip(real, radii, strict=True)] for y in fake]
    )
    ours = manifold(torch.from_numpy(real), torch.from_numpy(fake))
    assert ours["density"] == pytest.approx(inside.sum() / (5 * len(fake)))
    assert ours["coverage"] == pytest.approx(inside.any(axis=0).mean())


def test_kid_replicates_are_u_statistics_without_a_sample_and_its_copy() -> None:
    real, fake = gaussian(9, 3).double().numpy(), gaussian(7, 3, seed=1).double().numpy() + 0.3
    value, draws = kid_replicates(real, fake, resamples=20)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    def statistic(mine: list[int], other: list[int]) -> float:
        def within(rows: np.ndarray, chosen: list[int]) -> float:
            pairs = [(i, j) for i in chosen for j in chosen if i != j]
            return float(np.mean([kernel(rows[i], rows[j]) for i, j in pairs]))

        across = np.mean([kernel(fake[i], real[j]) for i in mine for j in other])
        return within(fake, mine) + within(real, other) - 2 * float(across)

    assert value == pytest.approx(statistic(list(range(7)), list(range(9))))
    rng = np.random.default_rng((0, 9, 7))
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=20) for n in (7, 9)]
    for row in range(20):
        mine, other = (np.repeat(np.arange(len(c[row])), c[row]).tolist() for c in counts)
        assert draws[row] == pytest.approx(statistic(mine, other))


def test_kid_replicates_cover_the_true_distance() -> None:
    truth = kid_replicates(
        gaussian(6000, 4, seed=100).double().numpy(),
        gaussian(6000, 4, seed=101).double().numpy() + 0.5,
        resamples=1,
    )[0]
    covered, means = 0, []
    for seed in range(80):
        real = gaussian(60, 4, seed=2 * seed).double().numpy()
        fake = gaussian(60, 4, seed=2 * seed + 1).double().numpy() + 0.5
        value, draws = kid_replicates(real, fake, resamples=300)
        low, high = np.percentile(draws, (2.5, 97.5))
        covered += low <= truth <= high
        means.append(draws.mean() - value)
    assert covered >= 68  # of 80; 76 expected
    # replicates aren't biased: copies of a sample would pull them up
    assert abs(np.mean(means)) < 0.05 * truth


def test_kid_replicates_of_two_models_are_paired() -> None:
    real, fake = gaussian(50).double().numpy(), gaussian(40, seed=1).double().numpy()
    other = fake + 0.05 * gaussian(40, seed=2).double().numpy()
    one, two = (kid_replicates(real, rows, resamples=400)[1] for rows in (fake, other))
    assert (one - two).std() < 0.3 * one.std()


def test_manifold_members_average_to_precision_and_recall() -> None:
    real, fake = gaussian(60, 5), gaussian(50, 5, seed=1) * 0.6
    members = manifold_members(real, fake, neighbours=3)
    assert members is not None
    theirs = prc_features_to_metric(real, fake, prc_neighborhood=3, verbose=False)
    assert float(members[0].double().mean()) in (
        pytest.approx(theirs["precision"]),
        pytest.approx(theirs["recall"]),
    )
    assert members[0].shape == (50,)
    assert members[1].shape == (60,)
    # a narrow set is precise, and recalls little
    assert members[0].double().mean() > members[1].double().mean()
    assert manifold_members(real[:3], fake) is None
