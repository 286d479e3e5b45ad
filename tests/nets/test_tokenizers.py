"""Shapes, sizes, presets, saving and loading of every net."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from tests.nets.zoo_of_nets import BUILDERS, make, video
from zoo.errors import UserError
from zoo.metrics.reconstruction import psnr
from zoo.nets.cdt_context import CompressorConfig, Encoder
from zoo.nets.kl_vae_video import KLVAEVideo
from zoo.nets.pca import BlockPCA, PCAConfig
from zoo.nets.pretrained import CONFIG_FILE, WEIGHTS_FILE

NETS = sorted(BUILDERS)


@pytest.mark.parametrize("name", zoo.list_models())
def test_presets_build_on_meta_and_are_described(name: str) -> None:
    with torch.device("meta"):
        net = zoo.create(name)
    assert all(t.is_meta for t in net.state_dict().values())
    families = ("cdt", "foreign", "kl_vae", "t2i", "tiue", "video_dit")
    assert zoo.info(name).family in families


@pytest.mark.parametrize("name", ["cdt_tiny", "klvae_video_tiny"])
def test_tiny_presets_are_tiny(name: str) -> None:
    net = zoo.create(name)
    assert sum(p.numel() for p in net.parameters()) <= 4e6
    assert net.compression == (4, 8, 8)
    assert net.latent_channels == 16


def test_the_tiny_image_vae_is_tiny() -> None:
    net = zoo.create("klvae_image_tiny")
    assert sum(p.numel() for p in net.parameters()) <= 1.5e6
    assert (net.compression, net.latent_channels) == ((1, 4, 4), 4)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(1, 16, 16), (2, 16, 16), (3, 33, 47), (6, 8, 15)])
def test_any_size_comes_back(name: str, size: tuple[int, int, int]) -> None:
    net = make(name)
    x = video(*size)
    t, h, w = net.compression
    z = net.encode(x).mean
    assert z.shape[2:] == (1 + -(-(size[0] - 1) // t), -(-size[1] // h), -(-size[2] // w))
    assert net.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_learns(name: str) -> None:
    """After one step from the real initialisation, each parameter has a gradient."""
    torch.manual_seed(0)
    net = BUILDERS[name]()
    optimizer = torch.optim.SGD([torch.zeros(1), *net.parameters()], lr=0.1)
    x = video(9)
    dead: list[str] = []
    for _ in range(3):
        optimizer.zero_grad()
        posterior = net.encode(x)
        # several steps: time embeddings matter only off the last one
        loss = (net.decode(posterior.sample(), steps=2) - x[:, :, :9]).square().mean()
        if posterior.logvar is not None:
            loss = loss + 1e-3 * posterior.kl().mean()
        if name == "pca":
            return  # nothing to learn
        loss.backward()
        optimizer.step()
        dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    unused = {n for n in dead if n.startswith("unet.") and ".skip" in n}
    assert not set(dead) - unused, dead


@pytest.mark.parametrize("name", NETS)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    net = make(name)
    net.save_pretrained(tmp_path / "export")
    loaded = zoo.load(f"dir:{tmp_path / 'export'}")
    assert not loaded.training
    loaded.requires_grad_(False)  # attention takes another kernel where it needs a gradient
    x = video(5)
    given = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    assert torch.equal(
        net.reconstruct(x, generator=given[0]), loaded.reconstruct(x, generator=given[1])
    )
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    net = make("klvae_video_tiny")
    folder = tmp_path / "m"
    with pytest.raises(UserError, match="not a model folder"):
        zoo.load(f"dir:{folder}")
    net.save_pretrained(folder)
    good = (folder / CONFIG_FILE).read_text()
    for change, said in (
        ({"contex_dim": 8}, "contex_dim.*did you mean 'context_dim'"),
        ({"context_dim": "48"}, "context_dim = '48'.*expected int"),
        ({"padding": "mirror"}, "padding = 'mirror'"),
        ({"context_dim": 32}, "doesn't fit its config"),
        ({"latent_channels": -1}, "describes no net that can be built"),
        ({"time_down": []}, "need one flag for each of the 3 stages"),
    ):
        text = json.loads(good)
        text["config"] |= change
        (folder / CONFIG_FILE).write_text(json.dumps(text))
        with pytest.raises(UserError, match=said):
            zoo.load(f"dir:{folder}")
    (folder / CONFIG_FILE).write_text(good)
    weights = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        zoo.load(f"dir:{folder}")
    with pytest.raises(UserError, match="can't write the model"):
        net.save_pretrained(folder / CONFIG_FILE / "x")


def test_wrong_names_and_shapes() -> None:
    with pytest.raises(UserError, match=r"unknown model 'cdt_tinny'.*cdt_tiny"):
        zoo.create("cdt_tinny")
    with pytest.raises(UserError, match=r"no setting 'latent_chanels'.*'latent_channels'"):
        zoo.create("cdt_tiny", latent_chanels=8)
    with pytest.raises(UserError, match=r"unknown model 'cdt_tinny'"):
        zoo.load("cdt_tinny")
    net = make("klvae_video_tiny")
    with pytest.raises(UserError, match=r"\(1, 3, 0, 8, 8\)"):
        net.encode(torch.zeros(1, 3, 0, 8, 8))
    with pytest.raises(UserError, match="latents of shape"):
        net.decode(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(UserError, match="steps = 0"):
        net.decode(torch.zeros(1, 16, 1, 2, 2), steps=0)
    with pytest.raises(UserError, match="outside what these latents hold"):
        net.decode(torch.zeros(1, 16, 1, 2, 2), size=(2, 16, 16))
    with pytest.raises(UserError, match="no KL divergence"):
        make("pca").encode(video(5)).kl()
    assert isinstance(net, KLVAEVideo)


def test_kl_is_that_of_torch() -> None:
    posterior = make("klvae_video_tiny").encode(video(5))
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0, 1)
    )
    assert torch.allclose(posterior.kl(), reference.flatten(1).sum(1), rtol=1e-4)


def test_pca_is_the_best_linear_code() -> None:
    """Reconstruction error equals the energy that a numpy SVD leaves out."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((6, 3, 5, 16, 16)).cumsum(-1).cumsum(-2) / 50)
    net = BlockPCA(PCAConfig(latent_channels=7, compression=(4, 8, 8))).double().fit([x])
    y = net.reconstruct(x)
    blocks = x[:, :, 1:].unfold(3, 8, 8).unfold(4, 8, 8)  # b c t h w p q
    flat = blocks.permute(0, 3, 4, 1, 2, 5, 6).reshape(-1, 3 * 4 * 64).numpy()
    values = np.linalg.svd(flat - flat.mean(0), compute_uv=False)
    error = (y[:, :, 1:] - x[:, :, 1:]).square().sum().item()
    assert error == pytest.approx((values[7:] ** 2).sum(), rel=1e-6)
    codes = net.encode(x).mean[:, :, 1:].movedim(1, -1).flatten(0, -2)
    assert torch.allclose(codes.std(0, correction=0), torch.ones(7).double(), atol=1e-6)


