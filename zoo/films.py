"""Films through a tokenizer: into latents on disk, back, and both at once.

The net runs in the caller's thread. Reading and colour conversion run ahead of it in a thread;
writers that do their work in another are `zoo.data.background.WriteBehind`. Memory holds the net's
state and a few chunks, never the film.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import starmap, takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.data.background import read_ahead
from zoo.data.colour import Colour
from zoo.data.film import Film, FilmInfo
from zoo.data.latent_writer import LatentWriter
from zoo.data.latents import FilmEntry, LatentFolder
from zoo.data.reader import TIME_SLACK, Frame, nearest
from zoo.data.transforms import resize, to_float, to_uint8
from zoo.diffusion.samplers import frame_noise
from zoo.errors import RunError, UserError
from zoo.nets.posterior import Posterior
from zoo.nets.tiling import Tiled
from zoo.nets.tokenizer import Tokenizer, missing_frames
from zoo.streaming import State

Picture = NDArray[np.uint8]
CHECKPOINT_SECONDS = 300.0
_FRACTIONS = ("rate", "time_base", "pixel_aspect")
_AHEAD = 2  # chunks that wait for the net


class Chunk(NamedTuple):
    """Consecutive frames and their pixels [1,3,T,H,W] in [-1,1]."""

    frames: list[Frame]
    pixels: Tensor


def chunk_frames(net: Tokenizer, width: int, height: int) -> int:
    """Frames a chunk by default: as many as make about 2 million pixels of a tile, 4 to 16."""
    if isinstance(net, Tiled):
        height = min(height, net.tile[0] * net.compression[1])
        width = min(width, net.tile[1] * net.compression[2])
    return max(4, min(16, 4 * (500_000 // (width * height))))


def reconstruct_film(
    net: Tokenizer,
    film: Iterable[Frame],
    *,
    chunk: int = 16,
    steps: int = 1,
    seed: int = 0,
) -> Generator[tuple[Frame, Picture]]:
    """Encode and decode a film.

    Args:
        net: on its device.
        film: frames of one size; an open `Film` or any others.
        chunk: frames the net sees at a time: speed and memory, not the result.
        steps: sampling steps of a diffusion decoder.
        seed: of its noise.

    Yields:
        Each frame and its reconstruction, uint8 [H,W,3], as soon as it is ready.
    """
    waiting: deque[Frame] = deque()
    device, dtype = _place(net)

    def pixels(pieces: Iterable[Chunk]) -> Iterator[Tensor]:
        for piece in pieces:
            waiting.extend(piece.frames)
            yield piece.pixels.to(device, dtype)

    generator = torch.Generator().manual_seed(seed)
    with closing(read_ahead(_chunks(film, chunk), depth=_AHEAD)) as ahead:
        latents = net.stream_encode(pixels(ahead))
        for decoded in net.stream_decode(latents, steps=steps, generator=generator):
            # the last latent may stand for frames that the film doesn't have: none waits for them
            for picture in _pictures(decoded)[: len(waiting)]:
                original = waiting.popleft()
                height, width, _ = original.rgb.shape
                yield original, picture[:height, :width]


def encode_film(
    net: Tokenizer,
    film: Film,
    writer: LatentWriter,
    *,
    key: str,
    chunk: int = 16,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Callable[[int], None] | None = None,
) -> FilmEntry:
    """Encode a film into a folder of latents, from the last checkpoint on where there is one.

    Args:
        net: on its device.
        film: open.
        writer: the folder; its settings say whether means or samples are written.
        key: the film's name in the folder.
        chunk: frames the net sees at a time; one that doesn't stream sees the whole film.
        checkpoint_seconds: a stop loses at most the work of so long.
        progress: called with the number of frames done so far.

    Returns:
        The film's line in the folder's index.

    Raises:
        RunError: no frame could be decoded (nothing is left of the film), or the disk is full.
    """
    device, dtype = _place(net)
    info = film.info
    entry = writer.begin(
        key=key,
        source=film.path.absolute(),
        height=info.height,
        width=info.width,
        rate=str(info.rate),
        info=info_to_json(info),
    )
    # films have noise of their own, whatever else is in the folder
    digest = hashlib.sha256(f"{writer.settings.seed} {key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    state: State | None = None
    if writer.state:
        state = dict(writer.state)
        generator.set_state(state.pop("generator"))
        state = {slot: memory.to(device) for slot, memory in state.items()}
    begun, last = time.monotonic(), None

    def add(pixels: Tensor, frames: list[Frame]) -> State:
        with torch.no_grad():
            pixels = pixels.to(device, dtype)
            if net.streams:
                posterior, following = net.encode_step(pixels, state)
            else:
                posterior, following = net.encode(pixels), {}
            latents = _latents(posterior, writer.settings.kind, generator)[0]
        writer.add(latents, times=[frame.time for frame in frames])
        return following

    chunks = _chunks(film, chunk if net.streams else None, skip=entry.frames)
    with closing(read_ahead(chunks, depth=_AHEAD)) as ahead:
        for piece in ahead:
            if state is not None and time.monotonic() - begun >= checkpoint_seconds:
                writer.checkpoint({**state, "generator": generator.get_state()})
                begun = time.monotonic()
            state, last = add(piece.pixels, piece.frames), piece.pixels[:, :, -1:]
            if progress is not None:
                progress(entry.frames)
    if last is None:
        writer.drop()
        raise RunError(f"{film.path} holds no frame that can be decoded: nothing of it is written")
    # what doesn't stream has seen the whole film, and repeated its last frame itself
    missing = missing_frames(entry.frames, net.compression[0]) if net.streams else 0
    if missing:
        add(last.expand(-1, -1, missing, -1, -1), [])
    return writer.end(broken=film.broken, truncated=film.truncated)


def decode_film(
    net: Tokenizer,
    folder: LatentFolder,
    film: FilmEntry,
    *,
    chunk: int = 16,
    steps: int = 1,
    seed: int = 0,
) -> Generator[Frame]:
    """Decode a film of a folder of latents.

    Args:
        net: the one that wrote them, on its device.
        folder, film: the latents.
        chunk: frames the net makes at a time, rounded to whole latents.
        steps: sampling steps of a diffusion decoder.
        seed: of its noise.

    Yields:
        The film's frames with their times in seconds of the source.

    Raises:
        RunError: a shard is missing or broken.
    """
    device, dtype = _place(net)
    times: deque[float] = deque()

    def latents(samples: Iterable[tuple[Tensor, dict[str, Any]]]) -> Iterator[Tensor]:
        for stored, facts in samples:
            first, frames = facts["first_frame"], facts["frames"]
            even = (film.begin + float(n / film.fraction) for n in range(first, first + frames))
            times.extend(facts.get("times", even))
            for piece in torch.split(stored, max(1, chunk // net.compression[0]), dim=1):
                yield piece[None].to(device, dtype)

    with closing(read_ahead(folder.samples(film), depth=_AHEAD)) as ahead:
        decoded = net.stream_decode(
            latents(ahead),
            size=(film.frames, film.height, film.width),
            steps=steps,
            generator=torch.Generator().manual_seed(seed),
        )
        for pixels in decoded:
            for picture in _pictures(pixels):
                yield Frame(picture, times.popleft())


def cut_frames(
    frames: Iterable[Frame],
    film: FilmEntry,
    *,
    start: float = 0.0,
    duration: float | None = None,
    fps: Fraction | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[Frame]:
    """Decoded frames as `open_film` gives a file's: what comes before `start` is decoded in vain.

    Args:
        frames: all frames of the film, with their times.
        film: what they are of.
        start, duration, fps, size: as for `open_film`; seconds count from the first frame.

    Raises:
        UserError: `start` is behind the film's end.
    """
    length = float(film.frames / film.fraction)
    if start >= length:
        raise UserError(f"a start of {start:g} s is behind the end of {film.key}: {length:.2f} s")
    begin = film.begin + start
    end = math.inf if duration is None else begin + duration
    if fps is None:
        kept: Iterable[Frame] = (f for f in frames if f.time >= begin - TIME_SLACK)
        kept = takewhile(lambda f: f.time < end - TIME_SLACK, kept)
    else:
        timed = ((frame.rgb, frame.time) for frame in frames)
        gap = float(1 / film.fraction)
        kept = starmap(Frame, nearest(timed, start=begin, rate=fps, end=end, gap=lambda: gap))
    for frame in kept:
        yield frame if size is None else Frame(_scaled(frame.rgb, size), frame.time)


def _scaled(picture: Picture, size: tuple[int, int]) -> Picture:
    video = torch.from_numpy(picture).movedim(-1, 0)[:, None]
    scaled: Any = resize(video, size=(size[1], size[0]))[:, 0].movedim(0, -1).numpy()
    return np.ascontiguousarray(scaled)


def info_to_json(info: FilmInfo) -> dict[str, Any]:
    """What is known of a film as plain values."""
    values = dataclasses.asdict(info)
    return {k: str(v) if k in _FRACTIONS else v for k, v in values.items()}


def info_from_json(values: dict[str, Any]) -> FilmInfo:
    """The other way round."""
    fractions = {k: Fraction(values[k]) for k in _FRACTIONS}
    return FilmInfo(**{**values, **fractions, "colour": Colour(**values["colour"])})


@dataclasses.dataclass
class Score:
    """Mean PSNR of frames, in dB."""

    total: float = 0.0
    frames: int = 0

    def add(self, original: Picture, result: Picture) -> None:
        """One frame, uint8 [H,W,3]."""
        error = np.square(original.astype(np.float32) - result).mean(dtype=np.float64)
        self.total += float(10 * np.log10(255**2 / max(error, 6.5e-6)))
        self.frames += 1

    def mean(self) -> float:
        """Over the frames so far."""
        return self.total / max(1, self.frames)


def _chunks(film: Iterable[Frame], size: int | None, *, skip: int = 0) -> Iterator[Chunk]:
    """Consecutive frames, `size` at a time; None: all at once."""
    held: list[Frame] = []
    for frame in film:
        if skip:
            skip -= 1
            continue
        held.append(frame)
        if len(held) == size:
            yield Chunk(held, _to_tensor(held))
            held = []
    if held:
        yield Chunk(held, _to_tensor(held))


def _to_tensor(frames: list[Frame]) -> Tensor:
    """Frames [H,W,3] to [1,3,T,H,W] in [-1,1]."""
    return to_float(torch.from_numpy(np.stack([f.rgb for f in frames])).movedim(-1, 0))[None]


def _pictures(pixels: Tensor) -> Picture:
    """[1,3,T,H,W] near [-1,1] to uint8 [T,H,W,3]."""
    pictures: Any = to_uint8(pixels[0]).movedim(0, -1).cpu().numpy()
    return pictures  # type: ignore[no-any-return]


def _latents(posterior: Posterior, kind: str, generator: torch.Generator) -> Tensor:
    mean = posterior.mean
    if kind == "mean":
        return mean
    if posterior.logvar is None:
        raise RunError("this net's posterior has no spread: leave out --sample")
    # frame by frame, so that chunks of other lengths draw the same
    return mean + posterior.std * frame_noise(mean, mean.shape[2], generator=generator)


def _place(net: Tokenizer) -> tuple[torch.device, torch.dtype]:
    parameter = next(p for p in (*net.parameters(), *net.buffers()) if p.is_floating_point())
    return parameter.device, parameter.dtype
