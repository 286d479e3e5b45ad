"""The result of a comparison: numbers, intervals and replicates, enough for any paired claim."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import zoo
from zoo.benchmark.generation.models import Generator
from zoo.benchmark.generation.runner import SCHEMA_VERSION, Runner, clip_key, feature_key
from zoo.benchmark.results import FEW_PER_DIMENSION, device_name, versions
from zoo.benchmark.statistics import RESAMPLES, Array
from zoo.benchmark.store import Row, is_row_of, owner
from zoo.metrics.networks import FeatureNet

Results = dict[str, Any]
KIND = "generation"
FEWEST = 10  # samples that an interval needs


def collect(
    runner: Runner,
    rows: list[Generator],
    *,
    baseline: str,
    missing: dict[str, str],
    names: dict[str, str],
) -> Results:
    """The results of the models from the rows of the store.

    Args:
        runner: after its run.
        rows: models, in the table's order.
        baseline: label that the table's differences are taken to.
        missing: what can't be measured, name to reason.
        names: of prompts and reference, for people.
    """
    reference = {} if runner.reference is None else runner.reference.hashes
    text = json.dumps([[p.key for p in runner.prompts], list(reference.values())])
    header = runner.store.rows[0]
    models = [_model(runner, row) for row in rows if row.label not in runner.failures]
    results = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "zoo": zoo.__version__,
        "protocol_hash": header["protocol_hash"],
        "protocol": header["protocol"],
        "data": {
            **names,
            "count": len(runner.prompts),
            "diverse": len(runner.diverse),
            "reference_count": len(reference),
            "hash": hashlib.sha256(text.encode()).hexdigest()[:16],
            "excluded": {}
            if runner.reference is None
            else dict(sorted(runner.reference.data.excluded.items())),
        },
        "prompts": [[p.key, p.text] for p in runner.prompts],
        "networks": {net.name: net.version for net in runner.networks},
        "not_measured": {k: v.replace(str(Path.home()), "~") for k, v in sorted(missing.items())},
        "failed": dict(sorted(runner.failures.items())),
        "device": device_name(runner.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "models": models,
        "baseline": baseline,
    }
    known = {model["label"]: model for model in models}
    for model in models:
        model["difference"] = {}
        if baseline in known and model["label"] != baseline:
            for name in model["metrics"].keys() & known[baseline]["metrics"].keys():
                model["difference"][name] = difference(model, known[baseline], name)
    return results


def difference(model: Row, other: Row, metric: str) -> Row | None:
    """A metric of a model minus that of another, with the paired 95 % bootstrap interval.

    Resampling draws the same prompts (and the same originals) for both. None where one of them
    lacks it.
    """
    parts = [m["replicates"].get(metric) for m in (model, other)]
    if None in parts or len(parts[0]) != len(parts[1]):
        return None
    apart = np.asarray(parts[0]) - np.asarray(parts[1])
    low, high = (float(v) for v in np.percentile(apart, (2.5, 97.5)))
    mean = model["metrics"][metric]["mean"] - other["metrics"][metric]["mean"]
    return {"mean": mean, "low": low, "high": high}


def _model(runner: Runner, row: Generator) -> Row:
    store = runner.store
    facts = [r for r in store.of_kind("model") if is_row_of(r, row)][-1]
    wanted = {p.key for p in runner.prompts}
    pictures = [r for r in store.of_kind("picture") if is_row_of(r, row) and r["key"] in wanted]
    metrics: dict[str, Row] = {}
    replicates: dict[str, Array] = {}

    def add(name: str, value: float, draws: Array, count: int) -> None:
        low = high = None
        if count >= FEWEST:
            low, high = (float(v) for v in np.percentile(draws, (2.5, 97.5)))
            replicates[name] = draws
        metrics[name] = {"mean": value, "low": low, "high": high, "n": count}

    distributions = []
    for net in runner.networks:
        if runner.reference is not None:
            distributions.append(_distribution(runner, row, net, add))
    features = [store.features(owner(row), p.key) for p in runner.prompts]
    if runner.clip is not None:
        scores = np.array([float(f[clip_key(runner.clip)][0]) for f in features])
        add("clip", float(scores.mean()), _mean_replicates(scores), len(scores))
    by_key = {r["key"]: r["lpips"] for r in store.of_kind("diversity") if is_row_of(r, row)}
    values = np.array([by_key[p.key] for p in runner.diverse if p.key in by_key])
    if len(values):
        add("diversity", float(values.mean()), _mean_replicates(values), len(values))
    return {
        **{key: value for key, value in facts.items() if key != "kind"},
        "folder": owner(row),
        "baseline": False,
        "seconds": median(r["seconds"] for r in pictures),
        "batch": max(r["batch"] for r in pictures),
        "truncated": len({r["key"] for r in pictures if r["truncated"]}),
        "metrics": metrics,
        "distributions": distributions,
        # six digits: replicates make up most of the file
        "replicates": {k: [float(f"{v:.6g}") for v in d] for k, d in replicates.items()},
    }


def _distribution(runner: Runner, row: Generator, net: FeatureNet, add: Any) -> Row:
    """Distances between the sets of originals and of pictures, one picture a prompt."""
    from zoo.metrics.distributions import (
        KID,
        FrechetDistance,
        Manifold,
        kid_replicates,
        manifold_members,
    )

    assert runner.reference is not None
    key, store = feature_key(net), runner.store
    sets = [
        torch.from_numpy(np.concatenate([store.features(place, name)[key] for name in names]))
        for place, names in (
            ("reference", list(runner.reference.hashes.values())),
            (owner(row), [p.key for p in runner.prompts]),
        )
    ]
    real, fake = (part.double() for part in sets)
    count = min(len(real), len(fake))
    entry: Row = {"network": net.name, "kid_name": net.kid_name, "dimensions": net.dimensions}
    entry |= {"samples": len(fake), "reference": len(real)}
    few = count < FEW_PER_DIMENSION * net.dimensions
    entry["headline"] = "kid" if few else "frechet"
    entry["note"] = f"{len(fake):,} pictures against {len(real):,} originals" + (
        f", few for {net.dimensions:,} dimensions: the Frechet distance is biased upwards, the "
        "kernel distance is the headline"
        if few
        else ""
    )
    if count < 2:
        return entry
    frechet, kid, wide = FrechetDistance(net.dimensions), KID(), Manifold()
    for metric in (frechet, kid, wide):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    value, draws = kid_replicates(real.numpy(), fake.numpy(), resamples=RESAMPLES)
    add(f"kid_{net.name}", value, draws, len(fake))
    mean, deviation = kid.compute()
    entry |= {"frechet": float(frechet.compute()), "kid": value}
    entry |= {"kid_subsets": float(mean), "kid_subsets_std": float(deviation)}
    members = manifold_members(real, fake, neighbours=runner.rules.manifold)
    if members is not None:
        for name, part in zip(("precision", "recall"), members, strict=True):
            inside = part.double().numpy()
            add(f"{name}_{net.name}", float(inside.mean()), _mean_replicates(inside), len(inside))
    extra = wide.compute()
    entry |= {k: float(extra[k]) for k in ("density", "coverage") if k in extra}
    return entry


def _mean_replicates(values: Array) -> Array:
    """Bootstrap means [RESAMPLES]; the draws depend on the number of values alone."""
    rng = np.random.default_rng((0, len(values)))
    weights = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    result: Array = weights @ values / len(values)
    return result
