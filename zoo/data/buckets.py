"""Buckets of lengths and aspect ratios: samples of many shapes, each batch of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError

RATIOS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 16 / 9, 2)


class Buckets:
    """The shapes (T, H, W) that samples are cut to.

    A sample goes to the longest length that it fills and to the nearest ratio. All ratios have
    about the same area, so that batches of one length cost the same.

    Args:
        size: pixels; the side of the square bucket, whose area the others have too.
        frames: lengths T.
        ratios: width over height.
        multiple: H and W are multiples of it.
    """

    def __init__(
        self,
        size: int = 256,
        *,
        frames: Sequence[int] = (1, 17),
        ratios: Sequence[float] = RATIOS,
        multiple: int = 16,
    ) -> None:
        if not frames or not ratios or min(frames) < 1 or min(ratios) <= 0:
            raise UserError(f"frames={list(frames)} and ratios={list(ratios)} must be above 0")
        if not 1 <= multiple <= size:
            raise UserError(f"multiple={multiple} must lie between 1 and size={size}")
        self.lengths = sorted(set(frames))
        sides = set()
        for root in (ratio**0.5 for ratio in ratios):
            h, w = (max(1, round(s / multiple)) * multiple for s in (size / root, size * root))
            sides.add((h, w))
        self.shapes: list[tuple[int, int, int]] = [
            (t, h, w) for t in self.lengths for h, w in sorted(sides)
        ]

    def assign(
        self,
        frames: NDArray[np.int64],
        width: NDArray[np.int64],
        height: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """The number in `shapes` of each sample's bucket, -1 for those shorter than all lengths.

        Args:
            frames: int64 [N], as many as a clip can have at most.
            width: int64 [N], pixels.
            height: int64 [N], pixels.
        """
        per_length = len(self.shapes) // len(self.lengths)
        length = np.searchsorted(self.lengths, frames, side="right") - 1
        ratios = np.array([w / h for _, h, w in self.shapes[:per_length]])
        apart = np.abs(np.log(width / np.maximum(height, 1))[:, None] - np.log(ratios))
        return np.where(length < 0, -1, length * per_length + apart.argmin(axis=1))

    def covering(self, number: int, width: int, height: int) -> int:
        """The shorter side, in pixels, at which a sample just covers the bucket's H and W."""
        _, h, w = self.shapes[number]
        scale = max(h / height, w / width)
        return max(min(h, w), -int(-min(width, height) * scale // 1))


def in_batches(
    order: NDArray[np.int64], bucket: NDArray[np.int64], chunk: int
) -> NDArray[np.int64]:
    """Reorder samples so that each `chunk` in a row are of one bucket.

    A batch comes when its last sample does, so that samples stay near where `order` has them.
    What doesn't fill a bucket's last batch is left out.

    Args:
        order: int64 [N], indices of samples.
        bucket: int64 [M], the bucket of every sample, M > all indices.
        chunk: samples a batch on all ranks together.
    """
    parts, times = [], []
    for number in np.unique(bucket[order]):
        places = np.flatnonzero(bucket[order] == number)
        batches = places[: len(places) - len(places) % chunk].reshape(-1, chunk)
        parts.append(order[batches])
        times.append(batches.max(axis=1, initial=-1))
    if not parts:
        return order[:0]
    together = np.concatenate(parts)
    result: NDArray[np.int64] = together[np.argsort(np.concatenate(times))].reshape(-1)
    return result
