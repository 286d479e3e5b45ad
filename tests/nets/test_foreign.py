"""Tokenizers of diffusers behind the interface: counts, sizes, the bare class's very numbers."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.errors import UserError
from zoo.foreign_weights import ACCEPT, published
from zoo.nets.cdt_decoder import CDTDecoder, decoder_config
from zoo.nets.foreign import ENTRIES, Foreign
from zoo.nets.pretrained import Pretrained
from zoo.nets.tiling import Tiled
from zoo.pipelines import ZooVAE

NAMES = sorted(ENTRIES)
WHOLE = [
    "cogvideox_vae",
    "cosmos_cv8x8x8",
    "hunyuan_vae",
    "ltx2_diffusion_decoder",
    "ltx2_vae",
    "ltx_vae",
    "vidtok_kl_16ch",
    "vidtok_kl_4ch",
]
"""What needs the whole clip."""


def small(name: str) -> Foreign:
    torch.manual_seed(0)
    net = zoo.create(name, reduced=True)
    assert isinstance(net, Foreign)
    return net.eval().requires_grad_(False)


def clip(frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1


def test_foreign_names_are_listed_without_diffusers() -> None:
    script = (
        "import torch, time; begin = time.perf_counter(); import sys, zoo;"
        "print(*zoo.list_models(family='foreign'));"
        "assert 'diffusers' not in sys.modules; assert time.perf_counter() - begin < 2.5"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_foreign_presets_have_the_published_count(name: str) -> None:
    with torch.device("meta"):
        net = zoo.create(name)
    assert isinstance(net, Foreign)
    count = sum(p.numel() for p in net.published.parameters()) / 1e6
    assert count == pytest.approx(ENTRIES[name].parameters, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_foreign_nets_take_any_size(name: str) -> None:
    net = small(name)
    time, height, width = net.compression
    for size in ((1, height, width), (5, height + 3, width + 1), (17, height, 9), (18, 7, width)):
        x = clip(*size)
        posterior = net.encode(x)
        latents = [-(-(size[0] - 1) // time) + 1, -(-size[1] // height), -(-size[2] // width)]
        assert list(posterior.mean.shape) == [1, net.latent_channels, *latents]
        generator = torch.Generator().manual_seed(0)
        y = net.reconstruct(x, generator=generator)
        assert y.shape == x.shape
        assert y.isfinite().all()
    assert net.encode(x[:, :, 0]).mean.ndim == 4
    assert net.reconstruct(x[:, :, 0]).shape == x[:, :, 0].shape


def bare(net: Foreign, x: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and reconstruction through the diffusers class alone."""
    vae = net.vae
    if net.config.kind == "AutoencoderVidTok":
        front = x[:, :, :1].expand(-1, -1, 3, -1, -1)
        z = vae.encode(torch.cat([front, x], dim=2)).latent_dist.mode()
        return z, vae(x, sample_posterior=False).sample
    if net.compression[0] > 1:
        z = vae.encode(x).latent_dist.mode()
        return z, vae.decode(z).sample
    made = vae.encode(x[:, :, 0])
    z = next(
        value
        for value in (getattr(made, k, None) for k in ("latents", "latent", "latent_dist"))
        if value is not None
    )
    z = (z if isinstance(z, Tensor) else z.mode()).contiguous()
    return z[:, :, None], vae.decode(z).sample[:, :, None]


@pytest.mark.parametrize("name", [n for n in NAMES if not ENTRIES[n].decoder])
def test_foreign_nets_are_the_bare_class_bit_for_bit(name: str) -> None:
    net = small(name)
    time, height, width = net.compression
    x = clip(17 if time > 1 else 1, 2 * height, 2 * width)
    z, y = bare(net, x)
    assert torch.equal(net.encode(x).mean, z)
    assert torch.equal(net.reconstruct(x), y)


def test_the_diffusion_decoder_is_the_bare_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise that the zoo draws, frame by frame, in the place of the class's own."""
    from diffusers.models.autoencoders import ltx2_diffusion_decoder as module

    net = small("ltx2_diffusion_decoder")
    z = net.encode(clip(9, 96, 96)).mean

    def drawn(shape: Any, generator: torch.Generator, **_: Any) -> Tensor:
        frames = [torch.randn(*shape[:2], *shape[3:], generator=generator) for _ in range(shape[2])]
        return torch.stack(frames, dim=2)

    monkeypatch.setattr(module, "randn_tensor", drawn)
    for steps in (1, 2):
        given = [torch.Generator().manual_seed(3) for _ in range(2)]
        want = net.vae.denoiser.decode(z, generator=given[0], num_inference_steps=steps).sample
        assert torch.equal(net.decode(z, steps=steps, generator=given[1]), want)


