"""TiUEPipeline: folders in and out, seeds, and what users get wrong."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

import zoo
from tests.nets.toy_unet import toy
from tests.nets.zoo_of_nets import make
from tests.tiny_pipelines import SCHEDULE, sd_folder, tiny_vae
from zoo.errors import RunError, UserError
from zoo.open_pipeline import open_pipeline
from zoo.pipelines import TiUEPipeline, ZooVAE
from zoo.text import MiniLMText, TextStates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_folder(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> TiUEPipeline:
    return quiet(open_pipeline(f"dir:{folder}"))


def quiet(pipeline: TiUEPipeline) -> TiUEPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: TiUEPipeline, *args: Any, **kwargs: Any) -> torch.Tensor:
    images: torch.Tensor = pipeline(*args, output_type="latent", **kwargs).images
    return images


def test_with_an_anchor_a_step_it_is_stable_diffusion(folder: Path, pipe: TiUEPipeline) -> None:
    """Diffusers' own pipeline without guidance, DDIM, the same noise: the same picture."""
    plain = StableDiffusionPipeline.from_pretrained(folder)
    plain.scheduler = DDIMScheduler.from_config(plain.scheduler.config, clip_sample=False)
    plain.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    expected = plain(
        "a b b", num_inference_steps=5, guidance_scale=1.0, latents=noise, output_type="np"
    ).images
    got = pipe("a b b", steps=5, anchors=5, seed=3, output_type="pt").images
    ours = got[0].permute(1, 2, 0).numpy() / 2 + 0.5
    assert abs(ours.clip(0, 1) - expected[0]).max() < 1e-4
    fewer = pipe("a b b", steps=5, seed=3, output_type="pt").images
    assert (fewer - got).abs().max() > 1e-3


