"""Layers of the causal video nets. Everything takes [B,C,T,H,W] and `carry=None` (streaming.py).

Structure after CDT (arXiv 2503.03708). Two kinds of residual block: `reference` (convolution, norm,
ReLU, as published) and `light` (norm first, a 3x3x3 convolution split into 1x3x3 and 3x1x1), which
trains better per FLOP at small scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.kernels.conv3d import causal_conv3d, nearest_then_conv
from zoo.kernels.linear_attention import linear_attention
from zoo.kernels.norm import channel_norm
from zoo.kernels.precision import full_precision, learns_in_float32
from zoo.streaming import Carry, Temporal, windows

Padding = Literal["zeros", "replicate"]
BlockKind = Literal["reference", "light"]
Upsampling = Literal["nearest", "transposed"]


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` with gradients that are right on every CPU: see `learns_in_float32`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor
        if not learns_in_float32(input, weight):
            y = super()._conv_forward(input, weight, bias)
            return y
        bias = None if bias is None else bias.float()
        with full_precision(input.device):
            y = super()._conv_forward(input.float(), weight.float(), bias)
        return y.bfloat16()


class ConvTranspose3d(nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with gradients that are right on every CPU, like `Conv3d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not learns_in_float32(input, self.weight):
            return super().forward(input, output_size)
        assert output_size is None
        assert isinstance(self.padding, tuple)
        bias = None if self.bias is None else self.bias.float()
        sizes = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        with full_precision(input.device):
            y = F.conv_transpose3d(input.float(), self.weight.float(), bias, *sizes)
        return y.bfloat16()


class CausalConv3d(nn.Conv3d, Temporal):
    """A 3D convolution that sees the present and the past: [B,C,T,H,W] -> [B,C',T,H',W'].

    Frames are padded in front only, space on both sides, with zeros or by repeating the edge.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int | tuple[int, int, int],
        *,
        space_stride: int = 1,
        padding: Padding = "zeros",
        bias: bool = True,
    ) -> None:
        kt, kh, kw = (kernel,) * 3 if isinstance(kernel, int) else kernel
        # zeros in space can be padded inside the convolution, which saves a copy
        inside = (0, kh // 2, kw // 2) if padding == "zeros" else (0, 0, 0)
        stride = (1, space_stride, space_stride)
        super().__init__(channels, out_channels, (kt, kh, kw), stride, inside, bias=bias)
        self.time_padding = kt - 1
        self.edge: Padding = padding

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        front = None
        if self.time_padding and carry:
            front = carry.read(self.slot)
            memory = x[:, :, -self.time_padding :]
            if x.shape[2] < self.time_padding:
                old = front_padding(x, self.time_padding, self.edge) if front is None else front
                memory = torch.cat([old[:, :, x.shape[2] :], x], dim=2)
            carry.write(self.slot, memory)
        return causal_conv3d(
            x,
            self.weight,
            self.bias,
            front=front,
            edge=self.edge,
            space_stride=self.stride[1],
        )


def front_padding(x: Tensor, frames: int, padding: Padding) -> Tensor:
    """What stands in front of a stream: `frames` frames of zeros, or of its first frame."""
    first = x[:, :, :1].expand(-1, -1, frames, -1, -1)
    return first if padding == "replicate" else torch.zeros_like(first)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position (eps 1e-5, affine)."""

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        return channel_norm(x, self.weight, self.bias, eps=self.eps, relu=relu)


class ReferenceBlock(nn.Module):
    """Convolution, channel norm, ReLU."""

    def __init__(
        self, channels: int, out_channels: int, *, kernel: tuple[int, int, int], padding: Padding
    ) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, out_channels, kernel, padding=padding)
        self.norm = ChannelNorm(out_channels)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        y: Tensor = self.norm(self.conv(x, carry), relu=True)
        return y


class LightBlock(nn.Module):
    """Channel norm, SiLU, a 1x3x3 and a 3x1x1 convolution."""

    def __init__(self, channels: int, out_channels: int, *, padding: Padding) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.space = CausalConv3d(channels, out_channels, (1, 3, 3), padding=padding)
        self.time = CausalConv3d(out_channels, out_channels, (3, 1, 1), padding=padding)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        y: Tensor = self.time(self.space(F.silu(self.norm(x))), carry)
        return y


def add_to(x: Tensor, y: Tensor) -> Tensor:
    """x + y, without gradients in the memory of `x`, which nobody else may read.

    On a CPU fresh memory for a whole clip costs several times the addition.
    """
    in_place = not torch.is_grad_enabled() and x.dtype == y.dtype
    return x.add_(y) if in_place else x + y


class Recomputed(nn.Module):
    """A layer whose inner activations can be recomputed in the backward pass instead of kept."""

    recompute = False

    def _run(self, compute: Callable[..., Tensor], *args: Tensor | Carry | None) -> Tensor:
        """compute(*args), without keeping what is inside when `recompute` is set."""
        if not self.recompute or not torch.is_grad_enabled() or isinstance(args[-1], Carry):
            return compute(*args)  # a stream writes its memory once, so it is never recomputed
        y: Tensor = checkpoint(compute, *args, use_reentrant=False)
        return y


def set_gradient_checkpointing(net: nn.Module, on: bool = True) -> None:
    """Recompute the activations inside residual blocks and attention of `net` in the backward pass.

    Memory of a training step falls to what lies between the blocks, for one more forward pass.
    Results are the same bit for bit. Streams and evaluation are not touched.
    """
    for module in net.modules():
        if isinstance(module, Recomputed):
            module.recompute = on


class ResnetBlock(Recomputed):
    """Two blocks with a skip; the embedding of the diffusion time is added between them.

    Args:
        channels, out_channels: a 1x1x1 convolution carries the skip where they differ.
        time_dim: width of the time embedding; None for a net without diffusion time.
        large: the first block's kernel is (3,7,7), as in the first block of each reference net.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kind: BlockKind,
        padding: Padding,
        time_dim: int | None = None,
        large: bool = False,
    ) -> None:
        super().__init__()
        self.time_mlp = (
            nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(time_dim, out_channels))
            if time_dim is not None
            else None
        )
        if kind == "reference":
            kernel = (3, 7, 7) if large else (3, 3, 3)
            self.block1: nn.Module = ReferenceBlock(
                channels, out_channels, kernel=kernel, padding=padding
            )
            self.block2: nn.Module = ReferenceBlock(
                out_channels, out_channels, kernel=(3, 3, 3), padding=padding
            )
        else:
            self.block1 = LightBlock(channels, out_channels, padding=padding)
            self.block2 = block2 = LightBlock(out_channels, out_channels, padding=padding)
            # a residual branch that starts near zero: the net starts as its skips and shortcuts
            nn.init.zeros_(block2.time.weight)
        self.skip = CausalConv3d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor | None = None, carry: Carry | None = None) -> Tensor:
        return self._run(self._residual, x, time, carry)

    def _residual(self, x: Tensor, time: Tensor | None, carry: Carry | None) -> Tensor:
        h: Tensor = self.block1(x, carry)
        if self.time_mlp is not None:
            assert time is not None
            h = add_to(h, self.time_mlp(time)[:, :, None, None, None])
        h = self.block2(h, carry)
        return add_to(h, x if self.skip is None else self.skip(x))


