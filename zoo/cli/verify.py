"""`zoo verify`: shipped weights are those of their cards and give the cards' numbers."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.cli import Parser, say
from zoo.errors import UserError
from zoo.hub import find_folder, trained


def main(arguments: Sequence[str]) -> int:
    """Verify the models named, or all that ship."""
    parser = Parser(
        prog="zoo verify",
        description="Check the sha256 of weights and measure their cards' numbers again on a few "
        "clips. Examples: zoo verify;  zoo verify cdt_tiny.clips dir:my/model",
    )
    parser.add_argument("models", nargs="*", help="names or dir:PATH; default: all that ship")
    names = parser.parse_args(arguments).models or list(trained())
    if not names:
        raise UserError("no weights ship with this copy of the zoo: name a model or dir:PATH")
    from zoo.verify import verify

    for name in names:
        say(verify(find_folder(name)))
    return 0
