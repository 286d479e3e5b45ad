"""The numbers of a card on its subset: measured when a model ships, and again by `zoo verify`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zoo.benchmark.data import open_data
from zoo.benchmark.models import Coder, generator_for
from zoo.benchmark.protocol import protocol
from zoo.errors import RunError, UserError
from zoo.hub import load
from zoo.metrics.evaluation import Scorer
from zoo.remote import check_card

CLIPS = 8
DIGITS = {"psnr": 2, "ssim": 3}
"""Metrics that a subset records, and to how many decimals: those that need no network's file."""


@torch.no_grad()
def subset(
    folder: str | Path, *, data: str = "package-clips", clips: int = CLIPS
) -> dict[str, Any]:
    """What metrics.json keeps as `subset`: the first clips' scores in one decoding step, seed 0.

    Args:
        folder: of a tokenizer, with its weights as they ship.
        data: as `zoo benchmark reconstruction --data` takes it.
        clips: how many of its first clips.

    Returns:
        `data`, `clips`, `protocol` (hash) and `values`: means over clips by metric, rounded.

    Raises:
        UserError: no such data, fewer clips than that, or a model that is no tokenizer.
    """
    coder = Coder(str(folder), load(f"dir:{folder}", dtype=torch.float32))
    chosen = open_data(data, partial(protocol, "zoo"), limit=clips)
    scorer = Scorer()
    sums: dict[str, float] = dict.fromkeys(DIGITS, 0.0)
    count = 0
    for clip in chosen.clips():
        x = clip.pixels[None].float() / 127.5 - 1
        size = (x.shape[2], x.shape[3], x.shape[4])
        y = coder.decode(coder.encode(x), size=size, steps=1, generator=generator_for(clip.key, 0))
        y = (y.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
        for name in sums:
            sums[name] += float(scorer.metrics[name].values(y, x))
        count += 1
    if count < clips:
        raise UserError(f"{data} has {count} clips, {clips} asked for: give other data")
    return {
        "data": data,
        "clips": clips,
        "protocol": chosen.protocol.hash(chosen.definition),
        "values": {name: round(total / count, DIGITS[name]) for name, total in sums.items()},
    }


def verify(folder: Path) -> str:
    """Check a folder's weights and measure its subset again.

    Returns:
        What agreed, for people.

    Raises:
        UserError: no card, other weights than its metrics are of, or no subset to compare with.
        RunError: numbers differ at the printed precision; both are named.
    """
    kept = check_card(folder).get("subset")
    path = folder / "metrics.json"
    if not isinstance(kept, dict) or not {"data", "clips", "protocol", "values"} <= kept.keys():
        raise UserError(f"{path} has no 'subset' to measure again: ship the model anew")
    found = subset(folder, data=kept["data"], clips=kept["clips"])
    if found != kept:
        raise RunError(
            f"{folder.name} doesn't reproduce its card: {json.dumps(found)} now, "
            f"{json.dumps(kept)} in {path}"
        )
    values = ", ".join(f"{key} {value}" for key, value in found["values"].items())
    return f"{folder.name}: sha256 and {values} on {kept['clips']} clips of {kept['data']}"
