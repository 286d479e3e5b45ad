"""From a training run to a folder that ships: weights in half precision, a card, what it took.

The scores of a card are those of the weights as they ship, so a release has two steps: `stage`
writes the weights, the benchmark scores them, and `release` puts both together.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from zoo.benchmark.generation.models import generators
from zoo.benchmark.models import candidate
from zoo.benchmark.results import versions
from zoo.cards import card
from zoo.data.latents import fingerprint
from zoo.errors import UserError
from zoo.remote import sha256, weights_of
from zoo.video_pipeline import VideoPipeline

ABOUT = ("licence", "title", "use", "data", "limits")
"""What people write of a model (checkpoints/about.yaml); the rest of a card is measured."""

LOG = "training.csv"
VARIANTS = "variants"
_DISTANCE = ("network", "kid_name", "kid", "kid_std", "frechet", "samples")
_KEPT = ("label", "steps", "baseline", "parameters", "metrics", "difference")


def stage(run: Path, name: str) -> Path:
    """Write the run's export in half precision to RUN/NAME, where the benchmark finds it.

    Args:
        run: folder of `train.py`.
        name: ARCHITECTURE.WEIGHTS.

    Returns:
        The folder.

    Raises:
        UserError: the run has no export.
    """
    source = run / "export"
    if not source.is_dir():
        raise UserError(f"{run} has no export: give a folder that train.py wrote to its end")
    with tempfile.TemporaryDirectory(dir=run, prefix=f".{name}.") as scratch:
        made = Path(scratch) / name
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            target = made / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                text = json.loads(path.read_text())
                text.pop("_name_or_path", None)  # diffusers keeps where a part was loaded from
                target.write_text(json.dumps(text, indent=2) + "\n")
                continue
            if path.suffix != ".safetensors":
                shutil.copyfile(path, target)
                continue
            tensors = {
                key: value.half() if value.dtype.is_floating_point else value
                for key, value in load_file(path).items()
            }
            save_file(tensors, target, metadata={"format": "pt"})
            target.chmod(0o644)  # safetensors writes for the owner alone
        shutil.rmtree(run / name, ignore_errors=True)
        os.replace(made, run / name)
    return run / name


def release(
    name: str,
    *,
    run: Path,
    config: Path,
    results: Sequence[Path],
    subset: dict[str, Any],
    sampling: dict[str, Any] | None,
    about: dict[str, Any],
    hardware: str,
    root: Path,
) -> Path:
    """Put weights, config, card, metrics and training log into ROOT/NAME, all or nothing.

    Args:
        name: ARCHITECTURE.WEIGHTS, staged in `run`.
        run: folder of `train.py`.
        config: what the run was started with, a file of configs/.
        results: results.json of benchmarks that scored the staged folder.
        subset: of `zoo.verify.subset`.
        sampling: of `zoo.verify.sampling`, for diffusion decoders.
        about: the model's entry of checkpoints/about.yaml, with the keys of `ABOUT`.
        hardware: what it was trained on.
        root: of all checkpoints.

    Raises:
        UserError: something of this is missing, or results of other weights.
    """
    if missing := [key for key in ABOUT if not about.get(key)]:
        raise UserError(f"about.yaml says nothing of {name}'s {', '.join(missing)}: write it first")
    staged = run / name
    metrics = {
        "name": name,
        "licence": about["licence"],
        "about": {key: about[key] for key in ABOUT[1:]},
        "sha256": sha256(weights_of(staged)),
        "bytes": sum(p.stat().st_size for p in staged.rglob("*.safetensors")),
        "training": training(run, config) | {"hardware": hardware, "versions": versions()},
        "metrics": [_table(staged, path) for path in results],
        "subset": subset,
    }
    if sampling is not None:
        metrics["sampling"] = sampling
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}.") as scratch:
        made = Path(scratch) / name
        shutil.copytree(staged, made)
        (made / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        (made / "README.md").write_text(card(metrics))
        _log(run / "tensorboard", made / LOG)
        shutil.rmtree(root / name, ignore_errors=True)
        os.replace(made, root / name)
    return root / name


def record(
    name: str, *, run: Path, config: Path, results: Sequence[Path], hardware: str, root: Path
) -> Path:
    """Keep what a run took and scored in ROOT/variants/NAME, without its weights.

    For the runs that a shipped model is compared with: their config makes the weights again.

    Args:
        results: results.json of benchmarks that scored RUN/export.
        name, run, config, hardware, root: of `release`.

    Raises:
        UserError: as `release`.
    """
    metrics = {
        "name": name,
        "training": training(run, config) | {"hardware": hardware, "versions": versions()},
        "metrics": [_table(run / "export", path) for path in results],
    }
    folder = root / VARIANTS
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
        made = Path(scratch) / name
        made.mkdir()
        (made / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        _log(run / "tensorboard", made / LOG)
        shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(made, folder / name)
    return folder / name


def training(run: Path, config: Path) -> dict[str, Any]:
    """What a run took: config, what differed from it, seed, steps, seconds, sittings.

    Raises:
        UserError: the run kept no log or no config.
    """
    kept = run / "config.yaml"
    if not kept.is_file():
        raise UserError(f"{kept} is missing: a release tells how it was trained")
    used, asked = (yaml.safe_load(path.read_text()) for path in (kept, config))
    used = used.get("fit", used)
    scalars = _scalars(run / "tensorboard")
    if not scalars:
        raise UserError(f"{run / 'tensorboard'} has no scalars: a release tells how it was trained")
    times = list(_sittings(run / "tensorboard"))
    return {
        "config": "/".join(config.parts[config.parts.index("configs") :]),
        "changed": dict(_changes(asked, used)),
        "seed": used["seed_everything"],
        "steps": _steps(run, max(scalars) + 1),
        "seconds": round(sum(times)),
        "sittings": len(times),
    }


def _changes(asked: Any, used: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Options that the run had other than its config says; paths by their last part."""
    if isinstance(asked, dict) and isinstance(used, dict):
        for key, value in asked.items():
            yield from _changes(value, used.get(key), f"{path}.{key}".lstrip("."))
        return
    if isinstance(asked, list) and isinstance(used, list) and len(asked) == len(used):
        for number, (left, right) in enumerate(zip(asked, used, strict=True)):
            yield from _changes(left, right, f"{path}[{number}]")
        return
    if asked != used and str(asked) != str(used):
        yield path, Path(used).name if isinstance(used, str) and "/" in used else used


