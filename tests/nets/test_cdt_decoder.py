"""A CDT decoder on foreign latents: any compression, self-contained, streaming, encoder frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import zoo
from tests.nets.zoo_of_nets import make, video
from zoo.errors import UserError
from zoo.nets.cdt_decoder import CDTDecoder, cdt_decoder, decoder_config
from zoo.nets.pca import BlockPCA, PCAConfig
from zoo.nets.tokenizer import Size, Tokenizer
from zoo.objectives import DenoisingObjective

NARROW = {"context_dim": 8, "unet_dim": 8}


def pca(compression: Size) -> BlockPCA:
    """A linear encoder with a random basis: fitting one to large blocks takes gigabytes."""
    net = BlockPCA(PCAConfig(latent_channels=5, compression=compression))
    for basis in (net.basis, net.first_basis):
        torch.nn.init.orthogonal_(basis)
    return net


ENCODERS: dict[str, Callable[[], Tokenizer]] = {
    "video KL-VAE": lambda: make("klvae_video_tiny"),
    "image KL-VAE": lambda: make("klvae_image_tiny"),
    "much": lambda: pca((8, 32, 32)),
    "little": lambda: pca((2, 2, 2)),
}


def decoder(encoder: Tokenizer, **changes: object) -> CDTDecoder:
    torch.manual_seed(0)
    net = CDTDecoder(decoder_config(encoder, **(NARROW | changes)))  # type: ignore[arg-type]
    net = net.to(encoder.latent_std.dtype)
    net.tokenizer.load_state_dict(encoder.state_dict())
    for parameter in (p for p in net.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "size"), [*((name, "tiny") for name in ENCODERS), ("video KL-VAE", "small")]
)
def test_cdt_decoder_takes_the_encoders_latents(name: str, size: str) -> None:
    encoder = ENCODERS[name]().double()
    net = decoder(encoder, size=size).double()
    assert net.compression == encoder.compression
    x = video(9, 17, 24, dtype=torch.float64)
    with torch.no_grad():
        posterior = net.encode(x)
        assert torch.equal(posterior.mean, encoder.encode(x).mean)
        assert net.reconstruct(x).shape == x.shape
        # chunks equal the whole
        z = posterior.mean
        streamed = torch.cat(list(net.stream_encode(x.split(4, dim=2))), dim=2)
        assert (streamed - z).abs().max() < 1e-11
        given = [torch.Generator().manual_seed(0) for _ in range(2)]
        whole = net.decode(z, steps=2, generator=given[0])
        pieces = net.stream_decode(z.split(1, dim=2), steps=2, generator=given[1])
        assert (torch.cat(list(pieces), dim=2) - whole).abs().max() < 1e-10 * whole.abs().max()


def test_cdt_decoder_folder_needs_nothing_else(tmp_path: Path) -> None:
    encoder = make("klvae_video_tiny")
    encoder.save_pretrained(tmp_path / "encoder")
    net = cdt_decoder(encoder=f"dir:{tmp_path / 'encoder'}")
    net.fit([video(9, 24, 24)])
    net.save_pretrained(tmp_path / "export")
    for path in (tmp_path / "encoder").iterdir():
        path.unlink()
    loaded = zoo.load(f"dir:{tmp_path / 'export'}")
    assert isinstance(loaded, CDTDecoder)
    want = net.state_dict()
    assert all(torch.equal(v, want[k]) for k, v in loaded.state_dict().items())
    x = video(5)
    assert torch.equal(loaded.encode(x).mean, encoder.encode(x).mean)
    # normalised latents reach the context decoder
    z = loaded.encode(x).mean
    plain = loaded.context((z - net.shift.view(-1, 1, 1, 1)) / net.scale.view(-1, 1, 1, 1))
    assert torch.equal(loaded.conditions(z)[0][0], plain[0])


@pytest.mark.parametrize("compression", [(4, 8, 8), (1, 8, 8)])
def test_cdt_decoder_starts_at_the_linear_map_of_the_latents(compression: Size) -> None:
    """On the codes of a fitted PCA that map is the PCA's own decoder."""
    x = video(9, 32, 32, dtype=torch.float64)
    encoder = BlockPCA(PCAConfig(latent_channels=5, compression=compression)).double().fit([x])
    net = CDTDecoder(decoder_config(encoder, **NARROW)).double().eval()  # type: ignore[arg-type]
    net.tokenizer.load_state_dict(encoder.state_dict())
    net.fit([x])
    with torch.no_grad():
        want = encoder.reconstruct(x)
        assert (net.reconstruct(x) - want).abs().max() < 1e-4 * want.abs().max()
    with pytest.raises(UserError, match="a readout needs clips"):
        net.fit([x[:1, :, :1, :8, :8]])
    images = x.movedim(2, 1).flatten(0, 1)[:, :, None]
    if compression[0] == 1:  # images alone serve an image tokenizer
        net.fit([images])
        with torch.no_grad():
            assert torch.allclose(net.reconstruct(x), want, atol=1e-4)
    else:
        with pytest.raises(UserError, match="more than 4 frames"):
            net.fit([images])


def test_cdt_decoder_trains_all_but_the_encoder() -> None:
    encoder = make("klvae_video_tiny")
    net = decoder(encoder)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    objective = DenoisingObjective(kl_weight=0, lpips_weight=0, pure_noise=0.3)
    net.train()
    assert not net.tokenizer.training
    for _ in range(3):
        losses = objective(net, video(9), progress=0.0)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    dead = [n for n, p in net.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not dead, dead
    assert all(torch.equal(v, before[k]) for k, v in net.tokenizer.state_dict().items())
    assert losses.terms.keys() == {"mse"}


def test_cdt_decoder_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compression \(4, 8, 16\) isn't made of powers of two"):
        decoder_config(BlockPCA(PCAConfig(compression=(4, 8, 16))))
    with pytest.raises(UserError, match="unknown model 'cdt_tinny'"):
        cdt_decoder(encoder="random:cdt_tinny")
    with pytest.raises(UserError, match="is not a model folder"):
        cdt_decoder(encoder=f"dir:{tmp_path}")
    values = decoder_config(make("pca"))
    with pytest.raises(UserError, match="'vqgan' is no tokenizer"):
        CDTDecoder(type(values)(encoder={"architecture": "vqgan", "config": {}}))
    with pytest.raises(UserError, match="doesn't fit an encoder of"):
        CDTDecoder(type(values)(encoder=values.encoder, latent_channels=7))
