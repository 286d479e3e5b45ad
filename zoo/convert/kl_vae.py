"""Image KL-VAEs as folders that diffusers' AutoencoderKL opens, and back.

Our KLVAE holds an AutoencoderKL under `vae.`, so the weights are the same tensors. What diffusers
has no place for is refused: a patch in front of it, and the linear shortcut beside it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.nets.diffusers_folder import class_name, load_module
from zoo.nets.kl_vae import KLVAE, KLVAEConfig
from zoo.nets.pretrained import key_faults, some

_CLASS = "AutoencoderKL"


def why_not(net: nn.Module) -> str | None:
    """Why AutoencoderKL can't express `net`, in words; None when it can."""
    if not isinstance(net, KLVAE):
        return f"{type(net).__name__} is not built of its blocks"
    config = net.config
    parts = []
    if config.patch != 1:
        parts.append(f"the {config.patch}x{config.patch} patches in front of it")
    if config.pca:
        parts.append("the linear shortcut beside it (pca = True)")
    return f"it has no place for {' and '.join(parts)}" if parts else None


def to_autoencoder_kl(net: nn.Module) -> Any:
    """`net` as diffusers' AutoencoderKL; the weights are shared, not copied.

    Our statistics of latents become its `latents_mean` and `latents_std`; `scaling_factor` is 1.

    Raises:
        UserError: AutoencoderKL can't express the net; the part is named.
    """
    from diffusers import AutoencoderKL

    if (reason := why_not(net)) is not None:
        raise UserError(
            f"diffusers' {_CLASS} can't express this net ({reason}): "
            "use one such as klvae_image_f8c4"
        )
    assert isinstance(net, KLVAE)
    settings = {
        **{name: value for name, value in net.vae.config.items() if not name.startswith("_")},
        "latents_mean": net.latent_mean.tolist(),
        "latents_std": net.latent_std.tolist(),
        "scaling_factor": 1.0,
    }
    with torch.device("meta"):
        vae: Any = AutoencoderKL(**settings)  # type: ignore[no-untyped-call]
    vae.load_state_dict(net.vae.state_dict(), strict=True, assign=True)
    return vae.eval()


def from_autoencoder_kl(vae: Any) -> KLVAE:
    """An AutoencoderKL as our KLVAE in eval mode; the weights are shared, not copied.

    Raises:
        UserError: a setting that our config has no name for.
    """
    config = vae.config
    levels = len(config.block_out_channels)
    wanted = {
        "in_channels": 3,
        "out_channels": 3,
        "act_fn": "silu",
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "use_post_quant_conv": config.use_quant_conv,
    }
    for name, value in wanted.items():
        given = tuple(config[name]) if isinstance(config[name], list) else config[name]
        if given != value:
            raise UserError(
                f"{name} = {given!r}: a KLVAE of the zoo has {value!r}; "
                "zoo.load opens the folder as it is, with diffusers' own class"
            )
    with torch.device("meta"):
        net = KLVAE(
            KLVAEConfig(
                latent_channels=config.latent_channels,
                block_channels=tuple(config.block_out_channels),
                layers=config.layers_per_block,
                norm_groups=config.norm_num_groups,
                quant_conv=config.use_quant_conv,
                attention=config.mid_block_add_attention,
            )
        )
    tensors = {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
    tensors |= _statistics(config, like=next(iter(tensors.values())))
    if faults := key_faults(net.state_dict(), tensors):
        raise UserError(f"this {_CLASS} doesn't fit its config: {some(faults)}")
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.eval()


def _statistics(config: Any, *, like: Tensor) -> dict[str, Tensor]:
    """Mean and deviation of each latent channel, as diffusers' pipelines apply the config."""
    count = config.latent_channels
    mean = config.latents_mean or [config.shift_factor or 0.0] * count
    std = config.latents_std or [1.0] * count
    scale = config.scaling_factor or 1.0
    return {
        "latent_mean": torch.tensor(mean, dtype=like.dtype),
        "latent_std": torch.tensor([value / scale for value in std], dtype=like.dtype),
    }


def load_checkpoint(path: str | Path, *, ignore: Iterable[str] = ()) -> tuple[str, KLVAE]:
    """What a diffusers folder holds, and our net with its weights; dtype as stored.

    Raises:
        UserError: another class, broken or missing weights (keys are named), settings that a KLVAE
            has not, or keys to ignore: a folder has none too many.
    """
    from diffusers import AutoencoderKL

    if patterns := tuple(ignore):
        raise UserError(f"--ignore {patterns[0]}: a diffusers folder is read whole, leave it out")
    folder = Path(path)
    if (kind := class_name(folder)) != _CLASS:
        raise UserError(f"{folder} holds {kind}, not {_CLASS}: give a folder of that class")
    return _CLASS, from_autoencoder_kl(load_module(AutoencoderKL, folder))


def save_checkpoint(net: nn.Module, folder: str | Path) -> None:
    """Write a folder that `AutoencoderKL.from_pretrained` opens, whole or not at all.

    Raises:
        UserError: AutoencoderKL can't express the net, or the folder exists or can't be written.
    """
    vae, folder = to_autoencoder_kl(net), Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists: give another folder, or remove it")
    part: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        vae.save_pretrained(part)
        part.chmod(0o755)
        os.replace(part, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't write {folder} ({error}): give another folder") from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
