"""Training a generator of films: it gets better, its export generates, wrong latents fail."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo.video_pipeline
from tests.latent_videos import SIZE, WordStates, pipeline, tokenizer, write_films
from tests.wanted import or_skip
from zoo.cli import find, run
from zoo.data.captioned_video import CaptionedLatents
from zoo.data.datamodule import ZooDataModule
from zoo.data.sources import VideoFolder
from zoo.errors import UserError
from zoo.lit.latent_video import LatentVideoModule
from zoo.metrics.distributions import FrechetDistance
from zoo.metrics.networks import load_transnet
from zoo.objectives.latent_video import LatentVideoObjective
from zoo.video_pipeline import VideoPipeline

CONFIG = Path(__file__).parent / "moving_squares.yaml"


def command(name: str, *arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(find(name), [str(a) for a in arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.video_pipeline, "text_encoder_for", lambda dim: WordStates())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films, two tokenizers, the films' latents by one of them."""
    base = tmp_path_factory.mktemp("squares")
    write_films(base / "films")
    tokenizer().save_pretrained(base / "tokenizer")
    tokenizer(seed=1).save_pretrained(base / "other")
    tokenizer(measured=False).save_pretrained(base / "blank")
    for name in ("tokenizer", "blank"):
        model, out = f"dir:{base / name}", base / f"latents_{name}"
        assert not command("data", "encode", base / "films", "--model", model, "-o", out)
    return base


def fit(base: Path, out: Path, *extra: object) -> int:
    root = base / "latents_tokenizer"
    roots = [f"--data.{split}.init_args.root={root}" for split in ("train", "val")]
    return command("train", "fit", "--config", CONFIG, *roots, "--out", out, *extra)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo.video_pipeline, "text_encoder_for", lambda dim: WordStates())
        assert fit(base, out) == 0
    return out


