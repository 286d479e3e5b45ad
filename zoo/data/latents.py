"""Latents of films on disk: WebDataset shards, an index of films, and a manifest.

A folder holds

- `manifest.json`: which model wrote it (name, architecture, hashes of config and weights), how
  (`Settings`), and the statistics of what was written;
- `films.jsonl`: a line for every finished film (`FilmEntry`);
- `000000.tar`, `000001.tar`, ...: per sample `FILM-SAMPLE.safetensors` with the tensor `latents`
  [c,t,h,w] and `FILM-SAMPLE.json` with the film's key, its size and rate, the first of the
  sample's frames, their number and, where they aren't evenly spaced, their times.

A film's samples follow one another; all but its last hold the same number of latents.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from zoo.errors import RunError, UserError
from zoo.nets.pretrained import Pretrained

MANIFEST, FILMS = "manifest.json", "films.jsonl"
FORMAT = 1
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides the bytes of the shards; a folder goes on only with the same.

    Attributes:
        model: the name the net was loaded by.
        architecture: the net's class, as in config.json.
        config_sha256, weights_sha256: of the net, see `fingerprint`.
        compression: pixels a latent stands for, (t, h, w).
        latent_mean, latent_std: the net's own, [c].
        dtype: of the latents, fp16, bf16 or fp32.
        kind: `mean` or `sample` of the posterior.
        seed: of the samples' noise.
        start, duration, fps, size: what was taken of each film; None: all, its own.
        tile, chunk: pixels and frames the net saw at a time; None: the whole frame, by its size.
    """

    model: str
    architecture: str
    config_sha256: str
    weights_sha256: str
    compression: list[int]
    latent_mean: list[float]
    latent_std: list[float]
    dtype: str = "fp16"
    kind: str = "mean"
    seed: int = 0
    start: float = 0.0
    duration: float | None = None
    fps: str | None = None
    size: list[int] | None = None
    tile: int | None = None
    chunk: int | None = None

    @classmethod
    def of(cls, net: Any, *, model: str, **options: Any) -> Settings:
        """Settings for a net as it was loaded: before it is cast or wrapped."""
        config, weights = fingerprint(net)
        if model.startswith("dir:"):
            # found again from any folder
            model = f"dir:{Path(model.removeprefix('dir:')).expanduser().absolute()}"
        return cls(
            model=model,
            architecture=net.architecture,
            config_sha256=config,
            weights_sha256=weights,
            compression=list(net.compression),
            latent_mean=net.latent_mean.tolist(),
            latent_std=net.latent_std.tolist(),
            **options,
        )

    def check_model(self, other: Settings, folder: Path) -> None:
        """Refuse `other`, another model than the one that wrote `folder`.

        Raises:
            UserError: both are named.
        """
        if (self.architecture, self.config_sha256, self.weights_sha256) == (
            other.architecture,
            other.config_sha256,
            other.weights_sha256,
        ):
            return
        ours, theirs = (
            f"{s.model} ({s.architecture}, weights {s.weights_sha256[:8]})" for s in (self, other)
        )
        raise UserError(f"{folder} holds latents of {ours}, which {theirs} can't continue or read")


@dataclass(frozen=True, kw_only=True)
class FilmEntry:
    """A finished film.

    Attributes:
        number: its first part of the names in the shards.
        key: its name below the folder that was encoded.
        source: where it was read from.
        frames, height, width: T, H and W in pixels.
        rate: frames a second as a fraction.
        begin: seconds of the source at which its first frame begins.
        latents: [c,t,h,w] of the whole film.
        per_sample: latents of every sample but the last.
        places: (first sample, shard), one for each shard the film is in.
        broken: frames that could not be decoded and are left out.
        truncated: whether the source ended before its header said.
        info: what else decoding needs to know of the source: sound, colours, time base.
        moments: per channel the sums of the latents and of their squares.
    """

    number: int
    key: str
    source: str
    frames: int
    height: int
    width: int
    rate: str
    begin: float
    latents: list[int]
    per_sample: int
    places: list[list[int]]
    broken: int
    truncated: bool
    info: dict[str, Any]
    moments: list[list[float]]

    @property
    def fraction(self) -> Fraction:
        """The rate as a number."""
        return Fraction(self.rate)


