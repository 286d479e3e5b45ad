"""`zoo generate` and the benchmarks of UNets, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from tests.nets.toy_unet import inputs, toy
from tests.tiny_pipelines import sd_folder
from zoo.cli import find
from zoo.cli.benchmark import main as benchmark
from zoo.data.captions import read_captions
from zoo.diffusion.samplers import DDIMPlan
from zoo.errors import UserError
from zoo.metrics.feature_similarity import adjacent_similarity
from zoo.metrics.speed import Case, Halves, flops, interleaved, run
from zoo.nets.tiue import TiUEUNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_folder(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture
def generate(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Path]]:
    def command(*arguments: object) -> list[Path]:
        assert find("generate")([*map(str, arguments), "--model", f"dir:{folder}"]) == 0
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    return command


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def test_a_grid_and_a_file_a_picture(generate: Callable[..., list[Path]], tmp_path: Path) -> None:
    out = tmp_path / "new" / "grid.png"
    *files, grid = generate("a b", "b!", "--number", 3, "--seed", 5, "--batch", 4, "-o", out)
    assert grid == out
    assert [f.name for f in files] == [
        f"grid-{i:03d}-{words}-seed{5 + i}.png"
        for i, words in enumerate(["a-b", "a-b", "a-b", "b", "b", "b"])
    ]
    sheet = pixels(grid)
    assert sheet.shape == (66, 100, 3)
    assert (sheet[:32, 34:66] == pixels(files[1])).all()
    assert (sheet[34:, 68:] == pixels(files[5])).all()
    # a picture is its seed's, in whatever batch
    again = generate("b!", "--seed", 10, "--sequential", "-o", tmp_path / "one.png")
    assert np.abs(pixels(again[0]) - pixels(files[5])).max() <= 1
    assert not [p for p in out.parent.iterdir() if p.name.startswith(".")]


def test_prompts_from_a_file(generate: Callable[..., list[Path]], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "a"}\n\n"b"\n')
    files = generate("--prompts", tmp_path / "p.jsonl", "--seed", 0, "-o", tmp_path / "g.png")
    assert [f.name for f in files] == ["g-000-a-seed0.png", "g-001-b-seed1.png", "g.png"]


def test_mistakes_in_generate(
    generate: Callable[..., list[Path]], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jsonl").write_bytes(b'{"text": "a"}\n{"text"\n{"x": 1}\n"\xff"\n')
    (tmp_path / "empty.txt").write_text("\n\n")
    out = ["-o", tmp_path / "o.png"]
    cases: list[tuple[list[object], str]] = [
        ([*out], "there is no prompt"),
        (["", *out], "prompt 1 of 1 is empty"),
        (["a", "-o", tmp_path / "o.jpg"], r"end its name in \.png"),
        (["a", "-o", folder / "model_index.json" / "x.png"], "can't be written"),
        (["a", *out, "--number", 0], "--number 0"),
        (["a", *out, "--batch", 0], "--batch 0"),
        (["a", *out, "--steps", 0], "0 steps: the schedule has 1000"),
        (["a", *out, "--steps", 1001], "1001 steps"),
        (["a", *out, "--anchors", 9], "9 anchors for 4 time steps"),
        (["a", *out, "--size", 31, 32], "31 pixels are no multiple of 2"),
        (["a", *out, "--negative-prompt", "b"], "guidance is distilled"),
        (["a", *out, "--device", "cuda:99"], "--device cuda:99 can't be used here"),
        (["a", *out, "--dtype", "fp16"], "float16 is not for a CPU"),
        (["a", *out, "--prompts", tmp_path / "empty.txt"], "give one of them"),
        (["--prompts", tmp_path / "empty.txt", *out], "holds no caption"),
        (["--prompts", tmp_path / "none.txt", *out], r"none\.txt can't be read"),
        (
            ["--prompts", tmp_path / "broken.jsonl", *out],
            "line 2 is not JSON; line 3 has no text in prompt, text, caption; line 4 is not UTF-8",
        ),
    ]
    for arguments, said in cases:
        with pytest.raises(UserError, match=said):
            generate(*arguments)
    for model, said in (
        ("tiue_tinny", "unknown model 'tiue_tinny'"),
        ("dir:nowhere", "nowhere is not a pipeline folder"),
    ):
        with pytest.raises(UserError, match=said):
            find("generate")(["a", "--model", model, "-o", str(tmp_path / "o.png")])
    assert not [p for p in tmp_path.iterdir() if "o." in p.name]


def test_captions_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes("\ufeffein Käse\r\n\r\n  two \n".encode())
    assert read_captions(tmp_path / "c.txt") == ["ein Käse", "two"]


def test_similarity_is_that_of_the_plain_loop() -> None:
    """By hooks on the parent's forward, in a DDIM loop written out."""
    parent = toy()
    net = TiUEUNet.from_unet(parent)
    z, _, text = inputs(parent)
    alphas = torch.linspace(0.99, 0.02, 20, dtype=torch.float64)
    plan = DDIMPlan.of(alphas, [18, 12, 5])
    got = adjacent_similarity(net, z, text, plan)
    seen: dict[str, list[torch.Tensor]] = {"up": [], "mid": []}
    for block in parent.up_blocks:
        block.register_forward_hook(lambda _m, _i, out: seen["up"].append(out))
    parent.mid_block.register_forward_hook(lambda _m, _i, out: seen["mid"].append(out))
    bars = [*(float(alphas[t]) for t in (18, 12, 5)), 1.0]
    for i, t in enumerate((18, 12, 5)):
        eps = parent(z, t, text).sample
        x0 = (z - (1 - bars[i]) ** 0.5 * eps) / bars[i] ** 0.5
        z = bars[i + 1] ** 0.5 * x0 + (1 - bars[i + 1]) ** 0.5 * eps
    for pair in range(2):
        values = []
        for level in range(3):
            a, b = seen["up"][3 * pair + level], seen["up"][3 * pair + 3 + level]
            a, b = a.flatten(1), b.flatten(1)
            values.append((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1))
        assert got.decoder[pair] == pytest.approx(torch.stack(values).mean().item(), abs=1e-5)
    assert len(got.encoder) == 2
    assert all(0 < value < 1 for value in got.encoder)


