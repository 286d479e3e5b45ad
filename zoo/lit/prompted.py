"""What the training of every text-to-image net shares: text, latents, sample sheets, the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.batch import Batch
from zoo.data.caption_source import Captions
from zoo.data.captioned import CaptionedPictures
from zoo.data.sheet import grid, save_png
from zoo.frozen import Frozen
from zoo.kernels.processor import set_attention
from zoo.lit.module import ZooModule
from zoo.nets.tiue.unet import TiUEUNet
from zoo.pipelines import TiUEPipeline
from zoo.text import CachedText

_MOST_KEPT = 50_000  # pictures whose latents (and captions whose states) are kept in memory
_COLUMNS = 8


class PromptedModule(ZooModule):
    """Base of the modules that train a UNet inside a pipeline.

    Latents and text states of what is the same in every epoch are made once, before the first
    step. At every validation `samples/step-N.png` shows the averaged net's pictures.

    Args:
        pipeline: whose UNet is trained; its other parts are frozen.
        prompts: of the sample sheet.
        attention: backend of the UNet's attention (`zoo.kernels`).

    Attributes:
        wants_latents: whether training looks at pictures; captions alone need no latents.
    """

    net: TiUEUNet
    wants_latents = True

    def __init__(
        self, pipeline: TiUEPipeline, *, prompts: list[str] | None, attention: str
    ) -> None:
        super().__init__()
        self.net = pipeline.unet.train()
        set_attention(self.net, attention)
        self.prompts = prompts or ["red apple, 3d"]
        self.pipeline = Frozen(of=pipeline)
        pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
        pipeline.sampling()  # numbers out of range are said here
        self._kept = Frozen(train={}, val={}, text=None)

    def frozen_nets(self) -> list[nn.Module]:
        """What must be on the module's device without being a part of it."""
        parts: Any = self.pipeline.of.components
        return [p for n, p in parts.items() if isinstance(p, nn.Module) and n != "unet"]

    def on_fit_start(self) -> None:
        """Move the frozen nets, encode what stays the same."""
        super().on_fit_start()
        for net in self.frozen_nets():
            # not the net's own `to`, which diffusers wraps
            nn.Module.to(net.requires_grad_(False).eval(), self.device)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        prompts = [""]
        for source, kept in ((data.train, self._kept.train), (data.val, self._kept.val)):
            if not isinstance(source, CaptionedPictures | Captions) or len(source) > _MOST_KEPT:
                continue
            prompts += source.prompts
            if isinstance(source, CaptionedPictures) and source.fixed and self.wants_latents:
                self._keep_latents(source, kept)
        self._kept.text = CachedText(self.pipeline.of.encode_prompts, prompts)

    def _keep_latents(self, source: CaptionedPictures, kept: dict[str, Tensor]) -> None:
        for first in range(0, len(source), 64):
            batch = [source[i] for i in range(first, min(first + 64, len(source)))]
            latents = self.encode(torch.stack([s.pixels for s in batch]).to(self.device))
            kept.update(zip((s.key for s in batch), latents.cpu(), strict=True))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """The UNet's latents [B,c,h,w] of pictures [B,3,1,H,W]."""
        latents: Tensor = self.pipeline.of.encode_pixels(pixels[:, :, 0])
        return latents

    def latents_of(self, batch: Batch, *, train: bool = True) -> Tensor:
        """Latents [B,c,h,w] of a batch of pictures, on this module's device."""
        kept = self._kept.train if train else self._kept.val
        if all(key in kept for key in batch.key):
            latents = torch.stack([kept[key] for key in batch.key])
        else:
            latents = self.encode(batch.pixels)
        return latents.to(self.device)

    def text_of(self, prompts: list[str]) -> Tensor:
        """States [B,L,D] of captions, on this module's device, in float32."""
        states: Tensor = self._kept.text(prompts).to(self.device)
        return states

    def save_sheet(self) -> Path:
        """Pictures of the prompts, always from the same noise, eight a row."""
        pictures = []
        for first in range(0, len(self.prompts), 2 * _COLUMNS):
            prompts = self.prompts[first : first + 2 * _COLUMNS]
            seeds = range(first, first + len(prompts))
            pictures += self.pipeline.of(prompts, seed=list(seeds)).images
        folder = Path(self.trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{self.trainer.global_step:06d}.png"
        save_png(grid(pictures, min(_COLUMNS, len(pictures))), path)
        return path

    def export(self, folder: Path) -> None:
        """Write the pipeline: net, schedule, autoencoder, and how it is sampled."""
        self.pipeline.of.save_pretrained(folder)
