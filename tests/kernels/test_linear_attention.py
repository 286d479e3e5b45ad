"""Linear attention: every backend against the float64 formula, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreted import LINEAR, errors, run_interpreted
from zoo.errors import UserError
from zoo.kernels.linear_attention import linear_attention, reference

# the error of the last operation's rounding, with room for what the steps before it add
TOLERANCE = {"float32": 5e-6, "bfloat16": 2e-2, "float16": 3e-3}


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def test_the_reference_is_the_published_formula() -> None:
    """Written out with loops: every query reads a mean of values weighted by keys."""
    q, k, v = (draw(1, 1, 3, 2, seed=s) for s in range(3))
    out = torch.zeros(3, 2, dtype=torch.float64)
    for n in range(3):
        for d in range(2):
            channel = q[0, 0, n, d].exp() / q[0, 0, n].exp().sum() / 2**0.5
            for m in range(3):
                token = k[0, 0, m, d].exp() / k[0, 0, :, d].exp().sum()
                out[n] += channel * token * v[0, 0, m]
    torch.testing.assert_close(reference(q, k, v)[0, 0], out)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 64), (2, 3, 37, 5), (1, 2, 3000, 192), (40, 1, 9, 384)],
    ids=["one-token", "odd", "many-steps", "many-groups"],
)
def test_blocks(shape: tuple[int, ...], dtype: str) -> None:
    half = getattr(torch, dtype)
    leaves = [draw(*shape, dtype=half, seed=s).requires_grad_() for s in range(3)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out, wanted = linear_attention(*leaves, backend="blocks"), reference(*exact)
    assert out.dtype == half
    grad = draw(*shape, dtype=half, seed=3)
    found = torch.autograd.grad(out, leaves, grad)
    gradients = torch.autograd.grad(wanted, exact, grad.double())
    assert max(errors([out, *found], [wanted, *gradients])) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["large", "equal keys", "strided", "bfloat16 without hardware"])
def test_blocks_on_hard_input(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (draw(2, 2, 100, 12, dtype=torch.float32, seed=s) for s in range(3))
    limit = 5e-6
    if kind == "large":
        q, k = q * 1e4, k * 1e4
    if kind == "equal keys":
        k = torch.full_like(k, 3.0)
    if kind == "strided":
        q, k, v = torch.cat([q, k, v], dim=-1).transpose(1, 2).contiguous().transpose(1, 2).chunk(
            3, dim=-1
        )  # fmt: skip
    if kind.startswith("bfloat16"):
        from zoo.kernels import linear_attention_cpu

        monkeypatch.setattr(linear_attention_cpu, "bfloat16_of_cpu", lambda: "slow")
        q, k, v = (x.bfloat16() for x in (q, k, v))
        limit = 4e-3  # only the output is rounded
    wanted = reference(q.double(), k.double(), v.double())
    assert errors([linear_attention(q, k, v)], [wanted])[0] < limit


@pytest.mark.parametrize("projected", [False, True])
def test_gradcheck(projected: bool) -> None:
    leaves = [draw(2, 2, 5, 3, seed=s).requires_grad_() for s in range(3)]
    if projected:
        leaves.append(draw(3, 4, seed=3).requires_grad_())

    def call(q: Tensor, k: Tensor, v: Tensor, project: Tensor | None = None) -> Tensor:
        return linear_attention(q, k, v, project=project)

    assert torch.autograd.gradcheck(call, leaves)


def test_project_is_a_product_with_v() -> None:
    q, k, v = (draw(2, 2, 50, 6, seed=s) for s in range(3))
    project = draw(6, 9, seed=3)
    found = linear_attention(q, k, v, project=project)
    torch.testing.assert_close(found, reference(q, k, v @ project))
    torch.testing.assert_close(found, reference(q, k, v, project=project))


def test_project_stays_exact_under_autocast() -> None:
    q, k, v = (draw(1, 1, 50, 6, dtype=torch.float32, seed=s) for s in range(3))
    project = draw(6, 6, dtype=torch.float32, seed=3)
    outside = linear_attention(q, k, v, project=project)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_attention(q, k, v, project=project), outside)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool) -> None:
    leaves = [draw(2, 2, 20, 4, seed=s).requires_grad_() for s in range(3)]
    compiled = torch.compile(linear_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    out, wanted = compiled(*leaves), linear_attention(*leaves)
    torch.testing.assert_close(out, wanted)
    found = torch.autograd.grad(out.sum(), leaves)
    for a, b in zip(found, torch.autograd.grad(wanted.sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_operators_keep_their_contract() -> None:
    """Schema, fake tensors and autograd registration, by torch's own checks."""
    from zoo.kernels.linear_attention_cpu import read, summarize

    q, k, v = (draw(2, 5, 3, seed=s).requires_grad_() for s in range(3))
    torch.library.opcheck(summarize, (k, v))
    torch.library.opcheck(read, (q, draw(2, 3, 3, seed=3).requires_grad_()))


