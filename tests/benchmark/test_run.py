"""The command as a user runs it: repeated, stopped, mixed up, on a full disk; and its report."""

from __future__ import annotations

import errno
import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.benchmark.statistics import interval, over_seeds, paired
from zoo.cli.benchmarks import compare, reconstruction
from zoo.errors import RunError, UserError


def run(*extra: str, out: str = "out", data: str = "films") -> dict[str, Any]:
    """Run it in the present folder and read its results."""
    small = ("--frames", "5", "--size", "16")
    models = () if "--models" in extra else ("--models", "half.py:build")
    reconstruction.main([*models, "--data", data, "--out", out, *small, *extra])
    results: dict[str, Any] = json.loads(Path(out, "results.json").read_text())
    return results


def lines(out: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "rows.jsonl").read_text().splitlines()]


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    for model in results["models"]:
        model["timing"] = None
    return results


def test_a_repeat_adds_nothing_and_a_new_run_gives_the_same(films: Path) -> None:
    first = run()
    assert [m["label"] for m in first["models"]] == ["pool-8", "PCA-8", "PCA-16", "half"]
    assert first["data"]["clips"] == ["a.mp4#0", "a.mp4#1", "b.mp4#0"]
    before = lines()
    again = run()
    assert lines() == before
    assert again == first
    assert timeless(run(out="other")) == timeless(first)
    # no network could be had: said, and nothing else in its place
    assert set(first["not_measured"]) == {
        "lpips",
        "rFID",
        "FD-MobileNetV2",
        "FVD",
        "FVD-TransNetV2",
    }
    assert set(first["models"][3]["metrics"]) == {"psnr", "ssim", "flicker"}


def test_a_stopped_run_goes_on_where_it_was(films: Path) -> None:
    whole = timeless(run(out="whole"))
    with pytest.raises(KeyboardInterrupt):
        run("--models", "half.py:stops")
    kept = lines()
    assert sum(row["kind"] == "clip" and row["label"] == "half.stops" for row in kept) == 2
    with Path("out", "rows.jsonl").open("a") as file:
        file.write('{"kind": "clip", "torn')  # killed within a write
    # the class counts its calls anew: one clip is left, and what warms the model up
    again = timeless(run("--models", "half.py:stops"))
    rows = lines()
    assert rows[: len(kept)] == kept
    assert len(rows) == len(kept) + 1
    values = [model["values"] for model in whole["models"]]
    assert [model["values"] for model in again["models"]] == values


def test_another_protocol_is_refused(films: Path) -> None:
    run()
    with pytest.raises(UserError, match="holds results of another protocol"):
        run("--size", "24")
    assert run("--limit", "2")["data"]["clips"] == ["a.mp4#0", "a.mp4#1"]


def test_a_model_that_fails_costs_only_its_row(films: Path) -> None:
    with pytest.raises(RunError, match=r"half.breaks: it can't take 5x16x16 .*multiples of 32"):
        run("--models", "half.py:breaks", "half.py:build")
    results = json.loads(Path("out/results.json").read_text())
    assert [m["label"] for m in results["models"]] == ["pool-8", "PCA-8", "PCA-16", "half"]
    assert "half.breaks" in results["failed"]
    assert "failed" in Path("out/results.md").read_text()


def test_noise_seeds_are_spread_and_a_plain_decoder_runs_once(films: Path) -> None:
    results = run("--seeds", "3", "--models", "half.py:noisy", "half.py:build")
    noisy, plain = results["models"][3:]
    assert noisy["seeds"]["psnr"]["seeds"] == 3
    assert 0 < noisy["seeds"]["psnr"]["std"] < 1
    assert plain["seeds"] == {}
    assert {row["seed"] for row in lines() if row["kind"] == "clip" and row["label"] == "half"} == {
        0
    }


def test_other_weights_are_another_model(films: Path) -> None:
    torch.manual_seed(0)
    net = zoo.create("cdt_tiny", context_dim=8, unet_dim=8)
    net.save_pretrained("mine/export")
    first = run("--models", "dir:mine/export")
    assert first["models"][3]["label"] == "mine"
    assert first["models"][3]["parameters"] > 0
    assert first["models"][3]["tflops_decode"] > 0
    assert first["models"][3]["latents"] == [16, 2, 2, 2]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05)
    net.save_pretrained("mine/export")
    second = run("--models", "dir:mine/export")
    assert second["models"][3]["fingerprint"] != first["models"][3]["fingerprint"]
    assert second["models"][3]["values"] != first["models"][3]["values"]


