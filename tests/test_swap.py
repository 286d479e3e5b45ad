"""The linear map between latents: exact where the relation is linear, honest where it isn't."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from tests.nets.zoo_of_nets import make
from zoo.cli.swap import main
from zoo.data.video import VideoWriter
from zoo.errors import UserError
from zoo.nets.latent_swap import LatentSwap, LatentSwapConfig
from zoo.nets.pca import BlockPCA, PCAConfig
from zoo.swap import fit_swap


def pca(channels: int, compression: tuple[int, int, int]) -> BlockPCA:
    net = BlockPCA(PCAConfig(latent_channels=channels, compression=compression))
    for basis in (net.basis, net.first_basis):
        torch.nn.init.orthogonal_(basis)
    return net.eval()


def clips(count: int, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, 9, 32, 32, generator=generator) * 2 - 1 for _ in range(count)]


@pytest.mark.parametrize(
    ("source", "target"),
    [((4, 4, 4), (4, 4, 4)), ((1, 4, 4), (4, 8, 8)), ((4, 8, 8), (2, 4, 4))],
)
def test_swap_of_linear_codes_is_exact_where_one_holds_the_other(
    source: tuple[int, int, int], target: tuple[int, int, int]
) -> None:
    """A map made by hand is found again, whatever the compressions are."""
    config = LatentSwapConfig(
        source_channels=3,
        target_channels=2,
        source_compression=source,
        target_compression=target,
    )
    made, fitted = LatentSwap(config).double(), LatentSwap(config).double()
    torch.manual_seed(0)
    made.weight.normal_()
    made.first_weight.normal_()
    t, h, w = (b // s for b, s in zip(made.block, source, strict=True))
    pairs = []
    for _ in range(40):
        z = torch.randn(2, 3, 1 + 2 * t, 2 * h, 3 * w, dtype=torch.float64)
        pairs.append((z, made(z)))
    fitted.fit(pairs)
    assert torch.allclose(fitted.weight, made.weight, atol=1e-6)
    z = pairs[0][0]
    assert torch.allclose(fitted(z), pairs[0][1], atol=1e-6)
    t, h, w = (b // s for b, s in zip(made.block, target, strict=True))
    assert fitted(z).shape == (2, 2, 1 + 2 * t, 2 * h, 3 * w)
    # what stands in a block goes to that block alone
    changed = z.clone()
    changed[..., -1] += 1
    moved = (fitted(changed) - fitted(z)).abs().amax((0, 1, 2, 3))
    assert moved[-w:].max() > 0
    assert moved[:-w].max() == 0


def test_swap_reports_its_loss() -> None:
    torch.manual_seed(0)
    fine = pca(6, (4, 4, 4))
    swap, report = fit_swap(fine, fine, clips(6))
    assert (report.fitted, report.held_out) == (4, 2)
    assert report.error < 1e-6
    assert report.swapped_psnr == pytest.approx(report.target_psnr, abs=0.01)
    # other directions of noise can't be had from these
    torch.manual_seed(1)
    other = pca(6, (4, 4, 4))
    _, report = fit_swap(fine, other, clips(6))
    assert 0.8 < report.error < 1.2
    assert report.swapped_psnr < report.target_psnr
    with pytest.raises(UserError, match=r"blocks of 4x8x8 pixels can't fit"):
        fit_swap(pca(60, (1, 4, 4)), pca(6, (4, 8, 8)), clips(2))
    with pytest.raises(UserError, match="every = 1"):
        fit_swap(fine, fine, clips(2), every=1)
    with pytest.raises(UserError, match="don't make whole blocks"):
        swap(torch.zeros(1, 5, 1, 1, 1))


def test_swap_between_a_foreign_net_and_ours() -> None:
    torch.manual_seed(0)
    source = zoo.create("wan21_vae", reduced=True).eval()
    _, report = fit_swap(source, make("klvae_video_tiny"), clips(6))
    assert report.held_out == 2
    assert report.error > 0


def test_swap_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    films = tmp_path / "films"
    films.mkdir()
    for number in range(3):
        with VideoWriter(films / f"{number}.mp4", width=48, height=32, rate=Fraction(25)) as film:
            for _ in range(12):
                film.write(np.random.default_rng(number).integers(0, 256, (32, 48, 3), np.uint8))
    pca(4, (4, 8, 8)).save_pretrained(tmp_path / "a")
    pca(5, (4, 8, 8)).save_pretrained(tmp_path / "b")
    names = [f"dir:{tmp_path / 'a'}", f"dir:{tmp_path / 'b'}"]
    data = ["--data", str(films), "--frames", "5", "--size", "32"]
    assert main([*names, *data, "-o", str(tmp_path / "swap")]) == 0
    said = capsys.readouterr().out
    assert "swapped_psnr" in said
    report = json.loads((tmp_path / "swap" / "report.json").read_text())
    assert report["held_out"] >= 1
    assert isinstance(zoo.load(f"dir:{tmp_path / 'swap'}"), LatentSwap)
    with pytest.raises(UserError, match="LatentSwap, not a tokenizer"):
        main([f"dir:{tmp_path / 'swap'}", names[1], *data])
    with pytest.raises(UserError, match="--clips 0"):
        main([*names, *data, "--clips", "0"])
