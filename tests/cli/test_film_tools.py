"""Films from the command line: into latents and back, any size, every mistake one sentence."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import zoo
from tests.cli.film_makers import MODEL, Cli, frames_of, picture, write_film, write_uneven
from zoo.cli import latents
from zoo.data.film import FilmInfo
from zoo.data.latents import LatentFolder, read_films
from zoo.data.video import probe, read_frames

ROOT = Path(__file__).parents[2]


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
    output = tmp_path / "l"
    arguments = ("data", "encode", films, "--model", "dir:export", "-o", output)
    status, said, errors = cli(*arguments)
    assert status == 1
    assert "c.mp4" in errors
    assert "2 films; " in said
    assert "0 s at 2 sizes: about 18 kB of fp16 latents" in said
    assert said.splitlines()[-1] == str(output)
    folder = LatentFolder(output)
    assert [(f.key, f.frames) for f in folder.films] == [("a.mp4", 9), ("below/b.mkv", 5)]
    before = (output / "000000.tar").read_bytes()
    (films / "c.mp4").unlink()
    status, said, _ = cli(*arguments)
    assert status == 0
    assert "2 films in" in said
    assert (output / "000000.tar").read_bytes() == before
    status, said, _ = cli("data", "decode", output, "-o", tmp_path / "back")
    assert status == 0
    assert said.splitlines() == [str(tmp_path / "back" / f.key) for f in folder.films]
    info = probe(tmp_path / "back" / "below" / "b.mkv")
    assert (info.frames, info.width, info.height) == (5, 47, 33)
    status, _, errors = cli("data", "decode", output, "-o", tmp_path / "one.mp4")
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
    assert [f.key for f in read_films(folder)] == ["a.mp4"]
    again = start(folder)
    said, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert "1 film, 1 more are done" in said
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


def test_uneven_times_and_sound_are_kept(cli: Cli, tmp_path: Path) -> None:
    stamps = [0, 40, 80, 200, 240, 500, 510, 700, 1000, 1040]
    film = write_uneven(tmp_path / "in.mkv", stamps, seconds_of_sound=1.0)
    output = tmp_path / "l"
    assert cli("reconstruct", film, *MODEL, "-o", tmp_path / "r.mkv")[0] == 0
    assert cli("data", "encode", film, *MODEL, "-o", output)[0] == 0
    assert cli("data", "decode", output, "-o", tmp_path / "d.mkv")[0] == 0
    packets = []
    for path in (film, tmp_path / "r.mkv", tmp_path / "d.mkv"):
        times = [frame.time for frame in read_frames(path)]
        assert times == pytest.approx([s / 1000 for s in stamps], abs=2e-3), path
        with av.open(str(path)) as container:
            packets.append([bytes(p) for p in container.demux(audio=0) if p.size])
    assert packets[0] == packets[1] == packets[2]
    film.unlink()
    status, _, errors = cli("data", "decode", output, "-o", tmp_path / "d.mkv")
    assert status == 1
    assert "1 film without sound" in errors.splitlines()[-1]
    assert len(frames_of(tmp_path / "d.mkv")) == len(stamps)


def test_the_estimate_of_a_long_film() -> None:
    with torch.device("meta"):
        net = zoo.create("cdt_tiny")
    info = FilmInfo(1920, 1080, Fraction(24), frames=2 * 3600 * 24)
    found = latents.Found("film.mp4", Path("film.mp4"), info)
    needed = latents.latent_bytes(net, info, "fp16")  # type: ignore[arg-type]
    said = latents.estimate([found], [found], needed, 10**11, Namespace(dtype="fp16"))
    assert said == "1 film; 2 h at 1920x1080: about 45 GB of fp16 latents (100 GB free)"
