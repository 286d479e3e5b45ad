"""`zoo doctor`: what this machine can run, which kernel serves which call, and why."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import zoo
from zoo.cli import Parser, say
from zoo.cli.doctor_calls import Shape, calls_of
from zoo.errors import UserError
from zoo.kernels import norm
from zoo.kernels.attention import BACKENDS, OVERRIDE, resolve, why_not
from zoo.kernels.linear_attention import BACKENDS as LINEAR_BACKENDS
from zoo.kernels.linear_attention import why_not as why_not_linear
from zoo.kernels.precision import bfloat16_of_cpu
from zoo.kernels.providers import Call, why_no_xformers

_LIBRARIES = ("triton", "xformers", "mslk-cuda", "diffusers", "transformers", "lightning")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_EPILOG = """examples:
  zoo doctor                        versions, kernels, what "auto" takes for each net's calls
  zoo doctor --bench                times the kernels side by side (a minute or more)
  zoo doctor --json                 the same as one JSON document
  ZOO_ATTENTION=math zoo doctor     what an override does
"""


def main(arguments: Sequence[str]) -> int:
    """Examine the machine."""
    parser = Parser(
        prog="zoo doctor",
        description="Versions, devices and kernels: what serves, what refuses, and why.",
        epilog=_EPILOG,
    )
    parser.add_argument("--bench", action="store_true", help="time the kernels side by side")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument(
        "--dtype", choices=list(_DTYPES), help="of the calls; default: bfloat16 on CUDA, or float32"
    )
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="default: every model but foreign ones"
    )
    options = parser.parse_args(arguments)
    device = _device(options.device)
    dtype = _DTYPES[options.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    own = [n for n in zoo.list_models() if zoo.info(n).family != "foreign"]
    calls = {name: calls_of(name) for name in options.models or own}
    report: dict[str, Any] = {
        "machine": machine(device),
        "kernels": kernels(device, dtype),
        "calls": [
            {
                "model": name,
                "kernel": shape.kind,
                "shape": str(shape),
                "times": count,
                "auto": taken(shape, device, dtype),
            }
            for name, counts in calls.items()
            for shape, count in counts.items()
        ],
        "dtype": str(dtype).removeprefix("torch."),
    }
    if options.bench:
        from zoo.cli.doctor_bench import bench

        shapes = sum(calls.values(), Counter[Shape]())
        dtypes = [_DTYPES[options.dtype]] if options.dtype else [torch.float32, torch.bfloat16]
        tables = bench(shapes, device, dtypes)
        report["bench"] = [{"title": title, "rows": rows} for title, rows in tables]
    if options.json:
        say(json.dumps(report, indent=2))
    else:
        show(report)
    return 0


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"no device '{name}' here: give cpu" + " or cuda" * (name != "cuda"))
    return torch.device(name)


BFLOAT16 = {
    "tiles": "fast in bfloat16 (AMX), 3D convolutions learn in float32",
    "vectors": "fast in bfloat16",
    "slow": "slow in bfloat16",
}


def machine(device: torch.device) -> dict[str, str]:
    """Versions and hardware, in words."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, "
        + BFLOAT16[bfloat16_of_cpu()],
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        free, total = torch.cuda.mem_get_info(device)
        found["compute capability"] = f"{major}.{minor}"
        found["memory"] = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if found["xformers"] != "not installed" and (reason := why_no_xformers()):
        found["xformers"] += f" ({reason})"
    found[OVERRIDE] = os.environ.get(OVERRIDE) or "not set"
    return found


def kernels(device: torch.device, dtype: torch.dtype) -> list[dict[str, str]]:
    """Each kernel and backend with its verdict: serves, refuses because, probe failed with."""
    rows = []
    x = torch.zeros(1, 2, 64, 64, device=device, dtype=dtype)
    wide = torch.zeros(1, 1, 64, 512, device=device, dtype=dtype)
    for title, q in (("attention", x), ("attention, one head of 512", wide)):
        for name in BACKENDS[1:]:
            rows.append((title, name, why_not(name, Call(q, q, q))))
    rows += [("linear_attention", b, why_not_linear(b, x, x, x)) for b in LINEAR_BACKENDS]
    rows += [("channel_norm", b, norm.why_not(b, x)) for b in norm.BACKENDS]
    return [
        {"kernel": kernel, "backend": name, "verdict": _verdict(reason)}
        for kernel, name, reason in rows
    ]


def _verdict(reason: str | None) -> str:
    if reason is None:
        return "serves"
    return reason if reason.startswith("its probe") else f"refuses: {reason}"


def taken(shape: Shape, device: torch.device, dtype: torch.dtype) -> str:
    """What "auto" takes for a call, with its override; a refusal is the answer too."""
    sizes = [
        (shape.batch, shape.heads, shape.tokens, shape.width),
        (shape.batch, shape.heads, shape.keys, shape.width),
    ]
    q, k = (torch.empty(size, device=device, dtype=dtype) for size in sizes)
    if shape.kind == "linear_attention":
        return next(b for b in LINEAR_BACKENDS if why_not_linear(b, q, k, k) is None)
    try:
        return resolve(Call(q, k, k))
    except UserError as error:
        return f"refused: {error}"


def show(report: dict[str, Any]) -> None:
    """Print the report as tables."""
    console = Console()
    table = Table("what", "found", title="this machine")
    for name, found in report["machine"].items():
        table.add_row(name, escape(found))
    console.print(table)
    table = Table("kernel", "backend", "verdict", title=f"kernels ({report['dtype']})")
    last = ""
    for row in report["kernels"]:
        same, last = row["kernel"] == last, row["kernel"]
        table.add_row("" if same else row["kernel"], row["backend"], escape(row["verdict"]))
    console.print(table)
    table = Table("model", "kernel", "q", "times", "auto takes", title="calls of the zoo's nets")
    for row in report["calls"]:
        table.add_row(
            row["model"], row["kernel"], row["shape"], str(row["times"]), escape(row["auto"])
        )
    console.print(table)
    for section in report.get("bench", ()):
        table = Table("call", "dtype", "milliseconds, fastest first", title=section["title"])
        for row in section["rows"]:
            order = sorted(row["ms"].items(), key=lambda item: item[1])
            cells = ", ".join(
                f"[bold]{name} {ms:.4g}[/]" if name == row["auto"] else f"{name} {ms:.4g}"
                for name, ms in order
            )
            table.add_row(row["what"], row["dtype"], cells)
        console.print(table)
    if "bench" in report:
        console.print("Bold: what auto takes.")
