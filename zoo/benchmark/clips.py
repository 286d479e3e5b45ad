"""Clips to score: read in order, exactly, each film's problems listed and none replaced.

Unlike the sources that training draws from, nothing stands in for what can't be read: a clip is
scored, or it is excluded and named with the reason.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from zoo.benchmark.protocol import Protocol
from zoo.data.limits import MAX_MEMBER_BYTES, open_image
from zoo.data.pictures import IMAGE_SUFFIXES, natural_order, to_rgb
from zoo.data.reader import FrameReader, short_side_size
from zoo.data.transforms import crop
from zoo.data.video import VIDEO_SUFFIXES
from zoo.errors import UserError


@dataclass(frozen=True)
class Clip:
    """One clip: `pixels` uint8 [3,T,size,size]; `key` is unique, `film` is what it is cut from."""

    key: str
    film: str
    pixels: Tensor

    @property
    def sha256(self) -> str:
        """16 hex digits over the pixels and their shape."""
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass
class Item:
    """A film, a picture or a folder of frames before it is read."""

    key: str
    read: Callable[[Protocol, Item], Iterator[Tensor]]
    place: Path | None = None
    data: IO[bytes] | None = None
    step: int = 1
    broken: int = 0


@dataclass
class ClipSet:
    """A data set under a protocol.

    Attributes:
        name: as the user gave it.
        definition: what it is, part of the protocol's hash; no path in it.
        description: for people.
        items: makes its films or pictures, in order.
        excluded: what was left out, key to reason; complete once `clips` has been read to the end.
    """

    name: str
    definition: str
    description: str
    protocol: Protocol
    items: Callable[[], Iterator[Item]]
    limit: int | None = None
    excluded: dict[str, str] = field(default_factory=dict)

    def clips(self) -> Iterator[Clip]:
        """Every clip, in an order that depends on the data alone."""
        self.excluded.clear()
        count = 0
        for item in self.items():
            try:
                for clip in self._cut(item):
                    yield clip
                    count += 1
                    if self.limit is not None and count >= self.limit:
                        return
            except (UserError, OSError, Image.DecompressionBombError, SyntaxError) as error:
                self.excluded[item.key] = str(error)

    def _cut(self, item: Item) -> Iterator[Clip]:
        rules, held, window, seen = self.protocol, [], 0, 0
        broken, dirty = 0, False
        for number, frame in enumerate(item.read(rules, item)):
            dirty |= item.broken > broken
            broken = item.broken
            if number % item.step:
                continue
            seen += 1
            held.append(frame)
            if len(held) == rules.frames:
                yield from self._check(item, window, held, dirty)
                held, window, dirty = [], window + 1, False
                if rules.windows == "first":
                    return
        if held and rules.tail == "repeat":
            held += [held[-1]] * (rules.frames - len(held))
            yield from self._check(item, window, held, dirty)
        elif not window:
            short = f"{seen} frames, {rules.frames} needed"
            self.excluded[item.key] = short if seen else "no frame can be decoded"

    def _check(self, item: Item, window: int, frames: list[Tensor], dirty: bool) -> Iterator[Clip]:
        key = item.key if self.protocol.frames == 1 else f"{item.key}#{window}"
        pixels = torch.stack(frames, dim=1)
        if dirty:
            self.excluded[key] = "frames in it can't be decoded"
        elif self.protocol.cuts == "drop" and (reason := cut_or_static(pixels)):
            self.excluded[key] = reason
        else:
            yield Clip(key, item.key, pixels)


def cut_or_static(pixels: Tensor) -> str | None:
    """Why package-clips leaves a clip [3,T,H,W] uint8 out, None for one that it takes."""
    change = pixels.float().diff(dim=1).abs().mean(dim=(0, 2, 3))
    if change.max() > 35 or change.max() > 8 * change.median() + 8:
        return f"a cut: the largest change from frame to frame is {change.max():.1f} grey levels"
    if change.mean() < 0.4:
        return f"it stands still: {change.mean():.2f} grey levels from frame to frame"
    return None


def fit_frame(rgb: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], rules: Protocol) -> Tensor:
    """A frame uint8 [H,W,3] scaled and cut: uint8 [3,size,size]."""
    frame = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
    height, width = frame.shape[1:]
    width, height = short_side_size(width, height, short_side=rules.size)
    if frame.shape[1:] != (height, width):
        mode = "bicubic" if rules.resize == "bicubic" else "bilinear"
        frame = F.interpolate(
            frame[None], size=(height, width), mode=mode, antialias=True, align_corners=False
        )[0]
    return crop(frame, size=rules.size).contiguous()


def read_film(rules: Protocol, item: Item) -> Iterator[Tensor]:
    """The frames of a film, fitted; `item.step` and `item.broken` are kept up to date."""
    assert item.place is not None
    short_side = rules.size if rules.resize == "bicubic" else None
    with closing(FrameReader(item.place, short_side=short_side)) as reader:
        if rules.rate is not None:
            item.step = max(1, round(1 / (reader.gap * rules.rate)))
        for frame in reader:
            item.broken = reader.broken
            yield fit_frame(frame.rgb, rules)


def read_picture(rules: Protocol, item: Item) -> Iterator[Tensor]:
    """A picture as a film of one frame."""
    source = item.data if item.data is not None else item.place
    assert source is not None
    with open_image(source, item.key) as image:
        yield fit_frame(to_rgb(image), rules)


def read_frame_folder(rules: Protocol, item: Item) -> Iterator[Tensor]:
    """A folder of numbered pictures as a film."""
    assert item.place is not None
    for path in sorted(item.place.iterdir(), key=natural_order):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield from read_picture(rules, Item(path.name, read_picture, place=path))


def folder_items(root: Path, paths: list[Path]) -> Callable[[], Iterator[Item]]:
    """Films and pictures by their place under a folder."""

    def items() -> Iterator[Item]:
        for path in paths:
            picture = path.suffix.lower() in IMAGE_SUFFIXES
            key = path.name if path == root else path.relative_to(root).as_posix()
            yield Item(key, read_picture if picture else read_film, place=path)

    return items


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files under a folder with these suffixes, hidden ones left out, sorted."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def shard_items(shards: list[Path]) -> Callable[[], Iterator[Item]]:
    """Films and pictures of WebDataset tar files, in the order of their members."""

    def items() -> Iterator[Item]:
        for shard in shards:
            try:
                with tarfile.open(shard, "r:") as box, tempfile.TemporaryDirectory() as scratch:
                    for member in box:
                        suffix = Path(member.name).suffix.lower()
                        if not member.isfile() or suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
                            continue
                        if member.size > MAX_MEMBER_BYTES:
                            raise UserError(
                                f"{member.name[:80]} in {shard} has {member.size:,} bytes, more "
                                f"than the {MAX_MEMBER_BYTES:,} that are read"
                            )
                        source = box.extractfile(member)
                        assert source is not None
                        data, key = source.read(), f"{shard.name}/{member.name}"
                        if suffix in IMAGE_SUFFIXES:
                            yield Item(key, read_picture, data=io.BytesIO(data))
                        else:
                            film = Path(scratch) / f"film{suffix}"
                            film.write_bytes(data)
                            yield Item(key, read_film, place=film)
            except tarfile.TarError as error:
                raise UserError(f"{shard} is not a whole tar file ({error})") from error

    return items


def shard_has_films(shard: Path) -> bool:
    """Whether the first film or picture of a shard is a film."""
    try:
        with tarfile.open(shard, "r:") as box:
            for member in box:
                suffix = Path(member.name).suffix.lower()
                if suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
                    return suffix in VIDEO_SUFFIXES
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{shard} is not a tar file ({error})") from error
    raise UserError(f"{shard} holds no film and no picture")
