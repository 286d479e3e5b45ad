"""The UNet of TiUE (arXiv 2505.21960): diffusers' own, with its two halves callable apart.

Encoder features change little between time steps, decoder features a lot; so one encoder pass can
serve the decoder passes of many time steps, and those don't wait for each other. Nothing is added
to the weights: a plain Stable Diffusion folder is a TiUE folder and the other way round.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from zoo.errors import UserError


class EncoderFeatures(NamedTuple):
    """What the first half of the UNet hands to the second.

    Attributes:
        mid: output of the mid block, [B,C,h,w].
        skips: outputs of the first convolution and of every encoder layer, finest first.
    """

    mid: Tensor
    skips: tuple[Tensor, ...]

    def repeat(self, times: int) -> EncoderFeatures:
        """[B,...] to [times * B,...]: the whole batch `times` times in a row."""
        if times == 1:
            return self
        mid, *skips = (x.repeat(times, 1, 1, 1) for x in (self.mid, *self.skips))
        return EncoderFeatures(mid, tuple(skips))


class TiUEUNet(UNet2DConditionModel):
    """UNet2DConditionModel with `encode` and `decode`; forward and constructor are the parent's.

    `decode(encode(x, t, text), t, text)` is `forward(x, t, text).sample`, bit for bit.
    """

    def encode(
        self, sample: Tensor, timestep: Tensor | float | int, text: Tensor
    ) -> EncoderFeatures:
        """First convolution, down blocks and mid block.

        Args:
            sample: noisy latents (or pixels) [B,c,h,w].
            timestep: one for all samples, or [B].
            text: states of the text encoder [B,L,D].

        Raises:
            UserError: the net needs conditions that would be dropped (named), or batches differ.
        """
        refuse_other_conditions(self)
        each = {"timestep": timestep} if isinstance(timestep, Tensor) and timestep.ndim else {}
        _same_batch(sample=sample, text=text, **each)
        embedding, text = self._conditions(sample, timestep, text)
        config: Any = self.config
        x = 2 * sample - 1.0 if config.center_input_sample else sample
        x = self.conv_in(x)
        skips = (x,)
        for block in self.down_blocks:
            x, more = block(hidden_states=x, temb=embedding, **_context(block, text))
            skips += more
        if self.mid_block is not None:
            x = self.mid_block(x, embedding, **_context(self.mid_block, text))
        return EncoderFeatures(x, skips)

    def decode(self, features: EncoderFeatures, timesteps: Tensor, text: Tensor) -> Tensor:
        """Up blocks and output head: the net's prediction [B,c,h,w].

        Args:
            features: of `encode`, repeated to one entry a decoder pass (`EncoderFeatures.repeat`).
            timesteps: [B], a time step for each entry; it may differ from the encoder's.
            text: [B,L,D].

        Raises:
            UserError: as `encode`.
        """
        refuse_other_conditions(self)
        _same_batch(features=features.mid, timesteps=timesteps, text=text)
        embedding, text = self._conditions(features.mid, timesteps, text)
        x, skips = features
        up_blocks: Any = self.up_blocks
        for block in up_blocks:
            count = len(block.resnets)
            skips, mine = skips[:-count], skips[-count:]
            # the next block's skips say the size: exact also where halving rounded it up
            size = skips[-1].shape[2:] if skips else None
            x = block(
                hidden_states=x,
                temb=embedding,
                res_hidden_states_tuple=mine,
                upsample_size=size,
                **_context(block, text),
            )
        if self.conv_norm_out is not None:
            x = self.conv_act(self.conv_norm_out(x))
        prediction: Tensor = self.conv_out(x)
        return prediction

    def _conditions(
        self, like: Tensor, timestep: Tensor | float | int, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Time embedding [B,E], pooled text added where the net has it, and text for the blocks."""
        time = self.get_time_embed(sample=like, timestep=timestep)
        embedding = self.time_embedding(time)
        pooled = self.get_aug_embed(emb=embedding, encoder_hidden_states=text, added_cond_kwargs={})
        if pooled is not None:
            embedding = embedding + pooled
        if self.time_embed_act is not None:
            embedding = self.time_embed_act(embedding)
        text = self.process_encoder_hidden_states(encoder_hidden_states=text, added_cond_kwargs={})
        return embedding, text

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel) -> Self:
        """The same net as a TiUEUNet; the parameters are shared, not copied.

        Raises:
            UserError: not such a UNet, or one with conditions that would be dropped (named).
        """
        if isinstance(unet, cls):
            return unet
        if not isinstance(unet, UNet2DConditionModel):
            raise UserError(
                f"a {type(unet).__name__} can't be a TiUE net: give a UNet2DConditionModel, "
                "as Stable Diffusion 1.x and 2.x have"
            )
        refuse_other_conditions(unet)
        with torch.device("meta"):
            net = cast(Self, cls.from_config(unet.config))
        net.load_state_dict(unet.state_dict(keep_vars=True), strict=True, assign=True)
        return net.train(unet.training)


def text_width(unet: UNet2DConditionModel) -> int:
    """Channels of the text states that a UNet takes, in front of its projection if it has one."""
    config: Any = unet.config
    return int(config.encoder_hid_dim or config.cross_attention_dim)


def _context(block: nn.Module, text: Tensor) -> dict[str, Any]:
    """Blocks with cross attention take the text, others don't know the argument."""
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def _same_batch(**tensors: Tensor) -> None:
    if len({x.shape[:1] for x in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise UserError(f"batch sizes differ ({shapes}): give one entry a sample in each")


def refuse_other_conditions(unet: Any) -> None:
    """`encode` and `decode` take time and text: a net trained with more would lose it silently."""
    config = unet.config
    wants = []
    if unet.class_embedding is not None:
        wants.append(f"class embeddings (class_embed_type = {config.class_embed_type!r})")
    # "text" pools the text itself: it needs nothing from outside
    if config.addition_embed_type not in (None, "text"):
        wants.append(f"added conditions (addition_embed_type = {config.addition_embed_type!r})")
    if config.encoder_hid_dim_type not in (None, "text_proj"):
        wants.append(f"image prompts (encoder_hid_dim_type = {config.encoder_hid_dim_type!r})")
    if config.time_cond_proj_dim is not None:
        wants.append(f"a guidance embedding (time_cond_proj_dim = {config.time_cond_proj_dim})")
    if config.attention_type != "default":
        wants.append(f"grounding boxes (attention_type = {config.attention_type!r})")
    if wants:
        raise UserError(
            f"this UNet is conditioned on {' and '.join(wants)}, which TiUE would drop: "
            "use a Stable Diffusion 1.x or 2.x type of UNet"
        )