@pytest.mark.parametrize("name", ["cdt_tiny", "klvae_video_tiny", "klvae_image_tiny"])
def test_training_starts_at_the_linear_code(name: str) -> None:
    torch.manual_seed(0)
    net = zoo.create(name).eval()
    x = video(9, 32, 32).cumsum(-1) / 32
    net.pca.fit([x])
    with torch.no_grad():
        assert torch.allclose(net.reconstruct(x), net.pca.reconstruct(x), atol=1e-5)
        assert psnr(net.reconstruct(x), x).min() > 10


@pytest.mark.parametrize("name", ["klvae_image_tiny", "published_image_vae"])
def test_image_vaes_take_pictures(name: str) -> None:
    """[B,3,H,W] is the same as one frame; a video is coded frame by frame."""
    net = make(name)
    x = video(3, 30, 21)
    posterior = net.encode(x)
    for time in range(3):
        alone = net.encode(x[:, :, time])
        assert alone.mean.shape == (2, 4, 8, 6)
        assert torch.allclose(alone.mean, posterior.mean[:, :, time], atol=1e-5)
        assert alone.logvar is not None
        assert alone.logvar.shape == alone.mean.shape
        assert net.decode(alone.mean, size=(1, 30, 21)).shape == (2, 3, 30, 21)
    assert net.reconstruct(x[:, :, 0]).shape == (2, 3, 30, 21)
    with pytest.raises(UserError, match=r"\(2, 4, 1, 8, 8\)"):
        net.encode(torch.zeros(2, 4, 8, 8))


def test_image_vae_is_diffusers_own() -> None:
    """The module under `vae.` is a plain AutoencoderKL: same keys, same numbers."""
    from diffusers import AutoencoderKL

    net = make("published_image_vae")
    blocks = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    plain = AutoencoderKL(
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        block_out_channels=(4, 8, 8),
        norm_num_groups=2,
    ).eval()
    own = {k.removeprefix("vae."): v for k, v in net.state_dict().items() if k[:4] == "vae."}
    plain.load_state_dict(own, strict=True)
    x = video(1, 24, 16)[:, :, 0]
    with torch.no_grad():
        assert torch.allclose(plain.encode(x).latent_dist.mean, net.encode(x).mean, atol=1e-5)
        z = torch.randn(2, 4, 3, 2)
        assert torch.allclose(plain.decode(z).sample, net.decode(z), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size"), [("klvae_image_f8c4", 83_653_863), ("klvae_image_f8c16", 83_819_683)]
)
def test_image_presets_have_the_published_size(name: str, size: int) -> None:
    """Of the VAEs of Stable Diffusion 1.5 (83.65 M) and FLUX.1 (83.82 M)."""
    with torch.device("meta"):
        net = zoo.create(name)
    assert sum(p.numel() for p in net.parameters()) == size
    assert net.compression == (1, 8, 8)


@pytest.mark.parametrize("size", ["small", "base"])
def test_video_vaes_have_the_encoder_of_cdt(size: str) -> None:
    """Key by key: what is compared with a CDT is the decoder alone (facts of arXiv 2503.03708)."""
    facts = {
        "small": CompressorConfig(context_dim=64, space_down=(1, 1, 1, 0)),
        "base": CompressorConfig(
            context_dim=128,
            space_down=(0, 1, 1, 1),
            padding="zeros",
            upsampling="nearest",
        ),
    }[size]
    with torch.device("meta"):
        net = zoo.create(f"klvae_video_{size}")
        encoder = Encoder(facts)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (net.encoder, encoder)]
    assert shapes[0] == shapes[1]
    for field in ("padding", "upsampling", "time_down", "space_down"):
        assert getattr(net.config, field) == getattr(facts, field)
    assert (net.compression, net.latent_channels) == ((4, 8, 8), 16)
