"""`zoo benchmark features`: similarity of a UNet's features between neighbouring time steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from zoo.cli import Parser, say
from zoo.cli.benchmarks.files import line_plot, machine, write_text
from zoo.cli.device import checked_device
from zoo.data.captions import read_captions
from zoo.errors import UserError

EXAMPLES = """examples:
  zoo benchmark features --model dir:stable-diffusion-v1-5 --data captions.txt --out runs/features
  zoo benchmark features --model tiue_tiny --data captions.txt --lengths 4 10 25   # random weights

Pictures are sampled without guidance with DDIM; features are compared between adjacent steps.
"""
LENGTHS = (4, 8, 15, 25, 50)


def main(arguments: Sequence[str]) -> int:
    """Measure the observation that TiUE rests on; see EXAMPLES."""
    parser = Parser(
        prog="zoo benchmark features",
        description="Cosine similarity of encoder and decoder features between adjacent steps.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--model", required=True, help="pipeline: NAME, dir:PATH, hf:REPOSITORY")
    parser.add_argument("--data", type=Path, required=True, help="captions: one a line, or .jsonl")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="sampler lengths")
    parser.add_argument("--limit", type=int, default=16, help="captions to use (default 16)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/features"))
    options = parser.parse_args(arguments)
    checked_device(options.device)
    if min(options.lengths) < 2:
        raise UserError(f"--lengths {min(options.lengths)}: two steps at least have neighbours")
    if options.limit < 1 or options.batch < 1:
        raise UserError("--limit and --batch: give at least 1")
    captions = read_captions(options.data)[: options.limit]
    pipeline, weights = _pipeline(options.model, options.device)
    lengths = sorted(set(options.lengths))
    plans = {length: pipeline.plan(length) for length in lengths}

    from zoo.diffusion.noise import draw_noise, noise_generators
    from zoo.metrics.feature_similarity import adjacent_similarity

    config: Any = pipeline.unet.config
    side = config.sample_size
    shape = (config.in_channels, *((side, side) if isinstance(side, int) else side))
    generators, _ = noise_generators(len(captions), options.seed, None)
    noise = draw_noise(generators, shape)
    states = pipeline.encode_prompts(captions)
    rows = []
    for length in track(lengths, "sampler lengths", console=Console(stderr=True)):
        encoder: list[list[float]] = []
        decoder: list[list[float]] = []
        for begin in range(0, len(captions), options.batch):
            part = slice(begin, begin + options.batch)
            z = noise[part].to(pipeline.unet.device, pipeline.unet.dtype)
            found = adjacent_similarity(pipeline.unet, z, states[part], plans[length])
            # every batch counts by its captions
            encoder += [found.encoder] * len(z)
            decoder += [found.decoder] * len(z)
        rows.append(
            {
                "steps": length,
                "timesteps": plans[length].timesteps,
                "encoder": mean(map(mean, encoder)),
                "decoder": mean(map(mean, decoder)),
                "encoder_pairs": [mean(pair) for pair in zip(*encoder, strict=True)],
                "decoder_pairs": [mean(pair) for pair in zip(*decoder, strict=True)],
            }
        )
    result = {
        "schema": 1,
        "model": options.model,
        "weights": weights,
        "captions": len(captions),
        "seed": options.seed,
        "machine": machine(options.device),
        "rows": rows,
    }
    _report(result, options.out)
    return 0


def _pipeline(name: str, device: str) -> tuple[Any, str]:
    """The pipeline, and what its weights are; a preset gets random ones."""
    from zoo.hub import list_models
    from zoo.open_pipeline import open_pipeline

    if name not in list_models(family="tiue"):
        return open_pipeline(name, device=device), "trained"
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    from zoo.pipelines import TiUEPipeline
    from zoo.registry import create

    torch.manual_seed(0)
    # the autoencoder only completes the pipeline: latents are not decoded
    pipeline = TiUEPipeline(
        create(name),
        DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        AutoencoderKL(block_out_channels=(32,), norm_num_groups=8),
    )
    return pipeline.to(device), "random"


def _report(result: dict[str, Any], out: Path) -> None:
    title = f"{result['model']} ({result['weights']} weights, {result['captions']} captions)"
    table = Table("steps", "encoder", "decoder", title=f"cosine of adjacent steps: {title}")
    lines = [f"# Features of adjacent time steps: {title}", "", "| steps | encoder | decoder |"]
    lines.append("|---|---|---|")
    for row in result["rows"]:
        cells = (str(row["steps"]), f"{row['encoder']:.4f}", f"{row['decoder']:.4f}")
        table.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    Console().print(table)
    curves = {
        half: [(float(row["steps"]), float(row[half])) for row in result["rows"]]
        for half in ("encoder", "decoder")
    }
    svg = line_plot(curves, title=title, x="sampling steps", y="cosine of adjacent steps")
    for name, text in (
        ("features.json", json.dumps(result, indent=2) + "\n"),
        ("features.md", "\n".join(lines) + "\n"),
        ("features.svg", svg),
    ):
        write_text(out / name, text)
        say(str(out / name))