class FrameAttention(Recomputed):
    """x + linear attention of normed x, within each frame; one head as wide as the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.to_qkv = CausalConv3d(channels, 3 * channels, 1, bias=False)
        self.to_out = CausalConv3d(channels, channels, 1)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self._attend, x)

    def _attend(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1], *x.shape[3:]
        # 1x1x1 convolutions as linear layers: on channels-last data the tokens are a view
        tokens = rearrange(self.norm(x), "b c t h w -> b t (h w) c")
        to_q, to_k, to_v = self.to_qkv.weight.flatten(1).chunk(3)
        to_out = self.to_out.weight.flatten(1)
        q, k = F.linear(tokens, to_q), F.linear(tokens, to_k)
        if height * width < channels:
            out = linear_attention(q, k, F.linear(tokens, to_v))
            out = F.linear(out, to_out, self.to_out.bias)
        else:
            # many tokens: to_v and to_out act on the summary, C rows, in place of H * W
            with full_precision(x.device):
                project = (to_out @ to_v).mT
            out = linear_attention(q, k, tokens.to(q.dtype), project=project)
            assert self.to_out.bias is not None
            out = add_to(out, self.to_out.bias.to(out.dtype))
        return add_to(rearrange(out, "b t (h w) c -> b c t h w", h=height), x)


class SpaceDown(nn.Module):
    """Halve height and width: 1x3x3 convolution, stride 2."""

    def __init__(self, channels: int, *, padding: Padding) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (1, 3, 3), space_stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class SpaceUp(nn.Module):
    """Double height and width: nearest + 1x5x5 convolution, or a transposed 1x5x5 convolution."""

    def __init__(
        self, channels: int, out_channels: int, *, upsampling: Upsampling, padding: Padding
    ) -> None:
        super().__init__()
        if upsampling == "nearest":
            self.conv: nn.Module = CausalConv3d(channels, out_channels, (1, 5, 5), padding=padding)
        else:
            self.conv = ConvTranspose3d(
                channels,
                out_channels,
                (1, 5, 5),
                (1, 2, 2),
                (0, 2, 2),
                output_padding=(0, 1, 1),
            )

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.conv, CausalConv3d):
            return nearest_then_conv(x, self.conv.weight, self.conv.bias, edge=self.conv.edge)
        y: Tensor = self.conv(x)
        return y


class TimeDown(Temporal):
    """Halve the frames: T -> (T - 1) // 2 + 1, causal, kernel 3, stride 2; at first a mean of 2."""

    def __init__(self, channels: int, *, padding: Padding) -> None:
        super().__init__()
        self.conv = Conv3d(channels, channels, (3, 1, 1), (2, 1, 1))
        self.edge: Padding = padding
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        identity = torch.eye(channels, device=self.conv.weight.device)[:, :, None, None]
        with torch.no_grad():
            self.conv.weight[:, :, 1:] = 0.5 * identity[:, :, None]

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        front = carry.read(self.slot) if carry else None
        if front is None:
            front = front_padding(x, 2, self.edge)
        ready, rest = windows(front, x, kernel=3, stride=2)
        if carry:
            carry.write(self.slot, rest)
        y: Tensor = self.conv(ready) if ready.shape[2] else ready
        return y


