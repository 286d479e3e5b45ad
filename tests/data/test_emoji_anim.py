"""Animated emoji to films, on a package of three files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.data.emoji_anim import emoji_names, film_frames, write_films
from zoo.data.film import open_film


def webp(frames: int, *, duration: int = 42) -> bytes:
    """A square on nothing that turns from red to blue."""
    pictures = []
    for t in range(frames):
        picture = np.zeros((128, 128, 4), np.uint8)
        share = t / max(1, frames - 1)
        picture[32:96, 32:96] = (int(255 * (1 - share)), 0, int(255 * share), 255)
        pictures.append(Image.fromarray(picture, "RGBA"))
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=duration,
        lossless=True,
    )
    return file.getvalue()


def test_frames_are_shown_when_they_are_shown() -> None:
    frames = film_frames(webp(48))
    assert len(frames) == 25  # 48 of 42 ms are 2.016 s
    assert frames[0].shape == (64, 64, 3)
    assert frames[0][0, 0].tolist() == [255, 255, 255]
    for number in (0, 7, 24):
        shown = int(number * 80 / 42) / 47
        expected = [255 * (1 - shown), 0, 255 * shown]
        assert np.abs(frames[number][32, 32] - expected).max() <= 2


def test_package_to_films(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(
        json.dumps(
            {
                "\U0001f302": {"en": ":closed_umbrella:"},
                "\U0001f3c7\U0001f3fb": {"en": ":horse_racing_light_skin_tone:"},
                "\U0001f303": {"en": ":night_with_stars:"},
            }
        )
    )
    known = emoji_names(names)
    assert known["1f3c7-1f3fb"] == "horse racing, light skin tone"
    files = {"1f302": webp(40), "1f3c7-1f3fb": webp(30), "1f303": webp(1), "ffff": webp(30)}
    archive = tmp_path / "package.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for code, content in files.items():
            member = tarfile.TarInfo(f"package/assets/{code}.webp")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    write_films(archive, names, tmp_path / "out")
    for split, code, caption in (
        ("train", "1f302", "closed umbrella"),
        ("val", "1f3c7-1f3fb", "horse racing, light skin tone"),
    ):
        folder = tmp_path / "out" / split
        assert sorted(p.name for p in folder.iterdir()) == [f"{code}.mp4", "captions.jsonl"]
        row = json.loads((folder / "captions.jsonl").read_text())
        assert row == {"file": f"{code}.mp4", "text": caption}
        with open_film(folder / f"{code}.mp4") as film:
            shown = [frame.rgb for frame in film]
            assert film.info.rate == 12.5
        wanted = film_frames(files[code])
        assert all(np.array_equal(a, b) for a, b in zip(shown, wanted, strict=True))
