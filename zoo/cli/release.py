"""`zoo release`: from a training run to a folder of checkpoints/."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from zoo.cli import Parser, say
from zoo.errors import UserError
from zoo.hub import load, unet_folder
from zoo.paths import data_folder

EXAMPLES = """examples:
  zoo release cdt_tiny.clips --run runs/cdt        # writes runs/cdt/cdt_tiny.clips: score it
  zoo benchmark reconstruction --data package-clips --out runs/table \\
      --models dir:runs/cdt/cdt_tiny.clips
  zoo release cdt_tiny.clips --run runs/cdt --results runs/table/results.json --hardware "1 core"
  zoo release one_step_tiny.emoji --run runs/one_step --results runs/table/results.json \\
      --config configs/tiue/one_step_tiny.yaml --hardware "1 core" --record

--record keeps metrics and log of a run that is compared with (checkpoints/variants), no weights;
there the results are of RUN/export. A tokenizer's subset and a diffusion decoder's table of gamma
and steps are measured on package-clips. What people have to say of the model stands in
checkpoints/about.yaml.
"""
_NAME = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+")
_FILMS = ("rainbow", "woman running", "cyclone", "closed umbrella")
_PROMPTS = ("red apple, 3d", "brazil flag, flat", "grinning face, 3d", "cat face, flat")


def main(arguments: Sequence[str]) -> int:
    """Stage a run's weights, or ship them with their card; see EXAMPLES."""
    parser = Parser(
        prog="zoo release", description="Ship a run's weights with their card.", epilog=EXAMPLES
    )
    parser.add_argument("name", help="ARCHITECTURE.WEIGHTS")
    parser.add_argument("--run", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="of zoo benchmark")
    parser.add_argument("--config", type=Path, help="default: configs/released/NAME.yaml")
    parser.add_argument("--hardware", default="", help="what it was trained on")
    parser.add_argument("--record", action="store_true", help="metrics and log, no weights")
    parser.add_argument("--out", type=Path, default=data_folder("checkpoints"))
    options = parser.parse_args(arguments)
    if not _NAME.fullmatch(options.name):
        raise UserError(f"'{options.name}' is no name: give ARCHITECTURE.WEIGHTS, cdt_tiny.clips")
    from zoo.release import record, release, stage

    staged = options.run / options.name
    if not options.results and not options.record:
        say(str(stage(options.run, options.name)))
        return 0
    if not staged.is_dir() and not options.record:
        raise UserError(f"{staged} isn't there: zoo release without --results makes it")
    told: dict[str, Any] = {
        "config": _needed(options),
        "run": options.run,
        "results": options.results,
        "hardware": options.hardware,
        "root": options.out,
    }
    if options.record:
        say(str(record(options.name, **told)))
        return 0
    about = options.out / "about.yaml"
    if not about.is_file():
        raise UserError(f"{about} isn't there: a release needs what the model is for")
    subset, sampling = _measure(staged)
    said = (yaml.safe_load(about.read_text()) or {}).get(options.name) or {}
    say(str(release(options.name, **told, subset=subset, sampling=sampling, about=said)))
    return 0


def _needed(options: Any) -> Path:
    """The run's config, when all that a card tells of a run is given."""
    config: Path = options.config or data_folder("configs") / "released" / f"{options.name}.yaml"
    if not config.is_file():
        raise UserError(f"{config} isn't there: a release needs its config, --config FILE")
    if not options.results:
        raise UserError("--results is missing: give the results.json of a benchmark of the run")
    if not options.hardware:
        raise UserError("--hardware is missing: say what the run was trained on")
    return config


def _measure(staged: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    from zoo import verify
    from zoo.nets.cdt import CDT
    from zoo.nets.video_dit import VideoDiT

    if unet_folder(staged) is not None:
        from zoo.open_pipeline import open_pipeline

        pipeline = open_pipeline(f"dir:{staged}", dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
        return verify.picture_subset(pipeline, _PROMPTS, (0, 1)), None
    net = load(f"dir:{staged}", dtype=torch.float32)
    if isinstance(net, VideoDiT):
        return verify.film_subset(staged, _FILMS, frames=17), None
    sampling = verify.sampling(net) if isinstance(net, CDT) else None
    return verify.subset(staged), sampling