def test_features_writes_table_and_plot(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.txt").write_text("a\nb\na b\n")
    arguments = ["--model", f"dir:{folder}", "--data", str(tmp_path / "c.txt")]
    assert benchmark(["features", *arguments, "--lengths", "2", "6", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-3:] == [str(tmp_path / f"features.{kind}") for kind in ("json", "md", "svg")]
    result = json.loads((tmp_path / "features.json").read_text())
    assert [row["steps"] for row in result["rows"]] == [2, 6]
    assert len(result["rows"][1]["encoder_pairs"]) == 5
    # neighbours in a longer sampler are nearer
    assert result["rows"][0]["encoder"] < result["rows"][1]["encoder"] < 1
    assert "| 6 | " in (tmp_path / "features.md").read_text()
    assert ElementTree.fromstring((tmp_path / "features.svg").read_text()).tag.endswith("svg")
    with pytest.raises(UserError, match="--lengths 1"):
        benchmark(["features", *arguments, "--lengths", "1"])


class Counter:
    """Counts the passes that the variants make."""

    def __init__(self, net: TiUEUNet) -> None:
        self.net, self.log = net, []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.log.append((name, len(arguments[2])))
            return getattr(self.net, name)(*arguments)

        return call

    def plain(self, *arguments: Any) -> Any:
        self.log.append(("plain", len(arguments[2])))
        return self.net(*arguments).sample


def test_variants_of_speed_do_what_they_say() -> None:
    net = TiUEUNet.from_unet(toy())
    case = Case.of(net, size=8, batch=2)
    counter: Any = Counter(net)
    results = {}
    for variant, calls in (
        ("parallel", [("encode", 2), ("decode", 6)]),
        ("sequential", [("encode", 2), *[("decode", 2)] * 3]),
        ("plain 1", [("plain", 2)]),
        ("plain 3", [("plain", 2)] * 3),
    ):
        counter.log.clear()
        results[variant] = run(variant, counter, case, steps=3)
        assert counter.log == calls
    assert (results["parallel"] - results["sequential"]).abs().max() < 1e-4
    timings = interleaved(["parallel", "plain 1"], counter, case, steps=3, repetitions=4)
    assert {len(t.seconds) for t in timings.values()} == {4}
    one, tiue = flops(net, size=8, steps=3)
    assert one < tiue < 3 * one


def test_compiled_halves_do_the_same() -> None:
    """Through dynamo, without the minutes that generating code takes."""
    net = TiUEUNet.from_unet(
        toy(
            block_out_channels=(16,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            mid_block_type=None,
        )
    )
    case = Case.of(net, size=4, batch=1)
    plain, compiled = Halves(net), Halves(net, compiled="eager")
    for variant in ("parallel", "plain 1"):
        expected = run(variant, plain, case, steps=2)
        assert torch.equal(run(variant, compiled, case, steps=2), expected)


def test_speed_as_a_user_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy().save_pretrained(tmp_path / "net")
    arguments = ["speed", "--models", f"dir:{tmp_path / 'net'}", "--out", str(tmp_path / "out")]
    assert benchmark([*arguments, "--size", "8", "--batch", "1", "2", "--repetitions", "2"]) == 0
    said = capsys.readouterr().out
    assert "FLOPs at 16x16: TiUE with 4 decoders" in said
    assert "timed at 8x8: --size 16 is the net's own" in said
    result = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert [r["batch"] for r in result["runs"]] == [1, 2]
    rows = result["runs"][0]["variants"]
    assert set(rows) == {"parallel", "sequential", "plain 1", "plain 4"}
    for row in rows.values():
        assert len(row["seconds"]) == len(row["ratios"]["plain 4"]) == 2
    assert rows["plain 4"]["ratios"]["plain 4"] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "tiue_tinny"], "unknown model 'tiue_tinny'"),
        (["--models", "dir:nowhere"], "nowhere is not a model folder"),
        (["--models", "tiue_tiny", "--steps", "0"], "--steps 0"),
        (["--models", "tiue_tiny", "--plain-steps", "0"], "--plain-steps 0"),
        (["--models", "tiue_tiny", "--steps", "1000"], "at most 999"),
        (["--models", "tiue_tiny", "--dtype", "fp16"], "fp16 is not for a CPU"),
        (["--models", "tiue_tiny", "--batch", "0"], "--batch 0"),
        (["--models", "tiue_tiny", "--device", "tpu9"], "--device tpu9 can't be used here"),
    ],
)
def test_mistakes_in_speed(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        benchmark(["speed", "--device", "cpu", *arguments, "--out", str(tmp_path)])
