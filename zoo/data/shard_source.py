"""Training and evaluation samples out of WebDataset shards, on a disk or behind an address."""

from __future__ import annotations

import io
import json
import logging
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.data import storage
from zoo.data.batch import Sample
from zoo.data.buckets import Buckets, in_batches
from zoo.data.cache import Facts
from zoo.data.container import Encoded
from zoo.data.decoding import Decoder, check_decoder, decode_clip
from zoo.data.limits import DAMAGE, open_image
from zoo.data.pictures import to_rgb
from zoo.data.shard_table import IMAGES, Files, Table
from zoo.data.shards import MEDIA, Member, Shard, ShardIndex, find_shards, load_index
from zoo.data.source import File, Source
from zoo.data.storage import Patience
from zoo.data.transforms import crop, resize_short_side, to_float
from zoo.errors import RunError, UserError

_LOG = logging.getLogger(__name__)
_CAPTION_KEYS = ("prompt", "text", "caption")
_THREADS = 16  # indices read at a time


class ShardSource(Source):
    """Samples of WebDataset shards: pictures (T = 1) or clips of films, with their captions.

    Where each sample is stands in an index (see `zoo.data.shards`), so that a sample is read on its
    own and, as with every source, is a function of (seed, epoch, index): ranks and workers share an
    epoch without losing or doubling one, and a stopped run goes on exactly where it was.

    In training an epoch holds every sample once, at a random place of its film. The shards come in
    random order, each rank has a part of them of its own, and samples are shuffled within a window.
    In evaluation the clips are the successive windows of `frames` frames (of films that nobody
    measured: the first one), in their order.

    A shard that fails or is slow is tried again, then left out and named; a single sample that
    can't be decoded, or whose CRC-32 is wrong, likewise.

    Args:
        root: see `zoo.data.shards.find_shards`.
        frames: frames a clip T; 1 for pictures.
        size: see `Source`.
        short_side: see `Source`.
        rate: frames a second to sample at. None: consecutive frames.
        train: see `Source`.
        shuffle: samples that an order is drawn among at a time, besides that of the shards; large
            enough to mix films, small enough that reads stay near each other. 0: none.
        resample: draw so many samples an epoch with replacement, shard by shard, for sets that no
            run reads to the end. None: every sample once.
        buckets: cut to the shapes of these in place of `frames` and `size` (training only; needs
            shards that `zoo data shard` measured).
        decoder: "torchcodec", "pyav", or "auto": the first that can be imported.
        patience: with the storage.
        flip: see `Source`.
        seed: see `Source`.
        max_broken: share of samples that may be lost before the run stops.
    """

    suffixes = (".tar",)

    def __init__(
        self,
        root: str | list[str],
        *,
        frames: int = 17,
        size: int = 64,
        short_side: int | tuple[int, int] | None = None,
        rate: float | None = None,
        train: bool = True,
        shuffle: int = 1000,
        resample: int | None = None,
        buckets: Buckets | None = None,
        decoder: Decoder = "auto",
        patience: Patience | None = None,
        flip: bool = True,
        seed: int = 0,
        max_broken: float = 0.1,
    ) -> None:
        super().__init__(
            root,
            size=size,
            short_side=short_side,
            train=train,
            flip=flip,
            seed=seed,
            max_broken=max_broken,
        )
        if frames < 1 or shuffle < 0 or (rate is not None and rate <= 0):
            raise UserError(
                f"frames={frames} and rate={rate} must be above 0, shuffle={shuffle} at least 0"
            )
        if resample is not None and resample < 1:
            raise UserError(f"resample={resample} must be above 0, or null for every sample once")
        if not train and (buckets is not None or resample is not None):
            raise UserError("buckets and resample are for training: leave them out of evaluation")
        check_decoder(decoder)
        self.frames = frames
        self.rate = rate
        self.shuffle = shuffle
        self.resample = resample
        self.buckets = buckets
        self.decoder = decoder
        self.patience = patience or Patience()
        self._shards: list[Shard] = []
        self._table = Table([])
        self._lost = torch.zeros(0, dtype=torch.uint8)  # shards given up, shared by the workers
        self._missing = 0  # samples of shards that were set aside
        self._ends = self._bucket = np.zeros(0, dtype=np.int64)

    def prepare(self) -> None:
        """Read the shards' indices; does nothing the second time.

        Raises:
            UserError: no shard, or nothing in them that fits the settings.
            RunError: more than `max_broken` of the samples are lost.
        """
        if self.prepared:
            return
        shards = find_shards(self.root, self.patience)
        good: list[tuple[Shard, ShardIndex]] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            for shard, index in zip(shards, pool.map(self._index, shards), strict=True):
                if isinstance(index, ShardIndex):
                    good.append((shard, index))
                else:
                    self._broken[shard.name] = index
                    self._missing += shard.samples or 1
        if not good:
            reason = next(iter(self._broken.values()))
            raise RunError(f"none of {len(shards)} shards of {self.root} can be used ({reason})")
        self._shards = [shard for shard, _ in good]
        self._table = Table([index for _, index in good], [shard.name for shard, _ in good])
        self._keep_fitting()
        self._usable = Files(self._table, self._shards)
        self._failed = torch.zeros(len(self._table), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._lost = torch.zeros(len(good), dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self.check()

    def _index(self, shard: Shard) -> ShardIndex | str:
        try:
            return load_index(shard, self.patience)
        except (UserError, RunError, OSError) as error:
            _LOG.warning("shard %s is left out: %s", shard.name, error)
            return str(error)

    def _keep_fitting(self) -> None:
        """Leave out samples of no use with these settings, and say which; number the others."""
        table = self._table
        if not len(table):
            raise UserError(f"{self.root} holds no sample with a file of {', '.join(MEDIA)}")
        possible = table.clips(1, self.rate)  # frames a clip can have at most
        needed = self.frames if self.buckets is None else min(self.buckets.lengths)
        if self.buckets is not None and (table.width == 0).any():
            raise UserError(
                f"{self.root} has samples that nobody measured, which go to no bucket: make the "
                "shards with `zoo data shard`"
            )
        unknown = table.frames == 0
        fits = np.where(unknown, ~table.is_image | (needed == 1), possible >= needed)
        for i in np.flatnonzero(~fits):
            self._broken[table.key(i)] = f"too short for {needed} frames ({int(table.frames[i])})"
        self._missing += int((~fits).sum())
        table.keep(fits)
        if not len(table):
            raise UserError(f"nothing in {self.root} has {needed} frames: lower frames")
        if self.buckets is not None:
            self._bucket = self.buckets.assign(possible[fits], table.width, table.height)
        elif (sides := np.minimum(table.width, table.height)).any() and sides.max() < self.size:
            raise UserError(
                f"size {self.size} is larger than everything in {self.root}, whose shorter sides "
                f"have at most {int(sides.max())} pixels: lower size"
            )
        windows = np.maximum(1, table.clips(self.frames, self.rate))
        self._ends = np.cumsum(windows)

    def check(self) -> None:
        """Stop the run when too many samples are lost.

        Raises:
            RunError: more than `max_broken` of them are.
        """
        gone = self._lost[self._table.shard].bool() | self._failed.bool()
        lost = self._missing + int(gone.sum()) if gone.any() else self._missing
        total = self._missing + len(self._table)
        if lost > self.max_broken * total:
            some = "; ".join(f"{key}: {reason}" for key, reason in list(self.broken.items())[:3])
            raise RunError(
                f"{lost} of {total} samples of {self.root} are lost, more than "
                f"max_broken={self.max_broken:g} allows ({some})"
            )

    @property
    def broken(self) -> dict[str, str]:
        """Why samples and whole shards are left out, by key; see `Source.broken`."""
        shards = {self._shards[int(i)].name: "failed when read" for i in self._lost.nonzero()}
        return super().broken | shards

    def __len__(self) -> int:
        if not self.train:
            return int(self._ends[-1])
        return self.resample or len(self._table)

    def _places(self) -> int:
        return len(self._table) if self.train else len(self)

    def length(self, chunk: int) -> int:
        """See `Source.length`; with buckets, what fills whole batches of one."""
        if self.buckets is None:
            return len(self)
        if self.resample is not None:
            return self.resample - self.resample % chunk
        counts = np.bincount(self._bucket, minlength=len(self.buckets.shapes))
        for shape, count in zip(self.buckets.shapes, counts, strict=True):
            if 0 < count < chunk:
                _LOG.warning(
                    "%d samples of bucket %s never fill a batch of %d", count, shape, chunk
                )
        return int((counts - counts % chunk).sum())

    @property
    def in_chunks(self) -> bool:
        """See `Source.in_chunks`."""
        return self.buckets is not None

    def order(self, rng: np.random.Generator, *, chunk: int, ranks: int = 1) -> NDArray[np.int64]:
        """Shards in random order, a part for each rank, shuffled within a window.

        Args:
            rng: draws the order.
            chunk: samples a batch on all ranks together.
            ranks: number of processes; rank r takes every `ranks`-th index from r on.
        """
        count, wanted = len(self._shards), len(self)
        if self.resample is not None and self.buckets is not None:
            wanted += chunk * len(self.buckets.shapes)  # what their last batches leave out
        drawn: list[NDArray[np.int64]] = []
        while sum(map(len, drawn)) < wanted:
            again = self.resample is not None
            numbers = rng.integers(count, size=count) if again else rng.permutation(count)
            drawn += [np.arange(*self._table.span(int(number))) for number in numbers]
        mixed = []
        for part in np.array_split(np.concatenate(drawn)[:wanted], ranks):
            moved = np.arange(len(part)) + rng.random(len(part)) * self.shuffle
            mixed.append(part[np.argsort(moved, kind="stable")])
        turns = np.concatenate([np.arange(len(part)) * ranks + r for r, part in enumerate(mixed)])
        order = np.concatenate(mixed)[np.argsort(turns, kind="stable")]
        return order if self.buckets is None else in_batches(order, self._bucket, chunk)

    def _locate(self, index: int, rng: np.random.Generator | None) -> tuple[int, float]:
        if rng is not None:
            return index, float(rng.random())
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def _sample(self, number: int, start: float, rng: np.random.Generator | None) -> Sample:
        table = self._table
        key, kind = table.key(number), table.kind(number)
        shard = int(table.shard[number])
        prompt = self._prompt(shard, number)
        data = self._bytes(shard, table.media(number), f"{key}.{kind}")
        frames, (height, width) = self.frames, (self.size, self.size)
        side = self.short_side[1]
        if self.buckets is not None:
            bucket = int(self._bucket[number])
            frames, height, width = self.buckets.shapes[bucket]
            side = self.buckets.covering(bucket, *table.sides(number))
        if kind in IMAGES:
            video, suffix = _read_image(data, key, side), ""
        else:
            seconds = self._start(number, frames, start)
            read = partial(
                decode_clip,
                Encoded(key, data),
                frames=frames,
                rate=self.rate,
                short_side=side,
                decoder=self.decoder,
            )
            try:
                video = read(start=seconds)
            except UserError:
                # uneven frames: the start was worked out as if they were even
                if not seconds or not self.train:
                    raise
                seconds = 0.0
                video = read(start=seconds)
            suffix = f"@{seconds:.3f}"
        if self.buckets is None:
            return Sample(self._transform(video, rng), prompt, key + suffix)
        cut = crop(video, size=(height, width), rng=rng)
        if self.flip and rng is not None and rng.random() < 0.5:
            cut = cut.flip(-1)
        return Sample(to_float(cut), prompt, key + suffix)

    def _start(self, number: int, frames: int, start: float) -> float:
        """Seconds a clip begins at: `start` is a share of the room, or a window's number."""
        count, duration = int(self._table.frames[number]), float(self._table.duration[number])
        if not count:
            return 0.0  # nobody measured it
        if self.rate is not None:
            span = (frames - 1) / self.rate
            room = duration - span
            return max(0.0, room - 1e-3) * start if self.train else start * frames / self.rate
        gap = duration / count
        first = int(start * (count - frames + 1)) if self.train else int(start) * frames
        return first * gap

    def _prompt(self, shard: int, number: int) -> str:
        kind, member = self._table.text(number)
        if member is None:
            return ""
        data = self._bytes(shard, member, f"{self._table.key(number)}.{kind}")
        try:
            text: Any = data.decode("utf-8-sig")
            if kind == "json":
                content = json.loads(text)
                known = content if isinstance(content, dict) else {}
                text = next((known[key] for key in _CAPTION_KEYS if key in known), "")
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{self._table.key(number)}.{kind} is no caption ({error})") from error
        return text.strip() if isinstance(text, str) else ""

    def _bytes(self, shard: int, member: Member, name: str) -> bytes:
        address = self._shards[shard].address
        if self._lost[shard]:
            raise RunError(f"{address} was given up")
        try:
            data = self.patience.try_to(
                lambda: storage.read_range(address, member.offset, member.size), address
            )
        except RunError as error:
            self._lost[shard] = 1
            _LOG.warning("shard %s is left out from now on: %s", self._shards[shard].name, error)
            raise
        if member.crc is not None and zlib.crc32(data) != member.crc:
            raise UserError(f"{name} is damaged (its CRC-32 is another one): copy the shard again")
        return data

    def _probe(self, path: Path) -> Facts:
        raise AssertionError("the shards' indices say all there is to know")

    def _read(self, file: File, start: float) -> tuple[Tensor, str]:
        raise AssertionError("_sample reads")


def _read_image(data: bytes, key: str, short_side: int) -> Tensor:
    try:
        with open_image(io.BytesIO(data), key) as image:
            rgb = np.array(to_rgb(image))
    except DAMAGE as error:
        raise UserError(f"{key} can't be read as an image ({error})") from error
    video = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(1)
    return resize_short_side(video, short_side=short_side)
