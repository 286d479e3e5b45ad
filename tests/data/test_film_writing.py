from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from films import MakeFilm, index_of, level
from numpy.typing import NDArray
from PIL import Image

from zoo.data.film import open_film
from zoo.data.writer import open_writer
from zoo.errors import RunError, UserError

Encode = Callable[..., Path]
Image8 = NDArray[np.uint8]
RATE = Fraction(25)
NAMES = ["film.mp4", "film.mov", "film.m4v", "film.mkv", "film.gif", "frames", "still.png"]


def greys(frames: int) -> list[Image8]:
    return [np.full((32, 48, 3), level(i % 48), np.uint8) for i in range(frames)]


def noise(count: int) -> list[Image8]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(count)]


def visible(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != "cache")


@pytest.mark.parametrize("name", ["frames", "still.png", "still.webp", "still.bmp", "still.tiff"])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1)])
def test_pictures_are_exact(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    count = 3 if name == "frames" else 1
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]
    height, width = size
    with open_writer(
        tmp_path / name, width=width, height=height, rate=RATE, lossless=True
    ) as writer:
        for picture in pictures:
            writer.write(picture)
    assert visible(tmp_path) == [name]
    with open_film(tmp_path / name) as film:
        for frame, picture in zip(film, pictures, strict=True):
            assert np.array_equal(frame.rgb, picture)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (2, 1)])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_lossless_films_are_exact_at_any_size(
    tmp_path: Path, name: str, size: tuple[int, int], frames: int
) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(frames)]
    height, width = size
    with open_writer(
        tmp_path / name, width=width, height=height, rate=RATE, lossless=True
    ) as writer:
        for picture in pictures:
            writer.write(picture)
    with open_film(tmp_path / name) as film:
        for frame, picture in zip(film, pictures, strict=True):
            assert np.array_equal(frame.rgb, picture)


def test_odd_sizes_keep_all_their_colours(tmp_path: Path) -> None:
    with open_writer(tmp_path / "film.mp4", width=47, height=33, rate=RATE) as writer:
        writer.write(np.zeros((33, 47, 3), np.uint8))
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.streams.video[0].pix_fmt == "yuv444p"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_irregular_times_are_kept_exactly(tmp_path: Path, encode: Encode, suffix: str) -> None:
    gaps = np.random.default_rng(0).integers(3, 400, 48)
    stamps = [0, *np.cumsum(gaps)[:-1].tolist()]
    path = encode(tmp_path / f"film{suffix}", greys(48), stamps=stamps)
    with open_film(path) as film:
        info = film.info
        assert info.variable
        with open_writer(
            tmp_path / f"back{suffix}", width=48, height=32, rate=info.rate, like=info
        ) as writer:
            for rgb, time in film:
                writer.write(rgb, time)

    def ticks(path: Path) -> list[Fraction]:
        with av.open(str(path)) as container:
            return [frame.pts * frame.time_base for frame in container.decode(video=0)]

    assert ticks(tmp_path / f"back{suffix}") == ticks(path)
    assert len(set(ticks(path))) == 48


def test_part_of_a_film_begins_at_zero(tmp_path: Path, make_film: MakeFilm) -> None:
    path = make_film(tmp_path / "film.mp4")
    with (
        open_film(path, start=0.41) as film,
        open_writer(
            tmp_path / "back.mp4", width=48, height=32, rate=film.info.rate, like=film.info
        ) as writer,
    ):
        for rgb, time in film:
            writer.write(rgb, time)
    with open_film(tmp_path / "back.mp4") as film:
        frames = list(film)
    assert [index_of(float(frame.rgb.mean())) for frame in frames] == list(range(11, 40))
    assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(29)])


def test_frames_on_the_same_tick_are_all_kept(tmp_path: Path) -> None:
    with open_writer(tmp_path / "film.mkv", width=48, height=32, rate=Fraction(5000)) as writer:
        for i, picture in enumerate(greys(10)):
            writer.write(picture, i / 50_000)
    with open_film(tmp_path / "film.mkv") as film:
        assert len(list(film)) == 10


def test_gifs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (200, 3), np.uint8)
    pictures = [palette[rng.integers(0, 200, (32, 48))] for _ in range(6)]
    times = [0, 0.1, 0.13, 0.5, 0.58, 1.2]
    path = tmp_path / "film.gif"
    with open_writer(path, width=48, height=32, rate=Fraction(10)) as writer:
        for picture, time in zip(pictures, times, strict=True):
            writer.write(picture, time)
    with open_film(path) as film:
        frames = list(film)
    assert [frame.time for frame in frames] == pytest.approx(times)
    for frame, picture in zip(frames, pictures, strict=True):  # 200 colours fit into 256
        assert np.abs(frame.rgb.astype(int) - picture).mean() < 1
    with Image.open(path) as image:  # another reader sees the same
        assert image.n_frames == 6
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - pictures[0]).mean() < 1


