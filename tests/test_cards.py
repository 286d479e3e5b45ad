"""Cards, the README's table of models, and shipping a run."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

import zoo
from tests.wanted import or_skip
from zoo.assets import fetch_group
from zoo.benchmark.models import candidate
from zoo.cards import BEGIN, END, card, with_table
from zoo.cli import cards as cards_command
from zoo.cli import release as release_command
from zoo.data.latents import fingerprint
from zoo.errors import RunError, UserError
from zoo.hub import trained
from zoo.paths import data_folder
from zoo.release import ABOUT, release, stage, training
from zoo.remote import check_card, read_metrics
from zoo.verify import film_subset, verify
from zoo.video_pipeline import VideoPipeline

NAME = "klvae_image_tiny.test"
CONFIG = data_folder("configs") / "released" / "klvae_image_tiny.pictures.yaml"
SHIPPED = sorted(trained())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as train.py leaves it, its seed changed on the command line."""
    folder = tmp_path / "run"
    torch.manual_seed(0)
    zoo.create("klvae_image_tiny").save_pretrained(folder / "export")  # type: ignore[operator]
    config = yaml.safe_load(CONFIG.read_text())
    config["seed_everything"] = 3
    config["data"]["val"]["init_args"]["root"] = "/somewhere/private/benchmark"
    (folder / "config.yaml").write_text(yaml.safe_dump({"fit": config}))
    with SummaryWriter(folder / "tensorboard") as board:
        for step in range(49, 50_000, 50):
            board.add_scalar("train/mse", 1 / (step + 1), step, walltime=1000 + step / 1000)
        board.add_scalar("val/psnr", 20.5, 24_999, walltime=1024.999)
    with SummaryWriter(folder / "tensorboard", filename_suffix=".second") as board:
        # resumed at a step that was done before
        for step in (49_999, 50_049, 50_099):
            board.add_scalar("train/mse", 0.25, step, walltime=5000 + step / 1000)
    return folder


def results_of(path: Path, scored: Path) -> Path:
    row = {"mean": 28.125, "low": 27.9, "high": 28.3, "n": 4}
    label = scored.name
    mark = candidate(f"dir:{scored}", device="cpu").fingerprint
    model = {
        "label": label,
        "fingerprint": mark,
        "parameters": 5,
        "metrics": {"psnr": row},
        "difference": {},
    }
    model["replicates"] = {"psnr": [1.0] * 100}
    table = {
        "protocol_hash": "abc",
        "protocol": {"frames": 1, "size": 128},
        "data": {"name": "/x/y/pictures", "description": "pictures", "clips": ["a"]},
        "baseline": label,
        "device": "a CPU",
        "models": [model],
    }
    path.write_text(json.dumps(table))
    return path


def ship(run: Path, root: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "run": run,
        "config": CONFIG,
        "results": [results_of(run / "results.json", run / NAME)],
        "subset": {"data": "package-clips", "clips": 8, "protocol": "p", "values": {"psnr": 1.0}},
        "sampling": None,
        "about": {key: ["said"] if key in ("data", "limits") else f"{key}." for key in ABOUT},
        "hardware": "one core",
        "root": root,
    }
    return release(NAME, **given | changes)


def test_released_folder_is_half_and_loads(run: Path, tmp_path: Path) -> None:
    stage(run, NAME)
    folder = ship(run, tmp_path / "out")
    assert {p.name for p in folder.iterdir()} == {
        *("README.md", "config.json", "metrics.json", "model.safetensors", "training.csv")
    }
    kept, shipped = (load_file(place / "model.safetensors") for place in (run / "export", folder))
    for key, value in kept.items():
        want = value.half() if value.dtype.is_floating_point else value
        torch.testing.assert_close(shipped[key], want, rtol=0, atol=0)
    assert check_card(folder)["name"] == NAME
    net = zoo.load(f"dir:{folder}")
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    # two orders below the noise of a grey level
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    whole = zoo.load(f"dir:{run / 'export'}")
    torch.testing.assert_close(net.encode(x).mean, whole.encode(x).mean, rtol=0.01, atol=0.01)


