"""TiUE presets; the class is imported when it is first asked for, as diffusers takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from zoo.registry import register

if TYPE_CHECKING:
    from zoo.nets.tiue.unet import EncoderFeatures, TiUEUNet


def __getattr__(name: str) -> Any:
    if name in ("EncoderFeatures", "TiUEUNet"):
        from zoo.nets.tiue import unet

        return getattr(unet, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _build(**config: Any) -> TiUEUNet:
    from zoo.kernels.processor import set_attention
    from zoo.nets.tiue.unet import TiUEUNet

    net = TiUEUNet(**config)
    set_attention(net)
    return cast("TiUEUNet", net.eval())


_SD_BLOCKS: dict[str, Any] = {
    "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}


@register(family="tiue")
def tiue_sd15() -> TiUEUNet:
    """The UNet of Stable Diffusion 1.x: 860 M parameters, 64x64x4 latents, CLIP ViT-L/14 text."""
    return _build(**_SD_BLOCKS, cross_attention_dim=768, attention_head_dim=8)


@register(family="tiue")
def tiue_sd21() -> TiUEUNet:
    """The UNet of Stable Diffusion 2.x base: 866 M parameters, 64x64x4 latents, OpenCLIP text."""
    return _build(
        **_SD_BLOCKS,
        cross_attention_dim=1024,
        # heads, not channels a head: diffusers keeps the name for old checkpoints
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )


@register(family="tiue")
def tiue_tiny(
    *,
    sample_size: int = 16,
    channels: int = 4,
    widths: tuple[int, ...] = (64, 128, 128),
    text_dim: int = 384,
) -> TiUEUNet:
    """At most 8 M parameters: 64x64 pixels through f4 latents 16x16x4, MiniLM text [B,20,384].

    Pooled text is added to the time embedding (`addition_embed_type="text"`), which helped at this
    size; it is made of the text that `encode` and `decode` take anyway.
    """
    levels = len(widths)
    return _build(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=text_dim,
        attention_head_dim=4,
        addition_embed_type="text",
    )


@register(family="t2i")
def t2i_tiny(
    *,
    sample_size: int = 16,
    channels: int = 4,
    widths: tuple[int, ...] = (64, 128, 128),
    text_dim: int = 384,
) -> TiUEUNet:
    """A teacher for `tiue_tiny`, of the same structure: 7.7 M parameters, many steps, guidance."""
    return tiue_tiny(sample_size=sample_size, channels=channels, widths=widths, text_dim=text_dim)


__all__ = ["EncoderFeatures", "TiUEUNet", "t2i_tiny", "tiue_sd15", "tiue_sd21", "tiue_tiny"]
