"""What a text-to-image pipeline checks before it works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.errors import UserError
from zoo.nets.tiue.unet import TiUEUNet, text_width
from zoo.nets.tokenizer import Tokenizer
from zoo.text import TextEncoder


def checked_prompts(prompt: str | Sequence[str], negative: object) -> list[str]:
    """The prompts as a list.

    Raises:
        UserError: an empty prompt, none at all, or a negative one.
    """
    if negative not in (None, ""):
        raise UserError(
            "a negative prompt can't be followed: guidance is distilled into the net, so there is "
            "no second pass to steer away from; say what the picture should show"
        )
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UserError("there is no prompt: describe at least one picture")
    for number, text in enumerate(prompts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"prompt {number} of {len(prompts)} is empty: describe the picture")
    return prompts


def check_parts(unet: TiUEUNet, scheduler: Any, vae: Any, text: TextEncoder) -> None:
    """Whether UNet, scheduler, autoencoder and text encoder fit each other.

    Raises:
        UserError: they don't.
    """
    config: Any = unet.config
    takes = text_width(unet)
    if text.dim != takes:
        raise UserError(f"the text encoder gives {text.dim} channels, the UNet takes {takes}")
    if config.in_channels != config.out_channels:
        raise UserError(
            f"a UNet with {config.in_channels} channels in and {config.out_channels} out is not "
            "text to image (inpainting or depth): use a plain one"
        )
    if isinstance(getattr(vae, "net", None), Tokenizer):
        holds = vae.net.latent_channels
    else:
        holds = 3 if vae is None else vae.config.latent_channels
    if holds != config.in_channels:
        what = "without an autoencoder a picture has" if vae is None else "the autoencoder has"
        raise UserError(f"{what} {holds} channels, the UNet works on {config.in_channels}")
    if "beta_schedule" not in getattr(scheduler, "config", {}):
        raise UserError(
            f"a {type(scheduler).__name__} has no DDIM noise schedule: use a scheduler of Stable "
            "Diffusion 1.x or 2.x"
        )
