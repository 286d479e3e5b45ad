"""What films, pictures or shards hold: sizes, lengths, damage, duplicates, a contact sheet."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.data import storage
from zoo.data.container import Encoded
from zoo.data.limits import DAMAGE, open_image
from zoo.data.pictures import IMAGE_SUFFIXES, to_rgb
from zoo.data.shards import MANIFEST, Shard, ShardSample, find_shards, load_index, read_manifest
from zoo.data.source import Source
from zoo.data.sources import ImageFolder, VideoFolder
from zoo.data.storage import Patience
from zoo.data.video import probe, read_clip
from zoo.errors import RunError, UserError

NEAR = 6
"""Bits of 128 by which two hashes of the same picture or film may differ."""

_BANDS = 8  # more than NEAR: two near hashes have at least one of so many parts in common
_THUMB = 128
_CHUNK = 1 << 20

Progress = Callable[[int, int], None]


@dataclass
class Inspection:
    """What was found.

    Attributes:
        count: pictures and films that can be read.
        size: bytes of them.
        frames: of all of them.
        seconds: of the films.
        films: how many are films.
        durations: seconds of each film.
        sizes: how many there are of each (width, height).
        captions: how many have one.
        shards: how many shards there are; 0: it is a folder.
        broken: what can't be read and why, by key.
        duplicates: (key, key, bits of 128 that differ): they look alike in two frames.
        sheet: the contact sheet, None where nothing can be read.
    """

    count: int = 0
    size: int = 0
    frames: int = 0
    seconds: float = 0.0
    films: int = 0
    durations: list[float] = field(default_factory=list)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    captions: int = 0
    shards: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    duplicates: list[tuple[str, str, int]] = field(default_factory=list)
    sheet: Image.Image | None = None


@dataclass(frozen=True)
class _Item:
    """One picture or film, not opened yet: its key, bytes, whether it has a caption."""

    key: str
    size: int
    captioned: bool
    open: Callable[[], Path | Encoded]


def inspect_data(
    root: str,
    *,
    cells: int = 60,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Look at everything once: two frames of every film are decoded.

    Args:
        root: shards (see `find_shards`), or a folder of films or pictures.
        cells: pictures on the contact sheet at most.
        patience: with the storage.
        progress: told how much is done, and of how much.

    Raises:
        UserError: there is nothing there.
        RunError: the storage doesn't answer.
    """
    patience = patience or Patience()
    found = Inspection()
    if _is_shards(root, patience):
        items = _of_shards(root, patience, found)
    else:
        items = _of_folder(root, found)
    hashes: dict[str, int] = {}
    thumbs: list[Image.Image] = []
    chosen = set(
        np.linspace(0, len(items) - 1, min(cells, len(items))).round().astype(int).tolist()
    )
    for number, item in enumerate(items):
        try:
            facts, pictures = _look(item)
        except (UserError, RunError, OSError) as error:
            found.broken[item.key] = str(error)
        else:
            _count(found, item, facts)
            hashes[item.key] = perceptual_hash(pictures)
            if number in chosen:
                thumbs.append(_thumb(pictures[0]))
        if progress is not None:
            progress(number + 1, len(items))
    found.duplicates = near_pairs(hashes)
    found.sheet = _sheet(thumbs) if thumbs else None
    return found


def _count(found: Inspection, item: _Item, facts: tuple[int, int, int, float]) -> None:
    frames, width, height, seconds = facts
    found.count += 1
    found.size += item.size
    found.frames += frames
    found.captions += item.captioned
    found.sizes[width, height] = found.sizes.get((width, height), 0) + 1
    if seconds:
        found.films += 1
        found.seconds += seconds
        found.durations.append(seconds)


def _is_shards(root: str, patience: Patience) -> bool:
    if root.endswith(".tar") or "://" in root or "{" in root:
        return True
    folder = Path(root).expanduser()
    return (folder / MANIFEST).is_file() or (folder.is_dir() and any(folder.glob("*.tar")))


def _of_shards(root: str, patience: Patience, found: Inspection) -> list[_Item]:
    items: list[_Item] = []
    shards = find_shards(root, patience)
    found.shards = len(shards)
    for shard in shards:
        try:
            index = load_index(shard, patience)
            if shard.sha256 and (sha256 := _sha256(shard, patience)) != shard.sha256:
                found.broken[shard.name] = f"its sha256 is {sha256[:16]}..., not as {MANIFEST} says"
        except (UserError, RunError, OSError) as error:
            found.broken[shard.name] = str(error)
            continue
        for sample in index.samples:
            key = f"{shard.name}/{sample.key}"
            if sample.media is None:
                found.broken[key] = "it holds neither a picture nor a film"
                continue
            captioned = "txt" in sample.members or ("json" in sample.members and not shard.sha256)
            size = sample.members[sample.media].size
            items.append(_Item(key, size, captioned, _opener(shard, sample, key, patience)))
    if "{" not in root and not root.endswith(".tar"):
        manifest = storage.join(root, MANIFEST)
        if storage.exists(manifest):
            left_out = read_manifest(manifest, patience)["broken"]
            found.broken |= {f"source {key}": str(why) for key, why in left_out.items()}
    return items


