"""Animated emoji as films with captions: 446 to train on, 31 of other emoji to look at.

The films are 64x64 at 12.5 frames a second on white, 17 to 49 frames, and every RGB value is kept.
The package says which emoji a file shows in its name, by code points; the caption is the emoji's
name.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from bisect import bisect_right
from fractions import Fraction
from itertools import accumulate
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.assets import cache_root
from zoo.data.captioned import CAPTIONS
from zoo.data.emoji import SIZE, VAL, make_once, on_white
from zoo.data.limits import open_image
from zoo.data.writer import VideoWriter

RATE = Fraction(25, 2)
_TONE = re.compile(r" ((?:medium-)?(?:light|dark|medium) skin tone)")


def prepare_emoji_anim(folder: Path | None = None) -> list[Path]:
    """The folders `train` and `val`, made first where they aren't there.

    Args:
        folder: where they go; None: data/emoji-anim in the zoo's cache.

    Raises:
        UserError: a file can't be fetched or read, or the disk is full.
    """
    root = cache_root() / "data" / "emoji-anim" if folder is None else folder
    make_once(root, "emoji-anim", write_films)
    return [root / "train", root / "val"]


def write_films(archive: Path, facts: Path, folder: Path) -> None:
    """Every animation of the package that has a name, as a film, and captions.jsonl.

    Args:
        archive: the package, .tgz.
        facts: see `emoji_names`.
        folder: gets `train` and `val`.
    """
    names = emoji_names(facts)
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for split in lines:
        (folder / split).mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            code = PurePosixPath(member.name).stem
            file = tar.extractfile(member) if member.name.endswith(".webp") else None
            if file is None or code not in names:
                continue
            frames = film_frames(file.read())
            if len(frames) < 2:
                continue  # many files of the package stand still
            split = "val" if code.split("-")[0] in VAL else "train"
            path = folder / split / f"{code}.mp4"
            with VideoWriter(path, width=SIZE, height=SIZE, rate=RATE, lossless=True) as film:
                for frame in frames:
                    film.write(frame)
            lines[split].append(json.dumps({"file": path.name, "text": names[code]}) + "\n")
    for split, rows in lines.items():
        (folder / split / CAPTIONS).write_text("".join(rows))


def film_frames(webp: bytes) -> list[NDArray[np.uint8]]:
    """What an animation shows at 12.5 frames a second, RGB [64,64,3] on white."""
    with open_image(io.BytesIO(webp)) as image:
        count = getattr(image, "n_frames", 1)
        shown, durations = [], []
        for number in range(count):
            image.seek(number)
            image.load()
            small = on_white(image).resize((SIZE, SIZE), Image.Resampling.BOX)
            shown.append(np.asarray(small))
            durations.append(int(image.info.get("duration", 0)))
    begins = [0, *accumulate(durations)]  # milliseconds
    frames = int(begins[-1] * RATE / 1000)
    return [
        shown[min(count - 1, bisect_right(begins, number * 1000 / RATE) - 1)]
        for number in range(frames)
    ]


def emoji_names(path: Path) -> dict[str, str]:
    """Names by code points, as words: "horse racing, light skin tone"."""
    found: dict[str, str] = {}
    for emoji, facts in json.loads(path.read_text()).items():
        code = "-".join(f"{ord(character):04x}" for character in emoji)
        words = facts["en"].strip(":").replace("_", " ")
        # the first tone is set off by a comma, as a list of attributes
        found[code] = _TONE.sub(r", \1", words, count=1)
    return found
