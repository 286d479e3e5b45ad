"""Colours against the matrices of ITU-R BT.601 and BT.709, computed here, not by swscale."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

from zoo.data.colour import SCALER, Colour, over_black
from zoo.data.film import FilmInfo, open_film
from zoo.data.writer import open_writer
from zoo.errors import UserError

KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
TAGS = [(matrix, full) for matrix in (1, 5, 6, 9) for full in (False, True)]
PATCH = 16
SIDE = 8 * PATCH


def chart() -> NDArray[np.uint8]:
    """64 colours in patches: chroma subsampling and its ringing leave their middles alone."""
    colours = np.array(list(product((0, 85, 170, 255), repeat=3)), np.uint8).reshape(8, 8, 3)
    return colours.repeat(PATCH, 0).repeat(PATCH, 1)


def middles(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Means of the inner 2x2 of every patch: [64, C]."""
    blocks = image.reshape(8, PATCH, 8, PATCH, -1)[:, 7:9, :, 7:9]
    return blocks.mean(axis=(1, 3)).reshape(64, -1)


def to_yuv(rgb: NDArray[np.float64], matrix: int, full: bool) -> NDArray[np.float64]:
    """ITU-R BT.601 / 709 / 2020: 8-bit Y, Cb, Cr of RGB 0..255, not rounded."""
    kr, kb = KR_KB[matrix]
    r, g, b = np.moveaxis(rgb / 255.0, -1, 0)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    if full:
        return np.stack([255 * y, 128 + 255 * cb, 128 + 255 * cr], -1)
    return np.stack([16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr], -1)


