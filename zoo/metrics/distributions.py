"""Distances between two sets of features as torchmetrics classes; all arithmetic is float64.

Each takes `update(features, real=...)`, features [N,D], real True for the originals; each is right
in any number of processes. Imported where they are used: torchmetrics takes seconds to import.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from zoo.errors import UserError

Array = NDArray[np.float64]
_WHOLE_KERNELS = 4096  # samples whose kernel matrices, 134 MB each, are kept


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) of two Gaussians (arXiv 1706.08500, eq. 6).

    The eigenvalues of C1 C2 are those of C1^1/2 C2 C1^1/2, which is symmetric: no complex numbers
    and no epsilon, also where the covariances don't have full rank.
    """
    values, vectors = torch.linalg.eigh(cov_1.double())
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_2.double() @ root).clamp_min(0).sqrt().sum()
    apart = (mean_1 - mean_2).double().square().sum()
    result: Tensor = apart + cov_1.double().trace() + cov_2.double().trace() - 2 * cross
    return result


class FrechetDistance(Metric):
    """Frechet distance between the Gaussians fitted to two sets of features.

    The sums stream: memory doesn't grow with the number of samples.

    Args:
        dimensions: D.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        for kind in ("real", "fake"):
            shapes: dict[str, tuple[int, ...]] = {
                "sum": (dimensions,),
                "outer": (dimensions, dimensions),
            }
            for name, shape in shapes.items():
                zeros = torch.zeros(shape, dtype=torch.float64)
                self.add_state(f"{kind}_{name}", zeros, dist_reduce_fx="sum")
            count = torch.zeros((), dtype=torch.int64)
            self.add_state(f"{kind}_count", count, dist_reduce_fx="sum")

    def update(self, features: Tensor, *, real: bool) -> None:
        """Add features [N,D]."""
        kind, wide = "real" if real else "fake", features.to(self.device).double()
        setattr(self, f"{kind}_sum", getattr(self, f"{kind}_sum") + wide.sum(0))
        setattr(self, f"{kind}_outer", getattr(self, f"{kind}_outer") + wide.T @ wide)
        setattr(self, f"{kind}_count", getattr(self, f"{kind}_count") + len(wide))

    def moments(self, *, real: bool) -> tuple[Tensor, Tensor]:
        """Mean [D] and unbiased covariance [D,D].

        Raises:
            UserError: fewer than two samples.
        """
        kind = "real" if real else "fake"
        count: Tensor = getattr(self, f"{kind}_count")
        if count < 2:
            raise UserError(f"a Frechet distance needs 2 samples of each set, got {int(count)}")
        mean = getattr(self, f"{kind}_sum") / count
        outer = getattr(self, f"{kind}_outer") - count * mean[:, None] * mean
        return mean, outer / (count - 1)

    def compute(self) -> Tensor:
        """The distance."""
        return frechet_distance(*self.moments(real=True), *self.moments(real=False))


class _Samples(Metric):
    """Keeps all features, in an order of its own, so that the processes' shares don't matter."""

    full_state_update = False

    real: Any
    fake: Any

    def __init__(self) -> None:
        super().__init__()
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, *, real: bool) -> None:
        """Add features [N,D]."""
        (self.real if real else self.fake).append(features.float().to(self.device))

    def sets(self, *, paired: bool) -> tuple[Array, Array]:
        """Originals and reconstructions, float64; paired rows stay side by side.

        Raises:
            UserError: too few samples, or pairs that aren't.
        """
        real, fake = (dim_zero_cat(part).double().cpu().numpy() for part in (self.real, self.fake))
        if min(len(real), len(fake)) < 2:
            raise UserError(
                f"a comparison of distributions needs 2 samples of each set, got {len(real)} and "
                f"{len(fake)}"
            )
        if paired and len(real) != len(fake):
            raise UserError(f"{len(real)} originals and {len(fake)} reconstructions are no pairs")
        order = _order(real)
        return real[order], fake[order if paired else _order(fake)]


def _order(rows: Array) -> NDArray[np.int64]:
    """An order of rows that depends on their values only."""
    weights = np.random.RandomState(0).standard_normal(rows.shape[1])
    return np.argsort((rows * weights).sum(axis=1), kind="stable")


class KID(_Samples):
    """Kernel distance (arXiv 1801.01401): unbiased MMD^2, cubic polynomial kernel.

    Args:
        paired: reconstruction i is made from original i. Subsets then take both together and the
            estimate leaves out the pairs' own kernel values (a U-statistic), so that its
            expectation is unbiased and a perfect reconstruction scores 0. Else subsets are drawn
            apart, exactly as torch-fidelity draws them.
        subsets: number of subsets.
        subset_size: samples of each; None: 1000, or half of the samples where there are fewer
            than 2000.
        seed: of the draws.
    """

    higher_is_better = False

    def __init__(
        self,
        *,
        paired: bool = False,
        subsets: int = 100,
        subset_size: int | None = None,
        seed: int = 2020,
    ) -> None:
        super().__init__()
        self.paired = paired
        self.subsets = subsets
        self.subset_size = subset_size
        self.seed = seed

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the subsets."""
        real, fake = self.sets(paired=self.paired)
        rng = np.random.RandomState(self.seed)
        size = self.subset_size or max(2, min(1000, len(real) // 2, len(fake) // 2))
        if size > min(len(real), len(fake)):
            raise UserError(f"subsets of {size} from {len(real)} and {len(fake)} samples")
        values = []
        # computed once where they fit: the subsets overlap a lot
        whole = _kernels(fake, real) if max(len(real), len(fake)) <= _WHOLE_KERNELS else None
        for _ in range(self.subsets):
            mine = rng.choice(len(fake), size, replace=False)
            other = mine if self.paired else rng.choice(len(real), size, replace=False)
            if whole is None:
                kernels = _kernels(fake[mine], real[other])
            else:
                xx, yy, xy = whole
                kernels = (
                    xx[np.ix_(mine, mine)],
                    yy[np.ix_(other, other)],
                    xy[np.ix_(mine, other)],
                )
            values.append(unbiased_mmd(*kernels, paired=self.paired))
        result = torch.tensor(values, dtype=torch.float64)
        return result.mean(), result.std(unbiased=False)


def _kernels(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """(x.x / D + 1)^3 and likewise y.y and x.y, of sets [N,D] and [M,D]."""
    xx, yy, xy = (np.power(a @ b.T / x.shape[1] + 1, 3) for a, b in ((x, x), (y, y), (x, y)))
    return xx, yy, xy


def unbiased_mmd(xx: Array, yy: Array, xy: Array, *, paired: bool = False) -> float:
    """Unbiased MMD^2 of two sets of N samples from their kernel matrices [N,N]."""
    count = len(xx)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (count * (count - 1))
    if paired:
        return float(within - 2 * (xy.sum() - np.trace(xy)) / (count * (count - 1)))
    return float(within - 2 * xy.mean())


def kid_replicates(
    real: Array, fake: Array, *, resamples: int, seed: int = 0
) -> tuple[float, Array]:
    """The full-sample kernel distance of unpaired sets, and its bootstrap replicates.

    Samples of both sets are drawn anew with replacement. Pairs of a sample with its own copy are
    left out, as pairs of a sample with itself are, so that replicates are not biased upwards. The
    draws depend on the sizes and the seed alone: replicates of two models on the same prompts are
    paired, and their differences are those of the difference.

    Args:
        real: features [N,D].
        fake: features [M,D]; row i of two models is of the same prompt.
        resamples: R.
        seed: of the draws.

    Returns:
        MMD^2 with the kernel of `KID`, unbiased, and [R].
    """
    xx, yy, xy = _kernels(fake, real)
    rng = np.random.default_rng((seed, len(real), len(fake)))
    mine, other = (
        rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
        for n in (len(fake), len(real))
    )

    def distance(w: Array, v: Array) -> Array:
        within = [
            (((u @ k) * u).sum(1) - u**2 @ np.diag(k)) / (u.sum(1) ** 2 - (u**2).sum(1))
            for u, k in ((w, xx), (v, yy))
        ]
        across = ((w @ xy) * v).sum(1) / (w.sum(1) * v.sum(1))
        result: Array = within[0] + within[1] - 2 * across
        return result

    whole = distance(np.ones((1, len(fake))), np.ones((1, len(real))))
    return float(whole[0]), distance(mine, other)


def manifold_members(
    real: Tensor, fake: Tensor, *, neighbours: int = 3
) -> tuple[Tensor, Tensor] | None:
    """Samples in the originals' manifold, bool [M], and originals in the samples' manifold, [N].

    Their means are precision and recall (arXiv 1904.06991, eq. 1 to 3). None for too few samples.
    """
    if min(len(real), len(fake)) <= neighbours:
        return None
    across = torch.cdist(fake, real)
    near = [torch.cdist(part, part).kthvalue(neighbours + 1, dim=1).values for part in (real, fake)]
    return (across <= near[0]).any(1), (across <= near[1][:, None]).any(0)


class Manifold(_Samples):
    """Precision, recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    Args:
        neighbours: k of precision and recall.
        wide_neighbours: k of density and coverage.
    """

    higher_is_better = True

    def __init__(self, *, neighbours: int = 3, wide_neighbours: int = 5) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.wide_neighbours = wide_neighbours

    def compute(self) -> dict[str, Tensor]:
        """`precision`, `recall`, `density`, `coverage`; without those that lack neighbours."""
        real, fake = (torch.from_numpy(part) for part in self.sets(paired=False))
        result = {}
        members = manifold_members(real, fake, neighbours=self.neighbours)
        if members is not None:
            result["precision"], result["recall"] = (part.double().mean() for part in members)
        if len(real) > self.wide_neighbours:
            near = torch.cdist(real, real).kthvalue(self.wide_neighbours + 1, dim=1).values
            inside = torch.cdist(fake, real) <= near
            result["density"] = inside.double().sum() / self.wide_neighbours / len(fake)
            result["coverage"] = inside.any(0).double().mean()
        return result
