"""Loading nets by name or from a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from zoo.errors import UserError, closest
from zoo.foreign_weights import published, published_folder, source_of
from zoo.nets.foreign.folder import holds_foreign, load_foreign
from zoo.nets.pretrained import Pretrained, read_config
from zoo.official import OFFICIAL, official_folder
from zoo.paths import data_folder
from zoo.registry import matching, preset
from zoo.remote import check_sha256, fetch_repo, parse_source, read_metrics


@dataclass(frozen=True)
class ModelEntry:
    """What is known of a name.

    Attributes:
        name: `architecture`, or `architecture.weights` for trained ones.
        family: `cdt`, `kl_vae`, ...
        folder: where trained weights are; None for a preset, which has random ones.
        config: config.json of trained weights.
        metrics: metrics.json of trained weights, empty where there is none.
        source: where weights that are fetched on first use come from.
        licence: of trained weights, as metrics.json or their authors state it, with what must
            be accepted.
        sha256: of the weights, as metrics.json states it.
    """

    name: str
    family: str
    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    sha256: str = ""


def trained() -> dict[str, Path]:
    """Folders of the weights that travel with the zoo, by name."""
    root = data_folder("checkpoints")
    configs = [*root.glob("*/config.json"), *root.glob("*/model_index.json")]
    return {p.parent.name: p.parent for p in sorted(configs)}


def list_models(
    pattern: str = "*", *, family: str | None = None, pretrained: bool = False
) -> list[str]:
    """Names that match a shell pattern, sorted.

    Args:
        pattern: such as `cdt*`.
        family: only this family.
        pretrained: names of trained weights instead of presets.
    """
    if not pretrained:
        return matching(pattern, family)
    bases = set(matching("*", family))
    names = sorted({*trained(), *_fetched()})
    return [n for n in names if n.split(".")[0] in bases and Path(n).match(pattern)]


def info(name: str) -> ModelEntry:
    """What is known of a preset or of trained weights.

    Raises:
        UserError: unknown; the closest three names are given.
    """
    folders = trained()
    if name not in folders and name not in _fetched() and "." in name:
        _unknown(name)
    base = preset(name.split(".")[0])
    if name not in folders and name in published():
        row = published()[name]
        licence = f"{row.licence} ({row.terms})" if row.terms else row.licence
        return ModelEntry(name, base.family, source=source_of(row), licence=licence)
    if name not in folders and name in OFFICIAL:
        entry = OFFICIAL[name]
        return ModelEntry(name, base.family, source=f"huggingface.co/{entry.repo}/{entry.file}")
    if name not in folders:
        return ModelEntry(name, base.family)
    folder = folders[name]
    metrics = read_metrics(folder)
    return ModelEntry(
        name,
        base.family,
        folder=folder,
        config=read_config(folder) if (unet := unet_folder(folder)) is None else _json(unet),
        metrics=metrics,
        licence=str(metrics.get("licence", "")),
        sha256=str(metrics.get("sha256", "")),
    )


def load(
    name_or_path: str,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    accept_license: bool = False,
) -> nn.Module:
    """A trained net in eval mode; every weight must match.

    Args:
        name_or_path: a name such as `cdt_tiny.clips`, `dir:PATH` for a folder that
            `save_pretrained` or train.py wrote, or `hf:ORG/REPO@REVISION` for one on the hub.
            `cdt_base.official` and `cdt_small.official` are fetched from their authors'
            repository and converted the first time. A diffusers UNet folder gives a TiUEUNet, a
            pipeline folder its UNet, a diffusers autoencoder's folder a `Foreign` tokenizer.
        revision: branch, tag or commit of an `hf:` repository, in place of `@REVISION`.
        device: where to put it.
        dtype: floating-point type; None keeps the stored one (float32 for float16 on a CPU).
        accept_license: accept the terms of foreign weights that are gated or restricted.

    Raises:
        UserError: unknown name (the closest three are given), no model folder, or weights that
            don't fit their config.
    """
    folder = find_folder(name_or_path, revision=revision, accept_license=accept_license)
    if holds_foreign(folder):
        entry = published().get(name_or_path)
        return _placed(load_foreign(folder, entry=entry), device, dtype)
    check_sha256(folder, read_metrics(folder))
    if (unet := unet_folder(folder)) is not None:
        from zoo.nets.tiue.folder import load_unet

        return _placed(load_unet(unet), device, dtype)
    matching("*", None)  # importing the nets makes their architectures known
    return _placed(Pretrained.from_pretrained(folder), device, dtype)


def _placed(net: nn.Module, device: str | torch.device, dtype: torch.dtype | None) -> nn.Module:
    if dtype is None and torch.device(device).type == "cpu":
        stored = {p.dtype for p in net.parameters()}
        dtype = torch.float32 if torch.float16 in stored else None
    # not the net's own `to`: diffusers' warns of what doesn't concern it
    return nn.Module.to(net, device=device, dtype=dtype)


def _json(unet: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((unet / "config.json").read_text())
    return config


def _fetched() -> set[str]:
    """Names whose weights are fetched on first use."""
    return {*OFFICIAL, *published()}


def find_folder(
    name_or_path: str, *, revision: str | None = None, accept_license: bool = False
) -> Path:
    """The folder behind a name of trained weights, `dir:PATH` or `hf:ORG/REPO@REVISION`.

    Raises:
        UserError: unknown, can't be fetched, or a revision of what has none.
    """
    if name_or_path.startswith("hf:"):
        return fetch_repo(*parse_source(name_or_path.removeprefix("hf:"), revision))
    if revision is not None:
        raise UserError(
            f"'{name_or_path}' has no revisions (given: '{revision}'): only hf:ORG/REPO has"
        )
    if name_or_path.startswith("dir:"):
        return Path(name_or_path.removeprefix("dir:")).expanduser()
    folders = trained()
    if name_or_path in folders:
        return folders[name_or_path]
    if name_or_path in OFFICIAL:
        return official_folder(name_or_path)
    if name_or_path in published():
        return published_folder(name_or_path, accept_license=accept_license)
    _unknown(name_or_path)


def unet_folder(folder: Path) -> Path | None:
    """Where the UNet of a diffusers folder or pipeline is; None for a folder of the zoo's own."""
    if (folder / "model_index.json").is_file():
        return folder / "unet"
    path = folder / "config.json"
    return folder if path.is_file() and b'"_class_name"' in path.read_bytes() else None


def _unknown(name: str) -> NoReturn:
    if "/" in name or "\\" in name or ".." in name:
        raise UserError(
            f"'{name}' is no name of a model: dir:PATH loads a folder, "
            "hf:ORG/REPO@REVISION a repository of the hub"
        )
    names = sorted({*trained(), *_fetched()})
    if name in matching("*", None):
        have = [n for n in names if n.startswith(f"{name}.")]
        hint = f"its trained weights: {', '.join(have)}" if have else "it has no trained weights"
        raise UserError(
            f"'{name}' is a preset with random weights, for zoo.create; {hint}; "
            "dir:PATH loads a folder that train.py exported"
        )
    near = closest(name, [*names, *matching("*", None)])
    raise UserError(
        f"unknown model '{name}': did you mean {' or '.join(near)}? "
        "dir:PATH loads a folder that train.py exported"
    )
