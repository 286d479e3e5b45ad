"""What matters in a CDT at tiny scale: short runs, one change each, scored at several steps.

    python tests/scripts/cdt_ablation.py --minutes 6 --out runs/ablation
    python tests/scripts/cdt_ablation.py --minutes 10 --train FOLDER \\
        --val asset:bikes.mp4,asset:carphone_pristine.mp4,asset:cityCC0.mpg

Each run is `train.py fit` with overrides, for the same time; the KL-VAE (equal encoder, equal
latents) runs for the centre's training FLOPs instead. Then every export is scored on the validation
clips: 1, 2, 4 and 8 steps, three gammas, and the gain of the true x_t over noise in its place.
OUT/ablation.md and .json are rewritten after each run. A run that has its result.json is not
repeated, so a killed ablation goes on where it was; an unfinished run starts anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.data.sources import VideoFolder
from zoo.metrics.reconstruction import noisy_input_gain, psnr
from zoo.nets.cdt import CDT
from zoo.nets.pca import BlockPCA
from zoo.nets.tokenizer import Tokenizer
from zoo.objectives.perceptual import Perceptual

ROOT = Path(__file__).parents[2]
STEPS, GAMMAS = (1, 2, 4, 8), (0.0, 0.8, 1.0)
OBJECTIVE = "--model.objective.init_args."
CENTRE = "centre"
KL_VAE = "KL-VAE, equal FLOPs"

# name -> what it changes; the centre is the config itself
RUNS: dict[str, list[str]] = {
    CENTRE: [],
    "centre, seed 1": ["--seed_everything", "1"],
    KL_VAE: [],
    "no context norm": ["--model.net.init_args.context_norm", "false"],
    "pure noise 0.3": [OBJECTIVE + "pure_noise", "0.3"],
    "pure noise 1": [OBJECTIVE + "pure_noise", "1.0"],
    "times squared": [OBJECTIVE + "times", "squared"],
    "times logit-normal": [OBJECTIVE + "times", "logit_normal"],
    "LPIPS 0": [OBJECTIVE + "lpips_weight", "0"],
    "LPIPS 0.2": [OBJECTIVE + "lpips_weight", "0.2"],
    "KL 1e-6": [OBJECTIVE + "kl_weight", "1e-6"],
    "KL 1e-2": [OBJECTIVE + "kl_weight", "1e-2"],
    "pure noise 0": [OBJECTIVE + "pure_noise", "0.0"],
    "pure noise 0.5": [OBJECTIVE + "pure_noise", "0.5"],
    "pure noise 0.9": [OBJECTIVE + "pure_noise", "0.9"],
    "no context norm, pure noise 0.3": [
        *("--model.net.init_args.context_norm", "false"),
        *(OBJECTIVE + "pure_noise", "0.3"),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="training time of each run")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.yaml"))
    parser.add_argument("--train", help="films to train on; default: the config's package films")
    parser.add_argument("--val", default="asset:carphone_pristine.mp4", help="films to score on")
    parser.add_argument("--clips", type=int, default=28, help="score at most so many clips")
    parser.add_argument("--only", nargs="*", choices=RUNS, metavar="RUN", help="these runs alone")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="torchvision")
    options.out.mkdir(parents=True, exist_ok=True)
    clips = [[sample.pixels[None], sample.key] for sample in validation(options)]
    print(f"{len(clips)} validation clips of {options.val}", flush=True)
    for name, overrides in RUNS.items():
        folder = options.out / "".join(c if c.isalnum() or c == "." else "_" for c in name)
        if options.only and name not in options.only:
            continue
        if not (folder / "result.json").exists():
            run(name, overrides, folder, options)
            result = score(folder / "export", [x for x, _ in clips])
            result |= {"name": name, "overrides": overrides, "minutes": options.minutes}
            result |= {"keys": [key for _, key in clips], "steps_trained": steps_of(folder)}
            write(folder / "result.json", json.dumps(result))
        report(options, name)


def validation(options: argparse.Namespace) -> list[Any]:
    """The clips, 17x128x128, spread over the films."""
    source = VideoFolder(options.val.split(","), frames=17, size=128, train=False)
    source.prepare()
    count = min(options.clips, len(source))
    return [source[number * len(source) // count] for number in range(count)]


def run(name: str, overrides: list[str], folder: Path, options: argparse.Namespace) -> None:
    """Train; the folder of an unfinished run is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    seconds = round(options.minutes * 60)
    limit = f"{seconds // 86400:02d}:{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:"
    arguments = [
        *("--config", options.config, "--out", str(folder), "--evaluate", "false"),
        *("--trainer.max_steps", "1000000", "--trainer.max_time", f"{limit}{seconds % 60:02d}"),
        *("--trainer.val_check_interval", "1000000", "--save_every", "1000000"),
    ]
    if options.train:
        arguments += ["--data.train.init_args.root", options.train]
    if name == KL_VAE:
        path = options.out / CENTRE / "result.json"
        if not path.exists():
            raise SystemExit(f"{name} needs the result of {CENTRE}: run that first")
        centre = json.loads(path.read_text())
        with torch.device("meta"):
            vae = zoo.create("klvae_video_tiny")
        share = centre["tflops_a_clip"] / tflops_a_clip(vae)
        arguments += [
            *("--model.net", "zoo.nets.kl_vae_video.klvae_video_tiny"),
            *("--model.objective", "zoo.objectives.ReconstructionObjective"),
            *("--model.objective.kl_weight", "1e-4", "--model.objective.lpips_weight", "0.05"),
            *("--model.objective.lpips_start", "0.85", "--trainer.max_time", "null"),
            *("--trainer.max_steps", str(round(share * centre["steps_trained"]))),
        ]
    print(f"{name}: training", flush=True)
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "fit", *arguments, *overrides]
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=out, check=False)
    if done.returncode:
        last = "\n".join(log.read_text().splitlines()[-5:])
        raise SystemExit(f"{name}: train.py ended with {done.returncode}, see {log}:\n{last}")


