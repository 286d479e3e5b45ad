"""Films and exported nets in a folder, and the command line in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from tests.cli.film_makers import Cli, write_film, write_packets
from zoo.cli import find, run
from zoo.nets.pca import BlockPCA
from zoo.nets.pretrained import Pretrained


class Scorer(Pretrained):
    """A saved net of a family that encodes nothing."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Nothing to set."""

        width: int = 1

    architecture = "scorer_of_tests"
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(1, config.width)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported nets (random but for their shortcut) and films, good and bad."""
    base = tmp_path_factory.mktemp("films")
    for name, seed in (("export", 0), ("other", 1)):
        torch.manual_seed(seed)
        net = zoo.create("cdt_tiny", context_dim=8, unet_dim=8)
        pca = net.pca
        assert isinstance(pca, BlockPCA)
        pca.fit([torch.rand(2, 3, 17, 32, 32) * 2 - 1])
        net.save_pretrained(base / name)  # type: ignore[operator]
    zoo.create("klvae_video_tiny", context_dim=8).save_pretrained(base / "vae")  # type: ignore[operator]
    Scorer(Scorer.Config()).save_pretrained(base / "scorer")
    write_film(base / "in.mp4")
    (base / "text.mp4").write_text("this is not a film\n" * 100)
    (base / "header.mp4").write_bytes((base / "in.mp4").read_bytes()[:60])
    whole = write_packets(base / "whole.mp4", frames=30).read_bytes()
    (base / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    write_packets(base / "corrupt.mp4", frames=30, corrupt=(11, 12))
    return base


@pytest.fixture
def cli(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process: (status, stdout, stderr)."""
    monkeypatch.chdir(base)

    def call(name: str, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            run(find(name), [str(a) for a in arguments])
        said = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, said.out, said.err

    return call
