"""`zoo push`: a model folder to the hub."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.cli import Parser, say
from zoo.hub import find_folder
from zoo.remote import push_folder


def main(arguments: Sequence[str]) -> int:
    """Publish one model folder and print the commit's address."""
    parser = Parser(
        prog="zoo push",
        description="Publish card, config, metrics and weights in one commit; refused without "
        "licence and metrics. Example: zoo push cdt_tiny.clips ORG/REPO",
    )
    parser.add_argument("model", help="name or dir:PATH")
    parser.add_argument("repo", help="ORG/REPO, made if it isn't there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    options = parser.parse_args(arguments)
    say(push_folder(find_folder(options.model), options.repo, private=options.private))
    return 0
