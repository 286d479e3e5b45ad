"""`zoo benchmark generation`: compare text-to-image models on the same prompts and noise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from zoo.cli import Parser, say
from zoo.cli.benchmarks.reconstruction import progress
from zoo.cli.device import checked_device
from zoo.errors import RunError, UserError

if TYPE_CHECKING:
    from zoo.benchmark.generation.results import Results

_LOG = logging.getLogger("zoo")

EXAMPLES = """examples:
  zoo benchmark generation --prompts emoji-val.tar --reference emoji-val.tar --out runs/table \\
    --styles fluent3d=3d noto=flat --drop "People & Body" Component \\
    --models tiue=dir:runs/tiue/export one_step=dir:runs/one_step/export lcm=dir:runs/lcm/export \\
             teacher=dir:runs/t2i/export teacher4=dir:runs/t2i/export@steps=4,guidance=3
  the same command with more models adds theirs and makes nothing anew
models:
  [LABEL=]MODEL[@SETTINGS], MODEL as in `zoo generate`; settings, with commas, in place of the
  folder's own: steps=S (the plain sampler), N=D (TiUE: one encoder pass, D decoder passes),
  guidance=W (1 is none), parallel=no (decoders one by one).
  The labels tiue, one_step, lcm, four_step, teacher, kl_0, js and forward_kl fill claims.md.
prompts:
  one a line, .jsonl with `prompt`, `text` or `caption`, or captioned pictures (a .tar, a folder
  with captions.jsonl), whose --styles and --drop are those of the training
