"""`zoo list`: the models, their family and their size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

import zoo
from zoo.cli import Parser


def main(arguments: Sequence[str]) -> int:
    """List the models that match a pattern."""
    parser = Parser(prog="zoo list", description="List the models. Example: zoo list 'cdt*'")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern")
    parser.add_argument("--family", help="cdt, kl_vae, tiue or foreign")
    options = parser.parse_args(arguments)
    table = Table("model", "family", "parameters", "compression", "latent channels")
    for name in zoo.list_models(options.pattern, family=options.family):
        try:
            with torch.device("meta"):
                net = zoo.create(name)
        except zoo.UserError as error:
            # a class that this version of diffusers lacks
            table.add_row(name, zoo.info(name).family, str(error))
            continue
        size = sum(p.numel() for p in net.parameters()) / 1e6
        compression = "x".join(map(str, getattr(net, "compression", ())))
        table.add_row(
            name,
            zoo.info(name).family,
            f"{size:.2f} M",
            compression,
            str(getattr(net, "latent_channels", "")),
        )
    Console().print(table)
    return 0
