"""Opening a text-to-image pipeline by name, strictly, with mistakes in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from zoo.errors import UserError
from zoo.hub import find_folder
from zoo.nets.tiue.folder import load_unet
from zoo.pipelines import TiUEPipeline
from zoo.remote import check_sha256, read_metrics


def open_pipeline(
    name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> TiUEPipeline:
    """A pipeline on a device.

    Args:
        name: trained weights (`tiue_tiny.emoji`), `dir:PATH` for a TiUE or Stable Diffusion 1.x /
            2.x folder, or `hf:ORGANISATION/REPOSITORY[@REVISION]`.
        device: where to put it.
        dtype: None takes the UNet's stored one for all parts (float32 for float16 on a CPU).

    Raises:
        UserError: unknown name, no such folder or repository, another kind of pipeline, weights
            that don't fit.
    """
    if dtype == torch.float16 and torch.device(device).type == "cpu":
        raise UserError("float16 is not for a CPU: use bfloat16 or float32, or a GPU")
    diffusers: Any = TiUEPipeline  # diffusers' methods have no types
    with _one_sentence(name):
        folder = pipeline_folder(name)
        check_sha256(folder, read_metrics(folder))
        made = diffusers.from_pretrained(folder, unet=load_unet(folder / "unet"))
    if dtype is None:
        dtype = made.unet.dtype
        if dtype == torch.float16 and torch.device(device).type == "cpu":
            dtype = torch.float32
    for part in made.components.values():
        if isinstance(part, nn.Module):
            # not the part's own `to`, which warns of what doesn't concern it
            nn.Module.to(part, device=device, dtype=dtype)
    pipeline: TiUEPipeline = made
    return pipeline


def pipeline_folder(name: str) -> Path:
    """The folder of a pipeline, fetched where it is on the hub; names as in `open_pipeline`.

    Raises:
        UserError: there is none.
    """
    diffusers: Any = TiUEPipeline
    with _one_sentence(name):
        if name.startswith("hf:"):
            repository, _, revision = name.removeprefix("hf:").partition("@")
            folder = Path(diffusers.download(repository, revision=revision or None))
        else:
            folder = find_folder(name)
    _check_folder(folder)
    return folder


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
        ImportError,
        AttributeError,
        SafetensorError,
    ) as error:
        said = " ".join(str(error).split())[:240]
        raise UserError(f"{name} can't be opened as a text-to-image pipeline: {said}") from error


_PARTS = {
    "diffusers": {"UNet2DConditionModel", "AutoencoderKL"},
    "transformers": {
        *("CLIPTextModel", "CLIPTokenizer", "CLIPTokenizerFast"),
        *("CLIPImageProcessor", "CLIPFeatureExtractor"),
    },
    "stable_diffusion": {"StableDiffusionSafetyChecker"},
    "zoo.pipelines": {"ZooVAE"},
}


def _is_part(library: object, name: object = None) -> bool:
    """Whether a pipeline folder may name this class."""
    if library == "diffusers" and re.fullmatch(r"[A-Za-z0-9]+Scheduler", str(name)):
        return True
    return name in _PARTS.get(str(library), set())


def _check_folder(path: Path) -> None:
    index = path / "model_index.json"
    if not index.is_file():
        if (path / "config.json").is_file():
            raise UserError(f"{path} is one net: give the folder of a whole pipeline")
        raise UserError(f"{path} is not a pipeline folder: it has no model_index.json")
    try:
        content = json.loads(index.read_text())
        kind = content.get("_class_name")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(
            f"{index} is not JSON with a _class_name ({error}): save it again"
        ) from error
    for part, named in content.items():
        # diffusers imports the modules and calls the classes that this file names
        if isinstance(named, list) and tuple(named) != (None, None) and not _is_part(*named[:2]):
            raise UserError(
                f"{index} wants {'.'.join(map(str, named))} for its {part}, which no pipeline of "
                "the zoo is made of; nothing of it was run: do not trust it"
            )
    if not (path / "unet").is_dir():
        raise UserError(f"{path} is a {kind}, which has no UNet: use Stable Diffusion 1.x or 2.x")
