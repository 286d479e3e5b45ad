from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from films import MakeFilm, index_of, level
from numpy.typing import NDArray
from PIL import Image

from zoo.data.film import Film, open_film
from zoo.data.pictures import natural_order
from zoo.data.reader import Frame, FrameReader
from zoo.errors import UserError

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips" / "train"
Encode = Callable[..., Path]
Image8 = NDArray[np.uint8]


def greys(frames: int) -> list[Image8]:
    return [np.full((32, 48, 3), level(i), np.uint8) for i in range(frames)]


def indices(film: Film | list[Frame]) -> list[int]:
    return [index_of(float(frame.rgb.mean())) for frame in film]


def chart(height: int = 24, width: int = 36) -> Image8:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_a_film_says_what_it_is(tmp_path: Path, make_film: MakeFilm) -> None:
    path = make_film(tmp_path / "film.mp4", rate=Fraction(30000, 1001))
    with open_film(path) as film:
        info = film.info
        assert (info.width, info.height, info.frames) == (48, 32, 40)
        assert info.rate == Fraction(30000, 1001)
        assert info.duration == pytest.approx(40 * 1001 / 30000, abs=1e-3)
        assert (info.variable, info.has_audio, info.pixel_aspect) == (False, False, 1)
        assert (info.colour.matrix, info.colour.full) == (6, False)
        assert info.colour.name == "BT.601, limited range"
        assert indices(film) == list(range(40))
        assert (film.broken, film.truncated) == (0, False)
        film.close()
        assert list(film) == []


def test_start_duration_and_size(tmp_path: Path, make_film: MakeFilm) -> None:
    path = make_film(tmp_path / "film.mp4")
    with open_film(path, start=0.4, duration=0.2, size=(20, 10)) as film:
        assert (film.info.width, film.info.height, film.info.frames) == (20, 10, 5)
        assert film.info.duration == pytest.approx(0.2)
        assert film.info.pixel_aspect == Fraction(3, 4)  # still 3:2 on the screen
        frames = list(film)
    assert indices(frames) == [10, 11, 12, 13, 14]
    assert [frame.time for frame in frames] == pytest.approx([0.4, 0.44, 0.48, 0.52, 0.56])
    assert {frame.rgb.shape for frame in frames} == {(10, 20, 3)}


@pytest.mark.parametrize("fps", [5, 12.5, 24, 25, Fraction(30000, 1001), 60])
@pytest.mark.parametrize("window", [(0.0, None), (0.3, 0.71)])
def test_resampling_takes_the_nearest_frame(
    tmp_path: Path, encode: Encode, fps: float, window: tuple[float, float | None]
) -> None:
    gaps = np.random.default_rng(0).integers(20, 60, 48)
    stamps = np.array([0, *np.cumsum(gaps)[:-1]])
    path = encode(tmp_path / "film.mp4", greys(48), stamps=stamps.tolist())
    start, duration = window
    with open_film(path, start=start, duration=duration, fps=fps) as film:
        assert film.info.rate == Fraction(fps).limit_denominator(100_000)
        assert not film.info.variable
        frames = list(film)
        assert film.info.frames == pytest.approx(len(frames), abs=math.ceil(fps / 24))
    mean_gap = stamps[-1] / 47
    moments = start + np.arange(1000) / float(fps)
    end = (stamps[-1] + mean_gap) / 1000 if duration is None else start + duration
    moments = moments[moments < end - 0.002]
    assert abs(len(frames) - len(moments)) <= 1
    count = min(len(frames), len(moments))
    assert [frame.time for frame in frames[:count]] == pytest.approx(moments[:count].tolist())
    for moment, index in zip(moments[:count], indices(frames[:count]), strict=True):
        away = np.abs(stamps / 1000 - moment)  # two frames may be equally near
        assert away[index] == pytest.approx(away.min(), abs=1e-6)


