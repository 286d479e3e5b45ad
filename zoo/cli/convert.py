"""`zoo convert`: checkpoints of other projects to model folders of the zoo, and back."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from zoo.cli import Parser, say
from zoo.errors import UserError
from zoo.nets.pretrained import CONFIG_FILE

FAMILIES = ("cdt", "kl_vae")

EXAMPLES = """examples:
  zoo convert cdt_base.ckpt --family cdt -o checkpoints/cdt_base.official
  zoo convert dir:runs/mine/export --family cdt --back -o mine.ckpt    as the released code reads it
  zoo convert dir:runs/vae/export --family kl_vae --back -o vae         as AutoencoderKL opens it
"""


def main(arguments: Sequence[str]) -> int:
    """Convert one checkpoint; see EXAMPLES."""
    parser = Parser(
        prog="zoo convert",
        description="Convert a released checkpoint to a model folder, strictly, or back. Pickles "
        "are read without running anything they hold.",
        epilog=EXAMPLES,
    )
    parser.add_argument("original", help="checkpoint; with --back a model of the zoo")
    parser.add_argument("--family", required=True, choices=FAMILIES)
    parser.add_argument(
        "-o", "--out", required=True, help="model folder; with --back a file or folder"
    )
    parser.add_argument("--back", action="store_true", help="write the original's own layout")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out keys of the checkpoint that are no part of the net (shell pattern)",
    )
    options = parser.parse_args(arguments)
    adapter = importlib.import_module(f"zoo.convert.{options.family}")
    out = Path(options.out)
    if options.back:
        _back(adapter.save_checkpoint, options.original, options.family, out)
    else:
        if (out / CONFIG_FILE).exists():
            raise UserError(f"{out} holds a model already: give another folder, or remove it")
        preset, net = adapter.load_checkpoint(options.original, ignore=options.ignore)
        net.save_pretrained(out)
        size = sum(p.numel() for p in net.parameters()) / 1e6
        say(f"{preset}, {size:.2f} M parameters, every key used")
    say(str(out))
    return 0


def _back(save: object, name: str, family: str, out: Path) -> None:
    from zoo.hub import load
    from zoo.nets.pretrained import Pretrained

    net = load(name)
    if not isinstance(net, Pretrained) or not net.architecture.startswith(family):
        raise UserError(f"{name} is a {type(net).__name__}, not of the family {family}")
    if out.exists():
        raise UserError(f"{out} exists: give another file or folder, or remove it")
    assert callable(save)
    save(net, out)