def test_what_it_refuses() -> None:
    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(UserError, match=r"q \(1, 1, 4, 8\).*v \(1, 1, 5, 8\)"):
        linear_attention(x, x, torch.zeros(1, 1, 5, 8))
    with pytest.raises(UserError, match=r"float32.*bfloat16"):
        linear_attention(x, x, x.bfloat16())
    with pytest.raises(UserError, match="at least one token"):
        linear_attention(x[:, :, :0], x[:, :, :0], x[:, :, :0])
    with pytest.raises(UserError, match="at least one token and channel"):
        linear_attention(x[..., :0], x[..., :0], x[..., :0])
    with pytest.raises(UserError, match=r"\[8,F\].*\(3, 3\)"):
        linear_attention(x, x, x, project=torch.zeros(3, 3))
    with pytest.raises(UserError, match="'tritn': triton, blocks, reference"):
        linear_attention(x, x, x, backend="tritn")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal is that of a CPU")
def test_triton_says_why_it_refuses() -> None:
    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(UserError, match=r"'triton' can't serve this call: it runs on CUDA"):
        linear_attention(x, x, x, backend="triton")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[float]]:
    return run_interpreted(LINEAR)


@pytest.mark.parametrize("case", list(LINEAR))
def test_triton_on_the_interpreter(case: str, interpreted: dict[str, list[float]]) -> None:
    assert max(interpreted[case]) < TOLERANCE[LINEAR[case][5]], interpreted[case]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 64), (2, 3, 37, 5), (2, 2, 3000, 192), (4, 1, 99, 384)]
)
def test_triton_on_a_gpu(shape: tuple[int, ...], dtype: str) -> None:
    half = getattr(torch, dtype)
    leaves = [draw(*shape, dtype=half, seed=s).cuda().requires_grad_() for s in range(3)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out, wanted = linear_attention(*leaves, backend="triton"), reference(*exact)
    grad = draw(*shape, dtype=half, seed=3).cuda()
    found = torch.autograd.grad(out, leaves, grad)
    gradients = torch.autograd.grad(wanted, exact, grad.double())
    assert max(errors([out, *found], [wanted, *gradients])) < TOLERANCE[dtype]
    compiled = torch.compile(linear_attention, fullgraph=True)(*leaves)
    assert errors([compiled], [wanted])[0] < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_memory_is_inputs_output_and_summaries() -> None:
    q, k, v = (torch.randn(4, 1, 65536, 64, device="cuda", dtype=torch.bfloat16) for _ in "qkv")
    linear_attention(q, k, v)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_attention(q, k, v)
    extra = torch.cuda.max_memory_allocated() - before
    small = 4 * 64 * 64 * 4 * 100 + 4 * 65536 * 4  # summaries of 64 splits, token statistics
    assert extra < q.numel() * 2 + small