def test_a_variable_rate_is_recognised(tmp_path: Path, encode: Encode) -> None:
    stamps = [0, 40, 90, 300, 320, 700]
    for suffix in (".mp4", ".mkv"):
        path = encode(tmp_path / f"film{suffix}", greys(6), stamps=stamps)
        with open_film(path) as film:
            assert film.info.variable
            assert [frame.time for frame in film] == pytest.approx([s / 1000 for s in stamps])
        path = encode(tmp_path / f"even{suffix}", greys(6), stamps=[33, 67, 100, 133, 167, 200])
        with open_film(path) as film:  # 30 frames a second, rounded to milliseconds
            assert not film.info.variable
            assert float(film.info.rate) == pytest.approx(30, rel=0.05)


@pytest.mark.parametrize("kept", [True, False], ids=["decodable", "damaged"])
def test_frames_of_one_moment(kept: bool, tmp_path: Path, encode: Encode) -> None:
    """Found by tools/fuzz.py, round 6736: every time stamp 0, and nothing to decode."""
    path = tmp_path / "film.mkv"
    with av.open(encode(tmp_path / "whole.mkv", greys(2))) as whole, av.open(path, "w") as film:
        stream = film.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                moved = av.Packet(bytes(packet) if kept else bytes(packet.size))
                moved.stream, moved.time_base = stream, packet.time_base
                moved.pts = moved.dts = 0
                moved.is_keyframe = packet.is_keyframe
                film.mux(moved)
    if kept:
        with open_film(path) as read:
            assert len(list(read)) >= 1
        return
    for start, said in ((0.0, "holds no frame that can be decoded"), (0.01, "film.mkv")):
        with pytest.raises(UserError, match=said):
            open_film(path, start=start)


def test_rotated_films_come_out_upright(tmp_path: Path, encode: Encode) -> None:
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32] = 200
    path = encode(tmp_path / "film.mp4", [image] * 2, rotation=90)
    with open_film(path) as film:
        assert (film.info.width, film.info.height) == (32, 64)
        rgb = next(film).rgb
    bright, dark = (rgb[:28], rgb[36:]) if rgb[:28].mean() > 100 else (rgb[36:], rgb[:28])
    assert bright.mean() > 195
    assert dark.mean() < 5


@pytest.mark.parametrize("kind", ["fast start", "matroska"])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_truncated_films_keep_what_is_there(
    tmp_path: Path, make_film: MakeFilm, kind: str, share: float
) -> None:
    path = tmp_path / "film.mkv"
    if kind == "matroska":
        make_film(path, texture=True)
    else:  # only an index at the front survives
        source, path = make_film(tmp_path / "source.mp4", texture=True), tmp_path / "film.mp4"
        with (
            av.open(str(source)) as old,
            av.open(str(path), "w", options={"movflags": "faststart"}) as new,
        ):
            stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
    with open_film(path) as film:
        assert len(list(film)) == 40
        assert not film.truncated
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with open_film(path) as film:
        assert not film.truncated  # not known yet
        count = len(list(film))
        assert 40 * share - 12 < count < 40
        assert film.truncated
    with open_film(path, duration=0.1) as film:  # this part isn't missing
        list(film)
        assert not film.truncated


@pytest.mark.parametrize("threads", [False, True])
def test_no_frame_is_lost_where_the_film_is_the_second_stream(
    tmp_path: Path, make_film: MakeFilm, threads: bool
) -> None:
    source, path = make_film(tmp_path / "source.mp4"), tmp_path / "film.mp4"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        sound = new.add_stream("aac", rate=48_000)
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 48_000, 0
        new.mux(sound.encode(frame))
        new.mux(sound.encode(None))
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].index == 1
    assert indices(list(FrameReader(path, threads=threads))) == list(range(40))


def test_a_film_without_its_index_is_refused(tmp_path: Path, make_film: MakeFilm) -> None:
    path = make_film(tmp_path / "film.mp4", texture=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"film\.mp4 was cut off.*index"):
        open_film(path)


def test_a_corrupt_frame_in_the_middle_is_skipped(tmp_path: Path, encode: Encode) -> None:
    path = encode(tmp_path / "film.mp4", greys(20), gop=1)
    with av.open(str(path)) as container:
        spots = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    position, size = spots[9]
    assert position is not None
    content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    with open_film(path) as film:
        assert indices(film) == [i for i in range(20) if i != 9]
        assert (film.broken, film.truncated) == (1, False)


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"{CLIPS} isn't on this machine")
def test_real_films_are_whole() -> None:
    for path in sorted(CLIPS.glob("*.mp4"))[::20]:
        with open_film(path, size=(32, 32)) as film:
            assert sum(1 for _ in film) == film.info.frames
            assert (film.broken, film.truncated) == (0, False), path


