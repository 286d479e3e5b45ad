"""The result file: everything a table, a report or another comparison needs, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import zoo
from zoo.benchmark.models import Candidate
from zoo.benchmark.protocol import SCHEMA_VERSION
from zoo.benchmark.runner import Runner
from zoo.benchmark.statistics import Array, interval, over_seeds, paired
from zoo.benchmark.store import Row, is_row_of, owner
from zoo.errors import UserError
from zoo.metrics.networks import FeatureNet

Results = dict[str, Any]
METRICS = ("psnr", "ssim", "lpips", "flicker")
FEW_PER_DIMENSION = 10  # a covariance of D dimensions wants at least this many samples each
_PACKAGES = ("torch", "torchvision", "torchmetrics", "torch-fidelity", "lpips", "numpy", "av")


def collect(
    runner: Runner,
    rows: list[Candidate],
    *,
    baseline: str,
    missing: dict[str, str],
    header: Row,
) -> Results:
    """The results of the candidates from the rows of the store.

    Args:
        runner: after its run.
        rows: candidates, in the table's order.
        baseline: label that paired differences are taken to.
        missing: networks that can't be had, name to reason.
        header: the store's first row.
    """
    survey = runner.survey
    text = json.dumps(list(survey.hashes.items()))
    models = [_model(runner, row) for row in rows if row.label not in runner.failures]
    results = {
        "schema_version": SCHEMA_VERSION,
        "zoo": zoo.__version__,
        "protocol_hash": header["protocol_hash"],
        "protocol": header["protocol"],
        "protocol_text": survey.data.protocol.describe(),
        "data": {
            "name": survey.data.name,
            "definition": survey.data.definition,
            "description": survey.data.description,
            "clips": list(survey.hashes),
            "films": len(set(survey.films.values())),
            "hash": hashlib.sha256(text.encode()).hexdigest()[:16],
            "excluded": dict(sorted(survey.data.excluded.items())),
        },
        "networks": {net.name: net.version for net in runner.networks},
        "not_measured": {
            # results travel: without the user's name in them
            name: why.replace(str(Path.home()), "~")
            for name, why in sorted((runner.scorer.missing | missing).items())
        },
        "failed": dict(sorted(runner.failures.items())),
        "device": device_name(runner.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "models": models,
    }
    compare_to(results, baseline)
    return results


def compare_to(results: Results, baseline: str) -> None:
    """Add each model's paired differences to the model labelled `baseline`.

    Raises:
        UserError: there is no such model.
    """
    labels = [model["label"] for model in results["models"]]
    if baseline not in labels:
        raise UserError(f"--baseline {baseline} is no row of the table: {', '.join(labels)}")
    other = results["models"][labels.index(baseline)]["values"]
    results["baseline"] = baseline
    for model in results["models"]:
        model["difference"] = {
            name: paired(_array(model["values"][name]), _array(other[name]))
            for name in METRICS
            if name in model["values"] and name in other and model["label"] != baseline
        }


def _model(runner: Runner, row: Candidate) -> Row:
    store, hashes = runner.store, runner.survey.hashes
    facts = [r for r in store.of_kind("model") if is_row_of(r, row)][-1]
    wanted = set(hashes.values())
    # the last row of a clip and seed counts: an earlier one lacked a network
    latest = {
        (r["sha256"], r["seed"]): r
        for r in store.of_kind("clip")
        if is_row_of(r, row) and r["sha256"] in wanted and r["seed"] < runner.seeds
    }
    seeds = sorted({seed for _, seed in latest})
    by_seed = {seed: [latest[digest, seed] for digest in hashes.values()] for seed in seeds}
    names = [name for name in METRICS if name in by_seed[0][0]]
    values = {
        name: [_column(clips, name) for clips in by_seed.values()]
        for name in names
        if not np.isnan(_column(by_seed[0], name)).all()
    }
    averaged = {name: np.mean(parts, axis=0) for name, parts in values.items()}
    dropped = ("kind", "stochastic")
    first = by_seed[0]
    timed = first[1:] or first
    frames = runner.survey.data.protocol.frames
    memory = [r["memory_bytes"] for r in first if r["memory_bytes"] is not None]
    return {
        **{key: value for key, value in facts.items() if key not in dropped},
        "clip_hashes": list(hashes.values()),
        "folder": owner(row),
        "metrics": {name: interval(column) for name, column in averaged.items()},
        "seeds": {name: over_seeds(parts) for name, parts in values.items() if len(parts) > 1},
        "distributions": [_distribution(runner, row, net) for net in runner.networks],
        "values": {name: [_plain(v) for v in column] for name, column in averaged.items()},
        "timing": {
            "encode_fps": frames / median(r["encode_s"] for r in timed),
            "decode_fps": frames / median(r["decode_s"] for r in timed),
            "peak_memory_bytes": max(memory) if memory else None,
        },
    }


def _distribution(runner: Runner, row: Candidate, net: FeatureNet) -> Row:
    """Distances between the sets of originals and of reconstructions."""
    from zoo.metrics.distributions import KID, FrechetDistance, Manifold

    frechet, kid, manifold = FrechetDistance(net.dimensions), KID(paired=True), Manifold()
    key, place = f"{net.name} {net.version}", owner(row)
    count = 0
    for digest in runner.survey.hashes.values():
        for folder, real in (("originals", True), (place, False)):
            features = torch.from_numpy(runner.store.features(folder, digest)[key])
            for metric in (frechet, kid, manifold):
                metric.update(features, real=real)
        count += len(features)
    few = count < FEW_PER_DIMENSION * net.dimensions
    entry: Row = {
        "network": net.name,
        "kid_name": net.kid_name,
        "dimensions": net.dimensions,
        "samples": count,
        "headline": "kid" if few else "frechet",
        "note": (
            f"N = {count:,} samples for {net.dimensions:,} dimensions: biased upwards, the kernel "
            "distance is the headline"
            if few
            else f"N = {count:,}"
        ),
        "frechet": None,
        "kid": None,
        "kid_std": None,
    }
    if count > 1:
        mean, deviation = kid.compute()
        entry |= {"frechet": float(frechet.compute()), "kid": float(mean)}
        entry |= {"kid_std": float(deviation)}
        entry |= {name: float(value) for name, value in manifold.compute().items()}
    return entry


def load_results(path: Path) -> Results:
    """A result file.

    Raises:
        UserError: it isn't one, or of another schema.
    """
    path = path / "results.json" if path.is_dir() else path
    try:
        results: Results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): give a results.json") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): give a results.json") from error
    if not isinstance(results, dict) or results.get("schema_version") != SCHEMA_VERSION:
        found = results.get("schema_version") if isinstance(results, dict) else None
        raise UserError(
            f"{path} has schema version {found}, this zoo reads {SCHEMA_VERSION}: measure it again"
        )
    if results.get("kind", "reconstruction") != "reconstruction":
        raise UserError(
            f"{path} is of `zoo benchmark {results['kind']}`, whose models go into one table by "
            "running it again with the same --out and more --models"
        )
    return results


def merge(parts: list[tuple[str, Results]], *, baseline: str) -> Results:
    """One result of several that were measured on the same clips under the same protocol.

    Args:
        parts: name for messages, and result.
        baseline: label that paired differences are taken to.

    Raises:
        UserError: protocols or clips differ.
    """
    first_name, first = parts[0]
    merged = {key: value for key, value in first.items() if key != "models"}
    models: list[Row] = []
    for name, part in parts:
        if part["protocol_hash"] != first["protocol_hash"]:
            fields = sorted(
                key
                for key in part["protocol"].keys() | first["protocol"].keys()
                if part["protocol"].get(key) != first["protocol"].get(key)
            )
            differ = ", ".join(
                f"{key} {first['protocol'].get(key)} / {part['protocol'].get(key)}"
                for key in fields
            )
            data = f"{first['data']['definition']} / {part['data']['definition']}"
            raise UserError(
                f"{first_name} and {name} are of different protocols ({differ or data}): "
                "results of different protocols can't stand in one table"
            )
        if part["data"]["hash"] != first["data"]["hash"]:
            raise UserError(
                f"{first_name} and {name} were measured on different clips "
                f"({len(first['data']['clips'])} and {len(part['data']['clips'])}): measure both "
                "on the same data, decoded by the same version of av"
            )
        for model in part["models"]:
            same = [m for m in models if _identity(m) == _identity(model)]
            if not same:
                taken = {m["label"] for m in models}
                number, stem = 1, model["label"]
                while model["label"] in taken:
                    number += 1
                    model = {**model, "label": f"{stem}-{number}"}
                models.append(model)
        merged["not_measured"] = part["not_measured"] | merged["not_measured"]
        merged["failed"] = part["failed"] | merged["failed"]
        if part["device"] != first["device"]:
            merged["device"] = "several: times and memory aren't comparable"
    models.sort(key=lambda model: not model["baseline"])
    merged["models"] = models
    compare_to(merged, baseline)
    return merged


def _identity(model: Row) -> tuple[Any, ...]:
    return model["fingerprint"], model["steps"], model["latents"], model["baseline"]


def header_row(data: Any) -> Row:
    """The first row of a store."""
    rules = data.protocol
    return {
        "kind": "protocol",
        "schema_version": SCHEMA_VERSION,
        "protocol_hash": rules.hash(data.definition),
        "definition": data.definition,
        "protocol": dataclasses.asdict(rules),
    }


def _column(clips: list[Row], name: str) -> Array:
    return np.array([np.nan if row.get(name) is None else row[name] for row in clips], dtype=float)


def _array(values: list[float | None]) -> Array:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 7)


def device_name(device: str) -> str:
    """What torch or the system calls a device."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return model
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), model)


def versions() -> dict[str, str]:
    """Versions that numbers depend on, by package."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
