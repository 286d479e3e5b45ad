"""Reconstruction measures. Outputs are rounded to 8 bits first, as a viewer would see them."""

from __future__ import annotations

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.diffusion.schedule import add_noise
from zoo.errors import UserError
from zoo.nets.cdt import CDT

_LOG = logging.getLogger(__name__)
_WINDOW, _SIGMA = 11, 1.5


def to_8bit(x: Tensor) -> Tensor:
    """Clip to [-1,1] and round to the 256 levels of an 8-bit picture; still in [-1,1]."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def checked(y: Tensor, x: Tensor) -> Tensor:
    """The reconstruction rounded to 8 bits, once it is comparable with the original.

    Raises:
        UserError: other shapes, not [B,3,T,H,W], or an original outside [-1,1].
    """
    if y.shape != x.shape or x.ndim != 5:
        raise UserError(f"can't compare {tuple(y.shape)} with {tuple(x.shape)}: give [B,3,T,H,W]")
    if x.min() < -1.001 or x.max() > 1.001:
        raise UserError(f"pixels in [{x.min():.3g}, {x.max():.3g}]: metrics take pixels in [-1, 1]")
    if x.min() >= 0 and y.min() >= 0:
        _warn_of_range()
    return to_8bit(y)


@cache
def _warn_of_range() -> None:
    """Once: bright clips exist, but a range given by mistake is likelier."""
    _LOG.warning("no pixel is negative: metrics take pixels in [-1, 1], is this [0, 1]?")


def frames_of(x: Tensor) -> Tensor:
    """[B,3,T,H,W] to [B * T,3,H,W]."""
    return x.movedim(2, 1).flatten(0, 1)


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """PSNR in dB of each clip, [B]: of each frame, then averaged over the clip's frames.

    Args:
        y: reconstruction, [B,3,T,H,W], rounded to 8 bits here.
        x: original, [B,3,T,H,W] in [-1,1].

    An exact frame counts as 100 dB.
    """
    error = (checked(y, x) - x.float()).square().mean(dim=(1, 3, 4))
    return (10 * torch.log10(4 / error.clamp_min(4e-10))).mean(1)


def ssim(y: Tensor, x: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) of each clip, [B]: of each frame and channel, then averaged.

    Gaussian window of 11 pixels with sigma 1.5, only where it lies inside the frame, of pixels in
    [0,1]: another number comes out of pixels in [-1,1], for SSIM compares means, and of padding.

    Raises:
        UserError: frames smaller than the window.
    """
    made, given = (frames_of(v).add(1).div(2) for v in (checked(y, x), x.float()))
    if min(made.shape[2:]) < _WINDOW:
        raise UserError(f"frames of {made.shape[3]}x{made.shape[2]}: SSIM needs {_WINDOW} pixels")
    mean_y, mean_x = _blurred(made), _blurred(given)
    var_y, var_x = (_blurred(v.square()) - m.square() for v, m in ((made, mean_y), (given, mean_x)))
    covariance = _blurred(made * given) - mean_y * mean_x
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_y * mean_x + c1) * (2 * covariance + c2)
    value = alike / ((mean_y.square() + mean_x.square() + c1) * (var_y + var_x + c2))
    return value.mean(dim=(1, 2, 3)).view(len(x), -1).mean(1)


def _blurred(frames: Tensor) -> Tensor:
    """Gaussian averages of [N,3,H,W] where the window fits: [N,3,H - 10,W - 10]."""
    place = torch.arange(_WINDOW, dtype=frames.dtype, device=frames.device) - _WINDOW // 2
    weights = torch.exp(-place.square() / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).expand(frames.shape[1], 1, 1, _WINDOW)
    down = F.conv2d(frames, weights.transpose(2, 3), groups=frames.shape[1])
    return F.conv2d(down, weights, groups=frames.shape[1])


def flicker(y: Tensor, x: Tensor) -> Tensor:
    """Temporal flicker error of each clip in grey levels of 255, [B]; NaN for a single frame.

    The mean absolute difference between the change from frame to frame of the reconstruction and
    that of the original: 0 when errors stand still, large when they come and go.
    """
    change = (checked(y, x) - x.float()).diff(dim=2)
    return 127.5 * change.abs().mean(dim=(1, 2, 3, 4))


def noisy_input_gain(
    net: CDT, x: Tensor, *, t: float = 0.05, generator: torch.Generator | None = None
) -> Tensor:
    """What the true x_t is worth to a diffusion decoder, in dB of each clip, [B].

    PSNR of the x0 predicted from the true noisy clip at time `t` less that predicted from pure
    noise in its place. About 0 means that the decoder ignores x_t: a plain decoder in disguise.

    Args:
        x: clips [B,3,T,H,W] in [-1,1], T = 1 + k * time, sizes that the net needs no padding for.
        t: diffusion time in (0,1).
    """
    device = x.device if generator is None else generator.device
    noise, other = (
        torch.randn(x.shape, generator=generator, device=device).to(x) for _ in range(2)
    )
    index = torch.full((len(x),), round(t * net.config.timesteps), device=x.device)
    contexts, base = net.conditions(net.encode(x).mean)
    noisy = add_noise(x, noise, net.alpha_bar.to(x)[index])
    true, blind = (
        psnr(net.denoise(given, index, contexts, base=base), x) for given in (noisy, other)
    )
    return true - blind
