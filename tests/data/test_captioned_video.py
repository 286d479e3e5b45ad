"""Captions of films and of latents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.latent_videos import tokenizer, write_films
from zoo.cli import find, run
from zoo.data.captioned_video import CaptionedFilms, CaptionedLatents, captions_of, film_of
from zoo.errors import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("captions")
    write_films(base / "films")
    tokenizer().save_pretrained(base / "net")
    encode = [base / "films", "--model", f"dir:{base / 'net'}", "-o", base / "latents"]
    with pytest.raises(SystemExit) as stopped:
        run(find("data"), ["encode", *map(str, encode)])
    assert stopped.value.code == 0
    return base


def test_captions_come_with_films_and_latents(base: Path) -> None:
    films = CaptionedFilms(str(base / "films"), frames=17, size=32)
    latents = CaptionedLatents(str(base / "latents"), latents=5)
    for source in (films, latents):
        source.prepare()
        assert sorted(source.prompts) == ["blue square", "green square", "red square"]
        assert source.film_rate == 12.5
        for index in range(6):
            sample = source[(0, index)]
            assert sample.prompt == film_of(sample.key)[0].replace("_", " ").removesuffix(".mp4")


def test_beginnings_have_their_share(base: Path) -> None:
    shares = []
    for beginnings in (0.0, 0.5, 1.0):
        source = CaptionedLatents(
            str(base / "latents"), latents=2, clips_per_film=100, beginnings=beginnings
        )
        source.prepare()
        begun = [film_of(source[(0, i)].key)[1] for i in range(len(source))]
        shares.append(sum(begun) / len(begun))
    assert 0.15 < shares[0] < 0.3  # one in five, by chance
    assert 0.5 < shares[1] < 0.7
    assert shares[2] == 1
    with pytest.raises(UserError, match=r"beginnings = 1.5"):
        CaptionedLatents("x", beginnings=1.5)


def test_names_as_captions_and_mistakes(tmp_path: Path) -> None:
    keys = ["sport/playing_guitar-2.mp4"]
    assert captions_of(keys, tmp_path, "names") == {keys[0]: "playing guitar 2"}
    with pytest.raises(UserError, match=r"no captions at .*captions.jsonl.*'names'"):
        captions_of(keys, tmp_path, None)
    file = tmp_path / "captions.jsonl"
    for line, said in (
        ("{", "line 1 of .* isn't JSON with file and text"),
        (json.dumps({"file": "a"}), "isn't JSON with file and text"),
        (json.dumps({"file": "a", "text": " "}), "line 1 of .* has no text: describe a"),
        (json.dumps({"file": "a", "text": "b"}), "no caption for 1 films, such as sport/playing"),
    ):
        file.write_text(line)
        with pytest.raises(UserError, match=said):
            captions_of(keys, tmp_path, None)
