"""CLIP score: the cosine between a picture's and its text's CLIP embeddings (arXiv 2104.08718)."""

from __future__ import annotations

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

        place = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
        try:
            self.processor: Any = CLIPProcessor.from_pretrained(place)
            net: Any = CLIPModel.from_pretrained(place)
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