def test_a_full_disk_loses_nothing(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="is full: make room and run the same command"):
        run()
    monkeypatch.undo()
    os.chdir(films.parent)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.setenv("ZOO_CACHE", str(films.parent / "cache"))
    kept = lines()
    assert len(kept) == 6
    run()
    assert lines()[:6] == kept


def test_mistakes_are_one_sentence(films: Path) -> None:
    for arguments, message in (
        (["--models", "cdt_tinny"], "did you mean 'cdt_tiny'|unknown model"),
        (["--models", "cdt_tiny"], "random weights"),
        (["--models", "dir:nowhere"], "no model folder"),
        (["--models", "none.py:build"], "no file none.py"),
        (["--models", "half.py:build", "half.py:build"], "given twice"),
        (["--seeds", "0"], "--seeds 0"),
        (["--baseline", "me"], "--baseline me is no row"),
        (["--protocol", "cdt2"], "did you mean 'cdt'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            run(*arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no clip to score .*13 frames, 99 needed"):
        run("--frames", "99")


def test_compare_merges_one_protocol_and_refuses_two(
    films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(out="one")
    run("--models", "half.py:noisy", out="two")
    assert compare.main(["one", "two", "--out", "both", "--baseline", "pool-8"]) == 0
    merged = json.loads(Path("both/results.json").read_text())
    labels = [m["label"] for m in merged["models"]]
    assert labels == ["pool-8", "PCA-8", "PCA-16", "half", "half.noisy"]
    assert merged["models"][3]["difference"]["psnr"]["wins"] == 1
    assert "half.noisy" in Path("both/report.html").read_text()
    reconstruction.main(
        ["--data", "films", "--out", "three", "--frames", "5", "--size", "24", "--models"]
    )
    with pytest.raises(UserError, match=r"different protocols \(size 16 / 24\)"):
        compare.main(["one", "three"])
    run("--limit", "2", out="four")
    with pytest.raises(UserError, match="different clips"):
        compare.main(["one", "four"])
    Path("one/results.json").write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="schema version 99"):
        compare.main(["one"])


class Outside(html.parser.HTMLParser):
    """Collects what a page would load, and checks that its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_stands_alone(films: Path) -> None:
    run("--seeds", "2", "--models", "half.py:noisy")
    text = Path("out/report.html").read_text()
    page = Outside()
    page.feed(text)
    assert page.open == []
    assert page.loads
    assert all(load.startswith("data:") for load in page.loads)
    assert "<script" not in text
    assert not re.search(r"@import|url\(", text)
    for part in ("PCA-16", "half", "Hardest clip", "Spread over noise seeds", "not measured"):
        assert part in text
    table = Path("out/results.tex").read_text()
    assert table.count(r"\\") == 5
    assert r"\toprule" in table
    assert len(Path("out/results.csv").read_text().splitlines()) == 5


def test_chromium_shows_the_report_without_a_complaint(films: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here")
    run()
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-sync"),
            *("--disable-component-update", "--user-data-dir=profile", "--enable-logging=stderr"),
            *("--window-size=1280,2000", "--screenshot=shot.png", "out/report.html"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert Path("shot.png").stat().st_size > 20_000


def test_intervals() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        found = interval(rng.normal(5, 2, size=40), seed=seed)
        covered += found["low"] <= 5 <= found["high"]  # type: ignore[operator]
    assert 87 <= covered <= 100
    values = np.array([1.0, 2.0, np.nan, 4.0])
    assert interval(values) == interval(values)
    assert interval(values)["n"] == 3
    assert interval(values[:2])["low"] is None
    assert interval(values[2:3]) == {"mean": None, "low": None, "high": None, "n": 0}
    # what all clips share cancels: the difference is much surer than either mean
    base = rng.normal(0, 10, size=50)
    gain = paired(base + 0.5 + rng.normal(0, 0.1, size=50), base)
    assert gain["high"] - gain["low"] < 0.2  # type: ignore[operator]
    assert gain["wins"] == 1
    assert over_seeds([base]) is None
    assert over_seeds([base, base + 2])["std"] == pytest.approx(2**0.5)  # type: ignore[index]
