"""`zoo pull`: a model's folder, fetched if need be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from zoo.cli import Parser, say
from zoo.errors import UserError
from zoo.hub import find_folder

EXAMPLES = """examples:
  zoo pull hf:ORG/REPO@REVISION                to the hub's cache; prints the folder
  zoo pull cdt_tiny.clips -o my/cdt_tiny       a copy that can be changed
"""


def main(arguments: Sequence[str]) -> int:
    """Fetch one model and print its folder."""
    parser = Parser(
        prog="zoo pull", description="Fetch a model; print its folder.", epilog=EXAMPLES
    )
    parser.add_argument("model", help="name, hf:ORG/REPO@REVISION or dir:PATH")
    parser.add_argument("-o", "--out", help="copy it here, a folder that isn't there yet")
    parser.add_argument("--revision", help="branch, tag or commit of an hf: repository")
    options = parser.parse_args(arguments)
    out = Path(options.out) if options.out else None
    if out is not None and out.exists():
        raise UserError(f"{out} exists: give another folder, or remove it")
    folder = find_folder(options.model, revision=options.revision)
    if out is not None:
        _copy(folder, out)
    say(str(out or folder))
    return 0


def _copy(folder: Path, out: Path) -> None:
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        # links of the hub's cache become files
        shutil.copytree(folder, part)
        os.replace(part, out)
    except OSError as error:
        raise UserError(f"can't copy {folder} to {out} ({error}): give another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
