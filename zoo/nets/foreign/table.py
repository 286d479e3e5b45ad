"""The table of published tokenizers: class, repository, licence, latent scale, published config.

Pure data: nothing here imports diffusers. A config lists what differs from its class's defaults.
`confirmed` says what was read to check a row, since the zoo could not reach the hub itself;
"class defaults" stands for those of diffusers 0.42.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published tokenizer.

    Attributes:
        kind: diffusers class of the autoencoder.
        since: first diffusers release with the class, of those that the zoo supports.
        repo, subfolder: where the weights are on huggingface.co.
        revision: commit that `load` fetches; None takes the repository's newest, said at load.
        licence: as its authors state it.
        terms: what must be accepted first ("gated", "non-commercial use only"); empty: nothing.
        parameters: published count in millions, of `decoder` alone where there is one.
        stored: floating-point type of the published file.
        settings: the published config.
        reduced: changes that make it small, for tests.
        latent: latent mean and std, published as "shift" and "scale" or by channel.
        confirmed: what was read to check the row.
        on_hub: whether the repository has files that diffusers reads.
        decoder: a second class that decodes in place of `kind`, from its own `decoder_subfolder`.
    """

    kind: str
    repo: str
    licence: str
    parameters: float
    latent: str
    confirmed: str
    since: str = "0.36"
    subfolder: str = ""
    revision: str | None = None
    terms: str = ""
    stored: str = "float32"
    settings: Settings = field(default_factory=dict)
    reduced: Settings = field(default_factory=dict)
    on_hub: bool = True
    decoder: str = ""
    decoder_subfolder: str = ""
    decoder_settings: Settings = field(default_factory=dict)
    decoder_reduced: Settings = field(default_factory=dict)

    @property
    def megabytes(self) -> float:
        """Size of the published file: what it holds, without its header of some kB."""
        return self.parameters * _BYTES[self.stored]


def _blocks(kind: str, levels: int = 4) -> list[str]:
    return [kind] * levels


def _sd(**changes: Any) -> Settings:
    """AutoencoderKL as Stable Diffusion has it."""
    return {
        "down_block_types": _blocks("DownEncoderBlock2D"),
        "up_block_types": _blocks("UpDecoderBlock2D"),
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        **changes,
    }


_NARROW = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
_SMALL_LATENTS = {"latent_channels": 4}
_NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}

_WAN22_MEAN = [
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542),
    *(0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109),
    *(0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899),
    *(-0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
]
_WAN22_STD = [
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344),
    *(0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804),
    *(0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999),
    *(0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
]
_WAN_REDUCED = {"base_dim": 4, "num_res_blocks": 1, "dim_mult": [1, 1, 2, 2]}