def test_pixel_aspect_and_upright_frames(tmp_path: Path, encode: Encode) -> None:
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32] = 200
    path = encode(tmp_path / "film.mp4", [image] * 2, rotation=90)
    with open_film(path, size=(32, 32)) as film:
        rgb = next(film).rgb
        assert film.info.pixel_aspect == Fraction(1, 2)
        with open_writer(
            tmp_path / "back.mp4", width=32, height=32, rate=RATE, like=film.info, quality=4
        ) as writer:
            writer.write(rgb)
    with av.open(str(tmp_path / "back.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == Fraction(1, 2)
        frame = next(container.decode(video=0))
        assert frame.rotation == 0
        assert "DISPLAYMATRIX" not in frame.side_data
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - rgb).mean() < 3


# --- sound ---------------------------------------------------------------------------------------


@pytest.fixture
def with_sound(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "sound.mp4", codec: str = "aac", *, seconds: int = 2) -> Path:
        """A short film; no two packets of the sound are alike."""
        path = tmp_path / name
        rate = 48_000
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=25, width=48, height=32)
            video.pix_fmt = "yuv420p"
            video.codec_context.gop_size = 25  # key frames to seek to
            audio = container.add_stream(codec, rate=rate)
            audio.layout = "mono"
            samples = np.random.default_rng(0).uniform(-0.3, 0.3, seconds * rate)
            for picture in greys(25 * seconds):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(video.encode(frame))
            size = audio.codec_context.frame_size or 1024
            for i in range(0, len(samples), size):
                piece = (samples[None, i : i + size] * 32767).astype(np.int16)
                sound = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
                sound.sample_rate = rate
                sound.pts, sound.time_base = i, Fraction(1, rate)
                container.mux(audio.encode(sound))
            container.mux(video.encode(None))
            container.mux(audio.encode(None))
        return path

    return make


def sounds(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        return [
            (float(packet.pts * packet.time_base), bytes(packet))
            for packet in container.demux(audio=0)
            if packet.size and packet.pts is not None
        ]


def copy(path: Path, target: Path, *, timed: bool = True, **part: float) -> None:
    with open_film(path, **part) as film:
        assert film.info.has_audio
        with open_writer(
            target,
            width=film.info.width,
            height=film.info.height,
            rate=film.info.rate,
            like=film.info,
            audio_from=path,
            **part,
        ) as writer:
            for rgb, time in film:
                writer.write(rgb, time if timed else None)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "ac3"])
def test_sound_is_copied_bit_by_bit(
    tmp_path: Path, with_sound: Callable[..., Path], suffix: str, codec: str
) -> None:
    path = with_sound("sound.mkv", codec)
    copy(path, tmp_path / f"back{suffix}")
    old, new = sounds(path), sounds(tmp_path / f"back{suffix}")
    assert [data for _, data in new] == [data for _, data in old]
    assert [time for time, _ in new] == pytest.approx([time for time, _ in old], abs=1.1e-3)


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("start", "duration"), [(0.0, 1.0), (0.52, None), (0.52, 0.8)])
def test_sound_is_cut_and_stays_in_sync(
    tmp_path: Path,
    with_sound: Callable[..., Path],
    start: float,
    duration: float | None,
    suffix: str,
    timed: bool,
) -> None:
    path = with_sound()
    target = tmp_path / f"back{suffix}"
    part = {"start": start} | ({} if duration is None else {"duration": duration})
    copy(path, target, timed=timed, **part)
    with av.open(str(target)) as container:
        origin = next(container.decode(video=0)).time
        assert origin is not None
    old, new = sounds(path), sounds(target)
    whole = {data: time for time, data in old}
    assert len(whole) == len(old)
    for time, data in new:
        assert time - origin == pytest.approx(whole[data] - start, abs=2.1e-3)
    ends = start + (2 - start if duration is None else duration)
    assert new[0][0] - origin == pytest.approx(0, abs=0.022)  # one packet of 1024 samples
    assert new[-1][0] - origin == pytest.approx(ends - start, abs=0.045)


def test_sound_far_into_a_film_is_found_by_seeking(
    tmp_path: Path, with_sound: Callable[..., Path]
) -> None:
    path, target = with_sound(seconds=8), tmp_path / "back.mp4"
    copy(path, target, start=5.0, duration=0.6)
    wanted = [(time - 5.0, data) for time, data in sounds(path) if 5.0 <= time < 5.6]
    got = sounds(target)
    assert [data for _, data in got] == [data for _, data in wanted]
    assert [time for time, _ in got] == pytest.approx([time for time, _ in wanted], abs=1e-3)


