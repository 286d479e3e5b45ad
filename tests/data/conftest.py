"""Fixtures: an empty cache for every test, and makers of tiny films and shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from films import MakeFilm, level
from numpy.typing import NDArray
from shard_sets import picture

from zoo.data.shard_writer import ShardSettings, shard_folder
from zoo.data.video import VideoWriter


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ZOO_CACHE", str(folder))
    return folder


@pytest.fixture
def make_film() -> MakeFilm:
    def make(
        path: Path,
        *,
        frames: int = 40,
        width: int = 48,
        height: int = 32,
        rate: Fraction = Fraction(25),
        texture: bool = False,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(sum(path.name.encode()))
        with VideoWriter(path, width=width, height=height, rate=rate) as writer:
            for i in range(frames):
                image = np.full((height, width, 3), level(i % 48), np.uint8)
                if texture:
                    noise = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
                    image[: height // 4 * 4, : width // 4 * 4] = noise.repeat(4, 0).repeat(4, 1)
                writer.write(image)
        return path

    return make


@pytest.fixture
def encode() -> Callable[..., Path]:
    """Films the writer doesn't make: own time stamps (ms), key frame distance, rotation."""

    def make(
        path: Path,
        images: Sequence[NDArray[np.uint8]],
        *,
        stamps: Sequence[int] | None = None,
        gop: int = 250,
        rotation: float = 0.0,
        hflip: bool = False,
        tags: tuple[int, int] | None = None,
    ) -> Path:
        height, width, _ = images[0].shape
        with av.open(str(path), "w") as container:
            stream = container.add_stream(
                "libx264",
                rate=25,
                options={"crf": "4", "g": str(gop), "keyint_min": "1"},
                width=width,
                height=height,
                time_base=Fraction(1, 1000),
            )
            stream.pix_fmt = "yuv420p"
            if tags is not None:
                stream.codec_context.colorspace, stream.codec_context.color_range = tags
            if rotation or hflip:
                stream.set_display_rotation(rotation, hflip=hflip)
            for i, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                if tags is not None:
                    frame = frame.reformat(
                        format="yuv420p", dst_colorspace=tags[0], dst_color_range=tags[1]
                    )
                frame.pts = stamps[i] if stamps is not None else 40 * i
                frame.time_base = Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """37 pictures in 8 shards."""
    for number in range(37):
        picture(tmp_path / "pictures" / f"p{number}.bmp", number)
    shard_folder(tmp_path / "pictures", tmp_path / "shards", ShardSettings(shard_mb=0.0075))
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 8
    return tmp_path / "shards"
