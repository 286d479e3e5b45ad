"""The numbers of a card on its subset: measured when a model ships, and again by `zoo verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from zoo.benchmark.data import open_data
from zoo.benchmark.models import Coder, generator_for
from zoo.benchmark.protocol import protocol
from zoo.errors import RunError, UserError
from zoo.hub import load
from zoo.metrics.evaluation import Scorer
from zoo.metrics.reconstruction import noisy_input_gain
from zoo.nets.cdt import CDT
from zoo.remote import check_card
from zoo.video_pipeline import VideoPipeline

CLIPS = 8
DIGITS = {"psnr": 2, "ssim": 3}
"""Metrics that a subset records, and to how many decimals: those that need no network's file."""

GAMMAS, STEPS = (0.0, 0.8, 1.0), (1, 2, 4)
_FIELDS = {"data", "clips", "protocol", "values"}
_PICTURE_FIELDS = {"prompts", "seeds", "values"}
_FILM_FIELDS = {"prompts", "frames", "values"}


class Pipeline(Protocol):
    """What makes pictures of prompts."""

    def __call__(self, prompt: Any, *, seed: Any, output_type: str) -> Any:
        """Pictures as `.images`."""


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
        y = _decoded(coder, coder.encode(x), x, key=clip.key, steps=1)
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


@torch.no_grad()
def picture_subset(pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int]) -> Any:
    """What metrics.json of a text-to-image model keeps as `subset`.

    Args:
        pipeline: opened from the folder that ships, in float32 on the CPU.
        prompts: what it shows.
        seeds: of the pictures of each prompt, two or more.

    Returns:
        `prompts`, `seeds` and `values`: `diversity`, LPIPS-Alex over the pairs of a prompt's
        pictures, mean over prompts.

    Raises:
        UserError: LPIPS' network can't be had.
    """
    from zoo.objectives.perceptual import Perceptual

    lpips = Perceptual("alexnet")
    lpips.load()
    distances = []
    for prompt in prompts:
        made = pipeline([prompt] * len(seeds), seed=list(seeds), output_type="pt").images
        pictures = made.float()
        first, second = torch.triu_indices(len(seeds), len(seeds), 1)
        distances.append(lpips(pictures[first], pictures[second]).mean())
    return {
        "prompts": list(prompts),
        "seeds": list(seeds),
        "values": {"diversity": round(float(torch.stack(distances).mean()), 3)},
    }


@torch.no_grad()
def film_subset(folder: str | Path, prompts: Sequence[str], frames: int) -> dict[str, Any]:
    """What metrics.json of a generator of films keeps as `subset`.

    Args:
        folder: with its weights as they ship.
        prompts: what the films show; seeds are 0, 1, ...
        frames: of each film.

    Returns:
        `prompts`, `frames` and `values`: `flicker`, the mean absolute second difference in time,
        and `brightness`, both in grey levels of 255, rounded.
    """
    pipeline = VideoPipeline.from_pretrained(f"dir:{folder}")
    seeds = list(range(len(prompts)))
    films = torch.cat(list(pipeline.films(prompts, frames=frames, seeds=seeds)), dim=2)
    levels = films.clamp(-1, 1) * 127.5 + 127.5
    values = {"flicker": levels.diff(n=2, dim=2).abs().mean(), "brightness": levels.mean()}
    return {
        "prompts": list(prompts),
        "frames": frames,
        "values": {name: round(float(value), 1) for name, value in values.items()},
    }


@torch.no_grad()
def sampling(net: CDT, *, data: str = "package-clips", every: int = 8) -> dict[str, Any]:
    """How a diffusion decoder depends on its noise: what metrics.json keeps as `sampling`.

    Args:
        net: with its weights as they ship.
        data: as `zoo benchmark reconstruction --data` takes it.
        every: so many clips further for the next that is measured.

    Returns:
        `data`, `clips`, `every`, `xt_gain_db` (see `noisy_input_gain`) and `rows`: means of psnr
        and lpips by gamma and steps.
    """
    chosen = open_data(data, partial(protocol, "zoo"), limit=None)
    clips = list(islice(chosen.clips(), 0, None, every))
    scorer = Scorer()
    gains, rows = [], []
    latents = []
    for clip in clips:
        x = clip.pixels[None].float() / 127.5 - 1
        gains.append(noisy_input_gain(net, x, generator=generator_for(clip.key, 0)))
        latents.append((clip.key, x, net.encode(x).mean))
    for gamma in GAMMAS:
        coder = Coder("", net.with_sampling(gamma=gamma))
        for steps in STEPS:
            found = [
                scorer(_decoded(coder, z, x, key=key, steps=steps), x) for key, x, z in latents
            ]
            means = {
                name: float(torch.cat([f[name] for f in found]).mean())
                for name in scorer.metrics
                if name in ("psnr", "lpips")
            }
            rows.append({"gamma": gamma, "steps": steps, **means})
    return {
        "data": data,
        "clips": len(clips),
        "every": every,
        "xt_gain_db": float(torch.cat(gains).mean()),
        "rows": rows,
    }


def _decoded(coder: Coder, z: Tensor, x: Tensor, *, key: str, steps: int) -> Tensor:
    """Pixels as a film would hold them: rounded to whole grey levels."""
    size = (x.shape[2], x.shape[3], x.shape[4])
    y = coder.decode(z, size=size, steps=steps, generator=generator_for(key, 0))
    return (y.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


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
    again: Callable[[], dict[str, Any]]
    if isinstance(kept, dict) and kept.keys() >= _FIELDS:
        again = partial(subset, folder, data=kept["data"], clips=kept["clips"])
        what = f"{kept['clips']} clips of {kept['data']}"
    elif isinstance(kept, dict) and kept.keys() >= _PICTURE_FIELDS:
        from zoo.open_pipeline import open_pipeline

        pipeline = open_pipeline(f"dir:{folder}", dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
        again = partial(picture_subset, pipeline, kept["prompts"], kept["seeds"])
        what = f"{len(kept['prompts'])} prompts, {len(kept['seeds'])} pictures each"
    elif isinstance(kept, dict) and kept.keys() >= _FILM_FIELDS:
        again = partial(film_subset, folder, kept["prompts"], kept["frames"])
        what = f"{len(kept['prompts'])} films of {kept['frames']} frames"
    else:
        raise UserError(f"{path} has no 'subset' to measure again: ship the model anew")
    found = again()
    if found != kept:
        raise RunError(
            f"{folder.name} doesn't reproduce its card: {json.dumps(found)} now, "
            f"{json.dumps(kept)} in {path}"
        )
    values = ", ".join(f"{key} {value}" for key, value in found["values"].items())
    return f"{folder.name}: sha256 and {values} on {what}"