class LatentFolder:
    """Reads a folder of latents.

    Args:
        folder: where `zoo data encode` wrote.

    Raises:
        UserError: it isn't such a folder, is of a later format, or its encoding hasn't ended.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise UserError(f"{folder} is no folder of latents: it has no {MANIFEST}")
        self.settings, self.statistics = manifest
        self.films = read_films(self.folder)
        if self.statistics is None:
            raise UserError(f"the encoding of {folder} hasn't ended: run it again to go on")

    def samples(self, film: FilmEntry) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """A film's samples in order: latents [c,t,h,w] as stored, and their json.

        Raises:
            RunError: a shard is missing or broken.
        """
        for sample in range(-(-film.latents[1] // film.per_sample)):
            yield self._latents(film, sample), self._facts(film, sample)

    def read(self, film: FilmEntry, first: int, count: int) -> Tensor:
        """`count` consecutive latents [c,count,h,w] as stored, from latent `first` on.

        Raises:
            UserError: the film has fewer.
            RunError: a shard is missing or broken.
        """
        if not 0 <= first <= first + count <= film.latents[1]:
            raise UserError(
                f"{film.key} has {film.latents[1]} latents, not {first} to {first + count}"
            )
        samples = range(first // film.per_sample, -(-(first + count) // film.per_sample))
        whole = torch.cat([self._latents(film, sample) for sample in samples], dim=1)
        skipped = first - samples.start * film.per_sample
        return whole[:, skipped : skipped + count]

    def _latents(self, film: FilmEntry, sample: int) -> Tensor:
        content = self._member(film, sample, "safetensors")
        try:
            return load(content)["latents"]
        except (SafetensorError, KeyError) as error:
            raise RunError(f"sample {sample} of {film.key} in {self.folder} is broken") from error

    def _facts(self, film: FilmEntry, sample: int) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._member(film, sample, "json"))
        return facts

    def _member(self, film: FilmEntry, sample: int, kind: str) -> bytes:
        number = bisect_right([first for first, _ in film.places], sample) - 1
        path = self.folder / shard_name(film.places[number][1])
        try:
            members = _members(path, path.stat().st_mtime_ns)
            offset, size = members[f"{sample_name(film.number, sample)}.{kind}"]
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except (OSError, tarfile.TarError, KeyError) as error:
            raise RunError(f"{path} is missing or broken: encode {film.key} again") from error
        if len(content) < size:
            raise RunError(f"{path} is cut off: encode {film.key} again")
        return content


@lru_cache(maxsize=64)
def _members(path: Path, stamp: int) -> dict[str, tuple[int, int]]:
    """Place and size of every file in a shard; `stamp` renews the entry when the shard changes."""
    with tarfile.open(path, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def shard_name(number: int) -> str:
    """The shard's file name."""
    return f"{number:06d}.tar"


def sample_name(film: int, sample: int) -> str:
    """WebDataset's key of a sample: without dots, which would end it."""
    return f"{film:06d}-{sample:06d}"


def read_manifest(folder: Path) -> tuple[Settings, dict[str, Any] | None] | None:
    """Settings and, once encoding has ended, statistics; None: the folder has no manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise UserError(f"{path} is of format {content['format']}: this version reads {FORMAT}")
        known = {field.name for field in fields(Settings)}
        return Settings(**{k: content[k] for k in known}), content["statistics"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken ({error!r}): encode into another folder") from error


def manifest_text(settings: Settings, films: list[FilmEntry] | None) -> str:
    """manifest.json; with the statistics of all `films` once they are done."""
    statistics = None if not films else statistics_of(films)
    content = {"format": FORMAT, **asdict(settings), "statistics": statistics}
    return json.dumps(content, indent=2) + "\n"


def statistics_of(films: list[FilmEntry]) -> dict[str, Any]:
    """Mean and standard deviation of each channel over all latents, and how many there are."""
    count = sum(torch.Size(film.latents[1:]).numel() for film in films)
    total = torch.tensor([film.moments for film in films], dtype=torch.float64).sum(0) / count
    std = (total[1] - total[0].square()).clamp_min(0).sqrt()
    return {
        "films": len(films),
        "frames": sum(film.frames for film in films),
        "latents_per_channel": count,
        "mean": total[0].tolist(),
        "std": std.tolist(),
    }


def read_films(folder: Path) -> list[FilmEntry]:
    """The finished films in the order they were encoded in."""
    path = folder / FILMS
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()
    try:
        return [FilmEntry(**json.loads(line)) for line in lines]
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{path} is broken ({error}): encode into another folder") from error


def fingerprint(net: Pretrained) -> tuple[str, str]:
    """SHA-256 of a net's architecture and config, and of its weights (names, types, values)."""
    config = json.dumps([net.architecture, asdict(net.config)], sort_keys=True)
    weights = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        # bytes of any type: numpy knows no bfloat16
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        weights.update(flat.numpy().data)
    return hashlib.sha256(config.encode()).hexdigest(), weights.hexdigest()


def tar_member(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """A file for a tar archive, without anything of this machine or moment in its header."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    return member, io.BytesIO(content)


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