"""


def main(arguments: Sequence[str]) -> int:
    """Compare generators; see EXAMPLES."""
    parser = Parser(
        prog="zoo benchmark generation",
        description="KID, FID, precision, recall, diversity, CLIP score, FLOPs and seconds.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="see below")
    parser.add_argument("--prompts", type=Path, required=True, help="see below")
    parser.add_argument("--reference", required=True, help="real pictures: folder or shard")
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures and results")
    parser.add_argument(
        "--styles", nargs="+", default=[], metavar="STYLE=WORD", help="as the models were trained"
    )
    parser.add_argument(
        "--drop", nargs="+", default=[], metavar="CATEGORY", help="of prompts and real pictures"
    )
    parser.add_argument("--size", type=int, help="pixels (default: the first model's own)")
    parser.add_argument("--limit", type=int, help="only so many prompts, evenly over the file")
    parser.add_argument("--seed", type=int, default=0, help="of all noise (default 0)")
    parser.add_argument(
        "--repeats", type=int, default=4, help="pictures a prompt for diversity (default 4)"
    )
    parser.add_argument(
        "--diverse", type=int, default=64, help="prompts that get so many (default 64)"
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures at once (default 8)")
    parser.add_argument("--baseline", help="label that differences are taken to (default: first)")
    parser.add_argument("--clip", help="folder or repository of the CLIP of the CLIP score")
    parser.add_argument(
        "--features", type=Path, help="features.json of `zoo benchmark features`, for claims.md"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    checked_device(options.device)
    for name, least in (("limit", 1), ("repeats", 1), ("diverse", 1), ("batch", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: give at least {least}")

    from zoo.benchmark.generation.data import open_prompts, open_reference

    styles = _styles(options.styles)
    texts = open_prompts(options.prompts, styles=styles, drop=options.drop)
    # imported late: diffusers takes seconds, and a mistake above needs none of it
    import diffusers

    from zoo.benchmark.generation.claims import judge
    from zoo.benchmark.generation.models import generators
    from zoo.benchmark.generation.report import write_outputs
    from zoo.benchmark.generation.results import collect
    from zoo.benchmark.generation.runner import Rules, Runner, keyed, spread
    from zoo.benchmark.store import Store

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    rows = generators(options.models, device=options.device)
    baseline = options.baseline or rows[0].label
    if baseline not in {row.label for row in rows}:
        known = ", ".join(row.label for row in rows)
        raise UserError(f"--baseline {baseline} is no model of this run: {known}")
    prompts = keyed(texts)
    if options.limit is not None:
        prompts = spread(prompts, options.limit)
    rules = Rules(
        size=options.size or _own_size(rows[0].build()),
        seed=options.seed,
        repeats=options.repeats,
    )
    judge({"models": [], "networks": {}}, features=options.features)  # a mistake is said now
    reference = open_reference(options.reference, size=rules.size, drop=options.drop)
    store = Store(options.out, rules.header(reference.data.definition))
    try:
        with progress() as advance:
            reference.read(advance)
            networks, missing = _networks(options.device)
            lpips, clip = _scorers(options, missing)
            runner = Runner(
                store=store,
                rules=rules,
                prompts=prompts,
                diverse=spread(prompts, options.diverse),
                reference=reference,
                networks=networks,
                lpips=lpips,
                clip=clip,
                device=options.device,
                batch=options.batch,
                advance=advance,
            )
            try:
                runner.run(rows)
            except KeyboardInterrupt:
                _LOG.info("%d rows are kept: the same command goes on", len(store.rows))
                raise
        if baseline in runner.failures:
            raise RunError("; ".join(runner.failures.values()))
        names = {"prompts": options.prompts.name, "reference": reference.data.description}
        results = collect(runner, rows, baseline=baseline, missing=missing, names=names)
        verdicts = judge(results, features=options.features)
        report = write_outputs(results, verdicts, options.out)
    finally:
        store.close()
    show(results)
    for verdict in verdicts:
        if verdict.verdict != "not measured":
            say(f"{verdict.verdict}: {verdict.claim} ({verdict.measured})")
    say(str(report))
    if runner.failures:
        raise RunError("; ".join(runner.failures.values()))
    return 0


def _styles(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        style, equals, word = text.partition("=")
        if not (style and equals and word):
            raise UserError(f"--styles {text}: give STYLE=WORD, such as noto=flat")
        found[style] = word
    return found


def _own_size(pipeline: Any) -> int:
    own: Any = pipeline.unet.config.sample_size
    sides = {own} if isinstance(own, int) else set(own or ())
    if len(sides) != 1:
        raise UserError(f"the first model's latents are {own}, not square: give --size")
    return int(sides.pop()) * int(pipeline.pixels_per_latent)


def _networks(device: str) -> tuple[Any, dict[str, str]]:
    """Networks of Frechet and kernel distances; Inception's is FID here, nothing is rebuilt."""
    import dataclasses

    from zoo.metrics.networks import load_networks

    found, missing = load_networks(device, video=False)
    named = [dataclasses.replace(n, name="FID") if n.name == "rFID" else n for n in found]
    return named, {("FID" if name == "rFID" else name): why for name, why in missing.items()}


def _scorers(options: Any, missing: dict[str, str]) -> tuple[Any, Any]:
    """LPIPS and CLIP, or the reasons in `missing`."""
    from zoo.metrics.clip_score import CLIP, CLIPScore
    from zoo.objectives.perceptual import Perceptual

    lpips: Perceptual | None = Perceptual("alexnet")
    try:
        assert lpips is not None
        lpips.load()
    except UserError as error:
        lpips, missing["diversity (LPIPS)"] = None, str(error)
    try:
        return lpips, CLIPScore(options.clip or CLIP, device=options.device)
    except UserError as error:
        if options.clip is not None:  # asked for by name: a mistake, not an absence
            raise
        missing["CLIP score"] = str(error)
        return lpips, None


def show(results: Results) -> None:
    """Print the table and what belongs under it."""
    from zoo.benchmark.generation.tables import columns, notes, scaled

    shown = scaled(results)
    cells = columns(shown)
    table = Table("model", *(c.title for c in cells), title=results["data"]["prompts"])
    for model in shown["models"]:
        texts = (
            f"{c.text(model)} ± {half}" if (half := c.half_text(model)) else c.text(model)
            for c in cells
        )
        table.add_row(model["label"], *texts)
    Console(width=None if Console().is_terminal else 200).print(table)
    for line in notes(results):
        say(line)