def test_a_record_is_a_release_without_weights(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = results_of(run / "results.json", run / "export")
    call = [NAME, "--run", str(run), "--record", "--out", str(out), "--config", str(CONFIG)]
    assert release_command.main([*call, "--results", str(table), "--hardware", "one core"]) == 0
    folder = out / "variants" / NAME
    assert {p.name for p in folder.iterdir()} == {"metrics.json", "training.csv"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training"] == training(run, CONFIG) | {
        "hardware": "one core",
        "versions": metrics["training"]["versions"],
    }
    assert metrics["metrics"][0]["row"] == "export"
    assert [p.name for p in out.iterdir()] == ["variants"]
    stage(run, NAME)
    staged = results_of(run / "results.json", run / NAME)
    with pytest.raises(UserError, match="no row of the weights in"):
        release_command.main([*call, "--results", str(staged), "--hardware", "one core"])
    for missing in ("--results", "--hardware"):
        given = {"--results": str(table), "--hardware": "one core"}
        del given[missing]
        with pytest.raises(UserError, match=f"{missing} is missing"):
            release_command.main([*call, *(part for item in given.items() for part in item)])


def test_card_tells_how_it_was_trained(run: Path, tmp_path: Path) -> None:
    took = training(run, CONFIG)
    assert took["config"] == "configs/released/klvae_image_tiny.pictures.yaml"
    assert (took["seed"], took["steps"]) == (3, 50_100)
    assert (took["seconds"], took["sittings"]) == (50, 2)
    # a private path stays private
    assert took["changed"] == {
        "seed_everything": 3,
        "data.val.init_args.root": "benchmark",
    }
    stage(run, NAME)
    folder = ship(run, tmp_path / "out")
    text = (folder / "README.md").read_text()
    assert text == card(read_metrics(folder))
    assert "28.12 (27.90 to 28.30)" in text
    assert "50,100 steps, seed 3, 1 min (2 sittings) on one core" in text
    assert "y/pictures: pictures" in text
    assert "/x/" not in text
    assert "/somewhere" not in text + (folder / "metrics.json").read_text()
    assert "replicates" not in (folder / "metrics.json").read_text()
    with (folder / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 300 <= len(rows) <= 600
    assert {row["step"]: row["train/mse"] for row in rows}["49"] == "0.02"
    assert [row["val/psnr"] for row in rows if row["val/psnr"]] == ["20.5"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"about": {}}, "says nothing of klvae_image_tiny.test's licence"),
        ({"results": [Path("nowhere.json")]}, "nowhere.json is no results.json"),
    ],
)
def test_incomplete_releases_leave_nothing(
    run: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    stage(run, NAME)
    root = tmp_path / "out"
    with pytest.raises(UserError, match=said):
        ship(run, root, **change)
    assert not root.exists() or not list(root.iterdir())


def test_results_of_other_weights_are_refused(run: Path, tmp_path: Path) -> None:
    """Those before rounding to half, too: a card's numbers are of the weights as they ship."""
    stage(run, NAME)
    with pytest.raises(UserError, match="has no row of the weights in"):
        ship(run, tmp_path / "out", results=[results_of(run / "other.json", run / "export")])


def test_paths_of_the_machine_stay_private(run: Path) -> None:
    config = run / "export" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "/home/me/x"}))
    assert "/home/me" not in (stage(run, NAME) / "config.json").read_text()
    assert not any(
        re.search(r'"/(work|tmp|home|root)/', path.read_text())
        for folder in trained().values()
        for path in folder.rglob("*.json")
    )


def test_release_command_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    given = [NAME, "--run", str(run), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="is no name"):
        release_command.main(["../x", *given[1:]])
    with pytest.raises(UserError, match="zoo release without --results makes it"):
        release_command.main([*given, "--results", "r.json"])
    assert release_command.main(given) == 0
    assert (run / NAME / "model.safetensors").is_file()
    scored = [*given, "--config", str(CONFIG), "--results", "r.json"]
    with pytest.raises(UserError, match="--hardware is missing"):
        release_command.main(scored)
    with pytest.raises(UserError, match=r"about.yaml isn't there"):
        release_command.main([*scored, "--hardware", "one core"])


def test_table_takes_its_place_in_the_readme(run: Path, tmp_path: Path) -> None:
    stage(run, NAME)
    metrics = read_metrics(ship(run, tmp_path / "out"))
    text = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", [metrics])
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"[{NAME}](checkpoints/{NAME}/README.md)" in text
    assert with_table(text, [metrics]) == text
    with pytest.raises(UserError, match="no place for the models"):
        with_table("nothing", [metrics])


