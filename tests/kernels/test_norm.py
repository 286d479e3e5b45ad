"""Channel norm against the float64 formula, values and gradients; Triton on the interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.interpreted import NORM, norm, run_interpreted
from zoo.errors import UserError
from zoo.kernels.norm import channel_norm, reference

TOLERANCE = {"float32": 5e-6, "bfloat16": 2e-2}


def test_the_reference_is_torchs_layer_norm() -> None:
    x = torch.randn(2, 5, 3, 4, 6, dtype=torch.float64)
    weight, bias = torch.randn(2, 5, dtype=torch.float64)
    wanted = torch.nn.functional.layer_norm(x.movedim(1, -1), (5,), weight, bias).movedim(-1, 1)
    torch.testing.assert_close(reference(x, weight, bias), wanted)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", list(NORM))
def test_values_and_gradients(case: str, backend: str) -> None:
    assert max(norm(case, backend=backend)) < TOLERANCE[NORM[case][3]]


def test_memory_format_is_kept_and_relu_frees_nothing_needed() -> None:
    x = torch.randn(2, 8, 3, 4, 6).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = torch.ones(8), torch.zeros(8)
    before = x.clone()
    out = channel_norm(x, weight, bias, relu=True)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(x, before)
    assert torch.equal(out, channel_norm(x, weight, bias).relu())


def test_what_it_refuses() -> None:
    x = torch.zeros(1, 4, 3)
    with pytest.raises(UserError, match=r"\(1, 4, 3\), weight \(5,\)"):
        channel_norm(x, torch.ones(5), torch.zeros(5))
    with pytest.raises(UserError, match="'cuda': triton, torch, reference"):
        channel_norm(x, torch.ones(4), torch.zeros(4), backend="cuda")
    with pytest.raises(UserError, match="can't serve this call: its statistics are float32"):
        channel_norm(x.double(), torch.ones(4), torch.zeros(4), backend="triton")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[float]]:
    return run_interpreted(NORM)


@pytest.mark.parametrize("case", list(NORM))
def test_triton_on_the_interpreter(case: str, interpreted: dict[str, list[float]]) -> None:
    assert max(interpreted[case]) < TOLERANCE[NORM[case][3]], interpreted[case]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", list(NORM))
def test_triton_on_a_gpu(case: str) -> None:
    assert max(norm(case, backend="triton", device="cuda")) < TOLERANCE[NORM[case][3]]
