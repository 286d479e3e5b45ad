"""Runs in a process of its own with TRITON_INTERPRET=1: Triton kernels on a CPU, slowly.

Each case compares values and gradients with the float64 reference; the worst relative errors go
to the standard output as JSON, one line a case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from zoo.kernels import norm as norms
from zoo.kernels.linear_attention import linear_attention, reference

ROOT = Path(__file__).parents[2]


def run_interpreted(cases: Iterable[str]) -> dict[str, list[float]]:
    """The worst errors of each case, from a process whose Triton interprets."""
    pytest.importorskip("triton", reason="triton is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted", *cases],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return {k: v for line in done.stdout.splitlines() for k, v in json.loads(line).items()}


# B, H, N, D, E, dtype, kind
LINEAR: dict[str, tuple[int, int, int, int, int, str, str]] = {
    "one token": (1, 1, 1, 64, 64, "float32", "normal"),
    "odd": (2, 3, 37, 5, 7, "float32", "normal"),
    "off the block": (1, 2, 65, 64, 64, "float32", "normal"),
    "not a power of two": (1, 1, 70, 192, 192, "float32", "normal"),
    "wide": (1, 1, 66, 384, 384, "bfloat16", "normal"),
    "split": (1, 1, 2100, 16, 16, "float32", "normal"),
    "large": (1, 1, 100, 16, 16, "float32", "large"),
    "equal keys": (1, 1, 100, 16, 16, "float32", "equal"),
    "some -inf": (1, 1, 100, 16, 16, "float32", "masked"),
    "bfloat16": (1, 2, 100, 64, 64, "bfloat16", "normal"),
    "float16": (1, 2, 100, 64, 64, "float16", "normal"),
}

# B, C, positions, dtype, ReLU
NORM: dict[str, tuple[int, int, int, str, bool]] = {
    "norm": (2, 64, 33, "float32", False),
    "norm and relu": (2, 64, 33, "float32", True),
    "one position": (1, 5, 1, "float32", True),
    "three channels": (3, 3, 20, "float32", True),
    "wide norm": (1, 384, 100, "bfloat16", True),
    "many rows": (1, 24, 1500, "float32", True),
}


def _inputs(case: str) -> list[Tensor]:
    b, h, n, d, e, dtype, kind = LINEAR[case]
    draw = torch.Generator().manual_seed(0)
    # channels of q, k, v side by side, as a net's projection leaves them: not contiguous
    qkv = torch.randn(b, h, n, 2 * d + e, generator=draw).to(getattr(torch, dtype))
    q, k, v = qkv.split([d, d, e], dim=-1)
    if kind == "large":
        q, k = q * 1e4, k * 1e4
    if kind == "equal":
        k = torch.full_like(k, 3.0)
    if kind == "masked":
        k = k.clone()
        k[:, :, :70] = -torch.inf
    return [x.detach().requires_grad_() for x in (q, k, v)]


def errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Largest differences relative to the largest wanted value (some gradients are zero: then
    to a tenth of the largest of all)."""
    floor = max(b.abs().max().item() for b in wanted) / 10
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp_min(floor)).item()
        for a, b in zip(found, wanted, strict=True)
    ]


def linear(case: str) -> list[float]:
    """Errors of the output and the gradients of q, k, v, project."""
    leaves = _inputs(case)
    draw = torch.Generator().manual_seed(1)
    columns = leaves[2].shape[-1]
    leaves.append(torch.randn(columns, columns, generator=draw).requires_grad_())
    q, k, v, project = leaves
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out = linear_attention(q, k, v, project=project, backend="triton")
    wanted = reference(*exact[:3], project=exact[3])
    grad = torch.randn(out.shape, generator=draw)
    gradients = torch.autograd.grad(out, leaves, grad.to(out.dtype))
    exact_gradients = torch.autograd.grad(wanted, exact, grad.to(out.dtype).double())
    return errors([out, *gradients], [wanted, *exact_gradients])


def norm(case: str, *, backend: str, device: str = "cpu") -> list[float]:
    """Errors of the output and the gradients of x, weight, bias."""
    batch, channels, positions, name, relu = NORM[case]
    dtype = getattr(torch, name)
    draw = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(batch, positions, channels, generator=draw) + 2).to(device, dtype)
    weight, bias, grad = (
        torch.randn(shape, generator=draw).to(device, dtype)
        for shape in ((channels,), (channels,), (batch, channels, positions))
    )
    leaves = [t.detach().requires_grad_() for t in (x.movedim(-1, 1), weight, bias)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    out = norms.channel_norm(*leaves, relu=relu, backend=backend)
    wanted = norms.reference(*exact, relu=relu)
    gradients = torch.autograd.grad(out, leaves, grad)
    exact_gradients = torch.autograd.grad(wanted, exact, grad.double())
    return errors([out, *gradients], [wanted, *exact_gradients])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        found = linear(name) if name in LINEAR else norm(name, backend="triton")
        sys.stdout.write(json.dumps({name: found}) + "\n")
        sys.stdout.flush()