@pytest.mark.parametrize("name", ["back.gif", "frames", "back.mp4"])
def test_lost_sound_is_said(
    tmp_path: Path,
    with_sound: Callable[..., Path],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = with_sound("sound.mkv", "tta")
    with caplog.at_level(logging.WARNING):
        copy(path, tmp_path / name)
    (record,) = caplog.records
    assert "tta" in record.getMessage()
    assert ".mkv keeps it" in record.getMessage()
    with open_film(tmp_path / name) as film:
        assert not film.info.has_audio
        assert len(list(film)) == 50
    caplog.clear()
    copy(path, tmp_path / "kept.mkv")
    assert not caplog.records
    assert [data for _, data in sounds(tmp_path / "kept.mkv")] == [d for _, d in sounds(path)]


def test_silent_films_and_images_have_no_sound_to_lose(
    tmp_path: Path, make_film: MakeFilm, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(greys(1)[0]).save(tmp_path / "still.png")
    for source in (make_film(tmp_path / "film.mp4"), tmp_path / "still.png", tmp_path):
        for name in ("out.mp4", "out.gif"):
            with open_writer(
                tmp_path / name, width=48, height=32, rate=RATE, audio_from=source
            ) as writer:
                writer.write(greys(1)[0])
    assert not caplog.records


# --- nothing half-written ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_after_an_exception(tmp_path: Path, name: str) -> None:
    def fail() -> None:
        with open_writer(tmp_path / name, width=48, height=32, rate=RATE) as writer:
            writer.write(greys(1)[0])
            assert not (tmp_path / name).exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert visible(tmp_path) == []
    with (
        pytest.raises(UserError, match="without frames"),
        open_writer(tmp_path / name, width=48, height=32, rate=RATE),
    ):
        pass
    assert visible(tmp_path) == []


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk looks like to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [1, 200])
def test_a_full_disk_is_a_run_error(tmp_path: Path, name: str, frames: int) -> None:
    pictures = noise(8)

    def write() -> None:
        with open_writer(
            tmp_path / name, width=48, height=32, rate=RATE, lossless=not name.endswith("gif")
        ) as writer:
            for i in range(1 if "still" in name else frames):
                writer.write(pictures[i % 8])

    with disk_of(1500), pytest.raises(RunError, match="can't be written any further") as caught:
        write()
    assert "\n" not in str(caught.value)
    assert visible(tmp_path) == []


def test_a_second_frame_of_an_image_is_refused(tmp_path: Path) -> None:
    def write() -> None:
        with open_writer(tmp_path / "still.png", width=48, height=32, rate=RATE) as writer:
            for picture in greys(2):
                writer.write(picture)

    with pytest.raises(UserError, match=r"still\.png holds one frame and the film has more"):
        write()
    assert visible(tmp_path) == []


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty.d").mkdir()
    (tmp_path / ".out.part").mkdir()  # of a run that was killed
    (tmp_path / ".out.part" / "000009.png").touch()
    with pytest.raises(UserError, match="full isn't empty"):
        open_writer(tmp_path / "full", width=48, height=32, rate=RATE)
    for name in ("empty.d", "out"):
        with open_writer(tmp_path / name, width=48, height=32, rate=RATE) as writer:
            for picture in greys(3):
                writer.write(picture)
        assert visible(tmp_path / name) == ["000001.png", "000002.png", "000003.png"]
    assert visible(tmp_path) == ["empty.d", "full", "out"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("film.txt", {}, r"film\.txt can't be written: end its name in one of \.mp4"),
        ("none/film.mp4", {}, "doesn't exist"),
        ("none/frames", {}, "doesn't exist"),
        ("file", {}, "is a file; name a folder"),
        ("film.gif", {"lossless": True}, "can't be lossless"),
        ("film.jpg", {"lossless": True}, "can't be lossless"),
        ("film.gif", {"rate": Fraction(60)}, "can't show 60 frames a second"),
        ("film.gif", {"width": 70_000}, "70000x32"),
        ("film.mp4", {"width": 99_998}, "99998x32"),
        ("film.mp4", {"quality": 60}, "quality 60"),
        ("film.png", {"width": 0}, "0x32"),
        ("film.png", {"rate": Fraction(0)}, "more than 0"),
        ("frames", {"rate": Fraction(0)}, "more than 0"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(
    tmp_path: Path, name: str, settings: dict[str, object], message: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message) as caught:
        open_writer(tmp_path / name, **{"width": 48, "height": 32, "rate": RATE, **settings})
    assert "\n" not in str(caught.value)
    assert visible(tmp_path) == ["file"]


@pytest.mark.parametrize("name", NAMES)
def test_an_unwritable_place_is_refused_at_once(tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o500)
    folder = Path("/proc") if os.geteuid() == 0 else tmp_path  # root may write nearly anywhere
    if not folder.is_dir():
        pytest.skip("root may write anywhere, and this system has no /proc")
    with pytest.raises(UserError, match="can't be written") as caught:
        open_writer(folder / name, width=48, height=32, rate=RATE)
    assert "\n" not in str(caught.value)
