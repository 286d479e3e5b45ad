"""The attention calls that the zoo's nets really make, found by running them on fake tensors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from zoo.kernels.attention import OVERRIDE
from zoo.nets.cdt import CDT
from zoo.nets.tokenizer import Tokenizer
from zoo.nets.video_dit import VideoDiT

VIDEO = (17, 256, 256)
TEXT_LENGTH = 77


class Shape(NamedTuple):
    """An attention call: `kind` attention or linear_attention; columns is the width of v."""

    kind: str
    batch: int
    heads: int
    tokens: int
    keys: int
    width: int
    columns: int

    def __str__(self) -> str:
        """The shapes of q and of k."""
        q = f"{self.batch}x{self.heads}x{self.tokens}x{self.width}"
        if self.kind == "linear_attention":
            return q
        return f"{q} on {self.keys}"


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that attention functions end in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[Shape] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name()
        if name.startswith("aten::_scaled_dot_product"):
            q, k, v = args[:3]
            batch, heads, tokens, width = q.shape
            sizes = (batch, heads, tokens, k.shape[2], width, v.shape[3])
            self.seen[Shape("attention", *sizes)] += 1
        elif name in ("zoo::summarize_cpu", "zoo::summarize_triton"):
            k, v = args
            groups, tokens, width = k.shape
            sizes = (groups, 1, tokens, tokens, width, v.shape[2])
            self.seen[Shape("linear_attention", *sizes)] += 1
        return func(*args, **(kwargs or {}))


def calls_of(name: str) -> Counter[Shape]:
    """How often a net calls attention with which shapes, for one clip, picture or prompt.

    Nothing is computed: shapes alone go through the net. Tokenizers see a clip of 17x256x256
    (image nets one frame), UNets the latents they were built for, generators of films those of
    17 frames.
    """
    recorder = _Recorder()
    with _no_override(), FakeTensorMode(), torch.no_grad(), recorder:
        # in eval mode nets look whether pixels are finite, which tensors without data can't say
        net = zoo.create(name).train()
        if isinstance(net, Tokenizer):
            _run_tokenizer(net)
        elif isinstance(net, VideoDiT):
            _run_generator(net)
        else:
            _run_unet(net)
    return recorder.seen


@contextmanager
def _no_override() -> Iterator[None]:
    """Calls end in torch's fused operator, which the recorder knows, whatever the user set."""
    value = os.environ.pop(OVERRIDE, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[OVERRIDE] = value


def _run_tokenizer(net: Tokenizer) -> None:
    frames = VIDEO[0] if net.compression[0] > 1 else 1
    x = torch.empty(1, 3, frames, *VIDEO[1:])
    z = net.encode(x).mean
    if isinstance(net, CDT):
        # not decode: sampling reads numbers of its noise schedule, which fake tensors don't have
        contexts, base = net.conditions(z)
        net.denoise(x, torch.zeros(1), contexts, base=base)
    else:
        net.decode(z)


def _run_generator(net: VideoDiT) -> None:
    config = net.config
    latents = 1 + (VIDEO[0] - 1) // config.compression[0]
    z = torch.empty(1, config.latent_channels, latents, *config.latent_size)
    # not step: it reads numbers of the weights, to know its own states again
    net.whole(z, torch.zeros(1, latents), torch.empty(1, TEXT_LENGTH, config.text_dim))


def _run_unet(net: nn.Module) -> None:
    unet: Any = net
    side = unet.config.sample_size
    sample = torch.empty(1, unet.config.in_channels, side, side)
    time: Tensor = torch.zeros(1)
    text = torch.empty(1, TEXT_LENGTH, unet.config.cross_attention_dim)
    unet(sample, time, text)
