"""The table at the end of a training goes through the benchmark's code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import zoo
from tests.cli.test_tools import write_film
from zoo.cli.finish import score, table, write_json
from zoo.data.sources import VideoFolder
from zoo.metrics.reconstruction import psnr, ssim


def test_the_last_table_has_the_metrics_of_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    (tmp_path / "films").mkdir()
    write_film(tmp_path / "films" / "a.mp4", frames=12)
    train = VideoFolder(str(tmp_path / "films"), frames=5, size=32)
    val = VideoFolder(str(tmp_path / "films"), frames=5, size=32, train=False)
    for source in (train, val):
        source.prepare()
    torch.manual_seed(0)
    net = zoo.create("cdt_tiny", context_dim=8, unet_dim=8).eval()
    module = SimpleNamespace(net=net, pca_clips=4)
    rows, extra = score(module, train, val)  # type: ignore[arg-type]
    assert [row["model"] for row in rows] == ["average pool 8", "PCA-8", "PCA-16", "CDT"]
    x = torch.stack([val[i].pixels for i in range(2)])
    y = net.reconstruct(x, generator=torch.Generator().manual_seed(0)).detach()
    assert rows[-1]["psnr"] == pytest.approx(float(psnr(y, x).mean()), abs=1e-4)
    assert rows[-1]["ssim"] == pytest.approx(float(ssim(y, x).mean()), abs=1e-4)
    assert "xt_gain_db" in extra
    console = Console(width=120, record=True)
    console.print(table(rows, title="films"))
    # no LPIPS backbone here: said, and the other numbers stand
    assert "not measured" in console.export_text()
    write_json(tmp_path / "metrics.json", {"rows": rows, **extra})
    assert json.loads((tmp_path / "metrics.json").read_text())["rows"][0]["clips"] == 2
