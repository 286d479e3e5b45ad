"""The end of a training run: export, table, paths."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import zoo
from zoo.cli import say
from zoo.data.datamodule import ZooDataModule
from zoo.data.mixture import Mixture
from zoo.data.source import Source
from zoo.lit.tokenizer import TokenizerModule
from zoo.metrics.evaluation import Reconstruct, Row, Scorer, average_pool, evaluate
from zoo.metrics.reconstruction import noisy_input_gain
from zoo.nets.cdt import CDT
from zoo.nets.cdt_decoder import CDTDecoder
from zoo.nets.pca import BlockPCA, PCAConfig


def finish(
    module: TokenizerModule,
    data: ZooDataModule,
    *,
    out: Path,
    evaluate: bool,
    pictures: tuple[Path, ...],
) -> None:
    """Export the averaged net, score it on the validation clips, print table and paths."""
    net = module.net.eval()
    module.measure_latents()
    folder = out / "export"
    net.save_pretrained(folder)
    if evaluate and data.val is not None:
        rows, extra = score(module, data.train, data.val)
        write_json(
            out / "metrics.json",
            {
                "rows": rows,
                **extra,
                "clips": f"{data.val.root}, {len(data.val)} clips",
                "steps": module.trainer.global_step,
                "zoo": zoo.__version__,
                "torch": torch.__version__,
                "cpu": platform.machine(),
            },
        )
        steps = ", one sampling step" if isinstance(net, CDT) else ""
        Console().print(table(rows, title=f"{data.val.root}{steps}"))
        if "xt_gain_db" in extra:
            say(f"gain of the true x_t over noise at t = 0.05: {extra['xt_gain_db']:+.2f} dB")
    for path in (*pictures, folder):
        say(str(path))


def score(
    module: TokenizerModule, train: Source | Mixture, val: Source, *, size: int = 2
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of the trivial baselines and of the net, on every validation clip."""
    net = module.net
    device = next(net.parameters()).device

    def seeded(x: Tensor) -> Tensor:
        # each batch its own generator: the noise doesn't depend on what was scored before
        return net.reconstruct(x, generator=torch.Generator().manual_seed(0))

    models: dict[str, Reconstruct] = {
        f"average pool {net.compression[1]}": partial(average_pool, factor=net.compression[1])
    }
    for channels in (net.latent_channels // 2, net.latent_channels):
        config = PCAConfig(latent_channels=channels, compression=net.compression)
        pca = BlockPCA(config).to(device)
        pca.fit(sample.pixels[None].to(device) for sample in train.spread(module.pca_clips))
        models[f"PCA-{channels}"] = pca.reconstruct
    if isinstance(net, CDTDecoder):
        models["the encoder's own decoder"] = net.tokenizer.reconstruct
    models[type(net).__name__] = seeded
    rows = evaluate(models, _batches(val, size, device), scorer=Scorer())
    extra: dict[str, Any] = {}
    if isinstance(net, CDT):
        gains = []
        with torch.no_grad():
            for x in _batches(val, size, device):
                generator = torch.Generator().manual_seed(0)
                gains.append(noisy_input_gain(net, x, generator=generator))
        extra["xt_gain_db"] = float(torch.cat(gains).mean())
    return rows, extra


def _batches(source: Source, size: int, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, len(source), size):
        picked = range(start, min(start + size, len(source)))
        yield torch.stack([source[i].pixels for i in picked]).to(device)


def table(rows: list[Row], *, title: str) -> Table:
    """The rows as a table."""
    titles = {"psnr": "PSNR dB", "ssim": "SSIM", "lpips": "LPIPS-Alex", "flicker": "flicker"}
    digits = {"psnr": 2, "ssim": 4, "lpips": 4, "flicker": 2}
    if not any("flicker" in row for row in rows):  # pictures don't
        del titles["flicker"], digits["flicker"]
    result = Table("model", *titles.values(), title=title)
    for row in rows:
        cells = (f"{row[k]:.{n}f}" if k in row else "not measured" for k, n in digits.items())
        result.add_row(str(row["model"]), *cells)
    return result


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write through a temporary name."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(part, path)
