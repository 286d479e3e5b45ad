"""Makes and scores what isn't there yet: every model, the same prompts, the same noise."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zoo.benchmark.generation.models import Generator
from zoo.benchmark.pictures import encode
from zoo.benchmark.runner import Advance, Survey
from zoo.benchmark.store import Row, Store, is_row_of, owner, whole_file
from zoo.data.limits import open_image
from zoo.data.transforms import to_float, to_uint8
from zoo.diffusion.samplers import EncoderDecoder
from zoo.errors import RunError, UserError
from zoo.metrics.clip_score import CLIPScore
from zoo.metrics.networks import FeatureNet
from zoo.objectives.perceptual import Perceptual
from zoo.pipelines import Sampling

SCHEMA_VERSION = 1
_LOG = logging.getLogger("zoo")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What makes two results comparable: all of it is in the protocol's hash.

    Attributes:
        size: pixels of both sides, of pictures and reference.
        seed: of all noise; a picture's is a function of this, its prompt and its number.
        repeats: pictures of each prompt that diversity is measured on.
        kid: the estimator.
        manifold: neighbours of precision and recall.
        diversity: what it is.
    """

    size: int
    seed: int = 0
    repeats: int = 4
    kid: str = "cubic polynomial, unpaired U-statistic on all samples"
    manifold: int = 3
    diversity: str = "LPIPS-Alex, mean over the pairs of a prompt's pictures"

    def header(self, definition: str) -> Row:
        """The first row of a store."""
        text = {"schema": SCHEMA_VERSION, "data": definition, **dataclasses.asdict(self)}
        digest = hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]
        return {
            "kind": "protocol",
            "schema_version": SCHEMA_VERSION,
            "protocol_hash": digest,
            "definition": definition,
            "protocol": {"name": "generation", **dataclasses.asdict(self)},
        }


@dataclass(frozen=True)
class Prompt:
    """A prompt; `key` is its own also where the same text stands twice."""

    key: str
    text: str