def _opener(
    shard: Shard, sample: ShardSample, key: str, patience: Patience
) -> Callable[[], Encoded]:
    def read() -> Encoded:
        assert sample.media is not None
        member = sample.members[sample.media]
        data = patience.try_to(
            lambda: storage.read_range(shard.address, member.offset, member.size), shard.address
        )
        if member.crc is not None and zlib.crc32(data) != member.crc:
            raise UserError("it is damaged: its CRC-32 is another one")
        return Encoded(f"{key}.{sample.media}", data)

    return read


def _sha256(shard: Shard, patience: Patience) -> str:
    def read() -> str:
        digest = hashlib.sha256()
        with storage.open_for_headers(shard.address) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    return patience.try_to(read, shard.address)


def _of_folder(root: str, found: Inspection) -> list[_Item]:
    source: Source = VideoFolder(root, frames=1, size=1, max_broken=1.0)
    try:
        source.prepare()
    except UserError:
        # no film in it: perhaps pictures; a folder that isn't there is said by the second try
        source = ImageFolder(root, size=1, max_broken=1.0)
        source.prepare()
    found.broken |= source.broken

    def opener(path: Path) -> Callable[[], Path]:
        return lambda: path

    return [
        _Item(
            file.key,
            file.path.stat().st_size,
            file.path.with_suffix(".txt").is_file(),
            opener(file.path),
        )
        for file in source.usable
    ]


def _look(item: _Item) -> tuple[tuple[int, int, int, float], list[NDArray[np.uint8]]]:
    """(frames, width, height, seconds), and the first frame with, of a film, the middle one."""
    media = item.open()
    if Path(str(media)).suffix.lower() in IMAGE_SUFFIXES:
        source = io.BytesIO(media.data) if isinstance(media, Encoded) else media
        try:
            with open_image(source, media) as image:
                rgb = np.array(to_rgb(image))
        except DAMAGE as error:
            raise UserError(f"it can't be read as an image ({error})") from error
        return (1, rgb.shape[1], rgb.shape[0], 0.0), [rgb]
    info = probe(media)
    pictures = []
    for start in (0.0, info.duration / 2) if info.frames > 1 else (0.0,):
        clip = read_clip(media, frames=1, start=start, rate=float(info.rate), short_side=_THUMB)
        pictures.append(clip[:, 0].permute(1, 2, 0).numpy())
    return (info.frames, info.width, info.height, info.duration), pictures


def perceptual_hash(pictures: list[NDArray[np.uint8]]) -> int:
    """128 bits that change little when pictures are scaled or encoded anew.

    The difference hash: which of two neighbours is brighter, in 8 rows of 9 grey pixels, 64 bits a
    picture.

    Args:
        pictures: one or two, uint8 [H, W, 3]; one stands for both.
    """
    bits: list[NDArray[np.bool_]] = []
    for picture in (pictures[0], pictures[-1]):
        small = Image.fromarray(picture).convert("L").resize((9, 8), Image.Resampling.LANCZOS)
        grey = np.asarray(small, dtype=np.int16)
        bits.append((grey[:, 1:] > grey[:, :-1]).reshape(-1))
    return int("".join("01"[int(bit)] for bit in np.concatenate(bits)), 2)


def near_pairs(hashes: dict[str, int]) -> list[tuple[str, str, int]]:
    """Pairs of keys whose hashes differ in at most `NEAR` bits, with how many, nearest first.

    Pictures of one colour (hash 0) look like nothing and are left out. Found by parts that agree,
    so that the time grows with the pairs alike and not with all pairs.
    """
    width = 128 // _BANDS
    bands: dict[tuple[int, int], list[str]] = {}
    for key, value in hashes.items():
        if value:
            for band in range(_BANDS):
                part = value >> band * width & (1 << width) - 1
                bands.setdefault((band, part), []).append(key)
    pairs: dict[tuple[str, str], int] = {}
    for keys in bands.values():
        # a part that thousands share says nothing: those alike share another one, too
        if len(keys) <= 1000:
            for a, b in combinations(keys, 2):
                if (apart := (hashes[a] ^ hashes[b]).bit_count()) <= NEAR:
                    pairs[a, b] = apart
    return sorted(((a, b, n) for (a, b), n in pairs.items()), key=lambda pair: (pair[2], pair[:2]))


def _thumb(picture: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(picture)
    image.thumbnail((_THUMB, _THUMB))
    return image


def _sheet(thumbs: list[Image.Image]) -> Image.Image:
    """Pictures in a grid, each in the middle of its cell."""
    columns = min(len(thumbs), 10)
    rows = -(-len(thumbs) // columns)
    cell = _THUMB + 4
    sheet = Image.new("RGB", (columns * cell, rows * cell), (24, 24, 24))
    for number, thumb in enumerate(thumbs):
        left, top = number % columns * cell, number // columns * cell
        sheet.paste(thumb, (left + (cell - thumb.width) // 2, top + (cell - thumb.height) // 2))
    return sheet
