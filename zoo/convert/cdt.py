"""CDT checkpoints in the layout of the released inference code (github ali-vilab/CDT).

Keys are rooted at `model.context_fn.` (encoder and context decoder) and `model.denoise_fn.` (UNet),
inside a pickled dict, sometimes under `state_dict` or `module`. Every tensor has a twin in our
nets with block="reference": the two layouts differ in names and in dimensions of size 1 alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.nets.blocks3d import ChannelNorm, TimeDown, TimeUp
from zoo.nets.cdt import CDT
from zoo.nets.pickles import load_pickle
from zoo.nets.pretrained import key_faults, read_weights, some
from zoo.registry import create

PRESETS = ("cdt_base", "cdt_small")
LATENT_SCALE = 1.3
"""What the released loader keeps beside the net: latents times this have unit deviation."""

_ROOT = "model."
_WRAPPERS = ("state_dict", "module")
_NAMES = (  # ours -> theirs, applied in turn; {last} is the number of the last context stage
    (r"^encoder\.stages\.(\d+)\.block\.", r"context_fn.enc.\1.0."),
    (r"^encoder\.stages\.(\d+)\.space\.", r"context_fn.enc.\1.1."),
    (r"^encoder\.stages\.(\d+)\.time\.", r"context_fn.enc.\1.2."),
    (r"^encoder\.direct\.", r"context_fn.quant_conv."),
    (r"^encoder\.walk\.", r"context_fn.quant_conv_res."),
    (r"^encoder\.head\.", r"context_fn.quant_conv_res.{last}."),
    (r"^context\.direct\.", r"context_fn.post_quant_conv."),
    (r"^context\.stem\.", r"context_fn.post_quant_conv_res.0."),
    (r"^context\.stages\.(\d+)\.block\.", r"context_fn.dec.\1.0."),
    (r"^context\.stages\.(\d+)\.(?:space|mapping)\.", r"context_fn.dec.\1.1."),
    (r"^context\.stages\.(\d+)\.time\.", r"context_fn.dec.\1.2."),
    (r"^unet\.(down|up)\.(\d+)\.blocks\.", r"denoise_fn.\1s.\2."),
    (r"^unet\.(down|up)\.(\d+)\.attention\.norm\.", r"denoise_fn.\1s.\2.2.fn.norm."),
    (r"^unet\.(down|up)\.(\d+)\.attention\.", r"denoise_fn.\1s.\2.2.fn.fn."),
    (r"^unet\.space_(down|up)\.(\d+)\.", r"denoise_fn.\1s.\2.3."),
    (r"^unet\.time_(down|up)\.(\d+)\.", r"denoise_fn.\1s.\2.4."),
    (r"^unet\.mid_attention\.norm\.", r"denoise_fn.mid_attn.fn.norm."),
    (r"^unet\.mid_attention\.", r"denoise_fn.mid_attn.fn.fn."),
    (r"^unet\.norm\.", r"denoise_fn.final_conv.0."),
    (r"^unet\.head\.", r"denoise_fn.final_conv.1."),
    (r"^unet\.", r"denoise_fn."),
    (r"\.time_mlp\.1\.", r".mlp.1."),
    (r"\.block([12])\.conv\.", r".block\1.block.0."),
    (r"\.block([12])\.norm\.", r".block\1.block.1."),
    (r"\.skip\.", r".res_conv."),
)


def to_reference(net: CDT) -> dict[str, Tensor]:
    """The weights of `net` under the released code's keys and shapes; tensors are views.

    Raises:
        UserError: the net has a part that the released code has not.
    """
    state = net.state_dict()
    return {theirs: _their_shape(net, ours, state[ours]) for ours, theirs in key_pairs(net).items()}


def from_reference(
    net: CDT, tensors: Mapping[str, Tensor], *, origin: object = "the weights"
) -> None:
    """Fill `net` (built on meta or not) from weights under the released code's keys, strictly.

    Args:
        tensors: as `read_checkpoint` returns them.
        origin: what error messages call them.

    Raises:
        UserError: a key is missing, unexpected or of another shape; keys are named.
    """
    faults = key_faults(to_reference(net), tensors)
    if faults:
        raise UserError(f"{origin} doesn't fit: {some(faults)}")
    state = net.state_dict()
    filled = {
        ours: tensors[theirs].reshape(state[ours].shape) for ours, theirs in key_pairs(net).items()
    }
    # the released code keeps the latents' scale outside of the net
    filled["latent_mean"] = torch.zeros(net.latent_channels)
    filled["latent_std"] = torch.full((net.latent_channels,), 1 / LATENT_SCALE)
    net.load_state_dict(filled, strict=True, assign=True)


def read_checkpoint(path: str | Path, *, ignore: Iterable[str] = ()) -> dict[str, Tensor]:
    """The tensors of a released checkpoint, float32, without running anything it holds.

    Args:
        path: a torch pickle or a safetensors file.
        ignore: shell patterns of keys to leave out.

    Raises:
        UserError: missing, truncated or not a checkpoint; a pickle that asks for anything but
            tensors and plain containers; or no CDT in it.
    """
    path = Path(path)
    content: Any = read_weights(path) if path.suffix == ".safetensors" else load_pickle(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no dict of weights: give a checkpoint of the released CDT")
    patterns = tuple(ignore)
    kept = {k: v for k, v in content.items() if not any(fnmatch(str(k), p) for p in patterns)}
    wrong = [str(k) for k, v in kept.items() if not isinstance(v, Tensor)]
    known = [k for k in kept if str(k).startswith((f"{_ROOT}context_fn.", f"{_ROOT}denoise_fn."))]
    if not known:
        raise UserError(
            f"{path} holds no CDT: no key starts with {_ROOT}context_fn. or {_ROOT}denoise_fn. "
            f"(its first keys: {', '.join(str(k) for k in list(content)[:3])})"
        )
    if wrong:
        raise UserError(f"{path} holds something other than a tensor at {some(wrong)}")
    return {k: v.float() if v.is_floating_point() else v for k, v in kept.items()}


def load_checkpoint(path: str | Path, *, ignore: Iterable[str] = ()) -> tuple[str, CDT]:
    """The preset that a released checkpoint fits, and the net with its weights in eval mode.

    Raises:
        UserError: what `read_checkpoint` raises, or keys or widths that fit no preset.
    """
    tensors = read_checkpoint(path, ignore=ignore)
    nets = {name: _on_meta(name) for name in PRESETS}
    faults = {name: key_faults(to_reference(net), tensors) for name, net in nets.items()}
    best = min(PRESETS, key=lambda name: len(faults[name]))
    if faults[best]:
        hint = ""
        if all(fault.startswith("unexpected") for fault in faults[best]):
            hint = "; --ignore PATTERN leaves keys out that you know to be no part of the net"
        raise UserError(
            f"{path} fits neither {' nor '.join(PRESETS)}; against {best}, the closest: "
            f"{some(faults[best])}{hint}"
        )
    from_reference(nets[best], tensors, origin=path)
    return best, nets[best].eval()


def save_checkpoint(net: CDT, path: str | Path) -> None:
    """Write `net` as the released code reads it: a pickle with `state_dict`, whole or not at all.

    Raises:
        UserError: the net has a part that the released code has not, or the file can't be written.
    """
    path = Path(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in to_reference(net).items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": tensors}, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into the latter
        raise UserError(f"can't write {path} ({error}): give another file") from error
    finally:
        if part.parent.is_dir():
            part.unlink(missing_ok=True)


def key_pairs(net: CDT) -> dict[str, str]:
    """The released code's key of each of our keys, latent statistics left out.

    Raises:
        UserError: the net has a part that the released code has not.
    """
    config = net.config
    extra = {
        "block": config.block != "reference",
        "patch": config.patch != 1,
        "pca": config.pca,
        "context_norm": config.context_norm,
        "top_blocks": config.top_blocks > 0,
        "level_blocks": config.level_blocks != 2,
    }
    if any(extra.values()):
        named = ", ".join(
            f"{k} = {getattr(config, k)!r}" for k, present in extra.items() if present
        )
        raise UserError(
            f"the released CDT's layout has no place for {named}: use a net such as cdt_small"
        )
    last = str(len(config.context_mults) - 1)
    pairs = {}
    for ours in net.state_dict():
        if ours.startswith("latent_"):
            continue
        theirs = ours
        if (walk := re.match(r"^context\.walk\.(\d+)\.", ours)) is not None:
            # the stem is number 0 of the same list
            start = f"context_fn.post_quant_conv_res.{int(walk[1]) + 1}."
            theirs = start + ours[walk.end() :]
        for pattern, replacement in _NAMES:
            theirs = re.sub(pattern, replacement.replace("{last}", last), theirs)
        if isinstance(net.get_submodule(ours.rpartition(".")[0]), ChannelNorm):
            head, _, leaf = theirs.rpartition(".")
            theirs = f"{head}.{ {'weight': 'g', 'bias': 'b'}[leaf] }"
        pairs[ours] = _ROOT + theirs
    assert len(set(pairs.values())) == len(pairs), "two of our keys have one key of theirs"
    return pairs


def _their_shape(net: CDT, key: str, tensor: Tensor) -> Tensor:
    owner = key.rpartition(".")[0]
    if isinstance(net.get_submodule(owner), ChannelNorm):
        return tensor.view(1, -1, 1, 1, 1)
    if isinstance(net.get_submodule(owner.rpartition(".")[0]), TimeDown | TimeUp):
        return tensor.flatten(2) if tensor.ndim == 5 else tensor  # a 1D convolution there
    return tensor


def _on_meta(name: str) -> CDT:
    with torch.device("meta"):
        net = create(name)
    assert isinstance(net, CDT)
    return net
