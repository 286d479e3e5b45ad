"""The Triton kernels compile to machine code for an H100 (sm_90): no GPU is needed for that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
FLOAT = "*fp32"


def cubin(kernel: Any, pointers: dict[str, str], options: dict[str, Any]) -> bytes:
    """Compile with all other arguments int32 (eps: fp32), for compute capability 9.0."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = dict(options)
    warps = options.pop("num_warps")
    signature = {
        name: "constexpr"
        if name in options
        else pointers.get(name, "fp32" if name == "eps" else "i32")
        for name in kernel.arg_names
    }
    constants = {(kernel.arg_names.index(name),): value for name, value in options.items()}
    source = ASTSource(kernel, signature, constants)
    built = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}
    )  # fmt: skip
    result: bytes = built.asm["cubin"]
    # an H100 gives a block at most 227 KiB of shared memory
    assert built.metadata.shared <= 227 * 1024
    return result


@pytest.mark.parametrize(
    ("width", "dtype"), [(64, torch.float32), (384, torch.bfloat16), (192, torch.float16)]
)
def test_linear_attention(width: int, dtype: torch.dtype) -> None:
    from zoo.kernels import linear_attention_triton as kernels

    tile = kernels.block_sizes(dtype, width, width)
    x = TYPES[dtype]
    tokens = {"X": x, "Y": x, "STAT": FLOAT, "OUT": FLOAT, "PEAK": FLOAT, "TOTAL": FLOAT}
    channels = {"X": x, "M": FLOAT, "STAT": FLOAT, "OUT": x, "LOG_TOTAL": FLOAT}
    logits = {"X": x, "Y": x, "M": FLOAT, "STAT": FLOAT, "MEAN": FLOAT, "RESULT": x, "OUT": x}
    for mode in (True, False):
        assert cubin(kernels._over_tokens, tokens, {"ONLINE": mode, **tile})
        assert cubin(kernels._over_channels, channels, {"ONLINE": mode, **tile})
        assert cubin(kernels._to_logits, logits, {"KEYS": mode, **tile})


@pytest.mark.parametrize(("width", "dtype"), [(64, torch.float32), (384, torch.bfloat16)])
def test_norm(width: int, dtype: torch.dtype) -> None:
    from zoo.kernels import norm_triton as kernels

    tile = kernels.block_sizes(width)
    x = TYPES[dtype]
    parameters = {"WEIGHT": FLOAT, "BIAS": FLOAT, "MEAN": FLOAT, "RSTD": FLOAT, "X": x}
    assert cubin(kernels._forward, {**parameters, "OUT": x}, {"RELU": True, **tile})
    backward = {**parameters, "GRAD": x, "DX": x, "DWEIGHT": FLOAT, "DBIAS": FLOAT}
    assert cubin(kernels._backward, backward, {"RELU": True, "STEPS": 8, **tile})


def test_operators_open_up_to_the_compiler(caplog: pytest.LogCaptureFixture) -> None:
    """Traced for CUDA on fake tensors, they are Triton launches and torch operators, not boxes."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    from zoo.kernels.linear_attention_triton import _read as read
    from zoo.kernels.linear_attention_triton import _read_backward, _summarize_backward, summarize
    from zoo.kernels.norm_triton import norm_last

    def both_ways(q: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        with FunctionalTensorMode():
            q, weight = (FunctionalTensor.to_functional(x) for x in (q, weight))
            summary, total = summarize(q, q)
            out, stat = read(q, summary)
            more = _summarize_backward(summary, q, q, summary, total)
            more += _read_backward(out, q, summary, out, stat)
            normed = norm_last(q.flatten(0, 1), weight, weight, 1e-5, relu=True)
            results = [*more, out, normed]
            return [torch._from_functional_tensor(x.elem) for x in results]

    with FakeTensorMode(), caplog.at_level("CRITICAL"):
        q = torch.empty(2, 3000, 64, device="cuda", dtype=torch.bfloat16)
        graph = make_fx(both_ways)(q, torch.empty(64, device="cuda")).graph
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert sum("triton_kernel_wrapper" in name for name in names) == 7
    assert not any(name.startswith("zoo") for name in names)
