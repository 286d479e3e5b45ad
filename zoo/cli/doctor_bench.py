"""Times kernels side by side: interleaved repetitions, medians, milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.cli.doctor_calls import Shape
from zoo.kernels import norm
from zoo.kernels.attention import BACKENDS, attention, choose, why_not
from zoo.kernels.conv3d import causal_conv3d
from zoo.kernels.linear_attention import BACKENDS as LINEAR_BACKENDS
from zoo.kernels.linear_attention import linear_attention, reference
from zoo.kernels.linear_attention import why_not as why_not_linear
from zoo.kernels.providers import Call
from zoo.nets.blocks3d import FrameAttention

# the shapes of the targets: 5 frames of 64x64 on a CPU; on a GPU 4 clips of 17 frames of 256x256,
# and 64x64 tokens at the widths of CDT's coarse levels
GATES = {
    "cpu": [(5, 4096, 64), (5, 4096, 384)],
    "cuda": [(68, 65536, 64), (68, 4096, 192), (68, 4096, 384)],
}
_CPU_ELEMENTS = 2**23  # of one tensor: larger real calls are timed on fewer frames

Row = dict[str, Any]
Run = Callable[[], object]


def medians(runs: Mapping[str, Run], *, seconds: float = 0.7) -> dict[str, float]:
    """Median milliseconds of each, one after the other in turn, so that noise meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    begin = time.perf_counter()
    while len(next(iter(times.values()))) < 3 or time.perf_counter() - begin < seconds:
        for name, run in runs.items():
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _row(what: str, dtype: torch.dtype, times: dict[str, float], chosen: str) -> Row:
    return {"what": what, "dtype": str(dtype).removeprefix("torch."), "ms": times, "auto": chosen}


def bench(
    shapes: Iterable[Shape], device: torch.device, dtypes: list[torch.dtype]
) -> list[tuple[str, list[Row]]]:
    """All tables: (title, rows)."""
    heaviest = _heaviest(shapes)
    real = [s for s in heaviest if s.kind == "attention"]
    gates = [Shape("linear_attention", b, 1, n, n, d, d) for b, n, d in GATES[device.type]]
    lines = [*gates, *(s for s in heaviest if s.kind == "linear_attention")]
    layer = "attention layer of CDT: norm, projections, linear attention, skip"
    return [
        ("attention", [_attention(s, device, dtype) for s in real for dtype in dtypes]),
        ("linear attention", [_linear(s, device, dtype) for s in lines for dtype in dtypes]),
        (layer, [_layer(g, device, dtype) for g in GATES[device.type] for dtype in dtypes]),
        ("channel norm and ReLU", [_norm(device, dtype) for dtype in dtypes]),
        ("causal convolution, channels last", [_conv(device, dtype) for dtype in dtypes]),
    ]


def _heaviest(shapes: Iterable[Shape]) -> list[Shape]:
    """Of the calls that differ in size alone (width and kind are the same), the largest."""
    largest: dict[tuple[object, ...], Shape] = {}
    for shape in shapes:
        key = (shape.kind, shape.width, shape.columns, shape.tokens == shape.keys)
        known = largest.setdefault(key, shape)
        if _size(shape) > _size(known):
            largest[key] = shape
    return sorted(largest.values())


def _size(shape: Shape) -> int:
    return shape.batch * shape.heads * shape.tokens * shape.keys


def _attention(shape: Shape, device: torch.device, dtype: torch.dtype) -> Row:
    q = torch.randn(shape.batch, shape.heads, shape.tokens, shape.width).to(device, dtype)
    k = torch.randn(shape.batch, shape.heads, shape.keys, shape.width).to(device, dtype)
    call = Call(q, k, k)
    # flex is compiled anew for each shape: on a CPU that takes longer than all the rest
    skipped = ("auto", "flex") if device.type == "cpu" else ("auto",)
    serving = [b for b in BACKENDS if b not in skipped and not why_not(b, call)]
    runs = {b: partial(attention, q, k, k, backend=b) for b in serving}
    with torch.no_grad():
        return _row(str(shape), dtype, medians(runs), choose(call))


