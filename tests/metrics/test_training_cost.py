"""Plans of training runs against training steps that were measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import zoo
from zoo.cli import benchmark
from zoo.errors import UserError
from zoo.metrics.training_cost import step_cost
from zoo.nets.blocks3d import set_gradient_checkpointing
from zoo.objectives import DenoisingObjective, ReconstructionObjective


def measured_peak(name: str, shape: tuple[int, ...], *, checkpointing: bool) -> int:
    """Bytes that torch's allocator held at most in the second step; AdamW and an average."""
    net = zoo.create(name).train()
    set_gradient_checkpointing(net, checkpointing)
    objective = (
        DenoisingObjective(lpips_weight=0)
        if name.startswith("cdt")
        else ReconstructionObjective(lpips_weight=0)
    )
    optimizer = torch.optim.AdamW(net.parameters())
    average = [p.detach().clone() for p in net.parameters()]
    x = torch.rand(shape)

    def step() -> None:
        objective(net, x, progress=0.0).total.backward()  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()

    step()
    held = 4 * sum(p.numel() for p in average) * 4  # weights, average, two moments
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        now += change
        peak = max(peak, now)
    return held + peak


@pytest.mark.parametrize(
    ("name", "shape", "checkpointing"),
    [
        ("cdt_tiny", (1, 3, 17, 64, 64), False),
        ("klvae_video_tiny", (1, 3, 17, 64, 64), False),
        ("klvae_video_tiny", (1, 3, 17, 96, 96), True),
        ("klvae_image_tiny", (2, 3, 1, 128, 128), False),
    ],
)
def test_plan_of_memory_is_what_a_step_takes(
    name: str, shape: tuple[int, ...], checkpointing: bool
) -> None:
    batch, _, frames, *size = shape
    cost = step_cost(
        name, frames=frames, size=(size[0], size[1]), batch=batch, checkpointing=checkpointing
    )
    measured = measured_peak(name, shape, checkpointing=checkpointing)
    assert cost.memory("ddp", 1) == pytest.approx(measured, rel=0.2)
    assert cost.kept > 4 * cost.parameters  # activations, not weights, were what was compared


def test_plan_of_many_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FSDP2 divides what stays between steps; days and data follow from FLOPs and clips."""
    arguments = ["--model", "cdt_tiny", "--size", "17x64x64", "--clips", "1e6"]
    results = []
    for strategy, gpus in (("ddp", 1), ("fsdp2", 64)):
        out = tmp_path / f"{strategy}.json"
        benchmark.main(
            ["plan", *arguments, "--strategy", strategy, "--gpus", str(gpus), "--out", str(out)]
        )
        results.append(json.loads(out.read_text()))
    one, many = results
    for name, count in one["state"].items():
        assert many["state"][name] == -(-count // 64)
    assert one["state"]["optimizer state"] == 8 * one["trained"]
    assert many["days"] == pytest.approx(one["days"] / 64)
    assert many["data_bytes_per_second"] == pytest.approx(64 * one["data_bytes_per_second"])
    assert one["days"] == pytest.approx(1e6 * one["flops"] / 400e12 / 86400)
    assert "days" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "cdt_bse"], "unknown model 'cdt_bse': did you mean cdt_base"),
        (["--model", "tiue_sd15"], "--model tiue_sd15: plan knows the families cdt and kl_vae"),
        (["--size", "17x256"], "--size 17x256: give frames x height x width"),
        (["--size", "0x64x64"], "--size 0x64x64: give frames x height x width"),
        (["--gpus", "0"], "--gpus 0: give a number above 0"),
        (["--batch", "-1"], "--batch -1: give a number above 0"),
        (["--clips", "nan"], "--clips nan: give a number above 0"),
        (["--model", "klvae_image_tiny"], "klvae_image_tiny is trained on pictures, give 1"),
    ],
)
def test_plan_says_mistakes(arguments: list[str], said: str) -> None:
    right = ["--model", "cdt_tiny", "--size", "17x64x64", "--gpus", "1"]
    with pytest.raises(UserError, match=said):
        benchmark.main(["plan", *right, *arguments])
