"""Films from the command line: into latents and back, any size, every mistake one sentence."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import zoo
from zoo.cli import find, run
from zoo.data.latents import LatentFolder
from zoo.data.video import probe, read_frames
from zoo.data.writer import VideoWriter
from zoo.nets.pca import BlockPCA
from zoo.nets.pretrained import Pretrained

ROOT = Path(__file__).parents[2]


def picture(t: int, width: int, height: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    wave = 128 + 80 * np.sin((x + y + 3 * t) / 6)
    noise = np.random.default_rng(t).integers(-8, 9, (height, width, 3))
    return (wave[..., None] + noise).clip(0, 255).astype(np.uint8)


def write_film(path: Path, *, frames: int = 20, width: int = 64, height: int = 48) -> Path:
    with VideoWriter(path, width=width, height=height, rate=Fraction(30000, 1001)) as writer:
        for t in range(frames):
            writer.write(picture(t, width, height))
    return path


def write_packets(path: Path, *, frames: int, corrupt: tuple[int, ...] = ()) -> Path:
    """An mp4 of key frames only, its index in front, with some frames' bytes overwritten."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "1", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(t, 64, 48), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        spots = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for number in corrupt:
        place, size = spots[number]
        content[place : place + size] = b"\xff" * size
    path.write_bytes(content)
    return path


