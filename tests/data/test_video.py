from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from films import MakeFilm, index_of, level
from numpy.typing import NDArray

from zoo.data import video
from zoo.data.video import VideoWriter, probe, probe_times, read_clip, read_frames, select_frames
from zoo.errors import RunError, UserError

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips" / "train"
CORNERS = ((230, 30, 30), (30, 220, 30), (30, 30, 230), (220, 210, 40))
Encode = Callable[..., Path]


def corners(height: int, width: int) -> NDArray[np.uint8]:
    """Red, green, blue and yellow quarters."""
    image = np.zeros((height, width, 3), np.uint8)
    for i, colour in enumerate(CORNERS):
        top, left = i // 2 * height // 2, i % 2 * width // 2
        image[top : top + (height + 1) // 2, left : left + (width + 1) // 2] = colour
    return image


def middles(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    height, width, _ = rgb.shape
    spots = [(height // 4, width // 4), (height // 4, 3 * width // 4)]
    spots += [(3 * height // 4, width // 4), (3 * height // 4, 3 * width // 4)]
    return np.array([rgb[y, x] for y, x in spots], np.int64)


def greys(frames: int) -> list[NDArray[np.uint8]]:
    return [np.full((32, 48, 3), level(i), np.uint8) for i in range(frames)]


def indices(clip: torch.Tensor) -> list[int]:
    return [index_of(float(grey)) for grey in clip.float().mean(dim=(0, 2, 3))]


@pytest.mark.parametrize("frames", [1, 2, 40])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(15, 2)], ids=str)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_what_is_written_is_read(
    tmp_path: Path, make_film: MakeFilm, suffix: str, rate: Fraction, frames: int
) -> None:
    path = make_film(tmp_path / f"film{suffix}", frames=frames, rate=rate)
    info = probe(path)
    assert (info.frames, info.rate, info.width, info.height) == (frames, rate, 48, 32)
    assert info.duration == pytest.approx(frames / rate, abs=1.1e-3)  # Matroska counts in ms
    read = list(read_frames(path))
    assert [index_of(float(frame.rgb.mean())) for frame in read] == list(range(frames))
    wanted = [i / float(rate) for i in range(frames)]
    assert [frame.time for frame in read] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(720, 64), (64, 64), (33, 47)])
@pytest.mark.parametrize("lossless", [False, True])
def test_colours_survive(tmp_path: Path, height: int, width: int, lossless: bool) -> None:
    image = corners(height, width)
    path = tmp_path / "film.mp4"
    with VideoWriter(
        path, width=width, height=height, rate=Fraction(25), quality=4, lossless=lossless
    ) as writer:
        for _ in range(3):
            writer.write(image)
    for frame in read_frames(path):
        assert frame.rgb.shape == image.shape
        if lossless:
            assert np.array_equal(frame.rgb, image)
        else:  # the wrong matrix is off by 20 and more, the wrong range by 15
            assert np.abs(middles(frame.rgb) - np.array(CORNERS)).max() <= 4


@pytest.mark.parametrize(("height", "tag"), [(720, 1), (718, 6)])
def test_colours_are_tagged(tmp_path: Path, height: int, tag: int) -> None:
    path = tmp_path / "film.mp4"
    with VideoWriter(path, width=32, height=height, rate=Fraction(25)) as writer:
        writer.write(corners(height, 32))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        found = (context.colorspace, context.color_primaries, context.color_trc)
        assert found == (tag, tag, tag)
        assert context.color_range == 1  # limited


@pytest.mark.parametrize("tags", [(1, 1), (5, 1), (1, 2), (5, 2)])
def test_tagged_matrix_and_range_are_undone(
    tmp_path: Path, encode: Encode, tags: tuple[int, int]
) -> None:
    path = encode(tmp_path / "film.mp4", [corners(64, 64)] * 2, tags=tags)
    frame = next(read_frames(path))
    assert np.abs(middles(frame.rgb) - np.array(CORNERS)).max() <= 4


@pytest.mark.parametrize(
    ("rotation", "hflip", "order"),
    [
        (90, False, (1, 3, 0, 2)),
        (-90, False, (2, 0, 3, 1)),
        (180, False, (3, 2, 1, 0)),
        (0, True, (1, 0, 3, 2)),
    ],
)
def test_display_matrix_is_applied(
    tmp_path: Path, encode: Encode, rotation: int, hflip: bool, order: tuple[int, ...]
) -> None:
    path = encode(tmp_path / "film.mp4", [corners(32, 64)] * 2, rotation=rotation, hflip=hflip)
    width, height = (32, 64) if abs(rotation) == 90 else (64, 32)
    assert (probe(path).width, probe(path).height) == (width, height)
    for size in (None, (width // 2, height // 2)):
        frame = next(read_frames(path, size=size))
        wanted = size or (width, height)
        assert frame.rgb.shape == (wanted[1], wanted[0], 3)
        assert np.abs(middles(frame.rgb) - np.array([CORNERS[i] for i in order])).max() <= 8


def test_start_duration_and_size(tmp_path: Path, make_film: MakeFilm) -> None:
    path = make_film(tmp_path / "film.mp4")
    read = list(read_frames(path, start=0.4, duration=0.2, size=(20, 10)))
    assert [index_of(float(frame.rgb.mean())) for frame in read] == [10, 11, 12, 13, 14]
    assert read[0].rgb.shape == (10, 20, 3)


def test_clips_by_time(tmp_path: Path, make_film: MakeFilm) -> None:
    path = make_film(tmp_path / "film.mp4", height=34)
    assert indices(read_clip(path, frames=5, start=0.4)) == [10, 11, 12, 13, 14]
    assert indices(read_clip(path, frames=5, start=0.41)) == [11, 12, 13, 14, 15]
    assert indices(read_clip(path, frames=4, start=0.2, rate=5)) == [5, 10, 15, 20]
    assert indices(read_clip(path, frames=6, start=0.0, rate=50)) == [0, 0, 1, 1, 2, 2]
    clip = read_clip(path, frames=2, short_side=17)
    assert (clip.shape, clip.dtype) == ((3, 2, 17, 24), torch.uint8)
    with pytest.raises(UserError, match="3 frames too early"):
        read_clip(path, frames=5, start=1.52)
    with pytest.raises(UserError, match="too early"):
        read_clip(path, frames=9, start=0.0, rate=5)


@pytest.mark.parametrize("gop", [1, 12, 250])
def test_variable_frame_rate(tmp_path: Path, encode: Encode, gop: int) -> None:
    gaps = np.random.default_rng(0).integers(20, 400, 48)
    stamps = [0, *np.cumsum(gaps)[:-1].tolist()]
    path = encode(tmp_path / "film.mp4", greys(48), stamps=stamps, gop=gop)
    info, times = probe_times(path)
    assert info.frames == 48
    assert times == pytest.approx(np.array(stamps) / 1000)
    for k in (0, 7, 20, 43):  # late starts are sought, past several or no key frames
        assert indices(read_clip(path, frames=5, start=stamps[k] / 1000)) == list(range(k, k + 5))
        wanted = stamps[k] / 1000 + 0.017 + np.arange(6) / 11
        nearest = [int(np.abs(times - moment).argmin()) for moment in wanted]
        assert indices(read_clip(path, frames=6, start=wanted[0], rate=11)) == nearest
        picked = select_frames(times, frames=6, start=wanted[0], rate=11, gap=1 / float(info.rate))
        assert picked.tolist() == nearest


@pytest.mark.parametrize("suffix", [".ts", ".avi"])
def test_containers_with_odd_stamps(tmp_path: Path, encode: Encode, suffix: str) -> None:
    stamps = [5000 + 40 * i for i in range(48)] if suffix == ".ts" else None
    path = encode(tmp_path / f"film{suffix}", greys(48), stamps=stamps, gop=10)
    assert probe(path).frames == len(list(read_frames(path))) == 48
    assert next(read_frames(path)).time == 0.0
    for k in (0, 14, 40):
        assert indices(read_clip(path, frames=5, start=0.04 * k)) == list(range(k, k + 5))


def test_frames_an_edit_list_hides_are_not_counted(tmp_path: Path, encode: Encode) -> None:
    path = encode(tmp_path / "film.mp4", greys(48), stamps=[40 * i - 200 for i in range(48)])
    assert probe(path).frames == len(list(read_frames(path))) == 43
    assert indices(read_clip(path, frames=3)) == [5, 6, 7]


def test_mean_rate_is_measured_where_the_header_guesses(tmp_path: Path, encode: Encode) -> None:
    path = encode(tmp_path / "film.mkv", greys(48), stamps=[100 * i for i in range(48)])
    assert float(probe(path).rate) == pytest.approx(10, rel=0.02)  # the header says 25


def test_late_seeks_are_backed_off(
    tmp_path: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "film.mp4", greys(48) * 5, gop=1)
    plain = video.FrameReader._decode
    tried = []

    def late(self: video.FrameReader, *, seek_to: float | None) -> object:
        tried.append(seek_to)
        return plain(self, seek_to=None if seek_to is None else seek_to + 1.0)

    monkeypatch.setattr(video.FrameReader, "_decode", late)
    assert indices(read_clip(path, frames=5, start=0.04 * 200)) == [8, 9, 10, 11, 12]
    assert len(tried) == 2


def test_packets_that_fail_to_decode_are_counted(tmp_path: Path, encode: Encode) -> None:
    path = encode(tmp_path / "film.mp4", greys(20), gop=1)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        spots = [(packet.pos, packet.size) for packet in packets]
    content = bytearray(path.read_bytes())
    for number in (7, 12):
        position, size = spots[number]
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    reader = read_frames(path)
    found = [index_of(float(frame.rgb.mean())) for frame in reader]
    assert found == [i for i in range(20) if i not in (7, 12)]
    assert reader.broken == 2


def test_seeking_decodes_little(
    tmp_path: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "film.mp4", greys(48) * 5, gop=10)
    decoded = []
    plain = video.FrameReader._packets

    def counting(self: video.FrameReader) -> object:
        for frame in plain(self):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(video.FrameReader, "_packets", counting)
    assert indices(read_clip(path, frames=5, start=0.04 * 200)) == [8, 9, 10, 11, 12]
    assert len(decoded) < 40


@pytest.mark.parametrize("kind", ["text", "empty", "missing", "folder", "truncated", "no frames"])
def test_no_film(tmp_path: Path, make_film: MakeFilm, kind: str) -> None:
    path = tmp_path / "film.mp4"
    if kind == "text":
        path.write_text("not a film\n" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind in ("truncated", "no frames"):
        content = make_film(path).read_bytes()
        # The index of an mp4 is its end; a film of which only the header arrived ends before mdat.
        path.write_bytes(content[: len(content) // 2 if kind == "truncated" else 60])
    for read in (probe, read_frames, lambda path: read_clip(path, frames=1)):
        with pytest.raises(UserError, match=r"film\.mp4") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_truncated_matroska_counts_what_is_there(tmp_path: Path, make_film: MakeFilm) -> None:
    path = make_film(tmp_path / "film.mkv", texture=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = probe(path).frames
    assert 5 < frames < 35
    assert abs(frames - len(list(read_frames(path)))) <= 1


def test_corrupt_middle_is_skipped_and_counted(tmp_path: Path, make_film: MakeFilm) -> None:
    path = make_film(tmp_path / "film.mp4", texture=True)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(content)
    reader = read_frames(path)
    times = [frame.time for frame in reader]
    assert 20 < len(times) < 40
    assert reader.broken > 0
    assert times == sorted(times)
    assert times[-1] == pytest.approx(39 / 25)


def test_writer_leaves_nothing_behind(tmp_path: Path, make_film: MakeFilm) -> None:
    path = tmp_path / "film.mp4"
    image = np.zeros((32, 48, 3), np.uint8)

    def fail() -> None:
        with VideoWriter(path, width=48, height=32, rate=Fraction(25)) as writer:
            writer.write(image)
            assert [file.name for file in tmp_path.iterdir() if file.is_file()] != ["film.mp4"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    before = make_film(path).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == before
    with (
        pytest.raises(UserError, match="without frames"),
        VideoWriter(path, width=48, height=32, rate=Fraction(25)),
    ):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


def test_full_disk_is_a_run_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    part = tmp_path / ".film.part.mkv"
    part.symlink_to("/dev/full")
    rng = np.random.default_rng(0)

    def write() -> None:
        with VideoWriter(tmp_path / "film.mkv", width=128, height=128, rate=Fraction(25)) as out:
            for _ in range(60):
                out.write(rng.integers(0, 256, (128, 128, 3), np.uint8))

    with pytest.raises(RunError, match="can't be written any further"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("film.gif", {}, r"\.mp4"),
        ("film", {}, r"\.mp4"),
        ("none/film.mp4", {}, "doesn't exist"),
        ("file.txt/film.mp4", {}, "doesn't exist"),
        ("folder.mp4", {}, "is a folder"),
        ("film.mp4", {"width": 0}, "0x32"),
        ("film.mp4", {"width": 99_998}, "99998x32"),
        ("film.mp4", {"rate": Fraction(0)}, "more than 0"),
        ("film.mp4", {"quality": 60}, "quality 60"),
    ],
)
def test_impossible_films_are_refused_at_once(
    tmp_path: Path, name: str, settings: dict[str, object], message: str
) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        VideoWriter(
            tmp_path / name, **{"width": 48, "height": 32, "rate": Fraction(25), **settings}
        )
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="can't be written"):
        VideoWriter(tmp_path / "film.mp4", width=48, height=32, rate=Fraction(25))


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"{CLIPS} isn't on this machine")
def test_seeking_in_real_films_equals_decoding_them_whole() -> None:
    for name in ("demo.mp4", "surv_nofi001.mp4"):
        whole = np.stack([frame.rgb for frame in read_frames(CLIPS / name)])
        info, times = probe_times(CLIPS / name)
        assert len(whole) == info.frames == len(times)
        for k in (0, 23, len(times) - 17):
            clip = read_clip(CLIPS / name, frames=17, start=float(times[k]))
            assert np.array_equal(clip.permute(1, 2, 3, 0).numpy(), whole[k : k + 17])
