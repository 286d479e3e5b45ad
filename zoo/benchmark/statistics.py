"""Intervals, paired differences and the spread over noise seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000
_LEVELS = (2.5, 97.5)


def interval(values: Array, *, seed: int = 0) -> dict[str, float | int | None]:
    """Mean and its 95 % percentile bootstrap interval over clips.

    Args:
        values: one value a clip, NaN where there is none.
        seed: of the resampling: the same numbers give the same interval.

    Returns:
        `mean`, `low`, `high` and `n`; the bounds are None for fewer than 3 clips.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return {"mean": None, "low": None, "high": None, "n": 0}
    low = high = None
    if len(known) > 2:
        rng = np.random.default_rng((seed, len(known)))
        means = [known[rng.integers(len(known), size=len(known))].mean() for _ in range(RESAMPLES)]
        low, high = (float(v) for v in np.percentile(means, _LEVELS))
    return {"mean": float(known.mean()), "low": low, "high": high, "n": len(known)}


def paired(values: Array, other: Array) -> dict[str, float | int | None]:
    """`interval` of the difference on each clip, and `wins`: the share of clips with more."""
    difference = values - other
    known = difference[~np.isnan(difference)]
    share = float((known > 0).mean()) if len(known) else None
    return interval(difference) | {"wins": share}


def over_seeds(by_seed: list[Array]) -> dict[str, Any] | None:
    """How much the noise matters: None for a single seed.

    Returns:
        `seeds`; `std`: of the seeds' means; `clip_std`: of a clip's value, averaged over clips.
    """
    if len(by_seed) < 2:
        return None
    table = np.stack(by_seed)
    means, clips = table.mean(axis=1), table.std(axis=0, ddof=1)
    return {
        "seeds": len(by_seed),
        "std": float(means.std(ddof=1)),
        "clip_std": float(clips.mean()),
    }
