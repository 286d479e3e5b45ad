"""`zoo reconstruct`: a film through a tokenizer and back, in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from zoo.cli import Parser, say
from zoo.data.transforms import to_float, to_uint8
from zoo.data.video import FrameReader, probe, read_frames
from zoo.data.writer import VideoWriter
from zoo.errors import RunError, UserError
from zoo.hub import load
from zoo.kernels.allocator import return_memory
from zoo.nets.tokenizer import Tokenizer

EXAMPLES = """examples:
  zoo reconstruct in.mp4 --model dir:runs/quickstart/export -o out.mp4
  zoo reconstruct in.mp4 --model dir:runs/quickstart/export -o out.mp4 --side-by-side --steps 4
"""

Picture = NDArray[np.uint8]


def main(arguments: Sequence[str]) -> int:
    """Reconstruct a film; see EXAMPLES."""
    parser = Parser(
        prog="zoo reconstruct",
        description="Encode and decode a film of any length; frames, size and rate are kept.",
        epilog=EXAMPLES,
    )
    parser.add_argument("film", type=Path)
    parser.add_argument("--model", required=True, help="NAME of trained weights, or dir:PATH")
    parser.add_argument("-o", "--output", type=Path, required=True, help="film to write")
    parser.add_argument("--side-by-side", action="store_true", help="original on the left")
    parser.add_argument("--steps", type=int, default=1, help="sampling steps (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the decoder's noise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        raise UserError(f"--steps {options.steps}: a decoder needs at least 1 sampling step")
    info = probe(options.film)
    if options.output.exists() and options.output.samefile(options.film):
        raise UserError(f"{options.output} is the film itself: name another output")
    return_memory()
    width = info.width * (2 if options.side_by_side else 1)
    # opened first: an output that can't be written is said before any work is done
    with VideoWriter(options.output, width=width, height=info.height, rate=info.rate) as writer:
        net = load(options.model, device=options.device)
        if not isinstance(net, Tokenizer):
            raise UserError(f"{options.model} is not a tokenizer: it can't reconstruct a film")
        reader = read_frames(options.film)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[fps]} fps"),
            TimeRemainingColumn(),
        )
        score = Score()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(options.film.name, total=info.frames, fps="-")
            for original, result in reconstruct_frames(
                net,
                reader,
                chunk=chunk_frames(info.width, info.height),
                steps=options.steps,
                seed=options.seed,
            ):
                score.add(original, result)
                pair = [original, result] if options.side_by_side else [result]
                writer.write(np.concatenate(pair, axis=1))
                speed = bar.tasks[task].speed
                bar.update(task, advance=1, fps="-" if speed is None else f"{speed:.1f}")
    say(f"{writer.frames} frames, PSNR {score.mean():.2f} dB")
    say(str(options.output))
    if reader.broken or writer.frames != info.frames:
        lost = max(reader.broken, info.frames - writer.frames)
        raise RunError(
            f"{options.film} has {lost} frames that can't be decoded: "
            f"{options.output} holds the other {writer.frames}"
        )
    return 0


class Score:
    """Mean PSNR of frames, in dB."""

    def __init__(self) -> None:
        self._sum, self._frames = 0.0, 0

    def add(self, original: Picture, result: Picture) -> None:
        """One frame, uint8 [H,W,3]."""
        error = np.square(original.astype(np.float32) - result).mean(dtype=np.float64)
        self._sum += float(10 * np.log10(255**2 / max(error, 6.5e-6)))
        self._frames += 1

    def mean(self) -> float:
        """Over the frames so far."""
        return self._sum / max(1, self._frames)


def chunk_frames(width: int, height: int) -> int:
    """Frames a chunk: as many as make about 2 million pixels, 4 to 16."""
    return max(4, min(16, 4 * (500_000 // (width * height))))


def reconstruct_frames(
    net: Tokenizer, reader: FrameReader, *, chunk: int, steps: int, seed: int
) -> Iterator[tuple[Picture, Picture]]:
    """Pairs (original, reconstruction), uint8 [H,W,3], as soon as each is ready.

    Memory holds the net's state and the frames between its input and its output: not the film.
    """
    device = next(net.parameters()).device
    dtype = next(net.parameters()).dtype
    waiting: deque[Picture] = deque()

    def chunks() -> Iterator[Tensor]:
        held: list[Picture] = []
        for frame in reader:
            waiting.append(frame.rgb)
            held.append(frame.rgb)
            if len(held) == chunk:
                yield _to_tensor(held).to(device, dtype)
                held = []
        if held:
            yield _to_tensor(held).to(device, dtype)

    generator = torch.Generator().manual_seed(seed)
    pieces = net.stream_decode(net.stream_encode(chunks()), steps=steps, generator=generator)
    for piece in pieces:
        # the last latent may stand for frames that the film doesn't have: no original waits for it
        for picture in to_uint8(piece[0]).movedim(0, -1).cpu().numpy()[: len(waiting)]:
            original = waiting.popleft()
            height, width, _ = original.shape
            yield original, picture[:height, :width]


def _to_tensor(frames: list[Picture]) -> Tensor:
    """uint8 frames [H,W,3] to [1,3,T,H,W] in [-1,1]."""
    return to_float(torch.from_numpy(np.stack(frames)).movedim(-1, 0))[None]