def _linear(shape: Shape, device: torch.device, dtype: torch.dtype) -> Row:
    groups, width, columns = shape.batch, shape.width, shape.columns
    if device.type == "cpu":
        groups = max(1, min(groups, _CPU_ELEMENTS // (shape.tokens * width)))
    # side by side, as a projection leaves them
    qkv = torch.randn(groups, 1, shape.tokens, 2 * width + columns).to(device, dtype)
    q, k, v = torch.split(qkv, [width, width, columns], dim=-1)
    serving = [b for b in LINEAR_BACKENDS if not why_not_linear(b, q, k, v)]
    runs: dict[str, Run] = {b: partial(linear_attention, q, k, v, backend=b) for b in serving}
    if dtype.itemsize < 4:
        runs["without float32 sums"] = partial(_narrow, q, k, v)
    if device.type == "cuda":
        runs["reference compiled"] = partial(torch.compile(reference), q, k, v)
    with torch.no_grad():
        times = medians(runs)
        if device.type == "cuda":
            moved = (2 * q.numel() + 2 * v.numel()) * dtype.itemsize
            times["bandwidth floor"] = 1e3 * moved / _bandwidth(device)
    return _row(f"{groups}x1x{shape.tokens}x{width}", dtype, times, serving[0])


def _narrow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula without float32 sums, as it is often written."""
    summary = k.softmax(dim=-2).transpose(-2, -1) @ v
    out: Tensor = (q.softmax(dim=-1) * q.shape[-1] ** -0.5) @ summary
    return out


def _bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    x = torch.empty(2**28, device=device, dtype=torch.uint8)
    return 2 * x.numel() / (medians({"copy": x.clone}, seconds=0.2)["copy"] / 1e3)


def plain_layer(block: FrameAttention, x: Tensor) -> Tensor:
    """What FrameAttention computes, written out step by step with the reference attention."""
    batch, channels, frames, height, width = x.shape
    centred = x - x.mean(dim=1, keepdim=True)
    unit = centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + block.norm.eps)
    shape = (-1, 1, 1, 1)
    normed = unit * block.norm.weight.view(shape) + block.norm.bias.view(shape)
    qkv = F.conv3d(normed, block.to_qkv.weight)
    q, k, v = (
        part.permute(0, 2, 3, 4, 1).reshape(batch, frames, height * width, channels)
        for part in qkv.chunk(3, dim=1)
    )
    out = reference(q, k, v).unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)  # type: ignore[no-untyped-call]
    y: Tensor = x + F.conv3d(out, block.to_out.weight, block.to_out.bias)
    return y


def _layer(gate: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> Row:
    frames, tokens, channels = gate
    side = int(tokens**0.5)
    block = FrameAttention(channels).to(device, dtype)
    x = torch.randn(1, channels, frames, side, side).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d)

    def train(run: Callable[[Tensor], Tensor]) -> None:
        run(x.detach().requires_grad_()).sum().backward()  # type: ignore[no-untyped-call]

    written_out = partial(plain_layer, block)
    with torch.no_grad():
        times = medians({"ours": partial(block, x), "written out": partial(written_out, x)})
    times |= medians(
        {
            "ours, training": partial(train, block),
            "written out, training": partial(train, written_out),
        }
    )
    return _row(f"{frames}x{side}x{side}, {channels} channels", dtype, times, "ours")


def _norm(device: torch.device, dtype: torch.dtype) -> Row:
    x = torch.randn(1, 64, 17, 128, 128).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.ones(64, device=device, dtype=dtype)
    serving = [b for b in norm.BACKENDS if not norm.why_not(b, x)]
    runs = {b: partial(norm.channel_norm, x, weight, weight, relu=True, backend=b) for b in serving}
    with torch.no_grad():
        return _row("1x64x17x128x128", dtype, medians(runs), serving[0])


def _conv(device: torch.device, dtype: torch.dtype) -> Row:
    layout = torch.channels_last_3d
    x = torch.randn(1, 64, 17, 64, 64).to(device, dtype).contiguous(memory_format=layout)
    weight = torch.randn(64, 64, 3, 3, 3).to(device, dtype).contiguous(memory_format=layout)

    def two_copies() -> Tensor:
        front = torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1), x], dim=2)
        return F.conv3d(F.pad(front, (1, 1, 1, 1, 0, 0), mode="replicate"), weight)

    runs = {
        "ours": lambda: causal_conv3d(x, weight, edge="replicate"),
        "padded in time, then in space": two_copies,
    }
    with torch.no_grad():
        return _row("1x64x17x64x64, 3x3x3, replicate", dtype, medians(runs), "ours")
