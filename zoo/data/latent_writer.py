"""Writes latents to WebDataset shards; stopped at any moment, it goes on byte for byte.

`webdataset.TarWriter` holds back what it is given until a buffer is full, so shards are written
with `tarfile` itself: what a `checkpoint` stands for must be on disk, and where it ends be known.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from zoo.data.latents import (
    DTYPES,
    FILMS,
    MANIFEST,
    FilmEntry,
    Settings,
    manifest_text,
    read_films,
    read_manifest,
    sample_name,
    shard_name,
    tar_member,
    write_text,
)
from zoo.errors import RunError, UserError
from zoo.streaming import State

PROGRESS = ".progress.safetensors"
SHARD_BYTES = 256 * 10**6
EVEN_SECONDS = 2e-3  # frames off their rate's grid by less are on it: containers round to 1 ms
_SAMPLE_BYTES = 4 * 10**6
_SAMPLE_LATENTS = 16


@dataclass
class OpenFilm:
    """A film that is being written.

    Attributes:
        number, key, source, height, width, rate, info: as in `FilmEntry`.
        latents: [c,t,h,w] written or waiting so far.
        per_sample: latents a sample.
        frames: frames read so far.
        places: as in `FilmEntry`.
        moments: as in `FilmEntry`.
        begin: as in `FilmEntry`.
        times: of the frames whose sample isn't written yet.
        samples: written so far.
        begun: shard and offset where it starts.
        stamp: bytes and time of change of the source.
    """

    number: int
    key: str
    source: str
    height: int
    width: int
    rate: str
    info: dict[str, Any]
    latents: list[int] = field(default_factory=list)
    per_sample: int = 0
    frames: int = 0
    places: list[list[int]] = field(default_factory=list)
    moments: list[list[float]] = field(default_factory=list)
    begin: float | None = None
    times: list[float] = field(default_factory=list)
    samples: int = 0
    begun: list[int] = field(default_factory=list)
    stamp: list[int] = field(default_factory=list)


class LatentWriter:
    """Appends films to a folder of latents; a context manager.

    A later run goes on from the last `checkpoint` or finished film.

    Args:
        folder: made where it isn't there; one of the same settings is gone on with.
        settings: what decides the latents.
        shard_bytes: a shard ends with the sample that takes it past this.

    Attributes:
        done: keys of the films that are finished.
        film: the film at work: after a stop the one to go on with, with `state`.
        state: tensors that the last run's checkpoint was given; None: begin at the film's start.

    Raises:
        UserError: the folder can't be written, holds something else, or latents of other settings.
    """

    def __init__(
        self, folder: str | Path, settings: Settings, *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.film: OpenFilm | None = None
        self.state: State | None = None
        self._shard_bytes = shard_bytes
        self._dtype = DTYPES[settings.dtype]
        self._waiting: list[Tensor] = []
        self._shard, self._offset, self._films_bytes = 0, 0, 0
        self._file: BinaryIO | None = None
        self._made, self._marked = not self.folder.exists(), False
        try:
            self._claim()
            self._go_on()
        except OSError as error:
            raise UserError(
                f"{folder} can't be written ({error.strerror}): choose another folder"
            ) from error
        self.done = {film.key for film in read_films(self.folder)}

    def _claim(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest = read_manifest(self.folder)
        if manifest is None:
            if any(self.folder.iterdir()):
                raise UserError(f"{self.folder} holds other files: name a new folder for latents")
            write_text(self.folder / MANIFEST, manifest_text(self.settings, None))
            return
        manifest[0].check_model(self.settings, self.folder)
        ours, theirs = asdict(self.settings), asdict(manifest[0])
        for key, value in theirs.items():
            if key != "model" and ours[key] != value:
                raise UserError(
                    f"{self.folder} was written with {key} = {value}, not {ours[key]}: "
                    "give the same settings to go on, or another folder"
                )

    def _go_on(self) -> None:
        """Bring the folder back to its last checkpoint: what was written after it is redone."""
        path = self.folder / PROGRESS
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            progress = json.loads(metadata["progress"])
            self._shard, self._offset = progress["shard"], progress["offset"]
            self._films_bytes = progress["films_bytes"]
            if progress["film"] is not None:
                self.film = OpenFilm(**progress["film"])
                waiting = tensors.pop("waiting", None)
                self._waiting = [] if waiting is None else [waiting]
                self.state, self._marked = tensors, True
        self._tidy()

    def _tidy(self) -> None:
        """Remove shards behind the one at work and lines behind the finished films."""
        finished = self.folder / shard_name(self._shard)
        if finished.exists():
            os.replace(finished, self._part)
        for path in (*self.folder.glob("*.tar"), *self.folder.glob(".*.tar.part")):
            number = int(path.name.removeprefix(".").partition(".")[0])
            if number > self._shard or (number == self._shard and not self._offset):
                path.unlink()
        with (self.folder / FILMS).open("ab") as films:
            films.truncate(self._films_bytes)

    @property
    def _part(self) -> Path:
        return self.folder / f".{shard_name(self._shard)}.part"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.finish()
            return
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
            if not self.done and not self._marked:
                self._leave_nothing()

    def _leave_nothing(self) -> None:
        """Take back what there is: a later run has nothing here to go on from."""
        for name in (MANIFEST, FILMS, PROGRESS):
            (self.folder / name).unlink(missing_ok=True)
        for pattern in ("*.tar", ".*.tar.part"):
            for path in self.folder.glob(pattern):
                path.unlink()
        if self._made:
            self.folder.rmdir()

    def begin(
        self, *, key: str, source: Path, height: int, width: int, rate: str, info: dict[str, Any]
    ) -> OpenFilm:
        """Start the next film, or go on with the one that the last run stopped in.

        Args:
            key, source, height, width, rate, info: as in `FilmEntry`.

        Returns:
            The film; where its `frames` isn't 0, so many of them are done and `state` holds what
            the last `checkpoint` was given.
        """
        stat = source.stat()
        film = OpenFilm(len(self.done), key, str(source), height, width, rate, info)
        film.stamp = [stat.st_size, stat.st_mtime_ns]
        if self.film is not None:
            if (self.film.key, self.film.stamp) == (key, film.stamp):
                return self.film
            self.drop()  # the film it stopped in has changed, or isn't wanted now
        film.begun = [self._shard, self._offset]
        self.film = film
        # no statistics before the end, nor those of fewer films
        write_text(self.folder / MANIFEST, manifest_text(self.settings, None))
        return film

    def drop(self) -> None:
        """Forget the film at work: the folder is again what it was before it."""
        assert self.film is not None
        if self._file is not None:
            self._file.close()
            self._file = None
        self._shard, self._offset = self.film.begun
        self._tidy()
        self.film, self.state, self._waiting = None, None, []
        self.checkpoint({})

    def add(self, latents: Tensor, *, times: Sequence[float]) -> None:
        """Append latents to the film.

        Args:
            latents: [c,n,h,w], n >= 0.
            times: of the frames that were read for them, in seconds of the source.

        Raises:
            RunError: the disk is full or gone.
        """
        film = self.film
        assert film is not None
        film.frames += len(times)
        film.times.extend(times)
        if film.begin is None and film.times:
            film.begin = film.times[0]
        stored = latents.detach().to("cpu", self._dtype)
        if not film.latents:
            film.latents = [len(stored), 0, *stored.shape[2:]]
            each = stored.new_empty(film.latents[0], *film.latents[2:]).nbytes
            film.per_sample = max(1, min(_SAMPLE_LATENTS, _SAMPLE_BYTES // each))
            film.moments = [[0.0] * len(stored), [0.0] * len(stored)]
        if not torch.isfinite(stored).all():
            raise RunError(
                f"{film.key}: a latent near frame {film.frames} isn't finite in "
                f"{self.settings.dtype}: give --dtype fp32"
            )
        film.latents[1] += stored.shape[1]
        wide = stored.double().flatten(1)
        for sums, more in zip(film.moments, (wide, wide.square()), strict=True):
            sums[:] = [a + b for a, b in zip(sums, more.sum(1).tolist(), strict=True)]
        self._waiting.append(stored)
        whole = torch.cat(self._waiting, dim=1)
        while whole.shape[1] >= film.per_sample:
            self._write(film, whole[:, : film.per_sample])
            whole = whole[:, film.per_sample :]
        self._waiting = [whole]

    def end(self, *, broken: int = 0, truncated: bool = False) -> FilmEntry:
        """Finish the film: its last sample, its line in the index, a checkpoint.

        Args:
            broken, truncated: as in `FilmEntry`.
        """
        film = self.film
        assert film is not None
        rest = torch.cat(self._waiting, dim=1)
        if rest.shape[1]:
            self._write(film, rest)
        names = FilmEntry.__dataclass_fields__.keys() - {"broken", "truncated"}
        entry = FilmEntry(
            broken=broken,
            truncated=truncated,
            **{k: v for k, v in asdict(film).items() if k in names},
        )
        try:
            with (self.folder / FILMS).open("ab") as file:
                file.write(f"{json.dumps(asdict(entry))}\n".encode())
                self._films_bytes = file.tell()
        except OSError as error:
            raise self._full(error) from error
        self.done.add(film.key)
        self.film, self.state, self._waiting = None, None, []
        self.checkpoint({})
        return entry

    def checkpoint(self, state: State) -> None:
        """Mark this point as one to go on from.

        Args:
            state: what the next run needs besides what was added; it finds it in `state`.
        """
        tensors = dict(state)
        if self.film is not None and self._waiting:
            tensors["waiting"] = torch.cat(self._waiting, dim=1)
        progress = {
            "shard": self._shard,
            "offset": self._offset,
            "films_bytes": self._films_bytes,
            "film": None if self.film is None else asdict(self.film),
        }
        self._marked = self.film is not None
        path = self.folder / PROGRESS
        part = path.with_name(f"{PROGRESS}.part")
        try:
            if self._file is not None:
                self._file.flush()
            tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            save_file(tensors, part, metadata={"progress": json.dumps(progress)})
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # safetensors says RuntimeError of a full disk
            part.unlink(missing_ok=True)
            raise self._full(error) from error

    def finish(self) -> None:
        """Name the last shard and write the statistics; a film that has no end is dropped."""
        if self.film is not None:  # the last run stopped in it, this one didn't want it
            self.drop()
        self._close_shard()
        films = read_films(self.folder)
        write_text(self.folder / MANIFEST, manifest_text(self.settings, films))
        self.checkpoint({})

    def _write(self, film: OpenFilm, latents: Tensor) -> None:
        first_latent, time = film.samples * film.per_sample, self.settings.compression[0]
        first = 0 if first_latent == 0 else 1 + (first_latent - 1) * time
        end = 1 + (first_latent + latents.shape[1] - 1) * time
        count = min(end, film.frames) - first
        facts = {
            "key": film.key,
            "first_frame": first,
            "frames": count,
            "height": film.height,
            "width": film.width,
            "rate": film.rate,
        }
        times, film.times = film.times[:count], film.times[count:]
        assert film.begin is not None
        rate = Fraction(film.rate)
        even = (film.begin + float((first + i) / rate) for i in range(count))
        if any(abs(a - b) > EVEN_SECONDS for a, b in zip(times, even, strict=True)):
            facts["times"] = [round(time, 6) for time in times]
        name = sample_name(film.number, film.samples)
        try:
            tar = self._open_shard()
            if not film.places or film.places[-1][1] != self._shard:
                film.places.append([film.samples, self._shard])
            tar.addfile(*tar_member(f"{name}.json", json.dumps(facts).encode()))
            tensor = save({"latents": latents.contiguous()})
            tar.addfile(*tar_member(f"{name}.safetensors", tensor))
        except OSError as error:
            raise self._full(error) from error
        film.samples += 1
        self._offset = tar.offset
        if self._offset >= self._shard_bytes:
            self._close_shard()

    def _open_shard(self) -> tarfile.TarFile:
        if self._file is None:
            self._file = self._part.open("r+b" if self._part.exists() else "w+b")
            self._file.truncate(self._offset)
            self._file.seek(self._offset)
            self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        return self._tar

    def _close_shard(self) -> None:
        if not self._offset:
            return
        try:
            self._open_shard().close()
            assert self._file is not None
            self._file.close()
            os.replace(self._part, self.folder / shard_name(self._shard))
        except OSError as error:
            raise self._full(error) from error
        self._file = None
        self._shard, self._offset = self._shard + 1, 0

    def _full(self, error: Exception) -> RunError:
        return RunError(
            f"{self.folder} can't be written any further ({error}): "
            "make room and run it again to go on"
        )