def films(pipe: VideoPipeline, frames: int, *, count: int = 12) -> Tensor:
    prompts = [f"{name} square" for name in ("red", "green", "blue")] * (count // 3)
    made = pipe.films(prompts, frames=frames, seeds=list(range(count)), steps=8, guidance=1.5)
    return torch.cat(list(made), dim=2).clamp(-1, 1)


def test_training_improves_fvd_and_the_export_makes_17_and_49_frames(
    base: Path, trained: Path
) -> None:
    net = or_skip(load_transnet)
    source = VideoFolder(str(base / "films"), frames=17, size=SIZE, flip=False, clips_per_film=4)
    source.prepare()
    real = net(torch.stack([source[(0, i)].pixels for i in range(len(source))]))
    after = VideoPipeline.from_pretrained(f"dir:{trained / 'export'}")
    before = VideoPipeline(type(after.net)(after.net.config), after.tokenizer)
    before.net.latent_mean.copy_(after.net.latent_mean)
    before.net.latent_std.copy_(after.net.latent_std)
    distances = []
    for pipe in (before, after):
        distance = FrechetDistance(net.dimensions)
        distance.update(real, real=True)
        distance.update(net(films(pipe, 17)), real=False)
        distances.append(float(distance.compute()))
    assert distances[1] < 0.6 * distances[0], distances
    long = films(after, 49, count=3)
    assert long.shape == (3, 3, 49, SIZE, SIZE)
    # more frames go on where fewer end
    assert torch.allclose(long[:, :, :17], films(after, 17, count=3), atol=1e-4)


def test_samples_and_export_are_whole(base: Path, trained: Path) -> None:
    assert {p.suffix for p in (trained / "samples").iterdir()} == {".png", ".mp4"}
    config = json.loads((trained / "export" / "config.json").read_text())["config"]
    assert config["tokenizer"] == f"dir:{base / 'tokenizer'}"
    assert (config["rate"], config["latent_size"]) == (12.5, [4, 4])
    assert (trained / "export" / "tokenizer" / "model.safetensors").is_file()


def test_the_tokenizer_of_other_latents_is_refused(base: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r"makes latents of dir:.*tokenizer \(weights .*/other"):
        VideoPipeline.from_pretrained(
            f"dir:{trained / 'export'}", tokenizer=f"dir:{base / 'other'}"
        )
    with pytest.raises(UserError, match="is a pca, which generates no films"):
        VideoPipeline.from_pretrained(f"dir:{base / 'other'}")


def test_films_are_encoded_on_the_fly(base: Path, tmp_path: Path) -> None:
    data = [
        *("--data.train", "zoo.data.captioned_video.CaptionedFilms"),
        *("--data.train.init_args.root", base / "films", "--data.train.init_args.size", SIZE),
        *("--data.train.init_args.clips_per_film", 4, "--data.val", "null"),
        *("--trainer.max_steps", 2, "--trainer.val_check_interval", "null"),
    ]
    name = f"dir:{base / 'tokenizer'}"
    assert fit(base, tmp_path / "run", *data, "--model.init_args.tokenizer", name) == 0
    assert VideoPipeline.from_pretrained(f"dir:{tmp_path / 'run' / 'export'}").grid(None) == (4, 4)


def test_wrong_latents(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ("--model.init_args.tokenizer", f"dir:{base / 'other'}")
    assert fit(base, tmp_path / "a", *other) == 2
    said = capsys.readouterr().err
    assert "holds latents of dir:" in said
    assert "/other (pca" in said
    blank = [f"--data.{s}.init_args.root={base / 'latents_blank'}" for s in ("train", "val")]
    assert fit(base, tmp_path / "b", *blank) == 2
    assert "blank has no latent statistics (mean 0, std 1)" in capsys.readouterr().err
    assert fit(base, tmp_path / "c", "--model.init_args.net.init_args.latent_channels", 16) == 2
    assert "makes latents of 16 channels" in capsys.readouterr().err
    assert fit(base, tmp_path / "e", "--model.init_args.objective.init_args.dropot", 0.2) == 2
    assert "unknown key 'dropot': did you mean 'dropout'?" in capsys.readouterr().err
    assert fit(base, tmp_path / "d", "--model.init_args.frames", 18) == 2
    assert "18 frames can't be reached" in capsys.readouterr().err


def test_latents_without_statistics(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    folder.mkdir()
    for path in (base / "latents_tokenizer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"statistics": None}))
    with pytest.raises(UserError, match="hasn't ended: run it again to go on"):
        CaptionedLatents(str(folder), latents=3).prepare()


def test_sources_without_captions_are_refused(base: Path) -> None:
    module = LatentVideoModule(
        net=pipeline().net, objective=LatentVideoObjective(), optimizer=torch.optim.SGD
    )
    data = ZooDataModule(VideoFolder(str(base / "films")))

    class Trainer:
        datamodule: Any = data

    module._trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(UserError, match="read as VideoFolder, without captions"):
        module.on_fit_start()


def test_a_film_depends_on_its_seed_only() -> None:
    pipe = pipeline(chunk=2, attention="factorised")
    options: dict[str, Any] = {"frames": 17, "steps": 3, "guidance": 2.0}
    prompts = ["red square", "blue square"]
    both = torch.cat(list(pipe.films(prompts, seeds=[5, 6], **options)), dim=2)
    alone = torch.cat(list(pipe.films(prompts[1:], seeds=[6], **options)), dim=2)
    assert (both[1:] - alone).abs().max() < 1e-4
    other = torch.cat(list(pipe.films(prompts[1:], seeds=[7], **options)), dim=2)
    assert (other - alone).abs().max() > 0.05
    unguided = torch.cat(list(pipe.films(prompts[1:], seeds=[6], **options | {"guidance": 1})), 2)
    assert (unguided - alone).abs().max() > 1e-3


@torch.no_grad()
def test_streaming_generation_is_whole_clip_generation() -> None:
    """The whole loop: what a stream samples equals sampling without any cache, given the noise."""
    from zoo.diffusion.paths import advance, sampling_times

    for kind in ("rectified_flow", "v_diffusion"):
        pipe = pipeline(path=kind, window=4)
        made = torch.cat(list(pipe.latents(["a"], count=5, seeds=[3], steps=4, guidance=1)), dim=2)
        noise = torch.Generator().manual_seed(3)
        text, times = pipe.encode_prompts(["a"]), sampling_times(4).float()
        film = torch.zeros(1, 4, 0, 4, 4)
        for number in range(5):
            x = torch.randn(4, 4, 4, generator=noise)[None, :, None]
            for t, to in itertools.pairwise(times):
                at = torch.cat([torch.zeros(1, number), t.expand(1, 1)], dim=1)
                said = pipe.net.whole(torch.cat([film, x], dim=2), at, text)[:, :, -1:]
                x = advance(pipe.net.config.path, x, said, t, to)
            film = torch.cat([film, x], dim=2)
        error = (pipe.net.denormalize(film) - made).abs().max()
        assert error < 1e-5 * made.abs().max()


def test_frames_and_sizes_that_cannot_be_reached() -> None:
    pipe = pipeline(patch=2)
    assert [pipe.count(n) for n in (1, 5, 17, 49)] == [1, 2, 5, 13]
    with pytest.raises(UserError, match=r"18 frames can't be reached.*give 17 or 21"):
        pipe.count(18)
    with pytest.raises(UserError, match=r"0 frames can't be reached.*give 1"):
        pipe.count(0)
    assert pipe.grid((64, 32)) == (8, 4)
    with pytest.raises(UserError, match="24x32 pixels: give a width that is a multiple of 16"):
        pipe.grid((32, 24))
