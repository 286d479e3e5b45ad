"""WebDataset shards: where their samples are, from an index beside them or from their headers.

`zoo data shard` writes, into one folder,

- `000000.tar`, `000001.tar`, ...: per sample one picture or film (`KEY.png`, `KEY.mp4`), its
  `KEY.json` and, where there is one, its caption `KEY.txt`;
- `000000.json`, ...: the index of each, with the place, size and CRC-32 of every file in it;
- `shards.json`, last: the list of shards with their SHA-256, and what was left out and why.

Shards made elsewhere have no index: it is made from the tar headers once and kept in the cache.
Nothing is ever extracted: names in archives are only keys, and sizes are checked before anything
is read. Compressed archives are refused, as nothing in them can be read on its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import braceexpand

from zoo.assets import cache_root
from zoo.data import storage
from zoo.data.limits import MAX_MEMBER_BYTES
from zoo.data.pictures import IMAGE_SUFFIXES
from zoo.data.storage import Patience
from zoo.data.video import VIDEO_SUFFIXES
from zoo.errors import RunError, UserError

FORMAT = 1
MANIFEST = "shards.json"
MEDIA = tuple(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
"""Endings of the files that samples are about."""

_MAX_INDEX_BYTES = 2**30
_MAX_SHARDS = 10**6
_PLAIN_NAME = re.compile(r"[\w][\w.-]*")
_END = bytes(2 * tarfile.BLOCKSIZE)


class Member(NamedTuple):
    """A file in a shard: its first byte, its size and its CRC-32 (None: not known)."""

    offset: int
    size: int
    crc: int | None = None


@dataclass(frozen=True)
class ShardSample:
    """A sample of a shard.

    Attributes:
        key: its name.
        members: its files by ending, lower case, without the dot.
        facts: frames, width, height, duration in seconds; empty where nobody measured.
    """

    key: str
    members: dict[str, Member]
    facts: dict[str, float]

    @property
    def media(self) -> str | None:
        """The ending of the picture or film, None where it holds none."""
        return next((kind for kind in self.members if kind in MEDIA), None)


@dataclass(frozen=True)
class ShardIndex:
    """What is in a shard, in its order; `size` in bytes and `sha256` are "" and 0 if unknown."""

    samples: list[ShardSample]
    size: int = 0
    sha256: str = ""

    def to_json(self) -> str:
        """As it stands beside the shard."""
        samples = [
            {
                "key": sample.key,
                "members": {kind: list(member) for kind, member in sample.members.items()},
                "facts": sample.facts,
            }
            for sample in self.samples
        ]
        content = {"format": FORMAT, "bytes": self.size, "sha256": self.sha256, "samples": samples}
        return json.dumps(content, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, origin: object) -> ShardIndex:
        """Read what `to_json` wrote.

        Raises:
            UserError: it is not that; every number and name is checked.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise UserError(f"{origin} is of format {content['format']}, not {FORMAT}")
            samples = [_sample(item) for item in content["samples"]]
            size, sha256 = _number(content["bytes"]), content["sha256"]
            if not isinstance(sha256, str):
                raise TypeError("sha256 is no text")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{origin} is no index of a shard ({error!r}): make it again"
            ) from error
        if len({sample.key for sample in samples}) < len(samples):
            raise UserError(f"{origin} names a sample twice: make it again")
        if any(m.offset + m.size > size for sample in samples for m in sample.members.values()):
            raise UserError(f"{origin} names files behind the end of its shard: make it again")
        return cls(samples, size, sha256)


def _sample(item: Any) -> ShardSample:
    key, members, facts = item["key"], item["members"], item["facts"]
    if not isinstance(key, str) or not isinstance(members, dict) or not isinstance(facts, dict):
        raise TypeError("a sample needs a key, members and facts")
    if not all(isinstance(v, int | float) and 0 <= v < 2**53 for v in facts.values()):
        raise ValueError(f"facts of {key[:40]}")
    found = {}
    for kind, (offset, size, crc) in members.items():
        found[kind] = Member(_number(offset), _number(size), None if crc is None else _number(crc))
        if found[kind].size > MAX_MEMBER_BYTES:
            raise ValueError(f"{found[kind].size} bytes in one file")
    return ShardSample(key, found, facts)


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.40} is no size")
    return value


def scan(file: IO[bytes], name: object) -> ShardIndex:
    """Index a shard by its headers; the files themselves are skipped over.

    Raises:
        UserError: it is no plain tar archive, or a file in it is too large.
        RunError: its list of files breaks off (a cut or damaged archive).
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    grouped: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                key, kind = _key_and_kind(info.name)
                if not info.isreg() or info.issparse() or not key:
                    continue
                if info.size > MAX_MEMBER_BYTES:
                    raise UserError(
                        f"{info.name[:80]} in {name} has {info.size:,} bytes, more than the "
                        f"{MAX_MEMBER_BYTES:,} that are read: cut it with `zoo data shard`"
                    )
                if info.offset_data + info.size > size:
                    raise RunError(f"{name} is cut off in {info.name[:80]}")
                grouped.setdefault(key, {})[kind] = Member(info.offset_data, info.size)
            end = tar.offset
    except (tarfile.TarError, EOFError, UnicodeError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} is no plain tar archive ({error}): unpack it first") from error
    # tarfile takes a damaged header for the archive's end; the true one is two empty blocks
    file.seek(end)
    if file.read(len(_END)) != _END:
        raise RunError(f"{name} is damaged or cut off at byte {end:,}: copy it again")
    return ShardIndex([ShardSample(key, members, {}) for key, members in grouped.items()], size)


def _key_and_kind(name: str) -> tuple[str, str]:
    """WebDataset's key and ending of a file: what stands before and after the first dot."""
    folder, _, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    if not stem or not kind or stem.startswith("__"):
        return "", ""
    return f"{folder}/{stem}" if folder else stem, kind.lower()


