"""Charts: round ticks, and labels that don't cover each other."""

from __future__ import annotations

import itertools

import pytest

from zoo.benchmark.figures import Axis, free_height, spread_range


def test_ticks_are_round_and_inside() -> None:
    assert Axis(19.3, 27.1, 0, 1).ticks(4) == [20, 22, 24, 26]
    assert Axis(0.004, 2.0, 0, 1, log=True).ticks() == [0.01, 0.1, 1.0]
    assert Axis(0.02, 0.3, 0, 1, log=True).ticks() == pytest.approx([0.02, 0.05, 0.1, 0.2])
    assert Axis(1, 100, 10, 20, log=True)(10) == pytest.approx(15)
    low, high = spread_range([5.0, 5.0])
    assert low < 5 < high


def test_labels_step_aside() -> None:
    labels: list[tuple[float, float, float]] = []
    for wanted in (100.0, 101.0, 102.0, 103.0):
        labels.append((0, 50, free_height(wanted, 0, 50, labels)))
    heights = sorted(at for _, _, at in labels)
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 13
    assert free_height(100, 60, 90, labels) == 100
