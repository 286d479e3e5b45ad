"""Nets as graphs that run without the zoo: torch.export programs, ONNX files.

A graph has one size. It takes frames that fit (1 + k * time of them, height and width multiples of
the compression), so nothing is padded or cropped in it, and a diffusion decoder's noise goes in, so
nothing is drawn in it. A stream is two graphs each way: the first frame or latent alone, then
`chunk` latents at a time. Its state, a dictionary in `zoo.streaming`, is a row of tensors here:
outputs `next_state_0`, ... of one call are inputs `state_0`, ... of the next.

A UNet is two graphs, TiUE's halves: features of one pass of `encode` go into `decode`, which serves
many time steps at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.nets.tiue.unet import EncoderFeatures, TiUEUNet, text_width
from zoo.nets.tokenizer import Size, Tokenizer
from zoo.streaming import Carry, State

FORMATS = {"onnx": "onnx", "torch": "pt2"}
"""What a graph can be written as, and how such files end."""

TABLE = "graphs.json"


@dataclass(frozen=True)
class Graph:
    """One function of a net, at one size.

    Attributes:
        name: encode, decode, or encode_first, encode_next, decode_first, decode_next of a stream.
        module: takes the inputs by place, returns a tuple of the outputs.
        inputs: example values by name.
        outputs: names, in order. Of a tokenizer: `mean` and, if the posterior has one, `logvar`; or
            `pixels`; then the next state. Of a UNet: `mid`, `skip_0`, ...; or `prediction`.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """What `write` says of one file: shapes by name, and the largest difference from the net.

    Attributes:
        error: of outputs on other random inputs, as a share of the largest output; None where the
            runtime isn't installed.
    """

    file: str
    inputs: dict[str, list[int]]
    outputs: tuple[str, ...]
    error: float | None = None