def test_a_gif_keeps_its_times(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    images = [Image.new("RGB", (48, 32), (level(i),) * 3) for i in range(5)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 50, 200, 70, 90])
    with open_film(path) as film:
        assert (film.info.width, film.info.height, film.info.frames) == (48, 32, 5)
        assert film.info.variable
        assert film.info.duration == pytest.approx(0.51)
        frames = list(film)
    assert indices(frames) == list(range(5))
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.15, 0.35, 0.42])
    with open_film(path, fps=20) as film:
        assert indices(film) == [0, 0, 1, 2, 2, 2, 3, 3, 4, 4, 4]
        assert film.info.frames == 11


def test_an_animation_with_a_damaged_frame_ends_there(tmp_path: Path) -> None:
    """A frame's header that is too short, which PIL calls a ValueError, as the fuzzing found."""
    path = tmp_path / "film.png"
    images = [Image.fromarray(np.roll(chart(), 3 * i, 1)) for i in range(4)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=50)
    content = path.read_bytes()
    third = content.index(b"fcTL", content.index(b"fcTL", content.index(b"fcTL") + 1) + 1)
    path.write_bytes(content[: third - 4] + (5).to_bytes(4, "big") + content[third:])
    with open_film(path) as film:
        assert len(list(film)) == 2
        assert film.truncated


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_animated_images_keep_their_times(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    images = [Image.fromarray(np.roll(chart(), 3 * i, 1)) for i in range(4)]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=[100, 50, 200, 80], lossless=True
    )
    with open_film(path) as film:
        assert (film.info.frames, film.info.variable) == (4, True)
        assert film.info.duration == pytest.approx(0.43)
        frames = list(film)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.15, 0.35])
    for frame, image in zip(frames, images, strict=True):
        assert np.array_equal(frame.rgb, np.asarray(image))
    with open_film(path, start=0.1, duration=0.2, fps=20) as film:
        assert [frame.time for frame in film] == pytest.approx([0.1, 0.15, 0.2, 0.25])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.6)])
    if suffix == ".png":  # PIL refuses a WebP that ends early
        with open_film(path) as film:
            assert 1 <= len(list(film)) < 4
            assert film.truncated
    else:
        with pytest.raises(UserError, match=r"film\.webp can't be read as an image"):
            open_film(path)


def test_an_image_is_a_film_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    Image.fromarray(chart()).save(path)
    with open_film(path) as film:
        assert (film.info.width, film.info.height, film.info.frames) == (36, 24, 1)
        (frame,) = film
    assert np.array_equal(frame.rgb, chart())
    assert frame.time == 0
    with open_film(path, fps=10, size=(18, 12)) as film:
        assert [frame.rgb.shape for frame in film] == [(12, 18, 3)]


@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, tag: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how a camera would have stored it
    image = Image.fromarray(chart())
    stored = image if tag == 1 else image.transpose(Image.Transpose(undo[tag]))
    exif = Image.Exif()
    exif[0x0112] = tag
    stored.save(tmp_path / "still.png", exif=exif)
    with open_film(tmp_path / "still.png") as film:
        assert (film.info.width, film.info.height) == (36, 24)
        assert np.array_equal(next(film).rgb, chart())


def test_odd_kinds_of_images(tmp_path: Path) -> None:
    def read(image: Image.Image, **options: object) -> Image8:
        image.save(tmp_path / "still.png", **options)
        with open_film(tmp_path / "still.png") as film:
            return next(film).rgb

    grey = chart()[..., 0]
    wide = Image.fromarray(np.minimum(grey.astype(np.uint32) * 257 + 100, 65535).astype(np.uint16))
    for image in (Image.fromarray(grey), wide):
        assert np.array_equal(read(image), np.repeat(grey[..., None], 3, 2))
    palette = Image.fromarray(grey // 64 * 64).convert("P")
    assert np.array_equal(read(palette)[..., 0], grey // 64 * 64)
    alpha = Image.fromarray(np.dstack([chart(), grey]))
    wanted = np.rint(chart() * (grey[..., None] / 255.0))
    assert np.abs(read(alpha).astype(int) - wanted).max() <= 1
    bits = Image.fromarray(grey > 100)
    assert np.array_equal(read(bits)[..., 0], np.where(grey > 100, 255, 0))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 200, 100, 50])
    assert read(palette, transparency=1).max() == 0
    path = tmp_path / "floats.tiff"
    Image.fromarray(chart()[..., 0].astype(np.float32)).save(path)
    with pytest.raises(UserError, match=r"floats\.tiff.*mode F"):
        open_film(path)


