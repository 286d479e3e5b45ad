"""What tools/fuzz.py damages, and what reading it must come to."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import zoo
from zoo.cli import train
from zoo.convert.cdt import read_checkpoint
from zoo.data.film import open_film
from zoo.data.shard_source import ShardSource
from zoo.data.shard_writer import ShardSettings, shard_folder
from zoo.data.storage import Patience
from zoo.data.writer import VideoWriter
from zoo.errors import RunError
from zoo.nets.pretrained import Pretrained

FRAMES, WIDTH, HEIGHT = 24, 48, 32
_EXPECTED = "_expected.json"  # names that begin so are never damaged


@dataclass(frozen=True)
class FuzzTarget:
    """One kind of file.

    Attributes:
        name: of the folder of seeds.
        share: of the rounds.
        make: writes the seeds into a new folder.
        read: reads the damaged folder (it, the damaged file, whether nothing changed after all);
            returns what is wrong with a success, None: nothing.
    """

    name: str
    share: float
    make: Callable[[Path], None]
    read: Callable[[Path, Path, bool], str | None]


def make_seeds(folder: Path) -> None:
    """The whole files that rounds damage copies of."""
    for target in TARGETS:
        (folder / target.name).mkdir(parents=True)
        target.make(folder / target.name)


def _pictures(count: int = FRAMES, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    return [np.roll(base, i, axis=1) for i in range(count)]


def _film(path: Path, seed: int = 0) -> None:
    with VideoWriter(path, width=WIDTH, height=HEIGHT, rate=Fraction(25)) as writer:
        for picture in _pictures(seed=seed):
            writer.write(picture)


def _make_media(folder: Path) -> None:
    _film(folder / "a.mp4")
    _film(folder / "b.mkv")
    first, *rest = [Image.fromarray(picture) for picture in _pictures(6)]
    for suffix in ("png", "jpg", "webp", "bmp", "tif"):
        first.save(folder / f"c.{suffix}")
    for suffix in ("gif", "webp", "png"):
        first.save(folder / f"d.{suffix}", save_all=True, append_images=rest, duration=40)


def _read_media(case: Path, chosen: Path, unchanged: bool) -> str | None:
    film = open_film(chosen)
    count = 0
    with closing(film):
        for frame in film:
            rgb = frame.rgb
            if rgb.dtype != np.uint8 or rgb.shape[2] != 3 or not np.isfinite(frame.time):
                return f"a frame {rgb.dtype} {rgb.shape} at {frame.time}"
            if rgb.shape[:2] != (film.info.height, film.info.width):
                return f"a frame of {rgb.shape[:2]} in a film of {film.info}"
            count += 1
            if count > 10_000:
                return "more than 10,000 frames out of a few kilobytes"
        noticed = film.broken > 0 or film.truncated
    if chosen.suffix == ".mp4" and count < FRAMES and not noticed:
        # what its index no longer names is not part of the film: it must still be a whole one
        declared = film.info.frames
        if declared is not None and declared > count:
            return f"{count} frames of {declared}, and no word of it"
    return None


def _make_shards(folder: Path) -> None:
    source = folder.with_name("_source")
    source.mkdir()
    for number in range(3):
        _film(source / f"film{number}.mp4", seed=number)
        Image.fromarray(_pictures(1, seed=10 + number)[0]).save(source / f"p{number}.png")
        (source / f"film{number}.txt").write_text(f"film {number}\n")
    shard_folder(source, folder, ShardSettings(clip_seconds=10, shard_mb=0.005))
    shutil.rmtree(source)
    expected = _samples(folder)[0]
    (folder / _EXPECTED).write_text(json.dumps(expected))


def _samples(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 of what every sample holds by its key; and what was left out and why."""
    patience = Patience(attempts=1, timeout=20, pause=0)
    source = ShardSource(
        str(folder), frames=1, size=32, train=False, patience=patience, max_broken=1.0
    )
    source.prepare()
    found = {}
    for index in range(len(source)):
        try:
            sample = source[index]
        except RunError:  # all that would stand in for it is broken, too
            continue
        digest = hashlib.sha256(sample.pixels.numpy().tobytes() + sample.prompt.encode())
        found[sample.key] = digest.hexdigest()
    return found, source.broken


def _read_shards(case: Path, chosen: Path, unchanged: bool) -> str | None:
    expected: dict[str, str] = json.loads((case / _EXPECTED).read_text())
    found, broken = _samples(case)
    for key, digest in found.items():
        if key not in expected:
            return f"a sample {key} that was never written"
        if digest != expected[key]:
            return f"another content of {key}"
    lost = {key.partition("@")[0] for key in expected.keys() - found.keys()}
    unnamed = [k for k in lost if k not in broken and k.partition("/")[0] not in broken]
    return f"lost without a word: {unnamed[:3]}" if unnamed else None


def _make_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    zoo.create("cdt_tiny", context_dim=8, unet_dim=8).save_pretrained(folder)  # type: ignore[operator]


def _read_checkpoint(case: Path, chosen: Path, unchanged: bool) -> str | None:
    net = Pretrained.from_pretrained(case)
    for name, tensor in net.state_dict().items():
        if tensor.is_meta:
            return f"{name} has no values"
        if not (tensor.is_floating_point() or "num" in name or tensor.dtype == torch.int64):
            return f"{name} is {tensor.dtype}"
    return None


def _make_pickle(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"model.{part}.{i}.weight": torch.randn(3, 4, generator=generator)
        for part in ("context_fn", "denoise_fn")
        for i in range(4)
    }
    torch.save({"state_dict": tensors}, folder / "a.ckpt")
    torch.save({"state_dict": tensors}, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    sums = {name: float(tensor.sum()) for name, tensor in tensors.items()}
    (folder / _EXPECTED).write_text(json.dumps(sums))


def _read_pickle(case: Path, chosen: Path, unchanged: bool) -> str | None:
    tensors = read_checkpoint(chosen)
    for name, tensor in tensors.items():
        if not isinstance(name, str) or tensor.dtype != torch.float32:
            return f"{name!r} is {tensor.dtype}"
    return None


def _make_config(folder: Path) -> None:
    configs = Path(__file__).resolve().parents[1] / "configs" / "smoke"
    for name in ("cdt_video", "kl_vae_image"):
        shutil.copy(configs / f"{name}.yaml", folder)


def _read_config(case: Path, chosen: Path, unchanged: bool) -> str | None:
    try:
        train.main(["fit", "--config", str(chosen), "--print_config"])
    except SystemExit as end:
        return None if end.code in (0, None) else f"exit status {end.code}"
    return "it did not print the config"


TARGETS = (
    FuzzTarget("media", 0.35, _make_media, _read_media),
    FuzzTarget("shards", 0.3, _make_shards, _read_shards),
    FuzzTarget("checkpoint", 0.15, _make_checkpoint, _read_checkpoint),
    FuzzTarget("pickle", 0.15, _make_pickle, _read_pickle),
    FuzzTarget("config", 0.05, _make_config, _read_config),
)
