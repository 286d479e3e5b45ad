"""The options that reconstruct, encode and decode share, and what they come to."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from zoo.cli.device import checked_device
from zoo.data.latents import DTYPES
from zoo.errors import UserError
from zoo.films import chunk_frames
from zoo.hub import load
from zoo.nets.cdt import CDT
from zoo.nets.tiling import Tiled
from zoo.nets.tokenizer import Tokenizer


def add_net_options(parser: argparse.ArgumentParser) -> None:
    """Where and how the net runs."""
    group = parser.add_argument_group("the net")
    group.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.add_argument("--tile", type=int, metavar="PIXELS", help="cut frames into tiles")
    group.add_argument("--chunk", type=int, metavar="FRAMES", help="frames the net sees at a time")
    group.add_argument("--seed", type=int, default=0, help="of all noise (default 0)")


def add_decoder_options(parser: argparse.ArgumentParser) -> None:
    """How a decoder samples and what kind of film it writes."""
    group = parser.add_argument_group("the decoder")
    group.add_argument(
        "--dtype", choices=sorted(DTYPES), default="fp32", help="the net computes in (default fp32)"
    )
    group.add_argument("--steps", type=int, default=1, help="sampling steps (default 1)")
    group.add_argument("--gamma", type=float, help="scale of a diffusion decoder's first noise")
    group.add_argument("--lossless", action="store_true", help="keep every RGB value of the output")


def add_range_options(parser: argparse.ArgumentParser) -> None:
    """What of a film is taken."""
    group = parser.add_argument_group("the film")
    group.add_argument("--start", type=float, default=0.0, metavar="SECONDS")
    group.add_argument("--duration", type=float, metavar="SECONDS")
    group.add_argument(
        "--fps", type=parse_rate, metavar="RATE", help="frames a second: 25, 30000/1001"
    )
    group.add_argument("--size", type=parse_size, metavar="WxH", help="scale to so many pixels")


def check(options: argparse.Namespace) -> None:
    """Say what is out of range before any work is done.

    Raises:
        UserError: the option and its value.
    """
    values = vars(options)
    if values.get("steps", 1) < 1:
        raise UserError(f"--steps {options.steps}: a decoder needs at least 1 sampling step")
    if values.get("chunk") is not None and options.chunk < 1:
        raise UserError(f"--chunk {options.chunk}: give at least 1 frame")
    if values.get("start", 0.0) < 0:
        raise UserError(f"--start {options.start:g}: give 0 seconds or more")
    if values.get("duration") is not None and options.duration <= 0:
        raise UserError(f"--duration {options.duration:g}: give more than 0 seconds")
    if values.get("gamma") is not None and options.gamma < 0:
        raise UserError(f"--gamma {options.gamma:g}: give 0 or more")
    checked_device(options.device)


def load_tokenizer(model: str, device: str) -> Tokenizer:
    """The trained net by its name, as it is stored.

    Raises:
        UserError: no such model, or one that encodes nothing.
    """
    net = load(model, device=device)
    if not isinstance(net, Tokenizer):
        kind = getattr(net, "architecture", type(net).__name__)
        raise UserError(f"{model} is a {kind}, no tokenizer: it can't encode or decode a film")
    return net.requires_grad_(False)


def set_up(net: Tokenizer, options: argparse.Namespace, *, dtype: torch.dtype) -> Tokenizer:
    """The net in its type, with --gamma, in tiles.

    Raises:
        UserError: the net has no gamma, or the tile doesn't fit its compression.
    """
    gamma = getattr(options, "gamma", None)
    if gamma is not None:
        if not isinstance(net, CDT):
            raise UserError(
                f"--gamma {gamma:g}: the decoder of a {net.architecture} draws no noise"
            )
        net = net.with_sampling(gamma=gamma)
    net = net.to(dtype)
    return net if options.tile is None else Tiled(net, tile=options.tile)


def chunk_of(options: argparse.Namespace, net: Tokenizer, width: int, height: int) -> int:
    """--chunk, or what suits the frame."""
    chunk: int | None = options.chunk
    return chunk_frames(net, width, height) if chunk is None else chunk


def film_range(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `open_film`."""
    return {name: getattr(options, name) for name in ("start", "duration", "fps", "size")}


class Bar:
    """A progress bar of frames on stderr."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def to(self, frames: int) -> None:
        """So many frames are done."""
        speed = self._progress.tasks[self._task].speed
        said = "-" if speed is None else f"{speed:.1f}"
        self._progress.update(self._task, completed=frames, fps=said)


@contextmanager
def progress_bar(name: str, frames: int | None) -> Iterator[Bar]:
    """A `Bar` towards `frames` while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[fps]} fps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress, progress.add_task(name, total=frames, fps="-"))


def said_loss(broken: int, *, truncated: bool) -> str:
    """What of a film could not be read, in words; empty where nothing is lost."""
    losses = [f"{broken} frames can't be decoded"] if broken else []
    losses += ["the file ends before its header says"] if truncated else []
    return " and ".join(losses)


def same_file(one: Path, other: Path) -> bool:
    """Whether both are there and one file."""
    return one.exists() and other.exists() and one.samefile(other)


def parse_rate(text: str) -> Fraction:
    """--fps: a rate above 0."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"'{text}' is no rate: give 25 or 30000/1001") from None
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"{text} frames a second: give more than 0")
    return rate


def parse_size(text: str) -> tuple[int, int]:
    """--size: WIDTHxHEIGHT in pixels."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"'{text}' is no size: give WIDTHxHEIGHT, as 640x360")
    return int(width), int(height)
