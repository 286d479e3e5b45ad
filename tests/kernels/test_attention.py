"""Attention against the formula in float64, and the processor against diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from zoo.errors import UserError
from zoo.kernels import attention
from zoo.kernels.attention import BACKENDS
from zoo.kernels.processor import ZooAttnProcessor, set_attention


def tensors(dtype: torch.dtype = torch.float32, *, keys: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", ["no", "bool", "bias"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values_and_gradients(backend: str, masked: str, scale: float | None) -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    mask = {
        "no": None,
        "bool": torch.rand(2, 1, 1, 7) > 0.4,
        "bias": torch.randn(2, 1, 5, 7),
    }[masked]
    out = attention(q, k, v, mask=mask, scale=scale, backend=backend)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scores = torch.einsum("bhnd,bhmd->bhnm", wide[0], wide[1]) * (scale or 8**-0.5)
    if masked == "bias":
        scores = scores + mask
    elif masked == "bool":
        scores = torch.where(mask, scores, -1e9)
    expected = torch.einsum("bhnm,bhmd->bhnd", torch.softmax(scores, -1), wide[2])
    assert torch.allclose(out.double(), expected, atol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    for x, y in zip((q, k, v), wide, strict=True):
        assert torch.allclose(x.grad.double(), y.grad, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype)
    expected = attention(q.double(), k.double(), v.double(), backend="math")
    for backend in BACKENDS:
        out = attention(q, k, v, backend=backend)
        assert out.dtype == dtype
        assert torch.allclose(out.double(), expected, atol=2e-2)


def test_what_does_not_fit_is_named() -> None:
    q, k, v = tensors()
    with pytest.raises(ValueError, match="unknown attention backend 'flesh': use one of auto"):
        attention(q, k, v, backend="flesh")
    with pytest.raises(ValueError, match=r"\(2, 3, 5, 8\), \(2, 3, 7, 8\), \(2, 3, 6, 8\)"):
        attention(q, k, v[:, :, :6])
    with pytest.raises(ValueError, match=r"torch\.float64"):
        attention(q, k, v.double())


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("normed", [None, "layer_norm"])
def test_processor_equals_diffusers(cross: bool, normed: str | None) -> None:
    torch.manual_seed(0)
    block = Attention(
        query_dim=24,
        cross_attention_dim=10 if cross else None,
        heads=3,
        dim_head=8,
        qk_norm=normed,
        cross_attention_norm=normed if cross else None,
    ).eval()
    x = torch.randn(2, 6, 24)
    source = torch.randn(2, 5, 10) if cross else None
    bias = torch.randn(2, 1, 5 if cross else 6)
    with torch.no_grad():
        for mask in (None, bias):
            block.set_processor(AttnProcessor2_0())
            expected = block(x, source, attention_mask=mask)
            block.set_processor(ZooAttnProcessor())
            assert torch.equal(block(x, source, attention_mask=mask), expected)
            block.set_processor(ZooAttnProcessor("math"))
            assert torch.allclose(block(x, source, attention_mask=mask), expected, atol=1e-6)


def test_processor_serves_an_autoencoder() -> None:
    """One head, group norm and residual inside, over [B,C,H,W]."""
    torch.manual_seed(0)
    net = AutoencoderKL(block_out_channels=(16,), norm_num_groups=4).eval()
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(x).sample
        set_attention(net)
        assert torch.equal(net(x).sample, expected)


def test_set_attention_refuses() -> None:
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=8,
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    )
    with pytest.raises(UserError, match="added key and value projections"):
        set_attention(net)
    with pytest.raises(UserError, match="unknown attention backend 'flesh'"):
        set_attention(net, "flesh")


def test_attention_compiles_in_one_graph() -> None:
    q, k, v = tensors()
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v), attention(q, k, v))
