"""`zoo data`: fetch named assets, inspect and shard folders, films to latents and back."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from zoo.assets import ASSETS, GROUPS, fetch, fetch_group
from zoo.cli import Parser, latents, say, shards
from zoo.errors import UserError, closest

EXAMPLES = """examples:
  zoo data prepare                       what can be fetched
  zoo data prepare package-films         fetch a group (or one name)
  zoo data prepare emoji                 captioned pictures of 64x64, tars to train and validate on
  zoo data prepare emoji-anim            captioned animations, as films of 64x64
  zoo data inspect FOLDER                counts, sizes, lengths, damage, duplicates, a contact sheet
  zoo data shard FOLDER -o shards/       films and pictures to WebDataset shards
  zoo data encode FOLDER --model dir:EXPORT -o latents/      films to shards of latents
  zoo data decode latents/ -o FOLDER                         and back
"""


def main(arguments: Sequence[str]) -> int:
    """Fetch or inspect data; see EXAMPLES."""
    parser = Parser(
        prog="zoo data",
        description="Fetch named assets into the cache, inspect films and pictures and shard them, "
        "encode films into latents and decode them.",
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("prepare", help="fetch an asset or a group; no name lists them")
    add.add_argument("name", nargs="?")
    help_shard = "films and pictures to WebDataset shards"
    shards.add_shard(commands.add_parser("shard", help=help_shard, epilog=shards.EXAMPLES))
    help_inspect = "films, pictures or shards: counts, damage, duplicates, a contact sheet"
    shards.add_inspect(commands.add_parser("inspect", help=help_inspect, epilog=shards.EXAMPLES))
    latents.add_encode(
        commands.add_parser("encode", help="films to shards of latents", epilog=latents.EXAMPLES)
    )
    latents.add_decode(
        commands.add_parser("decode", help="latents to films", epilog=latents.EXAMPLES)
    )
    options = parser.parse_args(arguments)
    if options.command == "prepare":
        return prepare(options.name)
    run = {
        "shard": shards.shard,
        "inspect": shards.inspect,
        "encode": latents.encode,
        "decode": latents.decode,
    }
    return run[options.command](options)


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
    if name == "emoji":
        from zoo.data.emoji import prepare_emoji

        paths = prepare_emoji()
    elif name == "emoji-anim":
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