class Shard(NamedTuple):
    """A shard: its address and, from `shards.json`, its number of samples and two SHA-256."""

    address: str
    samples: int | None = None
    sha256: str = ""
    index_sha256: str = ""

    @property
    def name(self) -> str:
        """Its file name."""
        return self.address.rpartition("/")[2]


def find_shards(root: str | list[str], patience: Patience) -> list[Shard]:
    """The shards that roots name.

    Args:
        root: a folder, a shard, either with braces as in `{000000..000009}.tar`, on a disk or
            behind an address that fsspec knows (https://, s3://, ...); or a list of these.
        patience: with the storage.

    Raises:
        UserError: there is none, or `shards.json` is broken.
        RunError: the storage doesn't answer.
    """
    found: list[Shard] = []
    for pattern in [root] if isinstance(root, str) else root:
        try:
            addresses = list(islice(braceexpand.braceexpand(pattern), _MAX_SHARDS + 1))
        except ValueError as error:
            raise UserError(f"{pattern} has unbalanced braces: write {{000..009}}.tar") from error
        if len(addresses) > _MAX_SHARDS:
            raise UserError(f"{pattern} names more than {_MAX_SHARDS:,} shards: name fewer at once")
        for address in addresses:
            if "://" not in address:
                address = str(Path(address).expanduser().absolute())
            storage.file_system(address)  # a protocol that isn't known is said at once
            found += [Shard(address)] if address.endswith(".tar") else _of_folder(address, patience)
    if not found:
        raise UserError(f"{root} names no shard: give a folder of .tar files, or their names")
    return found


def _of_folder(folder: str, patience: Patience) -> list[Shard]:
    manifest = storage.join(folder, MANIFEST)
    if patience.try_to(lambda: storage.exists(manifest), manifest):
        return [
            Shard(
                storage.join(folder, item["name"]),
                item["samples"],
                item["sha256"],
                item["index_sha256"],
            )
            for item in read_manifest(manifest, patience)["shards"]
        ]
    tars = patience.try_to(lambda: storage.tars_in(folder), folder)
    if not tars:
        raise UserError(f"there is no {MANIFEST} and no .tar in {folder}: correct the root")
    return [Shard(address.removeprefix("file://")) for address in tars]


def read_manifest(address: str, patience: Patience) -> dict[str, Any]:
    """`shards.json`, checked.

    Raises:
        UserError: it is broken, or names a shard outside of its folder.
        RunError: the storage doesn't answer.
    """
    text = patience.try_to(lambda: storage.read_whole(address, limit=_MAX_INDEX_BYTES), address)
    try:
        content: dict[str, Any] = json.loads(text)
        if content["format"] != FORMAT:
            raise UserError(f"{address} is of format {content['format']}, not {FORMAT}")
        for item in content["shards"]:
            # a manifest from elsewhere must not send us to another folder or address
            if not _PLAIN_NAME.fullmatch(item["name"]) or not item["name"].endswith(".tar"):
                raise UserError(f"{address} names the shard {item['name']!r:.80}: not a plain name")
            _number(item["samples"])
            if not isinstance(item["sha256"], str) or not isinstance(item["index_sha256"], str):
                raise TypeError("a sha256 is no text")
        names = [item["name"] for item in content["shards"]]
        if len(set(names)) < len(names):
            raise ValueError("a shard is named twice")
        if sum(item["samples"] for item in content["shards"]) != content["samples"]:
            raise ValueError("the numbers of samples don't add up")
        dict(content["broken"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{address} is no list of shards ({error!r}): make it again") from error
    return content


def load_index(shard: Shard, patience: Patience) -> ShardIndex:
    """A shard's index: the one beside it, the one in the cache, or a new one from its headers.

    Raises:
        UserError: it is broken, or the shard is no plain tar archive.
        RunError: the storage doesn't answer, or the shard is damaged.
    """
    beside = f"{shard.address.removesuffix('.tar')}.json"
    if shard.samples is not None:
        text = patience.try_to(lambda: storage.read_whole(beside, limit=_MAX_INDEX_BYTES), beside)
        index = ShardIndex.from_json(text, beside)
        if hashlib.sha256(text).hexdigest() != shard.index_sha256:
            raise UserError(f"{beside} doesn't belong to {MANIFEST}: copy the folder again")
        return index
    version = patience.try_to(lambda: storage.stamp(shard.address), shard.address)
    digest = hashlib.sha256(f"{FORMAT} {shard.address} {version}".encode()).hexdigest()[:24]
    kept = cache_root() / "shards" / f"{digest}.json"
    if kept.is_file():
        try:
            return ShardIndex.from_json(kept.read_bytes(), kept)
        except UserError:
            pass  # damaged: it is made anew

    def read_headers() -> ShardIndex:
        with storage.open_for_headers(shard.address) as file:
            return scan(file, shard.address)

    # every header of a remote shard is a request: that may take longer than reading one sample
    slow = Patience(patience.attempts, 20 * patience.timeout, patience.pause)
    index = slow.try_to(read_headers, shard.address)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f".{kept.name}.{os.getpid()}.part")
    part.write_text(index.to_json())
    os.replace(part, kept)
    return index