def test_foreign_latent_scales_are_the_published() -> None:
    one = {
        "sd_vae_ft_mse": (0.0, 1 / 0.18215),
        "flux1_vae": (0.1159, 1 / 0.3611),
        "wan22_vae": (-0.2289, 0.4765),
        "cogvideox_vae": (0.0, 1 / 1.15258426),
        "dc_ae_f32c32_sana": (0.0, 1 / 0.41407),
    }
    for name, (mean, std) in one.items():
        net = small(name)
        assert net.latent_mean[0].item() == pytest.approx(mean, abs=1e-6)
        assert net.latent_std[0].item() == pytest.approx(std, rel=1e-6)
    # pooled: a channel of FLUX.2 has four places, of Cosmos 16 times
    net = small("flux2_vae")
    net.vae.bn.running_mean.copy_(torch.arange(16.0))
    net.vae.bn.running_var.copy_(torch.full((16,), 4.0))
    net.measure_published()
    assert torch.allclose(net.latent_mean, torch.tensor([1.5, 5.5, 9.5, 13.5]))
    assert torch.allclose(net.latent_std, torch.full((4,), (4.0 + 1.25 + 1e-4) ** 0.5))


@pytest.mark.parametrize("name", WHOLE)
def test_foreign_nets_that_do_not_stream_say_so(name: str) -> None:
    net = small(name)
    assert not net.streams
    assert net.why_whole
    x = clip(17, *net.compression[1:])
    with pytest.raises(UserError, match="can't stream"):
        net.encode_step(x, None)
    given = [torch.Generator().manual_seed(0) for _ in range(2)]
    streamed = list(net.stream_encode(x.split(4, dim=2)))
    z = net.encode(x).mean
    assert torch.equal(torch.cat(streamed, dim=2), z)
    size = (17, *x.shape[3:])
    back = net.stream_decode(z.split(1, dim=2), size=size, generator=given[0])
    want = net.decode(z, size=size, generator=given[1])
    assert torch.equal(torch.cat(list(back), dim=2), want)


def test_the_rest_streams() -> None:
    assert [name for name in NAMES if not small(name).streams] == WHOLE


@pytest.mark.parametrize("name", ["wan21_vae", "hunyuan_vae", "sd_vae_ft_mse"])
def test_foreign_nets_run_in_tiles(name: str) -> None:
    net = small(name)
    tiled = Tiled(net, tile=32, overlap=16)
    x = clip(5, 64, 40)
    assert tiled.reconstruct(x).shape == x.shape
    streamed = torch.cat(list(tiled.stream_encode(x.split(2, dim=2))), dim=2)
    assert torch.allclose(streamed, tiled.encode(x).mean, atol=1e-5)


@pytest.mark.parametrize("name", ["wan21_vae", "cosmos_cv8x8x8", "ltx2_diffusion_decoder"])
def test_foreign_nets_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    net = small(name)
    net.save_pretrained(tmp_path / "own")
    loaded = zoo.load(f"dir:{tmp_path / 'own'}")
    x = clip(9, *net.compression[1:])
    want = net.state_dict()
    assert loaded.state_dict().keys() == want.keys()
    assert all(torch.equal(v, want[k]) for k, v in loaded.state_dict().items())
    # what is loaded lies where the file has it; on a CPU the address (mod 64) picks the kernel, and
    # thereby the rounding: a copy lies at whole multiples, as the first net does
    assert torch.equal(copy.deepcopy(loaded).encode(x).mean, net.encode(x).mean)
    assert Pretrained.by_name["foreign"] is Foreign


def write_decoder(folder: Path) -> None:
    """vae/ and diffusion_decoder/ as LTX-2.5's repository has them."""
    from diffusers import AutoencoderKLLTX2Video

    net = small("ltx2_diffusion_decoder")
    AutoencoderKLLTX2Video(**net.config.settings).save_pretrained(folder / "vae")
    net.vae.denoiser.save_pretrained(folder / "diffusion_decoder")


@pytest.mark.parametrize("name", ["sd_vae_ft_mse", "flux2_vae", "wan22_vae", "ltx_vae"])
def test_folders_of_diffusers_are_loaded(name: str, tmp_path: Path) -> None:
    net = small(name).to(torch.float16)
    net.vae.save_pretrained(tmp_path)
    loaded = zoo.load(f"dir:{tmp_path}")
    assert isinstance(loaded, Foreign)
    assert not loaded.training
    want = net.state_dict()
    assert all(torch.equal(v, want[k]) for k, v in loaded.state_dict().items())
    # the config is complete: the zoo's own folder of it loads again
    loaded.save_pretrained(tmp_path / "own")
    assert isinstance(zoo.load(f"dir:{tmp_path / 'own'}"), Foreign)


def test_a_decoder_finds_its_encoder_beside_it(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    net = zoo.load(f"dir:{tmp_path / 'diffusion_decoder'}")
    assert isinstance(net, Foreign)
    x = clip(9, *net.compression[1:])
    with torch.no_grad():
        assert net.reconstruct(x).shape == x.shape
    with pytest.raises(UserError, match=r"no gradient on cpu of .*DecoderModel.*torch\.no_grad"):
        net.reconstruct(x)
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match="only decodes: put the AutoencoderKLLTX2Video"):
        zoo.load(f"dir:{tmp_path / 'diffusion_decoder'}")


