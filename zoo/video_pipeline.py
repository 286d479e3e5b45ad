"""Prompts to films: text encoder, generator and tokenizer, chunk by chunk."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from zoo.data.latents import fingerprint
from zoo.diffusion.noise import draw_noise, noise_generators
from zoo.diffusion.paths import advance, sampling_times
from zoo.errors import UserError
from zoo.hub import find_folder, load
from zoo.nets.pretrained import Pretrained
from zoo.nets.tokenizer import Size, Tokenizer
from zoo.nets.video_dit import VideoDiT
from zoo.streaming import State
from zoo.text import TextEncoder, text_encoder_for

_LOG = logging.getLogger("zoo")
TOKENIZER = "tokenizer"
"""Folder of the tokenizer beside a generator's weights, where it has no name in the zoo."""


class VideoPipeline:
    """Generates films of any length in constant memory.

    Args:
        net: the generator.
        tokenizer: decodes its latents.
        text: None: the encoder that fits the net.

    Raises:
        UserError: the tokenizer's latents have another shape.
    """

    def __init__(
        self, net: VideoDiT, tokenizer: Tokenizer, *, text: TextEncoder | None = None
    ) -> None:
        net.check_tokenizer(tokenizer, name=net.config.tokenizer or tokenizer.architecture)
        self.net, self.tokenizer = net, tokenizer
        self.text = text_encoder_for(net.config.text_dim) if text is None else text

    @classmethod
    def from_pretrained(
        cls, name: str, *, tokenizer: str | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """Load a generator and its tokenizer.

        Args:
            name: of trained weights, or dir:PATH.
            tokenizer: name of the tokenizer; None: the one that the generator was trained with.
            device: where both run.

        Raises:
            UserError: no generator of films, or a tokenizer of other latents.
        """
        folder = find_folder(name)
        net = load(name)
        if not isinstance(net, VideoDiT):
            kind = net.architecture if isinstance(net, Pretrained) else type(net).__name__
            raise UserError(f"{name} is a {kind}, which generates no films: give a video_dit")
        own = folder / TOKENIZER
        if tokenizer is None:
            tokenizer = f"dir:{own}" if own.is_dir() else net.config.tokenizer
            if not tokenizer:
                raise UserError(f"{name} was never trained: it knows no tokenizer")
        decoder = load(tokenizer)
        if not isinstance(decoder, Tokenizer):
            raise UserError(f"{tokenizer} is no tokenizer: give the one {name} was trained with")
        net.check_tokenizer(decoder, name=tokenizer, weights=fingerprint(decoder)[1])
        # weights stored in half precision compute in float32
        return cls(net.float().to(device).eval(), decoder.float().to(device).eval())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the generator, and beside it a tokenizer that has no name in the zoo."""
        self.net.save_pretrained(folder)
        if self.net.config.tokenizer.startswith("dir:"):
            self.tokenizer.save_pretrained(Path(folder) / TOKENIZER)

    def count(self, frames: int) -> int:
        """How many latents give `frames` frames.

        Raises:
            UserError: no number of latents does; the nearest that can be had are named.
        """
        time = self.tokenizer.compression[0]
        if frames < 1 or (frames - 1) % time:
            below = 1 + max(0, frames - 1) // time * time
            near = f"{below} or {below + time}" if frames > 0 else "1"
            raise UserError(
                f"{frames} frames can't be reached: the first latent stands for 1 frame, each "
                f"further one for {time}; give {near}"
            )
        return 1 + (frames - 1) // time

    def grid(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Rows and columns of latents of (height, width) pixels; None: as trained.

        Raises:
            UserError: they don't divide.
        """
        _, rows, columns = self.tokenizer.compression
        if size is None:
            height, width = self.net.config.latent_size
            return height, width
        rows, columns = rows * self.net.config.patch, columns * self.net.config.patch
        if size[0] < 1 or size[1] < 1 or size[0] % rows or size[1] % columns:
            raise UserError(
                f"{size[1]}x{size[0]} pixels: give a width that is a multiple of {columns} and a "
                f"height that is one of {rows}"
            )
        _, h, w = self.tokenizer.compression
        return size[0] // h, size[1] // w

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """States [B,L,D] of prompts; says which are too long."""
        encoded = self.text(list(prompts))
        for prompt, lost in zip(prompts, encoded.truncated, strict=True):
            if lost:
                _LOG.warning("the last %d tokens of '%s' don't fit and are left out", lost, prompt)
        return encoded.states

    @torch.no_grad()
    def latents(
        self,
        prompts: Sequence[str],
        *,
        count: int,
        seeds: Sequence[int],
        size: tuple[int, int] | None = None,
        steps: int = 30,
        guidance: float = 3.0,
        shift: float = 1.0,
    ) -> Iterator[Tensor]:
        """Chunks of latents [B,c,n,h,w], as the tokenizer decodes them.

        Args:
            prompts: B captions.
            count: latents in all.
            seeds: B; a film depends on its own, not on the batch or on `count`.
            size: (height, width) in pixels; None: as trained.
            steps: passes a chunk.
            guidance: classifier-free guidance; 1: none.
            shift: see `sampling_times`.
        """
        net, config = self.net, self.net.config
        device = net.latent_mean.device
        times = sampling_times(steps, shift=shift).to(device, torch.float32)
        texts = self._guided_text(prompts, guidance).to(device)
        generators, _ = noise_generators(len(prompts), seeds, None)
        height, width = self.grid(size)
        state: State | None = None
        for begin in range(0, count, config.chunk):
            n = min(config.chunk, count - begin)
            shape = (config.latent_channels, height, width)
            # latent by latent: other lengths of chunks and films don't change what is drawn
            x = torch.stack([draw_noise(generators, shape) for _ in range(n)], dim=2).to(device)
            for t, to in itertools.pairwise(times):
                said = self._step(x, t, texts, state, guidance)[0]
                x = advance(config.path, x, said, t, to)
            _, state = self._step(x, times[-1], texts, state, guidance)
            yield net.denormalize(x)

    def _guided_text(self, prompts: Sequence[str], guidance: float) -> Tensor:
        text = self.encode_prompts(prompts)
        if guidance == 1:
            return text
        return torch.cat([text, self.encode_prompts([""]).expand_as(text)])

    def _step(
        self, x: Tensor, t: Tensor, texts: Tensor, state: State | None, guidance: float
    ) -> tuple[Tensor, State]:
        if guidance == 1:
            return self.net.step(x, t.expand(len(x)), texts, state)
        both = torch.cat([x, x])
        said, new = self.net.step(both, t.expand(len(both)), texts, state)
        towards, without = said.chunk(2)
        return without + guidance * (towards - without), new

    def films(
        self,
        prompts: Sequence[str],
        *,
        frames: int,
        seeds: Sequence[int],
        size: tuple[int, int] | None = None,
        steps: int = 30,
        guidance: float = 3.0,
        shift: float = 1.0,
    ) -> Iterator[Tensor]:
        """Frames [B,3,T,H,W] near [-1,1], chunk by chunk; arguments as for `latents`.

        Raises:
            UserError: `frames` can't be reached, or `size` doesn't divide into latents.
        """
        count = self.count(frames)
        pieces = self.latents(
            prompts,
            count=count,
            seeds=seeds,
            size=size,
            steps=steps,
            guidance=guidance,
            shift=shift,
        )
        states: list[State | None] = [None] * len(prompts)
        # a diffusion decoder's noise, too, is each film's own
        noise, _ = noise_generators(len(prompts), seeds, None)
        with torch.no_grad():
            for z in pieces:
                decoded = []
                for i in range(len(prompts)):
                    y, states[i] = self.tokenizer.decode_step(
                        z[i : i + 1], states[i], generator=noise[i]
                    )
                    decoded.append(y)
                yield torch.cat(decoded)

    def pixels(self, size: tuple[int, int] | None = None) -> Size:
        """(1,H,W) of a frame."""
        _, h, w = self.tokenizer.compression
        rows, columns = self.grid(size)
        return 1, rows * h, columns * w