def keyed(texts: Sequence[str]) -> list[Prompt]:
    """Prompts with keys that depend on the text and on how often it stood before."""
    seen: dict[str, int] = {}
    found = []
    for text in texts:
        seen[text] = number = seen.get(text, -1) + 1
        digest = hashlib.sha256(f"{text}\n{number}".encode()).hexdigest()
        found.append(Prompt(digest[:16], text))
    return found


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` prompts (or all), evenly over the list."""
    if count >= len(prompts):
        return list(prompts)
    return [prompts[i * len(prompts) // count] for i in range(count)]


@dataclass
class Runner:
    """Fills a store.

    Args:
        store: where rows go; pictures and features lie beside it.
        rules: protocol.
        prompts: of one picture each.
        diverse: those of them with `rules.repeats` pictures.
        reference: real pictures; None leaves out all comparisons with them.
        networks: whose features are compared.
        lpips: for diversity; None where its backbone can't be had.
        clip: for the CLIP score, likewise.
        device: where models run.
        batch: pictures at once.
        advance: told the label, pictures done and to do.

    Attributes:
        failures: why a model has no result, by label.
    """

    store: Store
    rules: Rules
    prompts: list[Prompt]
    diverse: list[Prompt]
    reference: Survey | None
    networks: list[FeatureNet]
    lpips: Perceptual | None
    clip: CLIPScore | None
    device: str
    batch: int
    advance: Advance
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, rows: Sequence[Generator]) -> None:
        """Make and score; a model that fails is noted and the others go on."""
        self._reference_features()
        for row in rows:
            try:
                self._pictures(row)
                self._score(row)
                self._diversity(row)
            except UserError as error:
                self.failures[row.label] = str(error)

    def picture(self, row: Generator, prompt: Prompt, number: int) -> Path:
        """Where a picture is."""
        return self.store.folder / "pictures" / owner(row) / f"{prompt.key}-{number}.webp"

    def _reference_features(self) -> None:
        if self.reference is None:
            return
        names = {feature_key(net) for net in self.networks}
        for done, clip in enumerate(self.reference, 1):
            if not names <= self.store.features("reference", clip.sha256).keys():
                x = to_float(clip.pixels)[None]
                found = {feature_key(net): net(x).numpy() for net in self.networks}
                self.store.keep_features("reference", clip.sha256, found)
            self.advance("reference", done, len(self.reference.hashes))

    def _jobs(self) -> list[tuple[Prompt, int]]:
        more = {prompt.key for prompt in self.diverse}
        return [
            (prompt, number)
            for number in range(self.rules.repeats)
            for prompt in self.prompts
            if number == 0 or prompt.key in more
        ]

    def _pictures(self, row: Generator) -> None:
        known = {
            (r["key"], r["number"]) for r in self.store.of_kind("picture") if is_row_of(r, row)
        }
        jobs = self._jobs()
        left = [
            (prompt, number)
            for prompt, number in jobs
            if (prompt.key, number) not in known or not self.picture(row, prompt, number).is_file()
        ]
        if not left:
            return
        pipeline: Any = row.build()
        pipeline.set_progress_bar_config(disable=True)
        if not any(is_row_of(r, row) for r in self.store.of_kind("model")):
            self.store.append(self._facts(row, pipeline))
        # the first call pays for what later ones find ready: not a picture's seconds
        self._make(row, pipeline, left[:1])
        for begin in range(0, len(left), self.batch):
            part = left[begin : begin + self.batch]
            start = time.perf_counter()
            pictures, lost = self._make(row, pipeline, part)
            seconds = (time.perf_counter() - start) / len(part)
            for (prompt, number), picture, cut in zip(part, pictures, lost, strict=True):
                with whole_file(self.picture(row, prompt, number)) as file:
                    file.write(encode(picture.permute(1, 2, 0).numpy()))
                self.store.append(
                    {
                        **_identity(row, "picture"),
                        "key": prompt.key,
                        "number": number,
                        "prompt": prompt.text,
                        "seed": self.seed(prompt, number),
                        "truncated": cut,
                        "seconds": seconds,
                        "batch": len(part),
                    }
                )
            self.advance(row.label, len(jobs) - len(left) + begin + len(part), len(jobs))

    def seed(self, prompt: Prompt, number: int) -> int:
        """The seed of a picture, the same for every model."""
        return zlib.crc32(f"{self.rules.seed} {prompt.key} {number}".encode())

    def _make(
        self, row: Generator, pipeline: Any, jobs: list[tuple[Prompt, int]]
    ) -> tuple[Tensor, list[int]]:
        """Pictures uint8 [B,3,size,size] on the CPU, and how many tokens of a prompt didn't fit."""
        how = sampling(row, pipeline)
        # the pipeline warns of every prompt that is too long: here they are counted
        level = _LOG.level
        _LOG.setLevel(logging.ERROR)
        try:
            out = pipeline(
                [prompt.text for prompt, _ in jobs],
                seed=[self.seed(prompt, number) for prompt, number in jobs],
                steps=how.steps,
                anchors=how.anchors,
                guidance=how.guidance,
                parallel=row.settings.parallel,
                height=self.rules.size,
                width=self.rules.size,
                output_type="pt",
            )
        except (UserError, RunError) as error:
            raise UserError(f"{row.label}: {error}") from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{row.label}: {self.device} is out of memory with {len(jobs)} pictures at once, "
                "give a smaller --batch"
            ) from error
        finally:
            _LOG.setLevel(level)
        return to_uint8(out.images).cpu(), list(out.truncated)

    def _facts(self, row: Generator, pipeline: Any) -> Row:
        """Size and cost: passes of the UNet's halves a picture, and its FLOPs."""
        how = sampling(row, pipeline)
        factor = 1 if how.guidance == 1 else 2
        consistency = pipeline.config.sampler == "consistency"
        # each step of consistency sampling has an encoder pass of its own
        encoders = how.steps if consistency else how.anchors
        unet: Any = pipeline.unet
        latent = self.rules.size // pipeline.pixels_per_latent
        text = pipeline.encode_prompts([""])
        flops = unet_flops(
            unet, latent=latent, text=text.shape[1:], steps=encoders, decoders=how.steps
        )
        return {
            **_identity(row, "model"),
            "source": row.source,
            "settings": {
                "encoder passes": encoders,
                "decoder passes": how.steps,
                "guidance": how.guidance,
                "parallel": row.settings.parallel,
            },
            "sampler": pipeline.config.sampler,
            "parameters": sum(p.numel() for p in unet.parameters()),
            "encoder_passes": factor * encoders,
            "decoder_passes": factor * how.steps,
            "gflops": flops * factor / 1e9,
            "dtype": str(unet.dtype).removeprefix("torch."),
        }

    def _score(self, row: Generator) -> None:
        wanted = {feature_key(net) for net in self.networks}
        if self.clip is not None:
            wanted.add(clip_key(self.clip))
        place = owner(row)
        for done, prompt in enumerate(self.prompts, 1):
            found = self.store.features(place, prompt.key)
            if not wanted <= found.keys():
                x = to_float(self._read(row, prompt, 0))[None]
                for net in self.networks:
                    found[feature_key(net)] = net(x[:, :, None]).numpy()
                if self.clip is not None:
                    found[clip_key(self.clip)] = self.clip(x, [prompt.text]).numpy()
                self.store.keep_features(place, prompt.key, found)
            self.advance(f"{row.label}: features", done, len(self.prompts))

    def _diversity(self, row: Generator) -> None:
        if self.lpips is None or self.rules.repeats < 2:
            return
        known = {r["key"] for r in self.store.of_kind("diversity") if is_row_of(r, row)}
        for done, prompt in enumerate(self.diverse, 1):
            if prompt.key not in known:
                pictures = torch.stack(
                    [to_float(self._read(row, prompt, n)) for n in range(self.rules.repeats)]
                ).to(self.device)
                pairs = list(itertools.combinations(range(self.rules.repeats), 2))
                one, two = (pictures[list(side)] for side in zip(*pairs, strict=True))
                with torch.no_grad():
                    value = float(self.lpips(one, two).mean())
                self.store.append(
                    {**_identity(row, "diversity"), "key": prompt.key, "lpips": round(value, 7)}
                )
            self.advance(f"{row.label}: diversity", done, len(self.diverse))

    def _read(self, row: Generator, prompt: Prompt, number: int) -> Tensor:
        """uint8 [3,size,size]."""
        with open_image(self.picture(row, prompt, number)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def sampling(row: Generator, pipeline: Any) -> Sampling:
    """How a model samples: as it was told to, else as its folder says.

    Raises:
        UserError: a number outside the range of its schedule.
    """
    how = row.settings
    found: Sampling = pipeline.sampling(
        steps=how.decoders, anchors=how.steps, guidance=how.guidance
    )
    return found


def unet_flops(unet: Any, *, latent: int, text: Sequence[int], steps: int, decoders: int) -> int:
    """Floating-point operations of a picture's UNet passes without guidance.

    Counted by torch on the meta device, where attention is written out: multiply-adds of matrices
    and convolutions count twice.
    """
    with torch.device("meta"):
        twin: EncoderDecoder[Any] = type(unet).from_config(unet.config)
        z = torch.empty(1, unet.config.in_channels, latent, latent)
        times, states = torch.zeros(1, dtype=torch.long), torch.empty(1, *text)
        with torch.no_grad():
            with FlopCounterMode(display=False) as encoder:
                features = twin.encode(z, times, states)
            with FlopCounterMode(display=False) as decoder:
                twin.decode(features, times, states)
    return steps * int(encoder.get_total_flops()) + decoders * int(decoder.get_total_flops())


def feature_key(net: FeatureNet) -> str:
    """Name of a network's features in a store."""
    return f"{net.name} {net.version}"


def clip_key(clip: CLIPScore) -> str:
    """Name of the CLIP scores in a store."""
    return f"CLIP score {clip.name}"


def _identity(row: Generator, kind: str) -> Row:
    return {
        "kind": kind,
        "label": row.label,
        "fingerprint": row.fingerprint,
        "steps": row.steps,
    }