def test_a_folder_of_images_comes_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (48, 32), (level(i),) * 3).save(folder / f"frame{i}.png")
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".frame3.png").write_text("nor is this")
    with open_film(folder) as film:
        assert (film.info.frames, film.info.rate) == (12, 25)
        assert indices(film) == list(range(12))
    with open_film(folder, fps=10, start=0.3, duration=0.4) as film:  # their rate, not a new one
        assert (film.info.rate, film.info.frames) == (10, 4)
        frames = list(film)
    assert indices(frames) == [3, 4, 5, 6]
    assert [frame.time for frame in frames] == pytest.approx([0.3, 0.4, 0.5, 0.6])
    (folder / "frame5.png").write_bytes((folder / "frame5.png").read_bytes()[:60])
    with open_film(folder) as film:
        assert indices(film) == [i for i in range(12) if i != 5]
        assert film.broken == 1
    Image.new("RGB", (40, 32)).save(folder / "frame7.png")
    with pytest.raises(UserError, match=r"frame7\.png has 40x32 pixels and .* 48x32"):
        open_film(folder)


def test_natural_order() -> None:
    names = ["a10.png", "A9.png", "a2b3.png", "a2b20.png", "b.png", "1.png", "²x.png"]
    ordered = [path.name for path in sorted(map(Path, names), key=natural_order)]
    assert ordered.index("A9.png") < ordered.index("a10.png")
    assert ordered.index("a2b3.png") < ordered.index("a2b20.png") < ordered.index("A9.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 9}, r"behind the end of .*film\.mp4: it lasts 1\.60 s"),
        ({"start": 1.6}, "it lasts 1.60 s"),
        ({"start": 0.41, "duration": 0.01}, "no frame from 0.41 s on for 0.01 s"),
        ({"start": -1}, "a start of -1 s"),
        ({"duration": 0}, "a duration of 0 s"),
        ({"fps": 0}, "0 frames a second"),
        ({"fps": math.inf}, "inf frames a second"),
        ({"size": (0, 3)}, "0x3 pixels"),
    ],
)
def test_impossible_parts_are_refused(
    tmp_path: Path, make_film: MakeFilm, arguments: dict[str, float], message: str
) -> None:
    path = make_film(tmp_path / "film.mp4")
    with pytest.raises(UserError, match=message) as caught:
        open_film(path, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["film.mp4", "film.gif", "film.png", "film.webp", "film", "folder", "none.png", "none"]
)
def test_what_is_no_film_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif "none" not in name:
        path.write_text("not a film\n" * 100)
    with pytest.raises(UserError, match=str(path)) as caught:
        open_film(path)
    assert "\n" not in str(caught.value)


def test_an_image_behind_its_end(tmp_path: Path) -> None:
    Image.fromarray(chart()).save(tmp_path / "still.png")
    with pytest.raises(UserError, match=r"it lasts 0\.04 s"):
        open_film(tmp_path / "still.png", start=1)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_the_rate_of_a_film_with_pauses_is_the_mean(
    tmp_path: Path, encode: Encode, suffix: str
) -> None:
    stamps = [0, 40, 1000, 1040, 2000, 4000, 4040, 6000] * 2
    stamps[8:] = [6040 + stamp for stamp in stamps[8:]]
    path = encode(tmp_path / f"film{suffix}", greys(16), stamps=stamps)
    with open_film(path) as film:
        assert film.info.variable
        times = [frame.time for frame in film]
        assert float(film.info.rate) == pytest.approx(15 / times[-1], rel=0.2)
