"""`zoo generate` with films as output, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo.video_pipeline
from tests.latent_videos import SIZE, WordStates, pipeline, tokenizer
from zoo.cli import find, run
from zoo.data.film import open_film


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.video_pipeline, "text_encoder_for", lambda dim: WordStates())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    pipeline().save_pretrained(folder / "export")
    tokenizer(seed=1).save_pretrained(folder / "other")
    return f"dir:{folder / 'export'}"


def generate(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(find("generate"), [str(a) for a in arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def frames_of(path: Path) -> np.ndarray:
    with open_film(path) as film:
        return np.stack([frame.rgb for frame in film])


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_one_film_and_its_sheet(
    model: str, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / f"red{suffix}"
    options = ("--model", model, "--seed", 1, "--steps", 2, "--frames", 17)
    assert generate("red square", *options, "-o", out) == 0
    assert capsys.readouterr().out.split() == [str(out), str(out.with_suffix(".png"))]
    film = frames_of(out)
    assert film.shape == (17, SIZE, SIZE, 3)
    sheet = np.asarray(Image.open(out.with_suffix(".png")))
    assert sheet.shape == (SIZE, 3 * SIZE + 4, 3)
    last = sheet[:, -SIZE:].astype(float)
    assert np.abs(last - film[-1]).mean() < np.abs(last - film[0]).mean()
    with open_film(out) as again:
        assert float(again.info.rate) == pytest.approx(12.5, rel=0.01)


def test_several_films_of_any_length_and_size(model: str, tmp_path: Path) -> None:
    out = tmp_path / "films.mp4"
    options = ("--model", model, "--steps", 1, "--frames", 101, "--size", "64x48", "--fps", 25)
    said = ("red square", "blue square", "--number", 2, "--batch", 3, "--seed", 4)
    assert generate(*said, *options, "-o", out) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "films-000-red-square-seed4.mp4",
        "films-001-red-square-seed5.mp4",
        "films-002-blue-square-seed6.mp4",
        "films-003-blue-square-seed7.mp4",
        "films.png",
    ]
    assert frames_of(tmp_path / names[0]).shape == (101, 48, 64, 3)
    assert Image.open(out.with_suffix(".png")).size == (3 * 66 - 2, 4 * 50 - 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("red", "--frames", 18), "18 frames can't be reached"),
        (("red", "--frames", 0), "0 frames can't be reached"),
        ((" ",), "prompt 1 of 1 is empty: describe the film"),
        ((), "there is no prompt: describe a film"),
        (("red", "--steps", 0), "steps = 0: give at least 1"),
        (("red", "--shift", 0), "shift = 0.0: give a number above 0"),
        (("red", "--size", "30x32"), "30x32 pixels: give a width that is a multiple of 8"),
        (("red", "--seed", -1), "seeds [-1]: give numbers from 0"),
        (("red", "--number", 0), "--number 0: give at least 1"),
        (("red", "--tokenizer", "OTHER"), "give the tokenizer it was trained with"),
        (("red", "--model", "OTHER"), "which generates no films: give a video_dit"),
        (("red", "-o", "/dev/null/x/out.mp4"), "out.mp4 can't be written (Not a directory)"),
        (("red", "--frames", 17, "-o", "grid.png"), "grid.png is no film: end its name in .mp4"),
    ],
)
def test_mistakes(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = model.replace("export", "other")
    given = [other if a == "OTHER" else a for a in arguments]
    assert generate("--model", model, "-o", "out.mp4", *given) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.count("\n") == 0
    assert not list(tmp_path.iterdir())
