"""Patch discriminators of the adversarial stage: no part of a tokenizer, never exported."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.nets.blocks3d import Conv3d
from zoo.nets.tokenizer import check_video


class PatchDiscriminator(nn.Module):
    """Says of every patch whether it looks real: convolutions of stride 2, then two of stride 1.

    PatchGAN (arXiv 1611.07004) as in VQGAN (arXiv 2012.09841), with group norm in the place of
    batch norm, so that a clip's verdict doesn't depend on its batch.

    Args:
        dim: width of the first layer; it doubles with each layer, to 8 x dim.
        layers: convolutions of stride 2; a verdict then sees 34 pixels at 2 and 70 at 3.
        time: convolve and stride over time too (3 frames a layer); else judge frame by frame.
    """

    def __init__(self, *, dim: int = 64, layers: int = 3, time: bool = False) -> None:
        super().__init__()
        self.time = time

        def conv(channels: int, out_channels: int, *, stride: int) -> nn.Module:
            if time:
                steps = (stride, stride, stride)
                return Conv3d(channels, out_channels, (3, 4, 4), steps, (1, 1, 1))
            return nn.Conv2d(channels, out_channels, 4, stride, 1)

        widths = [dim * min(2**i, 8) for i in range(layers + 1)]
        self.net = nn.Sequential(conv(3, dim, stride=2), nn.LeakyReLU(0.2))
        for index in range(1, layers + 1):
            self.net.append(
                conv(widths[index - 1], widths[index], stride=2 if index < layers else 1)
            )
            self.net.append(nn.GroupNorm(min(8, dim), widths[index]))
            self.net.append(nn.LeakyReLU(0.2))
        self.net.append(conv(widths[-1], 1, stride=1))

    def forward(self, x: Tensor) -> Tensor:
        """Verdicts on the patches of [B,3,T,H,W]: [N,1,...], unbounded, high for real."""
        check_video(x)
        verdicts: Tensor = self.net(x if self.time else x.movedim(2, 1).flatten(0, 1))
        return verdicts
