"""CLIP score: the cosine between a picture's and its text's CLIP embeddings (arXiv 2104.08718)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.transforms import to_uint8
from zoo.errors import UserError

CLIP = "openai/clip-vit-large-patch14"


class CLIPScore:
    """max(cosine, 0) of each picture and text; no factor (torchmetrics multiplies by 100).

    Args:
        name: a folder, or a repository of the hub (its cache first).
        device: where the net runs.

    Raises:
        UserError: it can't be had.
    """

    def __init__(self, name: str = CLIP, *, device: torch.device | str = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor

        folder = Path(name).expanduser()
        try:
            place = str(folder) if folder.is_dir() else _snapshot(name)
            self.processor: Any = CLIPProcessor.from_pretrained(place, local_files_only=True)
            net: Any = CLIPModel.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError, RuntimeError, ImportError, TypeError, KeyError) as error:
            said = " ".join(str(error).split())[:120]
            raise UserError(
                f"no CLIP at {name} ({said}): give a folder with CLIPModel and its processor"
            ) from error
        self.name, self.device = name, device
        self.net = net.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """Scores [B] in [0,1].

        Args:
            pictures: [B,3,H,W] in [-1,1], rounded to 8 bits.
            texts: one a picture; cut where the text encoder ends.
        """
        frames = list(to_uint8(pictures).cpu())
        given = self.processor(
            text=list(texts), images=frames, return_tensors="pt", padding=True, truncation=True
        ).to(self.device)
        out = self.net(**given)
        cosine: Tensor = (out.image_embeds * out.text_embeds).sum(-1)
        return cosine.clamp_min(0).cpu()


def _snapshot(name: str) -> str:
    """The folder of a hub repository: the cache's, else fetched where the hub answers at once.

    Raises:
        OSError, ValueError: it can't be had, or the name is none of a repository.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        for variable in ("ZOO_OFFLINE", "HF_HUB_OFFLINE"):
            if os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}:
                raise OSError(
                    f"it isn't in the hub's cache and {variable} forbids fetching it"
                ) from None
    try:
        # transformers asks again and again for half a minute where nothing answers
        HfApi().model_info(name, timeout=10)
    except HfHubHTTPError as error:
        raise OSError(str(error)) from error
    except Exception as error:  # the client behind the hub differs between versions
        raise OSError(f"the hub gives no answer: {error}") from error
    files = ["*.json", "*.txt", "model.safetensors"]
    return str(snapshot_download(name, allow_patterns=files))
