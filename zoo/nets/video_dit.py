"""A space-time transformer that generates latents, causal in time block by block.

A clip is a row of chunks of latents. A chunk is denoised given the finished chunks before it, as in
ACDiT (arXiv 2412.07720): training runs finished and noisy chunks side by side in one pass, a stream
keeps keys and values of the finished ones. Both are the same function, so a stream of any length
gives what the whole clip gives. Blocks after DiT (arXiv 2212.09748), with PixArt's shared
modulation (arXiv 2310.00426) and cross-attention to text.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.diffusion.paths import PathKind
from zoo.errors import UserError
from zoo.nets.on_latents import OnLatents
from zoo.nets.video_dit_blocks import Block, RotaryPositions, patches, sinusoids, unpatches
from zoo.nets.video_dit_config import Attention, VideoDiTConfig
from zoo.registry import register
from zoo.streaming import State


class VideoDiT(OnLatents):
    """Normalised latents, times and text to what the path's net predicts."""

    architecture = "video_dit"
    config_class = VideoDiTConfig
    config: VideoDiTConfig

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, pixels = config.dim, config.latent_channels * config.patch**2
        self.read_in = nn.Linear(pixels, dim)
        # a film's first latent stands for one frame and looks different from the others
        self.first = nn.Parameter(torch.zeros(dim))
        self.time_in = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.text_in = nn.Sequential(nn.Linear(config.text_dim, dim), nn.LayerNorm(dim))
        self.pooled_in = nn.Linear(config.text_dim, dim)
        self.modulation = nn.Linear(dim, 6 * dim)
        self.positions = RotaryPositions(dim // config.heads)
        self.blocks = nn.ModuleList(
            Block(dim, heads=config.heads, mlp_ratio=config.mlp_ratio) for _ in range(config.depth)
        )
        self.shift_scale = nn.Parameter(torch.randn(2, dim) / math.sqrt(dim))
        self.read_out = nn.Linear(dim, pixels)
        self._register_latent_statistics()
        self.backend = "auto"
        self.checkpointing = False
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.cross_out.weight)
        # every block starts as the identity and the net at zero: modulation is gates, too
        for weight in (self.modulation.weight, self.read_out.weight):
            nn.init.zeros_(weight)

    def forward(
        self,
        noisy: Tensor,
        times: Tensor,
        text: Tensor,
        *,
        past: Tensor,
        past_times: Tensor,
        begins: Tensor,
    ) -> Tensor:
        """Predictions for every chunk of a clip, each given the `past` of the chunks before it.

        Args:
            noisy: x_t [B,c,n,h,w].
            times: diffusion times [B,n] in [0,1], 0 is clean; one for all latents of a chunk.
            text: states [B,L,D].
            past: the clip as a chunk's past shows it, [B,c,n,h,w]: clean or nearly so.
            past_times: its times [B,n].
            begins: [B] bool, whether the clip is the beginning of a film.

        Returns:
            [B,c,n,h,w].
        """
        self._check(noisy)
        n = noisy.shape[2]
        index = torch.arange(n, device=noisy.device)
        place = torch.cat([index, index])
        mask = self._visible(index, index)
        same = index[:, None] // self.config.chunk == index // self.config.chunk
        finished = torch.cat([mask, torch.zeros_like(same)], dim=1)
        current = torch.cat([mask & ~same, same], dim=1)
        tokens, _ = self._run(
            torch.cat([past, noisy], dim=2),
            torch.cat([past_times, times], dim=1),
            text,
            place=place,
            mask=torch.cat([finished, current]),
            first=begins[:, None] & (place == 0),
            state={},
        )
        return self._write(tokens[:, n:], noisy, times, text)

    def whole(self, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """Predictions for a film from its beginning without any cache, [B,c,n,h,w]: the
        specification of `step`. The last chunk's are those of `step` after the chunks before it.

        Args:
            x: finished chunks and, last, a noisy one, [B,c,n,h,w].
            times: [B,n].
            text: [B,L,D].
        """
        self._check(x)
        index = torch.arange(x.shape[2], device=x.device)
        mask = self._visible(index, index)
        first = (index == 0).expand(len(x), -1)
        tokens, _ = self._run(x, times, text, place=index, mask=mask, first=first, state={})
        return self._write(tokens, x, times, text)

    def step(
        self, x: Tensor, time: Tensor, text: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        """Predictions for the next chunk of a stream.

        Args:
            x: the chunk [B,c,n,h,w], n <= `chunk` (fewer only at a film's end).
            time: [B], 0 for a finished chunk.
            text: [B,L,D].
            state: what the call for the last finished chunk returned; None begins a film.

        Returns:
            Predictions [B,c,n,h,w], and the state with this chunk as past. Keep the state of the
            call with the finished chunk, drop those of noisy ones.

        Raises:
            UserError: the state is of another net, of other sizes, or follows a film's end.
        """
        self._check(x)
        n, chunk = x.shape[2], self.config.chunk
        if n > chunk:
            raise UserError(f"{n} latents at once: this net's chunks have {chunk}")
        signature = self.signature()
        kept = 0
        if state is not None:
            self._check_state(state, signature, x)
            kept = _keys(state).shape[1]
        place = torch.arange(kept + n, device=x.device)
        tokens, cache = self._run(
            x,
            time[:, None].expand(-1, n),
            text,
            place=place,
            # everything that is kept is in the window, and a chunk sees all of itself
            mask=None,
            first=(torch.arange(n, device=x.device) == 0).expand(len(x), -1)
            if state is None
            else torch.zeros(len(x), n, dtype=torch.bool, device=x.device),
            state=state or {},
        )
        window = self.config.window
        new = {k: v[:, max(0, v.shape[1] - window) :].detach() for k, v in cache.items()}
        new["net"], new["latents"] = signature.repeat(len(x), 1), torch.full((len(x),), n)
        return self._write(tokens, x, time[:, None].expand(-1, n), text), new

    def signature(self) -> Tensor:
        """Eight bytes that tell this net's states from another's, uint8 [8]."""
        probes = torch.stack([p.detach().flatten()[0].float() for p in self.parameters()])
        facts = json.dumps([asdict(self.config), probes.cpu().tolist()])
        digest = hashlib.sha256(facts.encode()).digest()[:8]
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8)

    def _check_state(self, state: State, signature: Tensor, x: Tensor) -> None:
        if "net" not in state or not bool((state["net"].cpu() == signature).all()):
            raise UserError(
                "this state is of another net: begin the film with state=None, or go on with the "
                "net that returned it"
            )
        if (last := int(state["latents"][0])) < self.config.chunk:
            raise UserError(
                f"the last chunk had {last} of {self.config.chunk} latents, which "
                "ends a film: begin another one with state=None"
            )
        keys = _keys(state)
        tokens = x.shape[3] * x.shape[4] // self.config.patch**2
        if (keys.shape[0], keys.shape[2]) != (len(x), tokens):
            raise UserError(
                f"a state of {keys.shape[0]} films with {keys.shape[2]} tokens a latent doesn't go "
                f"with a chunk of {len(x)} with {tokens}"
            )

    def _visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Which latents see which, bool [n,m]: their chunk, and the window before it."""
        chunk = self.config.chunk
        begin = rows[:, None] // chunk * chunk
        return (columns < begin + chunk) & (columns >= begin - self.config.window)

    def _run(
        self,
        x: Tensor,
        times: Tensor,
        text: Tensor,
        *,
        place: Tensor,
        mask: Tensor | None,
        first: Tensor,
        state: State,
    ) -> tuple[Tensor, State]:
        """Tokens [B,n,s,dim] after all blocks, and each time-attending block's keys and values,
        those of `state` in front. `place` [m] holds the latents' times, kept ones included."""
        config = self.config
        n, rows, columns = x.shape[2], x.shape[3] // config.patch, x.shape[4] // config.patch
        tokens = self.read_in(patches(x, config.patch)) + self.first * first[..., None, None]
        condition = self._condition(times, text)
        modulation = torch.unflatten(self.modulation(F.silu(condition)), -1, (6, -1))
        states = self.text_in(text)
        wide = torch.promote_types(x.dtype, torch.float32)
        angles = self.positions(place, rows, columns, dtype=wide)
        cache: State = {}
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            over: Literal["all", "space", "time"] = "all"
            if config.attention == "factorised":
                over = "time" if number % 2 else "space"
            slot = f"blocks.{number}"
            old = None if f"{slot}.k" not in state else (state[f"{slot}.k"], state[f"{slot}.v"])
            arguments = (tokens, modulation, states, angles, mask, old, over, self.backend)
            if self.checkpointing and torch.is_grad_enabled():
                tokens, new = checkpoint(block, *arguments, use_reentrant=False)
            else:
                tokens, new = block(*arguments)
            if new is not None:
                cache[f"{slot}.k"], cache[f"{slot}.v"] = new
        assert tokens.shape[1] == n
        return tokens, cache

    def _condition(self, times: Tensor, text: Tensor) -> Tensor:
        """Times [B,n] and text [B,L,D] to [B,n,dim]."""
        pooled = self.pooled_in(text.mean(1))
        result: Tensor = self.time_in(sinusoids(times, 256).to(text)) + pooled[:, None]
        return result

    def _write(self, tokens: Tensor, like: Tensor, times: Tensor, text: Tensor) -> Tensor:
        condition = self._condition(times, text)
        shift, scale = (self.shift_scale + condition[..., None, :]).unbind(-2)
        normed = F.layer_norm(tokens, tokens.shape[-1:])
        out = self.read_out(normed * (1 + scale[:, :, None]) + shift[:, :, None])
        return unpatches(out, like, self.config.patch)

    def _check(self, x: Tensor) -> None:
        channels, patch = self.config.latent_channels, self.config.patch
        if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
            raise UserError(
                f"latents of shape {tuple(x.shape)} don't fit this net: give [B,{channels},t,h,w]"
            )
        if x.shape[3] % patch or x.shape[4] % patch:
            raise UserError(
                f"latents of {x.shape[3]}x{x.shape[4]} don't divide into patches of {patch}x{patch}"
            )


def _keys(state: State) -> Tensor:
    """The keys [B,kept,s,d] of any block of a state: all have that shape."""
    return next(value for slot, value in state.items() if slot.endswith(".k"))


@register(family="video_dit")
def video_dit_tiny(
    *,
    latent_channels: int = 16,
    dim: int = 192,
    depth: int = 6,
    heads: int = 6,
    patch: int = 2,
    text_dim: int = 384,
    attention: Attention = "full",
    chunk: int = 1,
    window: int = 4,
    path: PathKind = "rectified_flow",
) -> VideoDiT:
    """4 M parameters, for 64x64 pixels on a CPU."""
    return VideoDiT(
        VideoDiTConfig(
            latent_channels=latent_channels,
            dim=dim,
            depth=depth,
            heads=heads,
            patch=patch,
            text_dim=text_dim,
            attention=attention,
            chunk=chunk,
            window=window,
            path=path,
        )
    )


@register(family="video_dit")
def video_dit_small(
    *, latent_channels: int = 16, window: int = 8, path: PathKind = "rectified_flow"
) -> VideoDiT:
    """30 M parameters, for 128x128 pixels on one GPU."""
    return VideoDiT(
        VideoDiTConfig(
            latent_channels=latent_channels,
            dim=384,
            depth=12,
            heads=6,
            patch=2,
            attention="factorised",
            window=window,
            path=path,
            latent_size=(16, 16),
        )
    )


@register(family="video_dit")
def video_dit_base(
    *, latent_channels: int = 16, window: int = 12, path: PathKind = "rectified_flow"
) -> VideoDiT:
    """The size of Latte-XL/2 (arXiv 2401.03048), for 256x256 pixels on GPUs."""
    return VideoDiT(
        VideoDiTConfig(
            latent_channels=latent_channels,
            dim=1152,
            depth=28,
            heads=16,
            patch=2,
            attention="factorised",
            window=window,
            path=path,
            latent_size=(32, 32),
        )
    )
