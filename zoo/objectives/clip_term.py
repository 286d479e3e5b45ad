"""A term that keeps pictures close to their captions in CLIP's eyes (arXiv 2103.00020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError
from zoo.frozen import Frozen


class ClipTerm:
    """relu(threshold - cos(text, picture)) of a CLIP on disk, averaged; TiUE's optional last phase.

    Args:
        folder: of a CLIP as transformers saves it (model, tokenizer).
        weight: of the term.
        threshold: pictures with at least this similarity are left alone.

    Raises:
        UserError: no CLIP in `folder`, or numbers outside their range. Said when a run is set up.
    """

    def __init__(self, folder: str, *, weight: float = 1.0, threshold: float = 0.35) -> None:
        path = Path(folder).expanduser()
        weights = ("model.safetensors", "pytorch_model.bin")
        if not (path / "config.json").is_file() or not any((path / n).is_file() for n in weights):
            raise UserError(
                f"there is no CLIP in {path}: save openai/clip-vit-base-patch32 there with its "
                "tokenizer, or leave the CLIP term out"
            )
        if weight <= 0 or not -1 < threshold <= 1:
            raise UserError(
                f"weight = {weight}, threshold = {threshold}: give a weight above 0 and a cosine"
            )
        self.folder, self.weight, self.threshold = path, weight, threshold
        self._frozen = Frozen(net=None, words=None)

    def prepare(self, device: torch.device) -> None:
        """Load it.

        Raises:
            UserError: the folder holds no CLIP that transformers can read.
        """
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, CLIPModel

        try:
            net: Any = CLIPModel.from_pretrained(self.folder, local_files_only=True)
            words: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(f"the CLIP in {self.folder} can't be read: {said}") from error
        self._frozen.net = net.eval().requires_grad_(False).to(device)
        self._frozen.words = words

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """The term of pictures [B,3,H,W] in [-1,1], a scalar with gradient."""
        similarity = self.similarity(pixels, prompts)
        return F.relu(self.threshold - similarity).mean()

    def similarity(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Cosine of each picture and its caption, [B]."""
        from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        net = self._frozen.net
        side = net.config.vision_config.image_size
        x = F.interpolate(
            pixels.float().clamp(-1, 1), size=(side, side), mode="bicubic", antialias=True
        )
        mean, std = (
            torch.tensor(v, device=x.device).view(3, 1, 1)
            for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )
        tokens = self._frozen.words(
            prompts, padding="max_length", truncation=True, return_tensors="pt"
        ).to(x.device)
        said = net(pixel_values=((x + 1) / 2 - mean) / std, **tokens)
        return F.cosine_similarity(said.image_embeds, said.text_embeds, dim=-1)
