"""`zoo swap`: the linear map from one tokenizer's latents to another's, and what it loses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from zoo.cli import Parser, say
from zoo.errors import UserError

EXAMPLES = """examples:
  zoo swap dir:old/export dir:new/export --data FILMS -o swap
      fits new = linear(old) on the films and tells what it loses: can a generator be kept?
"""


def main(arguments: Sequence[str]) -> int:
    """Fit and report one map; see EXAMPLES."""
    parser = Parser(
        prog="zoo swap",
        description="Fit the linear map from one tokenizer's latents to another's.",
        epilog=EXAMPLES,
    )
    parser.add_argument("source", help="tokenizer whose latents the generator makes")
    parser.add_argument("target", help="tokenizer that is to decode them")
    parser.add_argument("--data", required=True, help="folder of films")
    parser.add_argument("-o", "--out", help="model folder for the map, and report.json in it")
    parser.add_argument("--frames", type=int, default=17, help="of a clip (default 17)")
    parser.add_argument("--size", type=int, default=128, help="side of a clip (default 128)")
    parser.add_argument("--clips", type=int, default=50, help="at most (default 50)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    for name in ("frames", "size", "clips"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"--{name} {value}: give at least 1")
    from zoo.hub import load
    from zoo.nets.tokenizer import Tokenizer
    from zoo.swap import fit_swap

    nets = []
    for name in (options.source, options.target):
        net = load(name, device=options.device)
        if not isinstance(net, Tokenizer):
            raise UserError(f"{name} is a {type(net).__name__}, not a tokenizer")
        nets.append(net.float())
    clips = (clip.to(options.device) for clip in _clips(options))
    swap, report = fit_swap(nets[0], nets[1], clips)
    for key, value in report.as_dict().items():
        say(f"{key:13} {value:g}")
    if options.out:
        out = Path(options.out)
        swap.save_pretrained(out)
        (out / "report.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n")
        say(str(out))
    return 0


def _clips(options: object) -> Iterator[Tensor]:
    """The films' successive windows, [1,3,T,H,W] each."""
    from zoo.data.sources import VideoFolder

    values = vars(options)
    source = VideoFolder(values["data"], frames=values["frames"], size=values["size"], train=False)
    source.prepare()
    for number in range(min(values["clips"], len(source))):
        yield source[number].pixels[None]