def steps_of(folder: Path) -> int:
    """Steps that a run made."""
    return int(
        torch.load(folder / "last.ckpt", map_location="cpu", weights_only=False)["global_step"]
    )


def tflops_a_clip(net: torch.nn.Module) -> float:
    """Training cost of a 17x64x64 clip: three times the forward pass of encoder and decoder."""
    assert isinstance(net, Tokenizer)
    meta = net.to("meta").eval()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        meta.reconstruct(torch.empty(1, 3, 17, 64, 64))
    return 3 * counter.get_total_flops() / 1e12


@torch.no_grad()
def score(export: Path, clips: list[Tensor]) -> dict[str, Any]:
    """PSNR and LPIPS of each clip by (steps, gamma), and the x_t gain of a CDT."""
    net = zoo.load(f"dir:{export}")
    assert isinstance(net, Tokenizer)
    lpips = Perceptual("alexnet")
    result: dict[str, Any] = {"settings": {}}

    def measure(key: str, reconstruct: Callable[[Tensor], Tensor]) -> None:
        rows: dict[str, list[float]] = {"psnr": [], "lpips": []}
        for x in clips:
            y = reconstruct(x).clamp(-1, 1)
            rows["psnr"].append(float(psnr(y, x)))
            rows["lpips"].append(float(lpips(y[0].movedim(1, 0), x[0].movedim(1, 0)).mean()))
        result["settings"][key] = rows

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    if isinstance(net, CDT):
        settings = [(steps, 0.8) for steps in STEPS]
        settings += [(1, gamma) for gamma in GAMMAS if gamma != 0.8]
        for steps, gamma in settings:
            chosen = net.with_sampling(gamma=gamma)
            measure(
                f"{steps} steps, gamma {gamma:g}",
                lambda x, c=chosen, n=steps: c.reconstruct(x, steps=n, generator=seeded()),
            )
        gains = [noisy_input_gain(net, x, generator=seeded()) for x in clips]
        result["xt_gain"] = [float(gain) for gain in gains]
    else:
        measure("1 steps, gamma 0.8", net.reconstruct)
    if isinstance(pca := getattr(net, "pca", None), BlockPCA):
        measure("PCA", pca.reconstruct)
    result["parameters"] = sum(p.numel() for p in net.parameters())
    result["tflops_a_clip"] = tflops_a_clip(net)  # last: it moves the net to meta
    return result


def report(options: argparse.Namespace, latest: str) -> None:
    """Write the table of all results there are; print the row of the latest run."""
    results = [json.loads(p.read_text()) for p in options.out.glob("*/result.json")]
    order = list(RUNS)
    results.sort(key=lambda r: order.index(r["name"]))

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def cell(result: dict[str, Any], key: str, what: str, digits: int) -> str:
        values = result["settings"].get(key)
        return "-" if values is None else f"{mean(values[what]):.{digits}f}"

    lines = [
        "| run | steps | train TFLOPs | PSNR 1 / 2 / 4 / 8 steps | LPIPS 1 / 2 / 4 / 8 | "
        "PSNR at gamma 0 / 0.8 / 1 | x_t gain |",
        "|---|---|---|---|---|---|---|",
    ]
    batch = 2  # of the config
    for r in results:
        by_steps = [f"{s} steps, gamma 0.8" for s in STEPS]
        by_gamma = [f"1 steps, gamma {g:g}" for g in GAMMAS]
        gain = f"{mean(r['xt_gain']):+.2f}" if "xt_gain" in r else "-"
        lines.append(
            f"| {r['name']} | {r['steps_trained']} "
            f"| {r['steps_trained'] * batch * r['tflops_a_clip']:.3g} "
            f"| {' / '.join(cell(r, k, 'psnr', 2) for k in by_steps)} "
            f"| {' / '.join(cell(r, k, 'lpips', 3) for k in by_steps)} "
            f"| {' / '.join(cell(r, k, 'psnr', 2) for k in by_gamma)} | {gain} |"
        )
    pca = next((r for r in results if "PCA" in r["settings"]), None)
    notes = [
        "",
        f"{len(results[0]['keys'])} clips of 17x128x128 from {options.val}; each run trained for "
        f"{options.minutes:g} min on {platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; batch {batch}; gamma 0.8 where not said; LPIPS-Alex. One seed "
        "a run: compare with the distance between the two seeds of the centre. x_t gain: dB of the "
        "true x_t at t = 0.05 over noise in its place. Train TFLOPs: three times the forward pass.",
    ]
    if pca is not None:
        notes.append(
            f"PCA-16 (the shortcut that every run starts from): "
            f"{cell(pca, 'PCA', 'psnr', 2)} dB, LPIPS {cell(pca, 'PCA', 'lpips', 3)}."
        )
    write(options.out / "ablation.md", "\n".join([*lines, *notes]) + "\n")
    write(options.out / "ablation.json", json.dumps(results, indent=1) + "\n")
    row = next(line for line in lines if line.startswith(f"| {latest} |"))
    print("\n".join([*lines[:2], row]), flush=True)


def write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


if __name__ == "__main__":
    main()
