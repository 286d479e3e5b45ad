"""`zoo doctor` tells what the nets call and which kernel takes it."""

from __future__ import annotations

import json

import pytest
import torch

from zoo.cli.doctor import main
from zoo.cli.doctor_bench import medians, plain_layer
from zoo.cli.doctor_calls import Shape, calls_of
from zoo.errors import UserError
from zoo.kernels import providers
from zoo.nets.blocks3d import FrameAttention

MODELS = ["cdt_tiny", "klvae_image_f8c4"]


def test_calls_are_those_that_the_nets_make() -> None:
    """cdt_tiny: patches of 4, then halved: 64x64 and 32x32 tokens; a level a width."""
    found = calls_of("cdt_tiny")
    assert found[Shape("linear_attention", 17, 1, 64 * 64, 64 * 64, 32, 32)] == 1
    assert sum(found.values()) == 6  # 3 levels down, the middle, 2 up
    # 6 blocks over 5 latents of 8x8, and from them to the text
    film = calls_of("video_dit_tiny")
    assert film == {Shape("attention", 1, 6, 80, k, 32, 32): 6 for k in (80, 77)}
    # the middle blocks of encoder and decoder: one head as wide as the channels
    assert calls_of("klvae_image_f8c4") == {Shape("attention", 1, 1, 1024, 1024, 512, 512): 2}


def test_json_has_every_backend_and_call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the probe of flex compiles, which takes seconds
    monkeypatch.setitem(providers.RULES, "flex", lambda call: "not in this test")
    assert main(["--json", "--device", "cpu", "--models", *MODELS]) == 0
    report = json.loads(capsys.readouterr().out)
    verdicts = {(row["kernel"], row["backend"]): row["verdict"] for row in report["kernels"]}
    assert verdicts["attention", "sdpa"] == verdicts["linear_attention", "blocks"] == "serves"
    assert verdicts["attention", "sdpa-cudnn"].startswith("refuses: the cuDNN kernel runs on CUDA")
    assert verdicts["attention", "flex"] == "refuses: not in this test"
    assert {(row["model"], row["auto"]) for row in report["calls"]} == {
        ("cdt_tiny", "blocks"),
        ("klvae_image_f8c4", "sdpa"),
    }


def test_an_override_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(providers.RULES, "flex", lambda call: "not in this test")
    monkeypatch.setenv("ZOO_ATTENTION", "math")
    main(["--json", "--device", "cpu", "--models", "klvae_image_f8c4"])
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["ZOO_ATTENTION"] == "math"
    assert {row["auto"] for row in report["calls"]} == {"math"}


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match="no device 'tpu' here: give cpu"):
        main(["--device", "tpu"])
    with pytest.raises(UserError, match="unknown model 'cdt_tinny'"):
        main(["--models", "cdt_tinny"])


def test_the_written_out_layer_is_the_same_layer() -> None:
    """What `--bench` compares with computes the same."""
    torch.manual_seed(0)
    block = FrameAttention(8).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(1, 8, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(plain_layer(block, x), block(x))


def test_medians_take_turns() -> None:
    order: list[str] = []
    times = medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0)
    assert order == ["a", "b"] * 4  # one to warm up, three timed
    assert set(times) == {"a", "b"}
