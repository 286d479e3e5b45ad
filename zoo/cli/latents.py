"""`zoo data encode` and `zoo data decode`: films to shards of latents, and back."""

from __future__ import annotations

import argparse
import shutil
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tarfile import RECORDSIZE
from typing import NamedTuple

import torch

from zoo.cli import say
from zoo.cli.film_options import (
    add_decoder_options,
    add_net_options,
    add_range_options,
    check,
    chunk_of,
    film_range,
    load_tokenizer,
    progress_bar,
    said_loss,
    set_up,
)
from zoo.data.background import WriteBehind
from zoo.data.film import FilmInfo, open_film
from zoo.data.latent_writer import LatentWriter
from zoo.data.latents import DTYPES, FilmEntry, LatentFolder, Settings, read_films
from zoo.data.pictures import IMAGE_SUFFIXES
from zoo.data.video import VIDEO_SUFFIXES
from zoo.data.writer import open_writer
from zoo.errors import RunError, UserError
from zoo.films import cut_frames, decode_film, encode_film, info_from_json
from zoo.kernels.allocator import return_memory
from zoo.nets.tokenizer import Tokenizer

EXAMPLES = """examples:
  zoo data encode film.mp4 --model dir:runs/quickstart/export -o latents/
  zoo data encode films/ --model dir:runs/quickstart/export -o latents/ --dtype bf16 --size 640x360
  zoo data decode latents/ -o film.mp4
  zoo data decode latents/ -o films/          where latents/ holds several
"""
FILM_SUFFIXES = (*VIDEO_SUFFIXES, ".gif")
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_WRITE_BEHIND = 16  # frames that wait for the writer
_SAMPLE_OVERHEAD = 2600  # bytes of tar headers, json and padding a sample


class Found(NamedTuple):
    """A film to encode: its key, its place and what it holds."""

    key: str
    path: Path
    info: FilmInfo


def add_encode(parser: argparse.ArgumentParser) -> None:
    """Options of `zoo data encode`."""
    parser.add_argument("films", type=Path, help="a film, or a folder of films")
    parser.add_argument("--model", required=True, help="NAME of trained weights, or dir:PATH")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of latents")
    parser.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        default="fp16",
        help="of the latents (default fp16); the net computes in fp32, on a GPU in bf16 for bf16",
    )
    parser.add_argument(
        "--sample", action="store_true", help="samples of the posterior in place of its means"
    )
    add_net_options(parser)
    add_range_options(parser)


def add_decode(parser: argparse.ArgumentParser) -> None:
    """Options of `zoo data decode`."""
    parser.add_argument("latents", type=Path, help="folder that zoo data encode wrote")
    parser.add_argument("--model", help="the model they are of (default: as it was named then)")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="film to write; a folder for several"
    )
    add_net_options(parser)
    add_decoder_options(parser)
    add_range_options(parser)


def encode(options: argparse.Namespace) -> int:
    """Encode films into shards; what an earlier run finished is kept."""
    check(options)
    return_memory()
    stored = load_tokenizer(options.model, options.device)
    settings = Settings.of(
        stored,
        model=options.model,
        dtype=options.dtype,
        kind="sample" if options.sample else "mean",
        seed=options.seed,
        start=options.start,
        duration=options.duration,
        fps=None if options.fps is None else str(options.fps),
        size=None if options.size is None else list(options.size),
        tile=options.tile,
        chunk=options.chunk,
    )
    on_gpu = torch.device(options.device).type == "cuda"
    dtype = torch.bfloat16 if options.dtype == "bf16" and on_gpu else torch.float32
    net = set_up(stored, options, dtype=dtype)
    films, broken = find_films(options)
    done = {film.key for film in read_films(options.output)}
    left = [film for film in films if film.key not in done]
    needed = sum(latent_bytes(net, film.info, options.dtype) for film in left) + RECORDSIZE
    free = _room(options.output)
    say(estimate(films, left, needed, free, options))
    if needed > free:
        raise UserError(
            f"{options.output} needs about {_bytes(needed)} and has {_bytes(free)}: "
            "make room, or give another folder or a smaller --size"
        )
    with LatentWriter(options.output, settings) as writer:
        # first the film that the last run stopped in
        left.sort(key=lambda film: writer.film is None or film.key != writer.film.key)
        for film in left:
            try:
                _encode_one(net, film, writer, options)
            except UserError as error:
                if len(films) == 1:
                    raise
                if writer.film is not None:
                    writer.drop()
                broken[film.key] = str(error)
    entries = LatentFolder(options.output).films
    for entry in entries:
        if loss := said_loss(entry.broken, truncated=entry.truncated):
            broken[entry.key] = f"{loss}; {entry.frames} frames are kept"
    size = sum(path.stat().st_size for path in options.output.glob("*.tar"))
    frames = sum(entry.frames for entry in entries)
    say(f"{_films(len(entries))}, {frames} frames, {_bytes(size)}")
    say(str(options.output))
    if broken:
        some = "; ".join(f"{key}: {reason}" for key, reason in broken.items())
        raise RunError(f"not all of {options.films} could be decoded ({some})")
    return 0


def _encode_one(
    net: Tokenizer,
    found: Found,
    writer: LatentWriter,
    options: argparse.Namespace,
) -> None:
    with (
        open_film(found.path, **film_range(options)) as film,
        progress_bar(found.key, film.info.frames) as bar,
    ):
        encode_film(
            net,
            film,
            writer,
            key=found.key,
            chunk=chunk_of(options, net, film.info.width, film.info.height),
            progress=bar.to,
        )