def test_foreign_weights_come_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small("wan21_vae").vae.save_pretrained(tmp_path / "vae")
    asked: list[tuple[str, str, str | None]] = []

    def serve(
        repo: str, file: str, *, subfolder: str | None, revision: str | None, **_: Any
    ) -> str:
        asked.append((repo, f"{subfolder}/{file}", revision))
        return str(tmp_path / "vae" / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", serve)
    with caplog.at_level(logging.INFO, logger="zoo"):
        net = zoo.load("wan21_vae.official")
    assert isinstance(net, Foreign)
    assert [file for _, file, _ in asked] == [
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert any("doesn't pin" in m for m in caplog.messages)
    with pytest.raises(UserError, match="holds a AutoencoderKLWan, not the AutoencoderKL that"):
        zoo.load("sd_vae_ft_mse.official")

    # terms are said and must be accepted before anything is fetched
    asked.clear()
    with pytest.raises(UserError, match=r"Hunyuan Community License \(not for use.*accept_license"):
        zoo.load("hunyuan_vae.official")
    assert not asked
    small("hunyuan_vae").vae.save_pretrained(tmp_path / "vae")
    caplog.clear()
    assert isinstance(zoo.load("hunyuan_vae.official", accept_license=True), Foreign)
    assert sum("Hunyuan Community License" in m for m in caplog.messages) == 1
    monkeypatch.setenv(ACCEPT, "flux1_vae,hunyuan_vae")
    assert isinstance(zoo.load("hunyuan_vae.official"), Foreign)
    assert "Hunyuan" in zoo.info("hunyuan_vae.official").licence


def test_no_network_and_a_gate_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    raised: list[Exception] = [LocalEntryNotFoundError("no route")]

    def refuse(*_: object, **__: object) -> str:
        raise raised[-1]

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"can't fetch .*Wan2\.1.*no network.*dir:FOLDER"):
        zoo.load("wan21_vae.official")
    # the HTTP client of this hub: httpx, or what followed it
    client = sys.modules[errors.Response.__module__.partition(".")[0]]
    response = client.Response(401, request=client.Request("GET", "https://huggingface.co"))
    raised.append(GatedRepoError("gated", response=response))
    with pytest.raises(UserError, match=r"is gated: accept its terms at https.*hf auth login"):
        zoo.load("sd3_vae.official", accept_license=True)


def test_foreign_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    net = small("wan21_vae")
    with pytest.raises(UserError, match=r"pixels are float64, the net is float32: give"):
        net.encode(clip(5, 8, 8).double())
    with pytest.raises(UserError, match=r"pixels are uint8, the net is float32"):
        net.encode(torch.zeros(1, 3, 5, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="latents are float16"):
        net.decode(torch.zeros(1, 16, 1, 1, 1, dtype=torch.float16))
    caplog.clear()
    for _ in range(2):
        net.encode(clip(18, 8, 8))
    assert [m for m in caplog.messages if "takes 1 + k * 4 frames: of 18" in m] == caplog.messages
    assert len(caplog.messages) == 1

    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderOobleck"}))
    with pytest.raises(UserError, match="AutoencoderOobleck is no tokenizer that the zoo wraps"):
        zoo.load(f"dir:{tmp_path}")
    net.vae.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="can't be loaded"):
        zoo.load(f"dir:{tmp_path}")

    import diffusers

    monkeypatch.setattr(diffusers, "AutoencoderKLWan", None)
    with pytest.raises(UserError, match=r"has no AutoencoderKLWan: pip install -U 'diffusers>="):
        zoo.create("wan21_vae", reduced=True)
    assert "vidtok_kl_4ch.official" not in published()


def test_a_cdt_decoder_on_foreign_latents() -> None:
    for name in ("wan21_vae", "ltx_vae"):
        encoder = small(name)
        config = decoder_config(encoder, context_dim=8, unet_dim=8)  # type: ignore[arg-type]
        net = CDTDecoder(config).eval()
        net.tokenizer.load_state_dict(encoder.state_dict())
        x = clip(9, 32, 32)
        with torch.no_grad():
            assert torch.equal(net.encode(x).mean, encoder.encode(x).mean)
            assert net.reconstruct(x).shape == x.shape
        assert net.streams == encoder.streams


def test_a_teacher_works_on_foreign_latents() -> None:
    net = small("sd_vae_ft_mse")
    wrapped = ZooVAE.of(net)
    z = torch.randn(1, 4, 2, 2)
    want = net.vae.decode(z / 0.18215).sample
    assert torch.allclose(wrapped.decode(z), want, atol=1e-5)


@pytest.mark.slow
def test_wan_at_its_real_width() -> None:
    torch.manual_seed(0)
    net = zoo.create("wan21_vae").eval().requires_grad_(False)
    x = clip(5, 64, 64)
    z, y = bare(net, x)  # type: ignore[arg-type]
    assert torch.equal(net.encode(x).mean, z)
    assert torch.equal(net.reconstruct(x), y)
    streamed = torch.cat(list(net.stream_decode(z.split(1, dim=2))), dim=2)
    assert torch.allclose(streamed, y, atol=1e-5)