class Scorer(Pretrained):
    """A saved net of a family that encodes nothing."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Nothing to set."""

        width: int = 1

    architecture = "scorer_of_tests"
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(1, config.width)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported nets (random but for their shortcut) and films, good and bad."""
    base = tmp_path_factory.mktemp("films")
    for name, seed in (("export", 0), ("other", 1)):
        torch.manual_seed(seed)
        net = zoo.create("cdt_tiny", context_dim=8, unet_dim=8)
        pca = net.pca
        assert isinstance(pca, BlockPCA)
        pca.fit([torch.rand(2, 3, 17, 32, 32) * 2 - 1])
        net.save_pretrained(base / name)  # type: ignore[operator]
    zoo.create("klvae_video_tiny", context_dim=8).save_pretrained(base / "vae")  # type: ignore[operator]
    Scorer(Scorer.Config()).save_pretrained(base / "scorer")
    write_film(base / "in.mp4")
    (base / "text.mp4").write_text("this is not a film\n" * 100)
    (base / "header.mp4").write_bytes((base / "in.mp4").read_bytes()[:60])
    whole = write_packets(base / "whole.mp4", frames=30).read_bytes()
    (base / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    write_packets(base / "corrupt.mp4", frames=30, corrupt=(11, 12))
    return base


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process: (status, stdout, stderr)."""
    monkeypatch.chdir(base)

    def call(name: str, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            run(find(name), [str(a) for a in arguments])
        said = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, said.out, said.err

    return call


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    return [frame.rgb for frame in read_frames(path)]


def test_encode_and_decode_as_a_user(base: Path, tmp_path: Path) -> None:
    """The scripts themselves, in processes of their own."""
    tool = [sys.executable, str(ROOT / "tools" / "data.py")]
    for arguments in (
        ["encode", base / "in.mp4", "--model", f"dir:{base / 'export'}", "-o", tmp_path / "l"],
        ["decode", tmp_path / "l", "-o", tmp_path / "back.mp4"],
    ):
        done = subprocess.run(
            [*tool, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    info = probe(tmp_path / "back.mp4")
    assert (info.frames, info.width, info.height) == (20, 64, 48)
    assert info.rate == Fraction(30000, 1001)


def test_a_folder_of_films(cli: Cli, base: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    (films / "below").mkdir(parents=True)
    write_film(films / "a.mp4", frames=9)
    write_film(films / "below" / "b.mkv", frames=5, width=47, height=33)
    shutil.copy(base / "text.mp4", films / "c.mp4")
    latents = tmp_path / "l"
    arguments = ("data", "encode", films, "--model", "dir:export", "-o", latents)
    status, said, errors = cli(*arguments)
    assert status == 1
    assert "c.mp4" in errors
    assert "2 films; " in said
    assert "0 s at 2 sizes: about 17.6 kB of fp16 latents" in said
    assert said.splitlines()[-1] == str(latents)
    folder = LatentFolder(latents)
    assert [(f.key, f.frames) for f in folder.films] == [("a.mp4", 9), ("below/b.mkv", 5)]
    before = (latents / "000000.tar").read_bytes()
    (films / "c.mp4").unlink()
    status, said, _ = cli(*arguments)
    assert status == 0
    assert "all 2 films are in" in said
    assert (latents / "000000.tar").read_bytes() == before
    status, said, _ = cli("data", "decode", latents, "-o", tmp_path / "back")
    assert status == 0
    assert said.splitlines() == [str(tmp_path / "back" / f.key) for f in folder.films]
    info = probe(tmp_path / "back" / "below" / "b.mkv")
    assert (info.frames, info.width, info.height) == (5, 47, 33)
    status, _, errors = cli("data", "decode", latents, "-o", tmp_path / "one.mp4")
    assert status == 2
    assert "name a folder" in errors


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_short_and_odd_films_keep_their_shape(cli: Cli, frames: int, tmp_path: Path) -> None:
    film = write_film(tmp_path / "odd.mp4", frames=frames, width=47, height=33)
    assert cli("reconstruct", film, "--model", "dir:export", "-o", tmp_path / "r.mp4")[0] == 0
    assert cli("data", "encode", film, "--model", "dir:export", "-o", tmp_path / "l")[0] == 0
    assert cli("data", "decode", tmp_path / "l", "-o", tmp_path / "d.mp4")[0] == 0
    for path in (tmp_path / "r.mp4", tmp_path / "d.mp4"):
        info = probe(path)
        assert (info.frames, info.width, info.height) == (frames, 47, 33)
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.pix_fmt == "yuv444p"


def test_a_still_is_a_film(cli: Cli, tmp_path: Path) -> None:
    Image.fromarray(picture(0, 47, 33)).save(tmp_path / "still.png")
    model = ("--model", "dir:export")
    assert cli("reconstruct", tmp_path / "still.png", *model, "-o", tmp_path / "r.png")[0] == 0
    assert cli("data", "encode", tmp_path / "still.png", *model, "-o", tmp_path / "l")[0] == 0
    assert cli("data", "decode", tmp_path / "l", "-o", tmp_path / "d.png")[0] == 0
    for name in ("r.png", "d.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (47, 33)


def test_folders_of_images_and_gifs_are_films(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for t in range(6):
        Image.fromarray(picture(t, 40, 32)).save(folder / f"{t:03d}.png")
    images = [Image.fromarray(picture(t, 40, 32)) for t in range(5)]
    images[0].save(tmp_path / "in.gif", save_all=True, append_images=images[1:], duration=100)
    model = ("--model", "dir:export")
    assert cli("reconstruct", folder, *model, "-o", tmp_path / "out")[0] == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    assert cli("reconstruct", tmp_path / "in.gif", *model, "-o", tmp_path / "out.gif")[0] == 0
    with Image.open(tmp_path / "out.gif") as gif:
        assert (gif.size, getattr(gif, "n_frames", 1)) == ((40, 32), 5)
    assert cli("data", "encode", folder, *model, "-o", tmp_path / "l")[0] == 0
    assert LatentFolder(tmp_path / "l").films[0].frames == 6
    assert cli("data", "decode", tmp_path / "l", "-o", tmp_path / "back")[0] == 0
    assert len(list((tmp_path / "back").glob("*.png"))) == 6


def test_options_reach_the_net(cli: Cli, base: Path, tmp_path: Path) -> None:
    common = ("reconstruct", "in.mp4", "--model", "dir:export", "--lossless")

    def result(*extra: object) -> NDArray[np.uint8]:
        status, _, errors = cli(*common, "-o", tmp_path / "out.mkv", *extra)
        assert status == 0, errors
        return np.stack(frames_of(tmp_path / "out.mkv"))

    plain = result()
    assert plain.shape == (20, 48, 64, 3)
    assert np.array_equal(plain, result("--chunk", 16))
    assert np.abs(plain.astype(int) - result("--chunk", 3)).max() <= 1
    assert result("--start", "0.3", "--duration", "0.2").shape[0] == 6
    assert result("--size", "32x24").shape == (20, 24, 32, 3)
    assert result("--fps", "10").shape[0] == 7
    # a net with nothing but its shortcut sees neither tiles nor noise: only that they run
    for extra in (("--tile", 32), ("--steps", 2), ("--gamma", 0), ("--seed", 5)):
        assert np.abs(plain.astype(int) - result(*extra)).max() <= 1


def test_a_killed_encode_gives_the_same_shards(base: Path, tmp_path: Path) -> None:
    """SIGKILL in the second film: the first isn't done again, and the bytes are the same."""
    films = tmp_path / "films"
    films.mkdir()
    write_film(films / "a.mp4", frames=40)
    write_film(films / "b.mp4", frames=4000)

    def start(folder: Path) -> subprocess.Popen[str]:
        arguments = ["encode", films, "--model", f"dir:{base / 'export'}", "-o", folder]
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / "data.py"), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    folder = tmp_path / "killed"
    process = start(folder)
    deadline = time.monotonic() + 100
    part = folder / ".000000.tar.part"
    while not (part.exists() and part.stat().st_size > 100_000):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(folder.glob("*.tar"))
    assert [f.key for f in LatentFolder(folder).films] == ["a.mp4"]
    again = start(folder)
    said, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert "1 films, 1 more are done" in said
    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=200) == 0
    names = sorted(os.listdir(folder))
    assert names == sorted(os.listdir(tmp_path / "whole"))
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_decode_takes_a_part(cli: Cli, base: Path, tmp_path: Path) -> None:
    model = ("--model", "dir:export", "--dtype", "fp32")
    assert cli("data", "encode", "in.mp4", *model, "-o", tmp_path / "l")[0] == 0

    def result(*extra: object) -> NDArray[np.uint8]:
        out = tmp_path / "out.mkv"
        status, _, errors = cli("data", "decode", tmp_path / "l", "--lossless", "-o", out, *extra)
        assert status == 0, errors
        return np.stack(frames_of(out))

    whole = result()
    assert whole.shape == (20, 48, 64, 3)
    assert cli("reconstruct", "in.mp4", *model, "--lossless", "-o", tmp_path / "r.mkv")[0] == 0
    assert np.array_equal(whole, np.stack(frames_of(tmp_path / "r.mkv")))
    assert np.array_equal(result("--start", 0.3, "--duration", 0.2), whole[9:15])
    assert np.array_equal(result("--fps", "30000/2002"), whole[::2])
    assert result("--size", "32x24").shape == (20, 24, 32, 3)
    # what was encoded from a later start on keeps the source's clock
    part = ("--start", 0.3, "--duration", 0.2)
    assert cli("data", "encode", "in.mp4", *model, *part, "-o", tmp_path / "p")[0] == 0
    (film,) = LatentFolder(tmp_path / "p").films
    assert film.frames == 6
    assert film.begin == pytest.approx(9 * 1001 / 30000, abs=1e-3)


def write_uneven(path: Path, stamps: list[int], *, seconds_of_sound: float) -> Path:
    """A film whose frames begin at `stamps` ms, with a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, width=64, height=48, time_base=Fraction(1, 1000)
        )
        stream.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for t, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(t, 64, 48), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        tone = np.sin(np.arange(int(16000 * seconds_of_sound)) / 5).astype(np.float32)
        samples = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 16000, 0
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    return path


def test_uneven_times_and_sound_are_kept(cli: Cli, tmp_path: Path) -> None:
    stamps = [0, 40, 80, 200, 240, 500, 510, 700, 1000, 1040]
    film = write_uneven(tmp_path / "in.mkv", stamps, seconds_of_sound=1.0)
    latents = tmp_path / "l"
    assert cli("reconstruct", film, *MODEL, "-o", tmp_path / "r.mkv")[0] == 0
    assert cli("data", "encode", film, *MODEL, "-o", latents)[0] == 0
    assert cli("data", "decode", latents, "-o", tmp_path / "d.mkv")[0] == 0
    packets = []
    for path in (film, tmp_path / "r.mkv", tmp_path / "d.mkv"):
        times = [frame.time for frame in read_frames(path)]
        assert times == pytest.approx([s / 1000 for s in stamps], abs=2e-3), path
        with av.open(str(path)) as container:
            packets.append([bytes(p) for p in container.demux(audio=0) if p.size])
    assert packets[0] == packets[1] == packets[2]
    film.unlink()
    status, _, errors = cli("data", "decode", latents, "-o", tmp_path / "d.mkv")
    assert status == 1
    assert "without their sound" in errors.splitlines()[-1]
    assert len(frames_of(tmp_path / "d.mkv")) == len(stamps)


MODEL = ("--model", "dir:export")
BAD: list[tuple[tuple[str, ...], int, str]] = [
    # input that is no film
    (("reconstruct", "text.mp4", *MODEL, "-o", "new/o.mp4"), 2, "text.mp4 can't be read"),
    (("data", "encode", "text.mp4", *MODEL, "-o", "new/l"), 2, "text.mp4 can't be read"),
    (("reconstruct", "header.mp4", *MODEL, "-o", "new/o.mp4"), 2, "header.mp4"),
    (("data", "encode", "header.mp4", *MODEL, "-o", "new/l"), 2, "header.mp4"),
    (("data", "encode", "nowhere.mp4", *MODEL, "-o", "new/l"), 2, "nowhere.mp4"),
    (("data", "encode", "empty", *MODEL, "-o", "new/l"), 2, "holds neither films nor images"),
    # films that are damaged: what can be decoded is kept
    (("reconstruct", "cut.mp4", *MODEL, "-o", "kept/cut.mp4"), 1, "cut.mp4"),
    (("data", "encode", "cut.mp4", *MODEL, "-o", "kept/cut"), 1, "cut.mp4"),
    (("reconstruct", "corrupt.mp4", *MODEL, "-o", "kept/corrupt.mp4"), 1, "2 frames"),
    (("data", "encode", "corrupt.mp4", *MODEL, "-o", "kept/corrupt"), 1, "2 frames"),
    # models
    (("reconstruct", "in.mp4", "--model", "dir:scorer", "-o", "new/o.mp4"), 2, "no tokenizer"),
    (("data", "encode", "in.mp4", "--model", "dir:scorer", "-o", "new/l"), 2, "no tokenizer"),
    (("data", "encode", "in.mp4", "--model", "cdt_tinny", "-o", "new/l"), 2, "unknown model"),
    (("data", "decode", "latents", "--model", "dir:other", "-o", "new/o.mp4"), 2, "other (cdt"),
    (("data", "decode", "latents", "--model", "dir:vae", "-o", "new/o.mp4"), 2, "vae (kl_vae"),
    (("data", "encode", "in.mp4", "--model", "dir:other", "-o", "latents"), 2, "other (cdt"),
    (("data", "encode", "in.mp4", *MODEL, "-o", "latents", "--dtype", "fp32"), 2, "dtype = fp16"),
    (("data", "decode", "export", "-o", "new/o.mp4"), 2, "no folder of latents"),
    # options
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--start", "9"), 2, "start"),
    (("data", "encode", "in.mp4", *MODEL, "-o", "new/l", "--start", "9"), 2, "start"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--start", "-1"), 2, "--start -1"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--duration", "0"), 2, "--duration 0"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--size", "64"), 2, "640x360"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--fps", "0"), 2, "more than 0"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--tile", "100"), 2, "96 or 104"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--chunk", "0"), 2, "--chunk 0"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.mp4", "--device", "gpu"), 2, "--device gpu"),
    (
        ("reconstruct", "in.mp4", "--model", "dir:vae", "-o", "new/o.mp4", "--gamma", "1"),
        2,
        "draws no noise",
    ),
    (("data", "encode", "in.mp4", *MODEL, "-o", "new/l", "--dtype", "int8"), 2, "int8"),
    (("data", "decode", "latents", "-o", "new/o.mp4", "--start", "9"), 2, "behind the end of in"),
    # output
    (("reconstruct", "in.mp4", *MODEL, "-o", "nowhere/o.mp4"), 2, "nowhere"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "new/o.xyz"), 2, "o.xyz"),
    (("reconstruct", "in.mp4", *MODEL, "-o", "in.mp4"), 2, "is the film itself"),
    (("data", "encode", "in.mp4", *MODEL, "-o", "text.mp4/l"), 2, "can't be written"),
    (("data", "encode", "in.mp4", *MODEL, "-o", "."), 2, "holds other files"),
    (("data", "decode", "latents", "-o", "nowhere/o.mp4"), 2, "nowhere"),
]


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    BAD,
    ids=lambda v: " ".join(v[:3]) if isinstance(v, tuple) else None,
)
def test_bad_input(
    cli: Cli, base: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    for name in ("empty", "new", "kept"):
        (base / name).mkdir(exist_ok=True)
    if not (base / "latents").exists():
        assert cli("data", "encode", "in.mp4", *MODEL, "-o", "latents")[0] == 0
    before = listing(base)
    code, _, errors = cli(*arguments)
    assert code == status, errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    assert said in lines[0]
    assert errors.splitlines()[-1] == lines[0]
    assert "Traceback" not in errors
    after = listing(base)
    if status == 2:
        assert after == before
    else:
        new = {Path(name) for name in after.keys() - before.keys()}
        assert not [path for path in new if ".part" in path.name]
        output = base / arguments[arguments.index("-o") + 1]
        kept = len(frames_of(output)) if output.suffix else LatentFolder(output).films[0].frames
        assert kept == 28 if "corrupt" in output.name else 15 <= kept < 30


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_or_will_be(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        status, said, errors = cli("data", "encode", "in.mp4", *MODEL, "-o", tmp_path / "l")
        assert status == 2
        assert "(5 kB free)" in said
        assert "needs about" in errors
        assert "make room" in errors
    with monkeypatch.context() as patch:
        patch.setattr("tarfile.TarFile.addfile", full)
        status, _, errors = cli("data", "encode", "in.mp4", *MODEL, "-o", tmp_path / "l")
        assert status == 1
        assert "No space left" in errors.splitlines()[-1]
    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "_append", full)
        status, _, errors = cli("reconstruct", "in.mp4", *MODEL, "-o", tmp_path / "o.mp4")
        assert status == 1
        assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
