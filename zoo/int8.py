"""Weights as 8-bit integers: a quarter of the memory of float32; products are in the input's dtype.

torchao's own weight-only configuration serves linear layers alone, and most weights here are those
of convolutions. So its symmetric affine quantisation, one scale for each output channel, sits as a
parametrisation in front of any layer that has a `weight`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoo.errors import UserError

_SMALLEST = 1024
"""Weights a layer must have: smaller ones save nothing, and time embeddings are such."""

_LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class Int8Weight(nn.Module):
    """A weight kept as int8 with a scale for each output channel; read, it is dense again.

    Args:
        dim: the dimension of output channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, values: Tensor, scale: Tensor) -> Tensor:
        """The dense weight, in the dtype of `scale`."""
        from torchao.quantization.quant_primitives import dequantize_affine

        weight: Tensor = dequantize_affine(
            values, self._block(values), scale, None, torch.int8, output_dtype=scale.dtype
        )
        return weight

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """int8 values of the weight's shape, and scales: one for each slice of `dim`."""
        from torchao.quantization.quant_primitives import (
            MappingType,
            choose_qparams_affine,
            quantize_affine,
        )

        block = self._block(weight)
        with torch.no_grad():
            scale, zero = choose_qparams_affine(
                weight, MappingType.SYMMETRIC, block, torch.int8, -127, 127
            )
            values = quantize_affine(weight, block, scale, zero, torch.int8, -127, 127)
        return values, scale.to(weight.dtype)

    def _block(self, weight: Tensor) -> tuple[int, ...]:
        return tuple(1 if d == self.dim else n for d, n in enumerate(weight.shape))


def quantize_int8(net: nn.Module) -> nn.Module:
    """Keep the large weights of `net` as int8, in place; it can't be trained or saved after that.

    Args:
        net: any net; its convolutions and linear layers of 1,024 weights or more are changed, their
            biases, norms and buffers are not.

    Returns:
        `net`, in eval mode.

    Raises:
        UserError: torchao isn't installed, or the net has been quantised before.
    """
    if find_spec("torchao") is None:
        raise UserError("int8 weights need torchao: pip install 'generative-vision-zoo[int8]'")
    net.eval().requires_grad_(False)
    layers: list[tuple[nn.Module, int]] = []
    for layer in net.modules():
        if not isinstance(layer, _LAYERS):
            continue
        if parametrize.is_parametrized(layer):
            raise UserError("this net has int8 weights already: load it anew")
        weight: Any = layer.weight
        if weight.numel() >= _SMALLEST:
            layers.append((layer, 1 if "Transpose" in type(layer).__name__ else 0))
    for layer, dim in layers:
        parametrize.register_parametrization(layer, "weight", Int8Weight(dim), unsafe=True)
    return net
