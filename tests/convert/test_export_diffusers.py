"""Image KL-VAEs and UNets as folders that diffusers' plain classes open, with equal outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

import zoo
from tests.nets.zoo_of_nets import make
from zoo.cli import convert
from zoo.convert.kl_vae import (
    from_autoencoder_kl,
    load_checkpoint,
    save_checkpoint,
    to_autoencoder_kl,
)
from zoo.errors import UserError
from zoo.nets.kl_vae import KLVAE


@pytest.fixture
def net() -> KLVAE:
    net = make("published_image_vae")
    assert isinstance(net, KLVAE)
    net.latent_mean.copy_(torch.arange(4) / 4)
    net.latent_std.copy_(1 + torch.arange(4) / 8)
    return net


def test_an_image_vae_opens_in_diffusers_and_comes_back(net: KLVAE, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path / "ours")
    source = f"dir:{tmp_path / 'ours'}"
    convert.main([source, "--family", "kl_vae", "--back", "-o", str(tmp_path / "vae")])
    theirs = AutoencoderKL.from_pretrained(tmp_path / "vae", local_files_only=True).eval()
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        want, got = net.encode(x), theirs.encode(x).latent_dist
        assert (got.mean - want.mean).abs().max() < 1e-5
        assert want.logvar is not None
        assert (got.logvar - want.logvar).abs().max() < 1e-5
        error = (theirs.decode(want.mean).sample - net.decode(want.mean)).abs().max()
        assert error < 1e-5
    assert theirs.config.latents_mean == net.latent_mean.tolist()
    assert theirs.config.latents_std == net.latent_std.tolist()
    assert theirs.config.scaling_factor == 1
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    convert.main([str(tmp_path / "vae"), "--family", "kl_vae", "-o", str(tmp_path / "back")])
    back = zoo.load(f"dir:{tmp_path / 'back'}")
    assert isinstance(back, KLVAE)
    assert back.config == net.config
    state = net.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in back.state_dict().items())


def test_export_of_a_net_that_diffusers_has_no_place_for(net: KLVAE, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"4x4 patches .* and the linear shortcut"):
        save_checkpoint(zoo.create("klvae_image_tiny"), tmp_path / "vae")
    with pytest.raises(UserError, match="KLVAEVideo is not built of"):
        save_checkpoint(make("published_vae"), tmp_path / "vae")
    assert not list(tmp_path.iterdir())
    vae = to_autoencoder_kl(net)
    vae.register_to_config(act_fn="relu")
    with pytest.raises(UserError, match="act_fn = 'relu'"):
        from_autoencoder_kl(vae)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_export_keeps_the_stored_type(net: KLVAE, dtype: torch.dtype, tmp_path: Path) -> None:
    net.latent_std.mul_(0.3)
    save_checkpoint(net.to(dtype), tmp_path / "vae")
    _, back = load_checkpoint(tmp_path / "vae")
    state = net.state_dict()
    for name, tensor in back.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, state[name]), name


def test_statistics_are_read_as_pipelines_apply_them(net: KLVAE) -> None:
    vae = to_autoencoder_kl(net)
    vae.register_to_config(scaling_factor=0.5)
    assert torch.equal(from_autoencoder_kl(vae).latent_std, 2 * net.latent_std)
    vae.register_to_config(latents_mean=None, latents_std=None, shift_factor=0.25)
    back = from_autoencoder_kl(vae)
    assert back.latent_mean.tolist() == [0.25] * 4
    assert back.latent_std.tolist() == [2.0] * 4


def test_export_never_replaces_anything(
    net: KLVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vae"

    def appears(*_: object) -> None:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(AutoencoderKL, "save_pretrained", appears)
    with pytest.raises(UserError, match=r"can't write .*: give another folder"):
        save_checkpoint(net, folder)
    monkeypatch.undo()
    with pytest.raises(UserError, match="exists: give another folder"):
        save_checkpoint(net, folder)
    assert [p.name for p in tmp_path.rglob("*")] == ["vae", "notes.txt"]


def test_export_reads_strictly(net: KLVAE, tmp_path: Path) -> None:
    save_checkpoint(net, tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"use_quant_conv": False, "use_post_quant_conv": False}))
    with pytest.raises(UserError, match="unexpected"):
        convert.main([str(path.parent), "--family", "kl_vae", "-o", str(tmp_path / "back")])
    path.write_text(json.dumps(config | {"_class_name": "AutoencoderTiny"}))
    with pytest.raises(UserError, match="holds AutoencoderTiny, not AutoencoderKL"):
        convert.main([str(path.parent), "--family", "kl_vae", "-o", str(tmp_path / "back")])
    assert not (tmp_path / "back").exists()


def test_export_of_a_tiue_net_opens_in_diffusers(tmp_path: Path) -> None:
    net = zoo.create("tiue_tiny", widths=(16, 32, 32), text_dim=64)
    net.save_pretrained(tmp_path / "unet")  # type: ignore[operator]
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "unet", local_files_only=True).eval()
    assert type(theirs) is UNet2DConditionModel
    x, text = torch.randn(2, 4, 16, 16), torch.randn(2, 20, 64)
    time = torch.tensor([999, 3])
    with torch.no_grad():
        want = net.decode(net.encode(x, time, text), time, text)  # type: ignore[operator]
        assert (theirs(x, time, text).sample - want).abs().max() < 1e-5
