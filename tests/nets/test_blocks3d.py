"""Blocks that call kernels give what their formulas say, in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from zoo.nets.blocks3d import CausalConv3d, FrameAttention
from zoo.streaming import Carry


def by_hand(block: FrameAttention, x: Tensor) -> Tensor:
    """Norm, projections and the published attention, one after the other."""
    rows = F.layer_norm(x.movedim(1, -1), x.shape[1:2], block.norm.weight, block.norm.bias)
    qkv = F.linear(rows, block.to_qkv.weight.flatten(1))
    q, k, v = rearrange(qkv, "b t h w (s c) -> s b t (h w) c", s=3)
    summary = k.softmax(dim=-2).transpose(-2, -1) @ v
    out = (q.softmax(dim=-1) * q.shape[-1] ** -0.5) @ summary
    out = F.linear(out, block.to_out.weight.flatten(1), block.to_out.bias)
    return x + rearrange(out, "b t (h w) c -> b c t h w", h=x.shape[3])


def attention(channels: int) -> FrameAttention:
    torch.manual_seed(0)
    block = FrameAttention(channels).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter))
    return block


@pytest.mark.parametrize("size", [(2, 3), (5, 8)], ids=["fewer tokens than channels", "more"])
def test_frame_attention(size: tuple[int, int]) -> None:
    block = attention(12)
    x = torch.randn(2, 12, 3, *size, dtype=torch.float64, requires_grad=True)
    out, wanted = block(x), by_hand(block, x)
    torch.testing.assert_close(out, wanted)
    leaves = [x, *block.parameters()]
    grad = torch.randn_like(wanted)
    for found, exact in zip(
        torch.autograd.grad(out, leaves, grad),
        torch.autograd.grad(wanted, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("size", [(2, 3), (5, 8)], ids=["fewer tokens than channels", "more"])
def test_frame_attention_under_autocast(size: tuple[int, int]) -> None:
    block = attention(12).float()
    x = torch.randn(2, 12, 3, *size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block(x)
        out.sum().backward()
    error = (out - by_hand(block.double(), x.double())).abs().max()
    assert 0 < error < 0.05 * out.abs().max()


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_memory_of_a_convolution(chunk: int, padding: str) -> None:
    """It holds the last frames of the padded clip, also after chunks shorter than the kernel."""
    conv = CausalConv3d(2, 3, 3, padding=padding).double()  # type: ignore[arg-type]
    conv.slot = "conv"
    x = torch.randn(1, 2, 7, 4, 5, dtype=torch.float64)
    state, pieces = None, []
    for piece in x.split(chunk, dim=2):
        carry = Carry(state)
        pieces.append(conv(piece, carry))
        state = carry.state
    torch.testing.assert_close(torch.cat(pieces, dim=2), conv(x))
    assert state is not None
    assert torch.equal(state["conv"], x[:, :, -2:])
