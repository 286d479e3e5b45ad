"""Measures what isn't measured yet, clip by clip, model by model."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.benchmark.clips import Clip, ClipSet
from zoo.benchmark.models import Candidate, Coder, generator_for
from zoo.benchmark.pictures import keep_pictures
from zoo.benchmark.store import SHARED_BY, Row, Store, is_row_of, owner
from zoo.data.transforms import to_float
from zoo.errors import RunError, UserError
from zoo.metrics.evaluation import Scorer
from zoo.metrics.networks import FeatureNet
from zoo.metrics.reconstruction import to_8bit

_HELD_BYTES = 1_000_000_000  # clips stay in memory up to this, else they are read anew

Advance = Callable[[str, int, int], None]


@dataclass
class Survey:
    """All clips by key, read once: what is to be measured.

    Attributes:
        hashes: sha256 by key, in order.
        films: film by key.
    """

    data: ClipSet
    hashes: dict[str, str] = field(default_factory=dict)
    films: dict[str, str] = field(default_factory=dict)
    _held: list[Clip] | None = field(default_factory=list)

    def read(self, advance: Advance) -> None:
        """Read every clip.

        Raises:
            UserError: none is left.
        """
        size = 0
        for clip in self.data.clips():
            self.hashes[clip.key], self.films[clip.key] = clip.sha256, clip.film
            size += clip.pixels.numel()
            if self._held is not None:
                self._held.append(clip)
                if size > _HELD_BYTES:
                    self._held = None
            advance("reading clips", len(self.hashes), 0)
        if not self.hashes:
            some = "; ".join(f"{k}: {v}" for k, v in list(self.data.excluded.items())[:3])
            why = f" ({len(self.data.excluded)} excluded: {some})" if some else ""
            raise UserError(f"{self.data.name} has no clip to score{why}: give other --data")

    def __iter__(self) -> Iterator[Clip]:
        return iter(self._held) if self._held is not None else self.data.clips()


@dataclass
class Runner:
    """Fills a store.

    Args:
        store: where rows go.
        survey: the clips.
        scorer: measures clips.
        networks: for distances between sets.
        device: where models run.
        seeds: how many noise seeds a stochastic decoder is measured with.
        advance: told the label, clips done and clips to do.

    Attributes:
        failures: why a model has no result, by label.
    """

    store: Store
    survey: Survey
    scorer: Scorer
    networks: list[FeatureNet]
    device: str
    seeds: int
    advance: Advance
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, rows: list[Candidate]) -> None:
        """Measure every candidate; one that fails is noted and the others go on."""
        self._originals()
        # first the one whose best and worst clips are then kept of all others
        for row in sorted(rows, key=lambda row: row.label != SHARED_BY):
            try:
                self._measure(row)
            except RunError:
                raise
            except UserError as error:
                self.failures[row.label] = str(error)

    def _originals(self) -> None:
        names = {_feature_key(net) for net in self.networks}
        for done, clip in enumerate(self.survey, 1):
            if not names <= self.store.features("originals", clip.sha256).keys():
                x = to_float(clip.pixels)[None]
                self.store.keep_features("originals", clip.sha256, self._features(x))
            self.advance("originals' features", done, len(self.survey.hashes))

    def _features(self, x: Tensor) -> dict[str, Any]:
        return {_feature_key(net): net(x).numpy() for net in self.networks}

    def _measure(self, row: Candidate) -> None:
        facts = self._known_facts(row)
        done = self._done(row)
        wanted = self._seeds(facts)
        left = [
            (key, seed)
            for seed in range(wanted)
            for key, digest in self.survey.hashes.items()
            if (digest, seed) not in done
        ]
        if facts is not None and not left:
            return
        coder = self._guard(row, "it can't be built", lambda: Coder(row.label, row.build()))
        if facts is None:
            facts = self._facts(row, coder)
            self.store.append(facts)
            if wanted != (wanted := self._seeds(facts)):
                left = [item for item in left if item[1] < wanted]
        todo: dict[str, list[int]] = {}
        for key, seed in left:
            todo.setdefault(key, []).append(seed)
        for count, clip in enumerate(self.survey, 1):
            for seed in todo.get(clip.key, ()):
                self._score(row, coder, clip, seed)
            self.advance(row.label, count, len(self.survey.hashes))

    def _known_facts(self, row: Candidate) -> Row | None:
        for known in self.store.of_kind("model"):
            if is_row_of(known, row) and (self.seeds == 1 or known["stochastic"] is not None):
                return known
        return None

    def _seeds(self, facts: Row | None) -> int:
        return 1 if facts is not None and facts["stochastic"] is False else self.seeds

    def _done(self, row: Candidate) -> set[tuple[str, int]]:
        """(clip's sha256, seed) of rows that have every metric and, for seed 0, every feature."""
        needed, names = set(self.scorer.metrics), {_feature_key(net) for net in self.networks}
        return {
            (known["sha256"], known["seed"])
            for known in self.store.of_kind("clip")
            if is_row_of(known, row) and needed <= known.keys()
            if known["seed"] or names <= self._kept(row, known["sha256"])
        }

    def _kept(self, row: Candidate, digest: str) -> set[str]:
        if not self.networks:
            return set()
        return set(self.store.features(owner(row), digest))

    def _facts(self, row: Candidate, coder: Coder) -> Row:
        """Size and cost of a model, on the first clip, which warms it up too."""
        from torch.utils.flop_counter import FlopCounterMode

        clip = next(iter(self.survey))
        x = to_float(clip.pixels)[None].to(self.device)
        flops = []
        shape = "x".join(str(n) for n in clip.pixels.shape[1:])

        def both(seed: int, count: bool) -> tuple[Tensor, Tensor]:
            made = []
            with FlopCounterMode(display=False) as counter:
                z = coder.encode(x)
            made.append(counter.get_total_flops())
            with FlopCounterMode(display=False) as counter:
                y = self._decode(coder, z, clip, steps=row.steps, seed=seed)
            made.append(counter.get_total_flops())
            if count:
                flops.extend(made)
            return z, y

        z, y = self._guard(row, f"it can't take {shape} (T,H,W)", lambda: both(0, True))
        stochastic = None
        if self.seeds > 1:
            other = self._guard(row, f"it can't take {shape} (T,H,W)", lambda: both(1, False))[1]
            stochastic = not torch.equal(y, other)
        net = coder.net
        sizes = [] if net is None else [p.numel() for p in net.parameters()]
        types = {str(p.dtype).removeprefix("torch.") for p in net.parameters()} if net else set()
        return {
            "kind": "model",
            "label": row.label,
            "fingerprint": row.fingerprint,
            "steps": row.steps,
            "source": row.source,
            "baseline": row.baseline,
            "parameters": sum(sizes),
            "tflops_encode": flops[0] / 1e12,
            "tflops_decode": flops[1] / 1e12,
            "numbers_per_pixel": z.numel() / (x.numel() / 3),
            "latents": list(z.shape[1:]),
            "dtype": "/".join(sorted(types)) or "float32",
            "stochastic": stochastic,
        }

    def _guard(self, row: Candidate, what: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (UserError, RunError) as error:
            raise UserError(f"{row.label}: {str(error).removeprefix(row.label + ': ')}") from error
        except Exception as error:  # a model of the user's may raise anything
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise UserError(f"{row.label}: {what} ({reason[0][:160]})") from error

    def _decode(self, coder: Coder, z: Tensor, clip: Clip, *, steps: int, seed: int) -> Tensor:
        frames, height, width = clip.pixels.shape[1:]
        return coder.decode(
            z,
            size=(frames, height, width),
            steps=steps,
            generator=generator_for(clip.key, seed),
        )

    def _score(self, row: Candidate, coder: Coder, clip: Clip, seed: int) -> None:
        x = to_float(clip.pixels)[None].to(self.device)

        def timed() -> tuple[Tensor, float, float, int | None]:
            reset_peak(self.device)
            start = _now(self.device)
            z = coder.encode(x)
            middle = _now(self.device)
            y = self._decode(coder, z, clip, steps=row.steps, seed=seed)
            end = _now(self.device)
            return y.float(), middle - start, end - middle, peak(self.device)

        y, encode_s, decode_s, memory = self._guard(row, f"it fails on {clip.key}", timed)
        if not torch.isfinite(y).all():
            raise UserError(f"{row.label}: its output for {clip.key} is not finite")
        y = to_8bit(y)
        values = {
            name: None if math.isnan(value) else round(value, 7)
            for name, value in ((k, float(v)) for k, v in self.scorer(y, x).items())
        }
        if not seed:
            place = owner(row)
            if self.networks:
                self.store.keep_features(place, clip.sha256, self._features(y))
            keep_pictures(self.store, row, clip, y[0].cpu(), values["psnr"] or 0.0)
        self.store.append(
            {
                "kind": "clip",
                "label": row.label,
                "fingerprint": row.fingerprint,
                "steps": row.steps,
                "seed": seed,
                "clip": clip.key,
                "film": clip.film,
                "sha256": clip.sha256,
                **values,
                "encode_s": encode_s,
                "decode_s": decode_s,
                "memory_bytes": memory,
            }
        )


def _feature_key(net: FeatureNet) -> str:
    return f"{net.name} {net.version}"


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: str) -> None:
    """Begin a new measurement of peak memory."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux: `peak` says so


def peak(device: str) -> int | None:
    """Bytes at the peak since `reset_peak`: allocated on a GPU, else resident (None: unknown).

    The resident size includes Python and torch, about 0.5 GB.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None