def _steps(run: Path, logged: int) -> int:
    """Steps of the whole run: not every one is logged."""
    kept = run / "metrics.json"
    return int(json.loads(kept.read_text())["steps"]) if kept.is_file() else logged


def _events(folder: Path) -> Iterator[list[Any]]:
    """The events with values of each sitting, oldest first."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for path in sorted(folder.glob("events.out.tfevents.*")):
        yield [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]


def _sittings(folder: Path) -> Iterator[float]:
    """Seconds from first to last event of each sitting that logged anything."""
    for events in _events(folder):
        times = [event.wall_time for event in events]
        if len(times) > 1:
            yield max(times) - min(times)


def _scalars(folder: Path) -> dict[int, dict[str, float]]:
    """Logged values by step and tag; a later sitting's stand where a step was done again."""
    found: dict[int, dict[str, float]] = {}
    for events in _events(folder):
        for event in events:
            for value in event.summary.value:
                if "/" in value.tag and len(value.tensor.float_val) == 1:
                    found.setdefault(event.step, {})[value.tag] = value.tensor.float_val[0]
    return found


def _table(staged: Path, path: Path) -> dict[str, Any]:
    """A benchmark's rows as the card keeps them, without replicates and values of clips."""
    try:
        results = json.loads(path.read_text())
        kind = results.get("kind", "reconstruction")
        models = film_rows(results) if kind == "films" else results["models"]
        rows = [{k: m[k] for k in _KEPT if k in m} | _distances(m) for m in models]
        marks = {m["fingerprint"]: m["label"] for m in models}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no results.json of zoo benchmark ({error!r})") from error
    if (mine := _fingerprint(staged, kind)) not in marks:
        raise UserError(f"{path} has no row of the weights in {staged}: score that folder")
    return {
        "row": marks[mine],
        "kind": kind,
        "data": {k: _public(v) for k, v in results["data"].items() if isinstance(v, str | int)},
        "protocol": results["protocol"],
        "protocol_hash": results["protocol_hash"],
        "baseline": results.get("baseline"),
        "device": results["device"],
        "rows": rows,
    }


def _fingerprint(staged: Path, kind: str) -> str:
    """What the benchmark knows the folder by, sampled with its own settings."""
    if kind == "generation":
        return generators([f"dir:{staged}"], device="cpu")[0].fingerprint
    if kind == "films":
        return fingerprint(VideoPipeline.from_pretrained(f"dir:{staged}").net)[1]
    return candidate(f"dir:{staged}", device="cpu").fingerprint


def film_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `zoo benchmark films` in the form of the other benchmarks' models."""
    found = []
    for row in results["rows"]:
        frechet = {net: row[net] for net in results["networks"] if net in row}
        kids = [key for key in row if key.startswith(("KID", "KVD"))]
        values = {name: {"mean": x["value"], "n": x["n"][1]} for name, x in frechet.items()}
        for key, name in (("flicker", "film_flicker"), ("diversity", "diversity")):
            values |= {name: row[key]} if key in row else {}
        deviations = [
            {"kid_name": k, "kid": row[k]["value"], "kid_std": row[k]["std"]} for k in kids
        ]
        found.append(
            {
                "label": Path(row["label"].removeprefix("dir:")).name,
                "fingerprint": row.get("weights_sha256"),
                "parameters": row.get("parameters"),
                "metrics": values,
                "distributions": deviations,
            }
        )
    return found


def _public(value: str | int) -> str | int:
    """A path by its last two parts: where it lay on the machine is nobody's business."""
    absolute = isinstance(value, str) and value.startswith("/")
    return "/".join(Path(value).parts[-2:]) if absolute else value  # type: ignore[arg-type]


def _distances(model: dict[str, Any]) -> dict[str, Any]:
    found = [
        {k: d[k] for k in _DISTANCE if k in d}
        for d in model.get("distributions", [])
        if "kid_std" in d  # a generator's stand among the metrics, with intervals
    ]
    return {"distances": found} if found else {}


def _log(folder: Path, target: Path, *, rows: int = 400) -> None:
    """All sittings' log, thinned to about so many rows; every row with a validation stays."""
    kept = _scalars(folder)
    every = max(1, len(kept) // rows)
    tags = sorted({tag for values in kept.values() for tag in values})
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *tags])
        for number, (step, values) in enumerate(sorted(kept.items())):
            if number % every == 0 or any(tag.startswith("val/") for tag in values):
                cells = (f"{values[tag]:.6g}" if tag in values else "" for tag in tags)
                writer.writerow([step, *cells])