def stored(path: Path) -> tuple[NDArray[np.float64], av.VideoFrame]:
    """What is in the file, without any conversion: middles of Y, Cb and Cr."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name in ("yuv420p", "yuvj420p")
    packed = frame.to_ndarray()
    y = packed[:SIDE]
    cb, cr = packed[SIDE:].reshape(2, SIDE // 2, SIDE // 2)
    planes = [y, cb.repeat(2, 0).repeat(2, 1), cr.repeat(2, 0).repeat(2, 1)]
    return middles(np.stack(planes, -1)), frame


@pytest.mark.parametrize(("matrix", "full"), TAGS)
def test_writing_agrees_with_the_standard(tmp_path: Path, matrix: int, full: bool) -> None:
    like = FilmInfo(SIDE, SIDE, Fraction(25), colour=Colour(matrix, full, matrix, matrix))
    path = tmp_path / "film.mp4"
    with open_writer(
        path, width=SIDE, height=SIDE, rate=Fraction(25), like=like, quality=0
    ) as writer:
        writer.write(chart())
    values, frame = stored(path)
    error = np.abs(values - np.clip(to_yuv(middles(chart()), matrix, full), 0, 255))
    assert error.mean() < 0.45  # rounding alone is 0.25; swscale cuts full-range chroma off
    assert error.max() <= 1.05
    assert (frame.colorspace, frame.color_range) == (matrix, 2 if full else 1)
    assert (frame.color_primaries, frame.color_trc) == (matrix, matrix)


@pytest.mark.parametrize(("matrix", "full"), TAGS)
def test_reading_agrees_with_the_standard(tmp_path: Path, matrix: int, full: bool) -> None:
    yuv = np.rint(np.clip(to_yuv(chart().astype(float), matrix, full), 0, 255)).astype(np.uint8)
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv444p"
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 2 if full else 1
        frame = av.VideoFrame(SIDE, SIDE, "yuv444p")
        for plane, values in zip(frame.planes, np.moveaxis(yuv, -1, 0), strict=True):
            padded = np.zeros((SIDE, plane.line_size), np.uint8)
            padded[:, :SIDE] = values
            plane.update(padded.tobytes())
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_film(path) as film:
        assert (film.info.colour.matrix, film.info.colour.full) == (matrix, full)
        error = np.abs(middles(next(film).rgb) - middles(chart()))
    assert error.mean() < 0.8  # 8 bits of limited-range YUV can't say it better
    assert error.max() <= 2.1


@pytest.mark.parametrize("size", [(48, 32), (47, 33), (20, 14), (96, 70)])
@pytest.mark.parametrize(
    "kind", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12", "gray", "uyvy422"]
)
def test_colours_apart_are_those_of_packed_pixels(kind: str, size: tuple[int, int]) -> None:
    """To the bit what swscale gives in rgb24."""
    rng = np.random.default_rng(0)
    noise = av.VideoFrame.from_ndarray(rng.integers(0, 256, (32, 48, 3), np.uint8), format="rgb24")
    frame = noise.reformat(format=kind)
    width, height = size
    given = VideoReformatter().reformat(
        frame,
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=9,
        src_color_range=ColorRange.MPEG,
        interpolation=SCALER,
        threads=1,
    )
    found = Colour(9, False).to_rgb(frame, VideoReformatter(), width=width, height=height)
    assert found.transpose(2, 0, 1).flags.c_contiguous
    assert np.array_equal(found, given.to_ndarray())


@pytest.mark.parametrize("kind", ["yuv420p", "yuv444p"])
def test_pictures_are_written_alike_however_they_lie(kind: str) -> None:
    colour, rng = Colour(9, False), np.random.default_rng(0)
    packed = rng.integers(0, 256, (34, 64, 3), np.uint8)
    clip = np.stack([packed] * 2).transpose(3, 0, 1, 2).copy()  # [3, T, H, W], as nets give it
    planes = clip[:, :1].copy()
    views = [packed, planes[:, 0].transpose(1, 2, 0), clip[:, 1].transpose(1, 2, 0)]
    made = [colour.from_rgb(view, VideoReformatter(), format=kind).to_ndarray() for view in views]
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])


@pytest.mark.parametrize(("matrix", "full"), TAGS)
def test_a_film_there_and_back(tmp_path: Path, matrix: int, full: bool) -> None:
    like = FilmInfo(SIDE, SIDE, Fraction(25), colour=Colour(matrix, full, matrix, matrix))
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    with open_writer(
        first, width=SIDE, height=SIDE, rate=Fraction(25), like=like, quality=1
    ) as writer:
        writer.write(chart())
    with open_film(first) as film:
        assert film.info.colour == like.colour
        rgb = next(film).rgb
        with open_writer(
            second, width=SIDE, height=SIDE, rate=Fraction(25), like=film.info, quality=1
        ) as writer:
            writer.write(rgb)
    assert np.abs(middles(rgb) - middles(chart())).mean() < 1
    drift = np.abs(stored(second)[0] - stored(first)[0])
    assert drift.mean() < 0.3
    with av.open(str(first)) as container:  # swscale, told nothing but what the file says
        theirs = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(middles(theirs) - middles(rgb)).mean() < 1


def test_lossless_films_are_exact_whatever_their_source(tmp_path: Path) -> None:
    for matrix, full in TAGS:
        like = FilmInfo(SIDE, SIDE, Fraction(25), colour=Colour(matrix, full, matrix, matrix))
        path = tmp_path / "film.mkv"
        with open_writer(
            path, width=SIDE, height=SIDE, rate=Fraction(25), like=like, lossless=True
        ) as writer:
            writer.write(chart())
        with open_film(path) as film:
            assert np.array_equal(next(film).rgb, chart())


@pytest.mark.parametrize(("height", "matrix"), [(718, 6), (720, 1)])
def test_untagged_films_mean_what_is_usual(height: int, matrix: int) -> None:
    frame = av.VideoFrame(32, height, "yuv420p")
    assert Colour.of(frame) == Colour(matrix, False, matrix, matrix)
    assert Colour.of(av.VideoFrame(32, height, "rgb24")) == Colour.standard(height)
    assert Colour.of(av.VideoFrame(32, height, "yuvj420p")).full
    frame.colorspace = 3  # reserved
    assert Colour.of(frame).matrix == matrix
    frame.colorspace = 8  # YCgCo
    with pytest.raises(UserError, match="colour matrix 8"):
        Colour.of(frame)


def test_transparency_lies_over_black() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    wanted = rgba[..., :3] * (rgba[..., 3:] / 255.0)
    assert np.abs(over_black(rgba) - wanted).max() <= 0.5 + 1e-9
    rgba[..., 3] = 255
    assert np.array_equal(over_black(rgba), rgba[..., :3])
