"""Our attention under every block of a diffusers net."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.kernels.attention import BACKENDS, attention


class ZooAttnProcessor:
    """A diffusers attention processor that calls `zoo.kernels.attention`.

    Serves diffusers' `Attention` in UNets (self and cross attention over [B,N,C]) and in
    autoencoders (one head over [B,C,H,W], group norm and residual inside). Same values as
    diffusers' own processor; LoRA layers on the projections work, as only they are called.
    """

    def __init__(self, backend: str = "auto") -> None:
        self.backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend (the argument names are diffusers').

        Args:
            attn: the diffusers Attention module: projections and norms.
            hidden_states: [B,N,C] or [B,C,H,W].
            encoder_hidden_states: [B,M,C'] to read from; None attends to itself.
            attention_mask: additive bias [B,1 or N,M], the same for every head.
            temb: input of a spatial norm, where the module has one.
        """
        x = hidden_states if attn.spatial_norm is None else attn.spatial_norm(hidden_states, temb)
        picture = x.shape if x.ndim == 4 else None
        if picture is not None:
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        source = x if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross is not None:
            source = attn.norm_encoder_hidden_states(source)
        q, k, v = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(x), attn.to_k(source), attn.to_v(source))
        )
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        mask = None if attention_mask is None else attention_mask[:, None]
        out = attention(q, k, v, mask=mask, scale=attn.scale, backend=self.backend)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        if picture is not None:
            out = out.transpose(1, 2).reshape(picture[0], -1, *picture[2:])
        if attn.residual_connection:
            out = out + hidden_states
        result: Tensor = out / attn.rescale_output_factor
        return result


def set_attention(net: nn.Module, backend: str = "auto") -> None:
    """Put `ZooAttnProcessor` under every attention block of a diffusers net.

    Raises:
        UserError: the net has blocks with added key and value projections, which it can't serve,
            or the backend is unknown.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown attention backend '{backend}': use one of {', '.join(BACKENDS)}")
    for name, module in net.named_modules():
        if getattr(module, "add_k_proj", None) is not None:
            raise UserError(
                f"{name} has added key and value projections, which our attention processor "
                "doesn't serve: keep diffusers' own processor"
            )
    net.set_attn_processor(ZooAttnProcessor(backend))  # type: ignore[operator]