# the encoder of LTX-2.5, which both its decoders read
_LTX25 = {
    "block_out_channels": [256, 512, 1024, 1024],
    "decoder_block_out_channels": [256, 512, 512, 1024],
    "layers_per_block": [4, 6, 4, 2, 2],
    "decoder_layers_per_block": [4, 6, 4, 2, 2],
    "decoder_spatio_temporal_scaling": [True] * 4,
    "decoder_inject_noise": [False] * 5,
    "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
    "upsample_residual": [False] * 4,
    "upsample_factor": [2, 2, 1, 2],
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
_LTX2_REDUCED = {
    "latent_channels": 8,
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": [1, 1, 1, 1, 1],
}

ENTRIES: dict[str, Entry] = {
    "sd_vae_ft_mse": Entry(
        kind="AutoencoderKL",
        repo="stabilityai/sd-vae-ft-mse",
        licence="MIT",
        parameters=83.65,
        latent="scale 0.18215",
        settings=_sd(sample_size=256),
        reduced=_NARROW,
        confirmed="config.json in copies of the repository; the .bin has 334,707,217 bytes",
    ),
    "sdxl_vae": Entry(
        kind="AutoencoderKL",
        repo="stabilityai/sdxl-vae",
        licence="MIT",
        parameters=83.65,
        latent="scale 0.13025",
        settings=_sd(sample_size=1024, scaling_factor=0.13025),
        reduced=_NARROW,
        confirmed="config.json and 334,643,238 bytes in a copy of the repository; licence not read",
    ),
    "sd3_vae": Entry(
        kind="AutoencoderKL",
        repo="stabilityai/stable-diffusion-3-medium-diffusers",
        subfolder="vae",
        licence="Stability AI Community License",
        terms="gated; free below a yearly revenue",
        stored="float16",
        parameters=83.82,
        latent="scale 1.5305, shift 0.0609",
        settings=_sd(
            latent_channels=16,
            sample_size=1024,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            **_NO_QUANT,
        ),
        reduced=_NARROW,
        confirmed="layout f8 c16 (facts); scale, type and licence not read on the hub",
    ),
    "flux1_vae": Entry(
        kind="AutoencoderKL",
        repo="black-forest-labs/FLUX.1-schnell",
        subfolder="vae",
        revision="02046d1ec07fefab4733f28253ebee3a79dd4ea1",
        licence="Apache-2.0",
        terms="gated: its authors ask for contact data",
        stored="bfloat16",
        parameters=83.82,
        latent="scale 0.3611, shift 0.1159",
        settings=_sd(
            latent_channels=16,
            sample_size=1024,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            **_NO_QUANT,
        ),
        reduced=_NARROW,
        confirmed="config.json in copies that name this revision; gate and type not read",
    ),
    "flux2_vae": Entry(
        kind="AutoencoderKLFlux2",
        repo="black-forest-labs/FLUX.2-klein-4B",
        subfolder="vae",
        revision="e7b7dc27f91deacad38e78976d1f2b499d76a294",
        licence="Apache-2.0",
        stored="bfloat16",
        parameters=84.0,
        latent="batch norm of 2x2 latents in its weights, pooled by channel",
        settings={},
        reduced={**_NARROW, **_SMALL_LATENTS},
        confirmed="config.json in a copy that names this revision; licence and type not read",
    ),
    "taesd": Entry(
        kind="AutoencoderTiny",
        repo="madebyollin/taesd",
        licence="MIT",
        parameters=2.44,
        latent="scale 1: latents of Stable Diffusion, already scaled",
        reduced={
            "encoder_block_out_channels": [8] * 4,
            "decoder_block_out_channels": [8] * 4,
            "num_encoder_blocks": [1, 1, 1, 1],
            "num_decoder_blocks": [1, 1, 1, 1],
        },
        confirmed="class defaults; config.json, licence and type not read on the hub",
    ),
    "dc_ae_f32c32_sana": Entry(
        kind="AutoencoderDC",
        repo="mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers",
        licence="MIT",
        parameters=312.5,
        latent="scale 0.41407",
        settings={
            "encoder_block_types": [*_blocks("ResBlock", 3), *_blocks("EfficientViTBlock", 3)],
            "decoder_block_types": [*_blocks("ResBlock", 3), *_blocks("EfficientViTBlock", 3)],
            "upsample_block_type": "interpolate",
            "downsample_block_type": "conv",
            "scaling_factor": 0.41407,
        },
        reduced={
            "latent_channels": 4,
            "attention_head_dim": 2,
            "encoder_block_out_channels": [4, 4, 4, 8, 8, 8],
            "decoder_block_out_channels": [4, 4, 4, 8, 8, 8],
            "encoder_layers_per_block": [1] * 6,
            "decoder_layers_per_block": [1] * 6,
        },
        confirmed="diffusers' converter (for 1.0); licence and 1.25 GB on the hub's file list, "
        "from which the count follows",
    ),
    "wan21_vae": Entry(
        kind="AutoencoderKLWan",
        repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        subfolder="vae",
        licence="Apache-2.0",
        parameters=126.9,
        latent="mean and std of each of 16 channels",
        reduced=_WAN_REDUCED,
        confirmed="config.json in several copies; licence and type not read on the hub",
    ),
    "wan22_vae": Entry(
        kind="AutoencoderKLWan",
        repo="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        subfolder="vae",
        licence="Apache-2.0",
        parameters=704.7,
        latent="mean and std of each of 48 channels",
        settings={
            "base_dim": 160,
            "decoder_base_dim": 256,
            "z_dim": 48,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "latents_mean": _WAN22_MEAN,
            "latents_std": _WAN22_STD,
        },
        reduced={**_WAN_REDUCED, "decoder_base_dim": 4},
        confirmed="config.json in copies that name the repository; the count was taken from this "
        "config (none was published); licence and type not read on the hub",
    ),
    "cogvideox_vae": Entry(
        kind="AutoencoderKLCogVideoX",
        repo="THUDM/CogVideoX-2b",
        subfolder="vae",
        revision="3c9d823cba79e879738d89c3e72a8348ff9aa51b",
        licence="Apache-2.0",
        stored="float16",
        parameters=215.6,
        latent="scale 1.15258426",
        reduced={**_NARROW, **_SMALL_LATENTS},
        confirmed="config.json at this revision; licence and type not read on the hub",
    ),
    "hunyuan_vae": Entry(
        kind="AutoencoderKLHunyuanVideo",
        repo="hunyuanvideo-community/HunyuanVideo",
        subfolder="vae",
        licence="Tencent Hunyuan Community License",
        terms="not for use in the EU, the UK and South Korea",
        stored="float16",
        parameters=246.5,
        latent="scale 0.476986",
        reduced={**_NARROW, **_SMALL_LATENTS},
        confirmed="config.json in copies; licence and type not read on the hub",
    ),
    "cosmos_cv8x8x8": Entry(
        kind="AutoencoderKLCosmos",
        repo="nvidia/Cosmos-1.0-Tokenizer-CV8x8x8",
        subfolder="vae",
        licence="NVIDIA Open Model License",
        stored="bfloat16",
        parameters=105.7,
        latent="mean and std of 16 channels at 16 times, pooled by channel",
        reduced={
            "encoder_block_out_channels": [8] * 4,
            "decode_block_out_channels": [8] * 4,
            "num_layers": 1,
        },
        confirmed="diffusers' converter and documentation; gate and type not read on the hub",
    ),
    "ltx_vae": Entry(
        kind="AutoencoderKLLTXVideo",
        repo="Lightricks/LTX-Video",
        subfolder="vae",
        licence="LTX-Video Open Weights License",
        terms="its use is restricted by that licence",
        parameters=419.2,
        latent="mean and std of each of 128 channels, in its weights",
        reduced={
            "latent_channels": 8,
            "block_out_channels": [8] * 4,
            "decoder_block_out_channels": [8] * 4,
            "layers_per_block": [1] * 5,
            "decoder_layers_per_block": [1] * 5,
        },
        confirmed="config.json (0.9.0) on the hub; licence and type not read",
    ),
    "ltx2_vae": Entry(
        kind="AutoencoderKLLTX2Video",
        since="0.37",
        repo="Lightricks/LTX-2",
        subfolder="vae",
        revision="ec81a2df13c166827fe169b189d39a94d7fad04d",
        licence="LTX-2 Community License",
        terms="free below a yearly revenue",
        stored="bfloat16",
        parameters=1222.5,
        latent="mean and std of each of 128 channels, in its weights",
        settings={
            "decoder_causal": False,
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        },
        reduced={
            **_LTX2_REDUCED,
            "decoder_block_out_channels": [16, 32, 64],
            "decoder_layers_per_block": [1] * 4,
        },
        confirmed="config.json in a copy that names this revision; licence and type not read",
    ),
    "ltx2_diffusion_decoder": Entry(
        kind="AutoencoderKLLTX2Video",
        since="0.40",
        repo="Lightricks/LTX-2.5-Diffusers",
        subfolder="vae",
        licence="LTX-2.x Community License",
        terms="gated; free below a yearly revenue",
        stored="bfloat16",
        parameters=417.1,
        latent="mean and std of each of 128 channels, in its weights",
        settings=_LTX25,
        reduced={
            **_LTX2_REDUCED,
            "decoder_block_out_channels": [16, 32, 64, 64],
            "decoder_layers_per_block": [1] * 5,
        },
        decoder="LTX2VideoDiffusionDecoderModel",
        decoder_subfolder="diffusion_decoder",
        decoder_reduced={
            "latent_channels": 8,
            "decoder_head_dim": 8,
            "decoder_stage_channels": [32, 16, 8, 8, 8],
            "decoder_stage_depths": [1] * 5,
            "decoder_upsample_channel_reductions": [2, 2, 1, 1],
            "decoder_stage_kernels": [[3, 3, 3]] * 4,
            "decoder_stage5_kernel": [3, 3, 3],
            "decoder_t_emb_dim": 8,
        },
        confirmed="diffusers' converter; gate, licence and 834 MB of the decoder on the hub",
    ),
    "vidtok_kl_4ch": Entry(
        kind="AutoencoderVidTok",
        since="0.39",
        repo="microsoft/VidTok",
        licence="MIT",
        parameters=157.5,
        latent="scale 1: none is published",
        on_hub=False,
        settings={},
        reduced={"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        confirmed="class defaults; the hub holds checkpoints of its own code, none for diffusers",
    ),
    "vidtok_kl_16ch": Entry(
        kind="AutoencoderVidTok",
        since="0.39",
        repo="microsoft/VidTok",
        licence="MIT",
        parameters=157.5,
        latent="scale 1: none is published",
        on_hub=False,
        settings={"z_channels": 16},
        reduced={"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 4},
        confirmed="class defaults; the hub holds checkpoints of its own code, none for diffusers",
    ),
}
