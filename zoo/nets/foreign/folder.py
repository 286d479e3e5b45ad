"""A diffusers folder as a Foreign tokenizer."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.nets.diffusers_folder import class_name, load_module
from zoo.nets.foreign.calls import CALLS
from zoo.nets.foreign.net import Foreign, ForeignConfig, foreign_class
from zoo.nets.foreign.table import Entry

_DECODERS = {"LTX2VideoDiffusionDecoderModel": "AutoencoderKLLTX2Video"}
"""Classes that only decode, and the one that encodes for them."""


def holds_foreign(folder: Path) -> bool:
    """Whether a folder is one of a diffusers autoencoder, wrapped by the zoo or not."""
    path = folder / "config.json"
    if not path.is_file() or b'"_class_name"' not in path.read_bytes():
        return False
    kind = class_name(folder)
    return kind in CALLS or kind.startswith(("Autoencoder", "VQModel", "ConsistencyDecoder"))


def load_foreign(folder: Path, *, entry: Entry | None = None) -> Foreign:
    """The tokenizer in a folder that diffusers wrote: eval mode, dtype as stored, strict.

    Args:
        folder: with config.json and the weights. A decoder's encoder is in the folder `vae`
            beside it.
        entry: what it must be; None takes any class of the table.

    Raises:
        UserError: another class, no encoder beside a decoder, or weights that don't fit.
    """
    kind = class_name(folder)
    wanted = (entry.decoder or entry.kind) if entry else kind
    if kind != wanted:
        raise UserError(f"{folder} holds a {kind}, not the {wanted} that its name stands for")
    module = load_module(foreign_class(kind), folder)
    if kind not in _DECODERS:
        return _wrap(ForeignConfig(kind=kind, settings=_settings(module)), module, None)
    beside = folder.parent / "vae"
    if not (beside / "config.json").is_file() or class_name(beside) != _DECODERS[kind]:
        raise UserError(
            f"{folder} only decodes: put the {_DECODERS[kind]} that encodes for it into {beside}"
        )
    encoder = load_module(foreign_class(_DECODERS[kind]), beside)
    config = ForeignConfig(
        kind=_DECODERS[kind],
        settings=_settings(encoder),
        decoder=kind,
        decoder_settings=_settings(module),
    )
    return _wrap(config, encoder, module)


def _settings(module: Any) -> dict[str, Any]:
    """What to build its class with, as JSON has it; diffusers keeps more in its config."""
    known = inspect.signature(type(module).__init__).parameters
    values = {k: v for k, v in module.config.items() if k in known}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _wrap(config: ForeignConfig, vae: Any, decoder: Any) -> Foreign:
    net = Foreign(config, modules=(vae, decoder))
    return net.to(dtype=next(vae.parameters()).dtype).eval()
