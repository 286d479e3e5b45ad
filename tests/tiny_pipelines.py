"""Stable-Diffusion-like folders of a few hundred kilobytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.nets.toy_unet import toy

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def tiny_clip(folder: Path) -> tuple[Any, Any]:
    """A CLIP of 24 channels whose words are the letters a and b."""
    words = ["a", "b", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12
    )
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=24,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=4,
        eos_token_id=5,
        pad_token_id=5,
    )
    return tokenizer, CLIPTextModel(config).eval()


def sd_folder(folder: Path, *, scheduler: type[Any] = PNDMScheduler, **changes: Any) -> Path:
    """A StableDiffusionPipeline as its folders are: CLIP, PNDM, AutoencoderKL, 16x16 latents."""
    tokenizer, encoder = tiny_clip(folder.parent)
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=toy(**changes).requires_grad_(True),
        scheduler=scheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def tiny_vae() -> AutoencoderKL:
    """f2, 4 channels."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=32,
    ).eval()


def clip_folder(folder: Path) -> Path:
    """A whole CLIP with random weights; its words are the letters a and b."""
    folder.mkdir(parents=True)
    tokenizer, encoder = tiny_clip(folder)
    torch.manual_seed(0)
    vision = {
        "hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = encoder.config.to_dict()
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
