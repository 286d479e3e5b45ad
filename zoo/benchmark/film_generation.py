"""Scores of generated films: every model makes films of the same prompts from the same seeds.

Beside each generator stands its tokenizer's own reconstruction of the real films, the ceiling of
what can be generated in its latents, and the real films themselves.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import zoo
from zoo.benchmark.results import device_name
from zoo.benchmark.statistics import interval
from zoo.data.captioned_video import CaptionedFilms, film_of
from zoo.data.latents import fingerprint
from zoo.data.sheet import save_png
from zoo.data.writer import open_writer
from zoo.errors import UserError
from zoo.lit.latent_video import key_frames
from zoo.metrics.distributions import KID, FrechetDistance
from zoo.metrics.networks import FeatureNet
from zoo.metrics.reconstruction import to_8bit
from zoo.objectives.perceptual import Perceptual
from zoo.video_pipeline import VideoPipeline

SCHEMA_VERSION = 1
_SHOWN = 16  # films on a model's sheet
_SHEET_RATE = Fraction(25, 2)

Row = dict[str, Any]
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What makes rows comparable.

    Attributes:
        frames: of every film, generated or real.
        size: pixels of both sides.
        prompts: at most so many, spread over the real films' captions.
        repeats: films of each prompt; diversity needs 2.
        steps, guidance, shift: of the sampler.
        seed: of the first film; each further one counts up.
    """

    frames: int = 17
    size: int = 64
    prompts: int = 64
    repeats: int = 2
    steps: int = 30
    guidance: float = 3.0
    shift: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("frames", "size", "prompts", "repeats", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: give at least 1")


class RealFilms:
    """The beginnings of the captioned films of a folder.

    Args:
        folder: films with a captions.jsonl.
        rules: frames and size.
        captions: see `captions_of`.

    Attributes:
        name: the last two parts of the folder's path.
        clips: uint8-rounded [N,3,T,H,W] in [-1,1].
        captions: N.
        sha256: of the pixels and captions.
    """

    def __init__(self, folder: str, rules: Rules, *, captions: str | None = None) -> None:
        source = CaptionedFilms(
            folder, frames=rules.frames, size=rules.size, train=False, captions=captions
        )
        source.prepare()
        self.name = "/".join(Path(folder).resolve().parts[-2:])
        begun = [s for s in map(source.__getitem__, range(len(source))) if film_of(s.key)[1]]
        self.clips = torch.stack([to_8bit(sample.pixels) for sample in begun])
        self.captions = [sample.prompt for sample in begun]
        digest = hashlib.sha256(json.dumps(self.captions).encode())
        digest.update(self.clips.numpy().tobytes())
        self.sha256 = digest.hexdigest()

    def prompts(self, count: int) -> list[str]:
        """At most `count` different captions, spread evenly."""
        known = list(dict.fromkeys(self.captions))
        count = min(count, len(known))
        return [known[i * len(known) // count] for i in range(count)]


class Benchmark:
    """Makes rows, and keeps them in a folder.

    Args:
        out: folder; rows of the same rules, films and weights are not made again.
        rules: protocol.
        real: what is compared with.
        networks: whose features are compared.
        lpips: for diversity; None where its backbone can't be had.
        device: where models run.
        advance: told label, films done and to do.
    """

    def __init__(
        self,
        out: Path,
        rules: Rules,
        real: RealFilms,
        networks: Sequence[FeatureNet],
        *,
        lpips: Perceptual | None,
        device: str = "cpu",
        advance: Advance = lambda label, done, total: None,
    ) -> None:
        self.out, self.rules, self.real = out, rules, real
        self.networks, self.lpips = networks, lpips
        self.device, self.advance = device, advance
        facts = [SCHEMA_VERSION, asdict(rules), real.sha256, [n.version for n in networks]]
        self.protocol = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self._features: dict[str, Tensor] = {}

    def row(self, name: str) -> list[Row]:
        """Rows of a generator and of its tokenizer's reconstruction.

        Raises:
            UserError: no generator of films, or one that can't make these frames or this size.
        """
        pipeline = VideoPipeline.from_pretrained(name, device=self.device)
        pipeline.count(self.rules.frames)
        pipeline.grid((self.rules.size, self.rules.size))
        tokenizer = pipeline.net.config.tokenizer
        ceiling = self._kept(
            f"{tokenizer} (reconstruction)",
            fingerprint(pipeline.tokenizer)[1],
            lambda label: self._score(label, self._reconstructed(pipeline, label), paired=True),
        )
        made = self._kept(
            name,
            fingerprint(pipeline.net)[1],
            lambda label: self._score(label, self._generated(pipeline, label)),
        )
        parameters = sum(p.numel() for p in pipeline.net.parameters())
        return [ceiling, made | {"tokenizer": tokenizer, "parameters": parameters}]

    def real_row(self) -> Row:
        """What the real films have: flicker."""
        return {"label": "real films", **_flicker_of(self.real.clips)}

    def _kept(self, label: str, weights: str, make: Callable[[str], Row]) -> Row:
        key = hashlib.sha256(f"{self.protocol} {label} {weights}".encode()).hexdigest()[:16]
        path = self.out / "rows" / f"{key}.json"
        if path.is_file():
            row: Row = json.loads(path.read_text())
            return row
        row = {"label": label, "weights_sha256": weights, "protocol": self.protocol, **make(label)}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(row, indent=2) + "\n")
        part.replace(path)
        return row

    def _generated(self, pipeline: VideoPipeline, label: str) -> Iterator[list[Tensor]]:
        """For each prompt its `repeats` films [3,T,H,W]."""
        rules = self.rules
        prompts = self.real.prompts(rules.prompts)
        for number, prompt in enumerate(prompts):
            first = rules.seed + number * rules.repeats
            pieces = pipeline.films(
                [prompt] * rules.repeats,
                frames=rules.frames,
                seeds=list(range(first, first + rules.repeats)),
                size=(rules.size, rules.size),
                steps=rules.steps,
                guidance=rules.guidance,
                shift=rules.shift,
            )
            yield list(torch.cat(list(pieces), dim=2).clamp(-1, 1).cpu())
            self.advance(label, number + 1, len(prompts))

    @torch.no_grad()
    def _reconstructed(self, pipeline: VideoPipeline, label: str) -> Iterator[list[Tensor]]:
        for number, clip in enumerate(self.real.clips):
            generator = torch.Generator().manual_seed(self.rules.seed)
            x = clip[None].to(self.device)
            yield [pipeline.tokenizer.reconstruct(x, generator=generator)[0].clamp(-1, 1).cpu()]
            self.advance(label, number + 1, len(self.real.clips))

    def _score(self, label: str, films: Iterator[list[Tensor]], *, paired: bool = False) -> Row:
        groups = [torch.stack([to_8bit(film) for film in group]) for group in films]
        made = torch.cat(groups)
        self._show(label, made[:: 1 if paired else self.rules.repeats][:_SHOWN])
        row: Row = {"films": len(made), **_flicker_of(made)}
        for net in self.networks:
            features, real = self._run(net, made), self._real_features(net)
            frechet = FrechetDistance(net.dimensions)
            kernel = KID(paired=paired)
            for metric in (frechet, kernel):
                metric.update(real, real=True)
                metric.update(features, real=False)
            mean, deviation = kernel.compute()
            row[net.name] = {"value": float(frechet.compute()), "n": [len(real), len(features)]}
            row[net.kid_name] = {"value": float(mean), "std": float(deviation)}
        if self.lpips is not None and not paired and self.rules.repeats > 1:
            apart = np.array([self._apart(group) for group in groups])
            row["diversity"] = interval(apart)
        return row

    @torch.no_grad()
    def _apart(self, group: Tensor) -> float:
        """LPIPS-Alex between the middle frames of a prompt's films, mean over pairs."""
        assert self.lpips is not None
        middle = group[:, :, group.shape[2] // 2]
        pairs = list(itertools.combinations(range(len(group)), 2))
        a, b = (middle[list(side)] for side in zip(*pairs, strict=True))
        return float(self.lpips(a, b).mean())

    def _real_features(self, net: FeatureNet) -> Tensor:
        if net.name not in self._features:
            self._features[net.name] = self._run(net, self.real.clips)
        return self._features[net.name]

    @staticmethod
    def _run(net: FeatureNet, clips: Tensor) -> Tensor:
        return torch.cat([net(part) for part in torch.split(clips, 8)])

    def _show(self, label: str, films: Tensor) -> None:
        folder = self.out / "films"
        folder.mkdir(parents=True, exist_ok=True)
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in label).strip("-")
        save_png(key_frames(films), folder / f"{name}.png")
        columns = torch.cat(list(films), dim=-1).add(1).mul(127.5).round().to(torch.uint8)
        _, _, height, width = columns.shape
        path = folder / f"{name}.mp4"
        with open_writer(path, width=width, height=height, rate=_SHEET_RATE) as out:
            for frame in columns.movedim(0, -1).numpy():
                out.write(frame)


def _flicker_of(films: Tensor) -> Row:
    """Mean absolute second difference in time, in grey levels of 255; motion that is even has
    little, frames that jump to and fro have much."""
    if films.shape[2] < 3:
        return {}
    jumps = 127.5 * films.diff(n=2, dim=2).abs().mean(dim=(1, 2, 3, 4))
    return {"flicker": interval(jumps.double().numpy())}


def results(benchmark: Benchmark, rows: list[Row], missing: dict[str, str]) -> dict[str, Any]:
    """All there is to know of a comparison, for results.json."""
    prompts = benchmark.real.prompts(benchmark.rules.prompts)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "films",
        "zoo": zoo.__version__,
        "torch": torch.__version__,
        "device": device_name(benchmark.device),
        "protocol_hash": benchmark.protocol,
        "protocol": asdict(benchmark.rules),
        "data": {
            "name": benchmark.real.name,
            "sha256": benchmark.real.sha256,
            "count": len(benchmark.real.clips),
        },
        "networks": {net.name: net.version for net in benchmark.networks},
        "not_measured": missing,
        "prompts": prompts,
        "rows": rows,
    }


def markdown(found: dict[str, Any]) -> str:
    """The table for people; flicker is compared with the real films', not to 0."""
    networks = list(found["networks"])
    kids = [key for key in _kids(found["rows"]) if key]
    titles = ["", *networks, *(f"{kid} x1000" for kid in kids), "flicker", "diversity"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in found["rows"]:
        cells = [row["label"]]
        cells += [f"{row[n]['value']:.1f}" if n in row else "" for n in networks]
        cells += [
            f"{1000 * row[k]['value']:.1f} ± {1000 * row[k]['std']:.1f}" if k in row else ""
            for k in kids
        ]
        for name, digits in (("flicker", 2), ("diversity", 3)):
            cells.append(_said(row.get(name), digits))
        lines.append("| " + " | ".join(cells) + " |")
    for name, reason in found["not_measured"].items():
        lines.append(f"\n{name}: not measured ({reason})")
    return "\n".join(lines) + "\n"


def _kids(rows: list[Row]) -> list[str]:
    return sorted({key for row in rows for key in row if key.startswith(("KID", "KVD"))})


def _said(value: dict[str, Any] | None, digits: int) -> str:
    if value is None or value["mean"] is None:
        return ""
    if value["low"] is None:
        return f"{value['mean']:.{digits}f}"
    low, high = value["low"], value["high"]
    return f"{value['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
