"""The benchmark of generated films, on a network that only looks at colours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import zoo.video_pipeline
from tests.latent_videos import SIZE, WordStates, generator, pipeline, tokenizer, write_films
from zoo.benchmark.film_generation import Benchmark, RealFilms, Rules, markdown, results
from zoo.data.latents import fingerprint
from zoo.errors import UserError
from zoo.metrics.networks import FeatureNet


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.video_pipeline, "text_encoder_for", lambda dim: WordStates())


def colours(clips: Tensor) -> Tensor:
    """Mean and spread of the colours."""
    x = clips.float() / 255
    return torch.cat([x.mean(dim=(2, 3, 4)), x.std(dim=(2, 3, 4))], dim=1)


NET = FeatureNet("FVD-Colours", "KVD-Colours", 6, "1", video=True, run=colours)


class Apart:
    """In place of LPIPS: the mean absolute difference."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3))


def test_rows_are_paired_kept_and_told_apart(tmp_path: Path) -> None:
    write_films(tmp_path / "films")
    rules = Rules(frames=17, size=SIZE, prompts=2, repeats=2, steps=2)
    real = RealFilms(str(tmp_path / "films"), rules)
    assert real.clips.shape == (3, 3, 17, SIZE, SIZE)
    assert real.prompts(2) == ["blue square", "green square"]
    pipeline().save_pretrained(tmp_path / "one")
    other = generator(path="v_diffusion")
    decoder = tokenizer(seed=2)
    weights = fingerprint(decoder)[1]
    other.bind(decoder, name="dir:two", size=(4, 4), rate=12.5, weights=weights)
    other.save_pretrained(tmp_path / "two")
    decoder.save_pretrained(tmp_path / "two" / "tokenizer")
    counted: list[tuple[str, int, int]] = []

    def benchmark(rules: Rules = rules) -> Benchmark:
        return Benchmark(
            tmp_path / "out",
            rules,
            real,
            [NET],
            lpips=Apart(),  # type: ignore[arg-type]
            advance=lambda *said: counted.append(said),
        )

    first = benchmark()
    rows = [first.real_row()]
    for name in ("one", "two"):
        rows += first.row(f"dir:{tmp_path / name}")
    by = {row["label"]: row for row in rows}
    ceilings = [row for row in rows if row["label"].endswith("(reconstruction)")]
    made = [by[f"dir:{tmp_path / name}"] for name in ("one", "two")]
    assert [row["films"] for row in made] == [4, 4]
    assert [row["films"] for row in ceilings] == [3, 3]
    # squares that move steadily: reconstructions are nearer to them than what random nets make
    for ceiling, row in zip(ceilings, made, strict=True):
        assert ceiling["FVD-Colours"]["value"] < row["FVD-Colours"]["value"]
        assert row["diversity"]["mean"] > 0
    assert ("dir:squares (reconstruction)", 3, 3) in counted

    counted.clear()
    again = benchmark()
    assert again.row(f"dir:{tmp_path / 'one'}")[1]["flicker"] == made[0]["flicker"]
    assert not counted  # nothing is made twice
    other_rules = benchmark(replace(rules, seed=1)).row(f"dir:{tmp_path / 'one'}")[1]
    assert counted
    assert other_rules["flicker"] != made[0]["flicker"]

    found = results(first, rows, {"FVD": "no weights"})
    json.dumps(found)
    text = markdown(found)
    assert text.count("\n| ") == 5
    assert "FVD: not measured (no weights)" in text
    assert len(list((tmp_path / "out" / "films").glob("*.png"))) == 4


def test_flicker_knows_shaking_from_moving() -> None:
    from zoo.benchmark.film_generation import _flicker_of

    t = torch.arange(9.0) / 9
    still = torch.zeros(4, 3, 9, 4, 4)
    fading = still + t[:, None, None]
    shaking = still + (torch.arange(9) % 2)[:, None, None]
    values = [_flicker_of(films)["flicker"]["mean"] for films in (still, fading, shaking)]
    assert values[0] == 0
    assert values[1] == pytest.approx(0, abs=1e-4)
    assert values[2] == pytest.approx(255, rel=1e-5)
    assert _flicker_of(still[:, :, :2]) == {}


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="repeats = 0: give at least 1"):
        Rules(repeats=0)
    write_films(tmp_path / "films")
    rules = Rules(frames=18, size=SIZE)
    pipeline().save_pretrained(tmp_path / "one")
    with pytest.raises(UserError, match="18 frames can't be reached"):
        Benchmark(
            tmp_path, rules, RealFilms(str(tmp_path / "films"), rules), [NET], lpips=None
        ).row(f"dir:{tmp_path / 'one'}")
