"""The READMEs' Python runs as it is written, block after block in one session; links lead on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from zoo.data.writer import VideoWriter
from zoo.nets.cdt import CDT

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(path for part in ("configs", "zoo") for path in (ROOT / part).rglob("README.md")),
]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with what they name: an export of the quickstart's net and a film."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = zoo.create("cdt_tiny", context_dim=8, unet_dim=8)
    assert isinstance(net, CDT)
    assert net.pca is not None
    net.pca.fit([torch.rand(2, 3, 17, 32, 32) * 2 - 1])
    net.save_pretrained("runs/quickstart/export")
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    with VideoWriter("film.mp4", width=64, height=48, rate=25) as writer:  # type: ignore[arg-type]
        for t in range(30):
            writer.write(np.roll(noise, t, axis=1))
    assert len(BLOCKS) >= 5
    session: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        if "not run by the tests" in block:
            continue
        exec(compile(block, f"READMEs, block {number}", "exec"), session)
    assert {p.name for p in tmp_path.iterdir()} >= {"latents", "decoded.mp4", "both.mp4"}
