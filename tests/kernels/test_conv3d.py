"""Causal and split convolutions against the plain one on a tensor padded by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels import precision
from zoo.kernels.conv3d import (
    Edge,
    causal_conv3d,
    conv3d,
    join,
    nearest_then_conv,
    plain_conv3d,
)
from zoo.nets.blocks3d import Conv3d, ConvTranspose3d

CHANNELS_LAST = torch.channels_last_3d


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )  # fmt: skip


def by_hand(x: Tensor, weight: Tensor, front: Tensor | None, edge: Edge, stride: int) -> Tensor:
    kt, kh, kw = weight.shape[2:]
    if front is None:
        front = x[:, :, :1].expand(-1, -1, kt - 1, -1, -1)
        front = front if edge == "replicate" else torch.zeros_like(front)
    x = torch.cat([front, x], dim=2)
    for dim, k in ((3, kh), (4, kw)):
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, -1, 1)
        if edge == "zeros":
            first, last = torch.zeros_like(first), torch.zeros_like(last)
        x = torch.cat([*[first] * (k // 2), x, *[last] * (k // 2)], dim=dim)
    return F.conv3d(x, weight, stride=(1, stride, stride))


@pytest.mark.parametrize("layout", ["plain", "channels last"])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 1, 1), (1, 3, 3), (3, 3, 3), (3, 7, 7)])
@pytest.mark.parametrize("edge", ["zeros", "replicate"])
def test_causal(
    edge: Edge, kernel: tuple[int, int, int], stride: int, begun: bool, layout: str
) -> None:
    x, weight = draw(2, 4, 5, 8, 6), draw(3, 4, *kernel, seed=1)
    front = draw(2, 4, kernel[0] - 1, 8, 6, seed=2) if begun and kernel[0] > 1 else None
    wanted = by_hand(x, weight, front, edge, stride)
    if layout == "channels last":
        x = x.contiguous(memory_format=CHANNELS_LAST)
    x.requires_grad_()
    found = causal_conv3d(x, weight, front=front, edge=edge, space_stride=stride)
    torch.testing.assert_close(found, wanted)
    # the gradient is the adjoint: <conv(a), b> = <a, conv^T(b)>, up to the constant in front
    (gradient,) = torch.autograd.grad(found, x, wanted)
    moved = causal_conv3d(x + 1e-3 * wanted.mean(), weight, front=front, edge=edge,
                          space_stride=stride)  # fmt: skip
    torch.testing.assert_close(
        ((moved - found) * wanted).sum(), 1e-3 * wanted.mean() * gradient.sum()
    )


@pytest.mark.parametrize("limit", [1, 150, 400, 10**6])
@pytest.mark.parametrize("time_stride", [1, 2, 3])
@pytest.mark.parametrize("kt", [1, 3])
def test_pieces_equal_the_whole(kt: int, time_stride: int, limit: int) -> None:
    x, weight, bias = draw(2, 2, 11, 5, 4), draw(3, 2, kt, 3, 3, seed=1), draw(3, seed=2)
    stride = (time_stride, 2, 1)
    wanted = F.conv3d(x, weight, bias, stride, (0, 1, 1))
    found = conv3d(x, weight, bias, stride=stride, padding=(0, 1, 1), limit=limit)
    torch.testing.assert_close(found, wanted)


def test_pieces_stay_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    whole = F.conv3d

    def measured(x: Tensor, *arguments: object) -> Tensor:
        out: Tensor = whole(x, *arguments)  # type: ignore[arg-type]
        sizes.append((x.numel(), out.numel()))
        return out

    monkeypatch.setattr(F, "conv3d", measured)
    x, weight = draw(3, 2, 30, 4, 4), draw(5, 2, 3, 3, 3, seed=1)
    conv3d(x, weight, padding=(0, 1, 1), limit=600)
    assert len(sizes) > 3
    assert max(map(max, sizes)) <= 600


def test_join_keeps_channels_last() -> None:
    x = draw(1, 4, 3, 5, 6).contiguous(memory_format=CHANNELS_LAST)
    joined = join(torch.zeros(1, 4, 2, 5, 6, dtype=x.dtype), x)
    assert joined.is_contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(joined[:, :, 2:], x)


@pytest.mark.parametrize("edge", ["zeros", "replicate"])
@pytest.mark.parametrize("size", [(6, 7), (1, 1)])
def test_subpixel_folding_is_nearest_then_5x5(size: tuple[int, int], edge: Edge) -> None:
    x, weight = draw(2, 5, 3, *size).requires_grad_(), draw(4, 5, 1, 5, 5, seed=1).requires_grad_()
    bias = draw(4, seed=2).requires_grad_()
    large = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest-exact")
    wanted = causal_conv3d(large, weight, bias, edge=edge)
    found = nearest_then_conv(x, weight, bias, edge=edge)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        nearest_then_conv(x, weight, edge=edge), causal_conv3d(large, weight, edge=edge)
    )
    grad = draw(*wanted.shape, seed=3)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, weight, bias), grad),
        torch.autograd.grad(wanted, (x, weight, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_subpixel_folding_multiplies_9_times_in_place_of_25() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = torch.empty(1, 8, 2, 16, 16, device="meta"), torch.empty(8, 8, 1, 5, 5)
    with FlopCounterMode(display=False) as counter:
        nearest_then_conv(x, weight.to("meta"))
    outputs = 2 * 32 * 32
    assert counter.get_total_flops() == 2 * 9 * 8 * 8 * outputs


@pytest.mark.parametrize("padding", [(0, 0, 0), (0, 3, 3)])
def test_few_output_channels(padding: tuple[int, int, int]) -> None:
    x, weight, bias = draw(2, 5, 4, 9, 8), draw(3, 5, 3, 7, 7, seed=1), draw(3, seed=2)
    wanted = F.conv3d(x, weight, bias, padding=padding)
    torch.testing.assert_close(conv3d(x, weight, bias, padding=padding), wanted)
    half = conv3d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), padding=padding)
    assert half.dtype == torch.bfloat16
    assert (half - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize(
    "layer",
    [
        Conv3d(16, 16, 1),
        Conv3d(16, 16, 3),
        ConvTranspose3d(16, 8, (1, 5, 5), (1, 2, 2), (0, 2, 2), (0, 1, 1)),
    ],
    ids=str,
)
def test_gradients_in_bfloat16(layer: Conv3d | ConvTranspose3d) -> None:
    """On a CPU with AMX torch's own are wrong at this size, or the process dies."""
    x = torch.randn(2, 16, 5, 128, 128)
    gradients = []
    for autocast in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x)
        assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
        loss = (y.float() * torch.linspace(-1, 1, y.shape[-1])).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_a_cpu_with_amx_learns_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, 4, 3, 8, 8), torch.randn(4, 4, 1, 3, 3, requires_grad=True)
    narrow = F.conv3d(x.bfloat16(), weight.bfloat16())
    monkeypatch.setattr(precision, "bfloat16_of_cpu", lambda: "tiles")
    with torch.autocast("cpu", torch.bfloat16):
        learned = plain_conv3d(x, weight)
        with torch.no_grad():
            assert torch.equal(plain_conv3d(x, weight), narrow)
    assert torch.equal(learned, F.conv3d(x, weight).bfloat16())
    assert not torch.equal(learned, narrow)
    monkeypatch.setattr(precision, "bfloat16_of_cpu", lambda: "vectors")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain_conv3d(x, weight), narrow)