def test_cards_of_the_repo_say_what_metrics_say() -> None:
    """The drift check: `zoo cards --check` on this checkout."""
    assert cards_command.main(["--check"]) == 0


def test_drift_is_found(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\nanother table\n{END}\n")
    with pytest.raises(RunError, match=r"not what metrics\.json says"):
        cards_command.main(["--check", "--readme", str(readme)])
    assert "another table" in readme.read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_checkpoint_is_whole(name: str) -> None:
    """Weights are those of the card, small enough, and from a config of the repo."""
    folder = trained()[name]
    metrics = check_card(folder)
    assert metrics["name"] == name
    weights = [p.stat().st_size for p in folder.rglob("*.safetensors")]
    assert max(weights) < (17e6 if (folder / "unet").is_dir() else 9e6)
    assert metrics["bytes"] == sum(weights)
    assert (data_folder("configs").parent / metrics["training"]["config"]).is_file()
    assert (folder / "training.csv").is_file()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_snippet_of_the_card_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.endswith(".emoji"):
        or_skip(lambda: fetch_group("minilm"))
    text = (trained()[name] / "README.md").read_text()
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(found) == 1
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    exec(compile(found[0], f"{name}/README.md", "exec"), session)
    if "y" in session:
        assert session["y"].shape == session["x"].shape
    elif "film" in session:
        assert session["film"].shape == (1, 3, 17, 64, 64)
    else:
        assert (tmp_path / "apple.png").is_file()


def test_films_are_released_and_verified(run: Path, tmp_path: Path) -> None:
    """A generator of films: rows of its own benchmark, weights checked, films made again."""
    or_skip(lambda: fetch_group("minilm"))
    folder = run / "video_dit_tiny.test"
    shutil.copytree(trained()["video_dit_tiny.emoji"], folder)
    mark = fingerprint(VideoPipeline.from_pretrained(f"dir:{folder}").net)[1]
    level = {"mean": 5.0, "low": 4.0, "high": 6.0, "n": 8}
    rows = [
        {"label": "real films", "flicker": level},
        {
            "label": f"dir:{folder}",
            "weights_sha256": mark,
            "parameters": 7,
            "FVD-TransNetV2": {"value": 1.25, "n": [9, 8]},
            "KVD-TransNetV2": {"value": 0.5, "std": 0.1},
            "flicker": level,
        },
    ]
    rules = {"frames": 17, "size": 64, "prompts": 4, "repeats": 2, "steps": 9, "guidance": 3.0}
    table = {"kind": "films", "rows": rows, "networks": {"FVD-TransNetV2": "x"}, "device": "a CPU"}
    table |= {"data": {"name": "anim/train", "count": 9}, "protocol": rules, "protocol_hash": "p"}
    (run / "films.json").write_text(json.dumps(table))
    about = {key: ["said"] if key in ("data", "limits") else f"{key}." for key in ABOUT}
    given: dict[str, Any] = {"run": run, "config": CONFIG, "hardware": "a core", "sampling": None}
    given |= {"about": about, "results": [run / "films.json"], "root": tmp_path / "root"}
    subset = film_subset(folder, ["rainbow"], frames=5)
    made = release(folder.name, subset=subset, **given)
    assert "**video_dit_tiny.test**" in (made / "README.md").read_text()
    assert "1.25" in (made / "README.md").read_text()
    assert "flicker" in verify(made)
    metrics = read_metrics(made)
    metrics["subset"]["values"]["flicker"] += 1
    (made / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(RunError, match="doesn't reproduce its card"):
        verify(made)
    rows[1]["weights_sha256"] = "another"
    (run / "films.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="no row of the weights"):
        release(folder.name, subset=subset, **given)


def test_verify_measures_pictures_again(tmp_path: Path) -> None:
    """A text-to-image card agrees with its weights, and another number is found out."""
    or_skip(lambda: fetch_group("minilm"))
    or_skip(lambda: fetch_group("lpips"))
    folder = tmp_path / "tiue_tiny.emoji"
    shutil.copytree(trained()["tiue_tiny.emoji"], folder)
    assert "diversity" in verify(folder)
    metrics = read_metrics(folder)
    metrics["subset"]["values"]["diversity"] += 0.002
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(RunError, match="doesn't reproduce its card"):
        verify(folder)