class TimeUp(Temporal):
    """Double the frames; the first frame of a stream stays one: T -> 2T - 1, then 2T."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3d(channels, 2 * channels, 1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        identity = torch.eye(channels, device=self.conv.weight.device)
        with torch.no_grad():
            weight = identity.repeat_interleave(2, dim=0)
            self.conv.weight.copy_(weight[:, :, None, None, None])

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        # channels last, as the convolutions around it have them
        y: Tensor = rearrange(self.conv(x).movedim(1, -1), "b t h w (c p) -> b (t p) h w c", p=2)
        y = y.movedim(-1, 1)
        begun = carry is not None and carry.read(self.slot) is not None
        if carry:
            # a marker with no element: that it is there says the stream has begun
            carry.write(self.slot, x.new_empty(x.shape[0], 0))
        return y if begun else y[:, :, 1:]


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """[B,C,T,H,W] -> [B, C * patch^2, T, H / patch, W / patch]."""
    if patch == 1:
        return x
    return rearrange(x, "b c t (h p) (w q) -> b (c p q) t h w", p=patch, q=patch)


def depth_to_space(x: Tensor, patch: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    if patch == 1:
        return x
    return rearrange(x, "b (c p q) t h w -> b c t (h p) (w q)", p=patch, q=patch)