def find_films(options: argparse.Namespace) -> tuple[list[Found], dict[str, str]]:
    """The films of a file or folder, sorted by key, and why others can't be opened.

    A folder without films but with images is itself one film, as everywhere.

    Raises:
        UserError: there is none, or the only one can't be opened.
    """
    root: Path = options.films
    paths = {root.resolve().name: root}
    if root.is_dir():
        inside = {
            path.relative_to(root).as_posix(): path
            for path in sorted(root.rglob("*"))
            if path.suffix.lower() in FILM_SUFFIXES and not path.name.startswith(".")
        }
        if not inside and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in root.iterdir()):
            raise UserError(f"{root} holds neither films nor images; correct the path")
        paths = inside or paths
    found: list[Found] = []
    broken: dict[str, str] = {}
    for key, path in paths.items():
        try:
            with open_film(path, **film_range(options)) as film:
                found.append(Found(key, path, film.info))
        except UserError as error:
            if len(paths) == 1:
                raise
            broken[key] = str(error)
    if not found:
        raise UserError(f"none of the {len(paths)} films of {root} can be opened")
    return found, broken


def latent_bytes(net: Tokenizer, info: FilmInfo, dtype: str) -> int:
    """What a film's latents take on disk, about."""
    t, h, w = net.compression
    latents = 1 + -(-max(0, (info.frames or 1) - 1) // t)
    each = net.latent_channels * -(-info.height // h) * -(-info.width // w)
    return latents * (each * DTYPES[dtype].itemsize + _SAMPLE_OVERHEAD // 16)


def estimate(
    films: list[Found], left: list[Found], needed: int, free: int, options: argparse.Namespace
) -> str:
    """One line about what is to come: "1 film; 2 h at 1920x1080: about 45 GB of ..."."""
    if not left:
        return f"{_films(len(films))} in {options.output} already, nothing is left to do"
    seconds = sum((film.info.frames or 0) / float(film.info.rate) for film in left)
    length = f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds:.0f} s"
    if not all(film.info.frames for film in left):
        length = f"over {length} (not all files say how long they are)"
    sizes = sorted({(film.info.width, film.info.height) for film in left})
    at = f"{sizes[0][0]}x{sizes[0][1]}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    done = f", {len(films) - len(left)} more are done" if len(left) < len(films) else ""
    return (
        f"{_films(len(left))}{done}; {length} at {at}: about {_bytes(needed)} of {options.dtype} "
        f"latents ({_bytes(free)} free)"
    )


def _room(folder: Path) -> int:
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def _films(count: int) -> str:
    return "1 film" if count == 1 else f"{count} films"


def _bytes(size: float) -> str:
    unit, factor = next(((u, f) for u, f in _UNITS if size >= f), _UNITS[-1])
    return f"{size / factor:.{0 if size >= 10 * factor else 1}f} {unit}"


def decode(options: argparse.Namespace) -> int:
    """Decode a folder of latents into a film, or into a folder of films."""
    check(options)
    return_memory()
    folder = LatentFolder(options.latents)
    model = options.model or folder.settings.model
    stored = load_tokenizer(model, options.device)
    folder.settings.check_model(Settings.of(stored, model=model), options.latents)
    net = set_up(stored, options, dtype=DTYPES[options.dtype])
    outputs = output_paths(folder.films, options.output)
    silent = []
    for film, path in zip(folder.films, outputs, strict=True):
        _decode_one(net, folder, film, path, options)
        say(str(path))
        if film.info["has_audio"] and not Path(film.source).exists():
            silent.append(film)
    if silent:
        raise RunError(
            f"{_films(len(silent))} without sound: {silent[0].source} is no longer there"
        )
    return 0


def _decode_one(
    net: Tokenizer, folder: LatentFolder, film: FilmEntry, path: Path, options: argparse.Namespace
) -> None:
    source = Path(film.source)
    info = info_from_json(film.info)
    width, height = options.size or (film.width, film.height)
    rate = options.fps or film.fraction
    if options.fps is not None:
        info = replace(info, time_base=1 / rate)
    aspect = info.pixel_aspect * Fraction(film.width * height, film.height * width)
    writer = open_writer(
        path,
        width=width,
        height=height,
        rate=rate,
        like=replace(info, pixel_aspect=aspect),
        audio_from=source if film.info["has_audio"] and source.exists() else None,
        start=film.begin + options.start,
        duration=options.duration or folder.settings.duration,
        lossless=options.lossless,
    )
    frames = decode_film(
        net,
        folder,
        film,
        chunk=chunk_of(options, net, film.width, film.height),
        steps=options.steps,
        seed=options.seed,
    )
    with (
        WriteBehind(writer, depth=_WRITE_BEHIND) as out,
        progress_bar(film.key, film.frames) as bar,
        closing(frames),
    ):
        for number, frame in enumerate(cut_frames(frames, film, **film_range(options)), 1):
            out.write(frame.rgb, frame.time)
            bar.to(number)


def output_paths(films: list[FilmEntry], output: Path) -> list[Path]:
    """Where each film goes: one film to `output`, several below it under their keys.

    Raises:
        UserError: several films, and `output` is named like one.
    """
    if len(films) == 1:
        return [output]
    if output.suffix.lower() in (*FILM_SUFFIXES, *IMAGE_SUFFIXES) or output.is_file():
        raise UserError(f"{output} names one film and there are {len(films)}: name a folder")
    paths = []
    for film in films:
        path = output / film.key
        # what the writer can't make, it makes as mp4
        if path.suffix.lower() not in (".mp4", ".mov", ".m4v", ".mkv", ".gif"):
            path = path.with_name(f"{path.name}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        paths.append(path)
    return paths