class _Call(nn.Module):
    """Encode or decode with what a stream carries as plain tensors."""

    def __init__(
        self, net: Tokenizer, *, encodes: bool, steps: int, noisy: bool, before: State | None
    ) -> None:
        super().__init__()
        self.net, self.encodes, self.steps, self.noisy = net, encodes, steps, noisy
        self.streams = before is not None
        self.shapes = {} if before is None else {k: v.shape for k, v in before.items()}

    def forward(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        noise, memory = (rest[:1], rest[1:]) if self.noisy else ((), rest)
        carry = Carry(self._state(x, memory)) if self.streams else None
        if self.encodes:
            posterior = self.net._encode(x, carry)
            out = (posterior.mean, *(() if posterior.logvar is None else (posterior.logvar,)))
        else:
            out = (self.net._decode(x, carry, steps=self.steps, noise=lambda *_: noise[0]),)
        return (*out, *(() if carry is None else kept(carry.state).values()))

    def _state(self, x: Tensor, memory: Sequence[Tensor]) -> State:
        """The state's dictionary; its empty tensors, which only mark that a stream has begun, are
        made here: runtimes dislike inputs without elements."""
        given = iter(memory)
        return {k: next(given) if s.numel() else x.new_empty(s) for k, s in self.shapes.items()}


def kept(state: State) -> State:
    """The tensors of a state that have elements, by name."""
    return {k: state[k] for k in sorted(state) if state[k].numel()}


def graphs(
    net: Tokenizer, *, size: Size, batch: int = 1, steps: int = 1, chunk: int | None = None
) -> list[Graph]:
    """The graphs of a tokenizer.

    Args:
        net: in eval mode.
        size: frames, height, width of a clip; a stream has height and width alone of it.
        batch: clips.
        steps: sampling steps of a diffusion decoder.
        chunk: latents of a stream's step; None: the whole clip in one call.

    Raises:
        UserError: a size that doesn't fit, a net that can't stream, numbers below 1.
    """
    _check(net, size, batch, steps, chunk)
    time, height, width = net.compression
    frames, latents = size[0], 1 + (size[0] - 1) // time
    plane, codes = size[1:], (size[1] // height, size[2] // width)
    like = next(iter(net.parameters()), net.latent_mean)

    def pixels(count: int) -> Tensor:
        return torch.rand(batch, 3, count, *plane).to(like) * 2 - 1

    def noise(count: int) -> Tensor:
        return torch.randn(batch, net.latent_channels, count, *codes).to(like)

    if chunk is None:
        return [
            _graph(net, "encode", pixels(frames), None, steps)[0],
            _graph(net, "decode", noise(latents), None, steps)[0],
        ]
    found = []
    for way, first, following in (
        ("encode", pixels(1), pixels(chunk * time)),
        ("decode", noise(1), noise(chunk)),
    ):
        graph, state = _graph(net, f"{way}_first", first, {}, steps)
        found += [graph, _graph(net, f"{way}_next", following, state, steps)[0]]
    return found


@torch.no_grad()
def _graph(
    net: Tokenizer, name: str, x: Tensor, before: State | None, steps: int
) -> tuple[Graph, State]:
    """A graph, and the state after its call."""
    drawn: list[Tensor] = []

    def draw(like: Tensor, frames: int) -> Tensor:
        drawn.append(torch.randn(*like.shape[:2], frames, *like.shape[3:]).to(like))
        return drawn[-1]

    carry = None if before is None else Carry(before)
    encodes = name.startswith("encode")
    if encodes:
        heads = ("mean",) if net._encode(x, carry).logvar is None else ("mean", "logvar")
    else:
        net._decode(x, carry, steps=steps, noise=draw)
        heads = ("pixels",)
    assert len(drawn) < 2, "a decoder draws its noise in one call"
    inputs = {"pixels" if encodes else "latents": x, **({"noise": drawn[0]} if drawn else {})}
    inputs |= {f"state_{i}": v for i, v in enumerate(kept(before or {}).values())}
    after = {} if carry is None else {k: carry.state[k] for k in sorted(carry.state)}
    outputs = (*heads, *(f"next_state_{i}" for i in range(len(kept(after)))))
    module = _Call(net, encodes=encodes, steps=steps, noisy=bool(drawn), before=before)
    return Graph(name, module.eval(), inputs, outputs), after


def _check(net: Tokenizer, size: Size, batch: int, steps: int, chunk: int | None) -> None:
    time, height, width = net.compression
    frames = size[0] if chunk is None else 1
    fits = (frames - 1) % time == 0 and size[1] % height == 0 and size[2] % width == 0
    if min(size) < 1 or not fits:
        near = (
            1 + max(0, round((size[0] - 1) / time)) * time,
            *(max(1, round(n / k)) * k for n, k in zip(size[1:], (height, width), strict=True)),
        )
        raise UserError(
            f"size {'x'.join(map(str, size))}: a graph takes 1 + k * {time} frames of multiples of "
            f"{height}x{width}, such as {'x'.join(map(str, near))}"
        )
    if chunk is not None and not net.streams:
        raise UserError(f"this {type(net).__name__} can't stream: export it for whole clips")
    if min(batch, steps, 1 if chunk is None else chunk) < 1:
        raise UserError(f"batch = {batch}, steps = {steps}, chunk = {chunk}: give at least 1")


class _Half(nn.Module):
    """The first half of a UNet (steps = 0), or the second at `steps` time steps at once."""

    def __init__(self, net: TiUEUNet, steps: int) -> None:
        super().__init__()
        self.net, self.steps = net, steps

    def forward(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        if not self.steps:
            made = self.net.encode(x, *rest)
            return made.mid, *made.skips
        *skips, times, text = rest
        features = EncoderFeatures(x, tuple(skips)).repeat(self.steps)
        return (self.net.decode(features, times, text.repeat(self.steps, 1, 1)),)


@torch.no_grad()
def unet_graphs(
    net: TiUEUNet, *, size: tuple[int, int], batch: int = 1, steps: int = 4, tokens: int = 77
) -> list[Graph]:
    """The two halves of a UNet: one pass of `encode` feeds `steps` of `decode`.

    Args:
        net: in eval mode.
        size: height and width of a latent.
        batch: pictures.
        steps: time steps of a call of `decode`, whose output is [steps * batch,c,h,w].
        tokens: of a prompt.

    Raises:
        UserError: numbers below 1.
    """
    if min(batch, steps, tokens, *size) < 1:
        raise UserError(
            f"size {size[0]}x{size[1]}, batch = {batch}, steps = {steps}, tokens = {tokens}: "
            "give at least 1"
        )
    config: Any = net.config
    like = next(net.parameters())
    x = torch.randn(batch, config.in_channels, *size).to(like)
    text = torch.randn(batch, tokens, text_width(net)).to(like)
    times = torch.linspace(999, 1, steps).repeat_interleave(batch).long()
    encode = _Half(net, 0).eval()
    features = encode(x, times[:batch], text)
    names = ("mid", *(f"skip_{i}" for i in range(len(features) - 1)))
    given = {"sample": x, "timesteps": times[:batch], "text": text}
    later = {**dict(zip(names, features, strict=True)), "timesteps": times, "text": text}
    return [
        Graph("encode", encode, given, names),
        Graph("decode", _Half(net, steps).eval(), later, ("prediction",)),
    ]


@torch.no_grad()
def program(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as torch.export has it."""
    return torch.export.export(graph.module, tuple(graph.inputs.values()))


def write(
    every: Sequence[Graph],
    folder: str | Path,
    *,
    facts: Mapping[str, Any] | None = None,
    format: str = "onnx",
) -> list[Row]:
    """Write graphs and graphs.json to a new folder, which appears whole or not at all.

    Each file is run beside the net on other inputs, ONNX where onnxruntime is installed.

    Args:
        every: of `graphs` or `unet_graphs`.
        folder: must not exist.
        facts: said in graphs.json beside inputs and outputs.
        format: "onnx" (needs onnxscript) or "torch" (torch.export.load opens it).

    Raises:
        UserError: a folder that exists, an unknown format, a missing package.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format '{format}': give one of {', '.join(FORMATS)}")
    if format == "onnx" and find_spec("onnxscript") is None:
        raise UserError("ONNX files need onnxscript: pip install 'generative-vision-zoo[onnx]'")
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists: give another folder, or remove it")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        rows = [_write(graph, part, format) for graph in every]
        table = {**(facts or {}), "graphs": [asdict(row) for row in rows]}
        (part / TABLE).write_text(json.dumps(table, indent=2) + "\n")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return rows


def facts_of(net: Tokenizer) -> dict[str, Any]:
    """What a program that runs a tokenizer's graphs must know of it."""
    return {
        "net": net.architecture,
        "compression": net.compression,
        "latent_mean": net.latent_mean.tolist(),
        "latent_std": net.latent_std.tolist(),
    }


def _write(graph: Graph, folder: Path, format: str) -> Row:
    made = program(graph)
    file = f"{graph.name}.{FORMATS[format]}"
    shapes = {name: list(value.shape) for name, value in graph.inputs.items()}
    row = Row(file, shapes, graph.outputs)
    # other values than those it was traced with: a constant in place of an input would show
    fresh = [
        value.roll(1, -1) * 0.7 if value.is_floating_point() else (value // 2)
        for value in graph.inputs.values()
    ]
    if format == "torch":
        torch.export.save(made, folder / file)
        given = torch.export.load(folder / file).module()(*fresh)
        return replace(row, error=_error(graph, fresh, given))
    torch.onnx.export(
        made,
        tuple(graph.inputs.values()),
        folder / file,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamo=True,
        verbose=False,
    )
    if find_spec("onnxruntime") is None:
        return row
    return replace(row, error=_error(graph, fresh, run_onnx(folder / file, fresh)))


def run_onnx(file: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    """A file's outputs by onnxruntime on the CPU."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, given)]


@torch.no_grad()
def _error(graph: Graph, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    wanted = graph.module(*inputs)
    assert len(wanted) == len(outputs) == len(graph.outputs)
    return max(
        float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
        for a, b in zip(wanted, outputs, strict=True)
    )
