"""Films and images in one run: batches of one kind, shares kept, nothing shared between ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from films import MakeFilm
from PIL import Image

from zoo.data.datamodule import EpochSampler, ZooDataModule
from zoo.data.mixture import Mixture
from zoo.data.sources import ImageFolder, VideoFolder
from zoo.errors import UserError


@pytest.fixture
def mixture(tmp_path: Path, make_film: MakeFilm) -> Mixture:
    for name in "ab":
        make_film(tmp_path / "films" / f"{name}.mp4", frames=30)
    (tmp_path / "images").mkdir()
    for number in range(5):
        pixels = np.full((40, 48, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    films = VideoFolder(str(tmp_path / "films"), frames=5, size=16, clips_per_film=12)
    images = ImageFolder(str(tmp_path / "images"), size=32)
    return Mixture([films, images], shares=[3, 1])


def test_mixture_batches_are_of_one_source(mixture: Mixture) -> None:
    data = ZooDataModule(mixture, batch_size=4)
    data.prepare_data()
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 8
    shapes = [tuple(batch.pixels.shape) for batch in batches]
    assert shapes.count((4, 3, 5, 16, 16)) == 6
    assert shapes.count((4, 3, 1, 32, 32)) == 2
    assert shapes != sorted(shapes)  # not one source after the other
    again = list(data.train_dataloader())
    assert [b.key for b in again] == [b.key for b in batches]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(again, batches, strict=True))


def test_mixture_goes_on_where_an_epoch_ended(mixture: Mixture) -> None:
    """8 of 5 images an epoch: each comes 8 times in 5 epochs; a repeat draws another crop."""
    mixture.prepare()
    assert mixture.counts() == [24, 8]
    keys = [mixture[(epoch, 24 + i)].key for epoch in range(5) for i in range(8)]
    assert [keys.count(f"{n}.png") for n in range(5)] == [8] * 5
    with pytest.raises(IndexError):
        mixture[32]


def test_mixture_ranks_see_their_own(mixture: Mixture) -> None:
    mixture.prepare()
    order = partial(mixture.order, chunk=8)
    ranks = [
        list(EpochSampler(mixture.length(8), chunk=8, shuffle=True, rank=r, ranks=2, order=order))
        for r in range(2)
    ]
    assert not set(ranks[0]) & set(ranks[1])
    assert len(ranks[0]) == len(ranks[1]) == 16
    for start in range(0, 16, 4):  # a batch of both ranks is of one source
        both = [i < 24 for rank in ranks for _, i in rank[start : start + 4]]
        assert len(set(both)) == 1
    rest = EpochSampler(
        mixture.length(8), chunk=8, shuffle=True, ranks=2, used=lambda: 16, order=order
    )
    assert list(rest)[:8] == ranks[0][8:]


def test_mixture_says_what_is_wrong(mixture: Mixture) -> None:
    for shares in ([1.0], [1.0, 0.0], [1.0, -1.0]):
        with pytest.raises(UserError, match="give each source a share above 0"):
            Mixture(mixture.sources, shares=shares)
    data = ZooDataModule(mixture, batch_size=25)
    data.prepare_data()
    with pytest.raises(UserError, match="too few for a batch"):
        data.train_dataloader()