def test_folders_come_back_and_stay_plain(pipe: TiUEPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    again = quiet(TiUEPipeline.from_pretrained(tmp_path / "out"))
    # weights are the same; in other memory they may be added in another order
    assert (latents(again, "a b", seed=1) - latents(pipe, "a b", seed=1)).abs().max() < 1e-5
    plain = StableDiffusionPipeline.from_pretrained(
        tmp_path / "out", safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    assert type(plain.unet) is UNet2DConditionModel
    for name, tensor in plain.unet.state_dict().items():
        assert torch.equal(tensor, pipe.unet.state_dict()[name])


def test_parallel_is_sequential(pipe: TiUEPipeline) -> None:
    whole = latents(pipe, ["a", "b a"], num_images_per_prompt=2, seed=0)
    for other in ({"parallel": False}, {"at_once": 3}):
        assert (
            latents(pipe, ["a", "b a"], num_images_per_prompt=2, seed=0, **other) - whole
        ).abs().max() < 1e-5


def test_a_picture_depends_on_its_seed_alone(pipe: TiUEPipeline) -> None:
    out = pipe(["a", "b"], num_images_per_prompt=2, seed=7, output_type="latent")
    assert out.seeds == [7, 8, 9, 10]
    alone = latents(pipe, "b", seed=9)
    assert (out.images[2:3] - alone).abs().max() < 1e-5
    chosen = pipe(["a", "b"], seed=[4, 9], output_type="latent")
    assert chosen.seeds == [4, 9]
    assert (chosen.images[1:] - alone).abs().max() < 1e-5
    drawn = pipe("b", output_type="latent")
    assert torch.equal(latents(pipe, "b", seed=drawn.seeds), drawn.images)
    given = pipe("b", generator=torch.Generator().manual_seed(9), output_type="latent")
    assert given.seeds is None
    assert torch.equal(given.images, alone)
    # the batched prompt goes with its own pictures
    assert (latents(pipe, "a", seed=9) - alone).abs().max() > 1e-3


def test_progress_and_sizes(pipe: TiUEPipeline) -> None:
    told: list[tuple[int, int]] = []
    out = pipe("a", seed=0, parallel=False, callback=lambda *n: told.append(n), height=20, width=36)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert out.images[0].size == (36, 20)
    assert out.truncated == [0]
    assert pipe("a", seed=0).images[0].size == (32, 32)


def test_time_steps_by_hand(pipe: TiUEPipeline) -> None:
    assert pipe.plan(4).timesteps == (751, 501, 251, 1)
    assert torch.equal(
        latents(pipe, "a", seed=0, timesteps=[751, 501, 251, 1]), latents(pipe, "a", seed=0)
    )
    assert pipe.plan(1, [999]).timesteps == (999,)


def test_bfloat16_throughout(folder: Path) -> None:
    pipeline = quiet(open_pipeline(f"dir:{folder}", dtype=torch.bfloat16))
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {
        torch.bfloat16
    }
    assert pipeline("a", seed=0).images[0].size == (32, 32)
    pipeline.unet.float()  # parts of different types work together
    assert pipeline("a", seed=0).images[0].size == (32, 32)


def test_a_long_prompt_is_cut_and_said(
    pipe: TiUEPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="zoo"):
        out = pipe(["a b " * 20, "a"], seed=0)
    assert out.truncated == [30, 0]
    assert "its last 30 tokens are left out (of 12 fit)" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompt": ""}, "prompt 1 of 1 is empty"),
        ({"prompt": ["a", "  "]}, "prompt 2 of 2 is empty"),
        ({"prompt": []}, "there is no prompt"),
        ({"negative_prompt": "ugly"}, "guidance is distilled into the net"),
        ({"steps": 0}, "0 steps: the schedule has 1000, give 1 to 1000"),
        ({"steps": 1001}, "1001 steps: the schedule has 1000"),
        ({"timesteps": [1000, 5]}, "leave the schedule"),
        ({"timesteps": []}, "0 steps: the schedule has 1000, give 1 to 1000"),
        ({"anchors": 5}, "5 anchors for 4 time steps"),
        ({"at_once": 0}, "0 decoder passes"),
        ({"num_images_per_prompt": 0}, "0 pictures a prompt"),
        ({"seed": [1, 2]}, "2 seeds or generators for 1 pictures"),
        ({"seed": -1}, r"seeds \[-1\]"),
        ({"seed": 1, "generator": torch.Generator()}, "give one of them"),
        ({"height": 33}, "33 pixels are no multiple of 2"),
        ({"output_type": "jpg"}, "output type 'jpg'"),
    ],
)
def test_mistakes(pipe: TiUEPipeline, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pipe(**{"prompt": "a"} | arguments)


def test_float16_on_a_cpu(folder: Path) -> None:
    pipeline = TiUEPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    with pytest.raises(UserError, match="float16 is not for a CPU"):
        pipeline("a")
    with pytest.raises(UserError, match="float16 is not for a CPU"):
        open_pipeline(f"dir:{folder}", dtype=torch.float16)


def test_pictures_that_are_not_finite(folder: Path) -> None:
    pipeline = quiet(open_pipeline(f"dir:{folder}"))
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(RunError, match="aren't finite"):
        pipeline("a", seed=0)


class Words:
    """A text encoder of 384 channels that needs no file."""

    dim, tokens = 384, 3

    def __call__(self, prompts: list[str]) -> TextStates:
        rows = [torch.full((3, 384), float(len(p))) for p in prompts]
        return TextStates(torch.stack(rows), [0] * len(prompts))


@pytest.mark.parametrize("name", ["klvae_image_tiny", "klvae_video_tiny"])
def test_a_zoo_tokenizer_decodes(name: str, tmp_path: Path) -> None:
    """Saved in the folder and opened from it; the UNet's latents are the normalised ones."""
    vae = make(name)
    vae.latent_mean.fill_(0.3)
    vae.latent_std.fill_(2.0)
    channels = vae.latent_channels
    unet = toy(in_channels=channels, out_channels=channels, cross_attention_dim=384, sample_size=4)
    pipeline = quiet(TiUEPipeline(unet=unet, scheduler=DDIMScheduler(**SCHEDULE), vae=vae))
    assert isinstance(pipeline.prompt_encoder, MiniLMText)
    pipeline.prompt_encoder = Words()
    z = latents(pipeline, "a", seed=0)
    pixels = pipeline("a", seed=0, output_type="pt").images
    assert torch.equal(pixels, vae.decode((z * 2.0 + 0.3)[:, :, None])[:, :, 0])
    assert pixels.shape == (1, 3, 4 * vae.compression[1], 4 * vae.compression[2])
    pipeline.save_pretrained(tmp_path / "p")
    again = quiet(open_pipeline(f"dir:{tmp_path / 'p'}"))
    assert isinstance(again.vae, ZooVAE)
    assert isinstance(again.prompt_encoder, MiniLMText)
    again.prompt_encoder = Words()
    assert (again("a", seed=0, output_type="pt").images - pixels).abs().max() < 1e-4
    states = again.vae.net.state_dict()
    assert states.keys() == vae.state_dict().keys()
    for key, tensor in vae.state_dict().items():
        assert torch.equal(states[key], tensor), key
    config = tmp_path / "p" / "vae" / "config.json"
    config.write_text(config.read_text().replace('"kl_vae', '"other'))
    with pytest.raises(UserError, match="is not a tokenizer that this version knows"):
        open_pipeline(f"dir:{tmp_path / 'p'}")


def test_pixels_without_an_autoencoder(tmp_path: Path) -> None:
    unet = toy(in_channels=3, out_channels=3, cross_attention_dim=384)
    pipeline = quiet(TiUEPipeline(unet=unet, scheduler=DDIMScheduler(**SCHEDULE)))
    pipeline.save_pretrained(tmp_path / "p")
    again = quiet(open_pipeline(f"dir:{tmp_path / 'p'}"))
    again.prompt_encoder = Words()
    assert again("a", seed=0).images[0].size == (16, 16)


def test_parts_that_do_not_fit() -> None:
    scheduler = DDIMScheduler(**SCHEDULE)
    minilm = {"cross_attention_dim": 384}
    for parts, said in (
        ({"unet": toy(), "vae": tiny_vae()}, "no text encoder of width 24"),
        ({"unet": toy(**minilm)}, "a picture has 3 channels, the UNet works on 4"),
        ({"unet": toy(in_channels=9, **minilm), "vae": tiny_vae()}, "9 channels in and 4 out"),
        ({"unet": torch.nn.Linear(1, 1)}, "a Linear can't be a TiUE net"),
        (
            {"unet": toy(**minilm), "vae": tiny_vae(), "text": "t5"},
            "text = 't5': use one of clip, minilm",
        ),
        ({"unet": toy(), "vae": tiny_vae(), "text": "clip"}, "needs a text encoder"),
        (
            {"unet": toy(**minilm), "vae": tiny_vae()}
            | {"scheduler": FlowMatchEulerDiscreteScheduler()},
            "FlowMatchEulerDiscreteScheduler has no DDIM noise schedule",
        ),
    ):
        with pytest.raises(UserError, match=said):
            TiUEPipeline(**{"scheduler": scheduler} | parts)


def test_folders_that_cannot_be_opened(folder: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        return copy

    with pytest.raises(UserError, match=r"nowhere is not a pipeline folder"):
        open_pipeline(f"dir:{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="is one net"):
        open_pipeline(f"dir:{folder / 'unet'}")
    with pytest.raises(UserError, match="unknown model 'tiue_tinny'"):
        open_pipeline("tiue_tinny")
    with pytest.raises(UserError, match="'tiue_tiny' is a preset with random weights"):
        open_pipeline("tiue_tiny")
    flux = broken("flux")
    shutil.rmtree(flux / "unet")
    (flux / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UserError, match="a FluxPipeline, which has no UNet"):
        open_pipeline(f"dir:{flux}")
    (flux / "model_index.json").write_text("no json")
    with pytest.raises(UserError, match="is not JSON"):
        open_pipeline(f"dir:{flux}")
    for part, name in (("vae", "config.json"), ("unet", "diffusion_pytorch_model.safetensors")):
        lacking = broken(f"no-{part}")
        (lacking / part / name).unlink()
        with pytest.raises(UserError, match="can't be"):
            open_pipeline(f"dir:{lacking}")
    xl = sd_folder(
        tmp_path / "xl",
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=72,
    )
    with pytest.raises(UserError, match="addition_embed_type = 'text_time'"):
        open_pipeline(f"dir:{xl}")


def test_trained_pipelines_have_names(
    pipe: TiUEPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """checkpoints/tiue_tiny.toy holds a pipeline: its name gives the UNet or the pipeline."""
    pipe.save_pretrained(tmp_path / "tiue_tiny.toy")
    (tmp_path / "tiue_tiny.toy" / "metrics.json").write_text('{"fid": 1}')
    monkeypatch.setattr("zoo.hub.data_folder", lambda name: tmp_path)
    assert zoo.list_models("tiue*", pretrained=True) == ["tiue_tiny.toy"]
    entry = zoo.info("tiue_tiny.toy")
    assert (entry.family, entry.metrics) == ("tiue", {"fid": 1})
    assert entry.config["cross_attention_dim"] == 24
    net = zoo.load("tiue_tiny.toy")
    assert all(map(torch.equal, net.state_dict().values(), pipe.unet.state_dict().values()))
    assert isinstance(open_pipeline("tiue_tiny.toy"), TiUEPipeline)


def test_repositories_are_opened_at_their_revision(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        if name == "org/gone":
            raise OSError("org/gone is not a repository\nsecond line")
        return str(folder)

    monkeypatch.setattr(TiUEPipeline, "download", download)
    assert isinstance(open_pipeline("hf:org/sd@v2"), TiUEPipeline)
    open_pipeline("hf:org/sd")
    assert asked == [("org/sd", "v2"), ("org/sd", None)]
    with pytest.raises(UserError, match=r"hf:org/gone can't be opened.*not a repository second"):
        open_pipeline("hf:org/gone")
