"""`zoo benchmark speed` on tokenizers, alone and beside another implementation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zoo.cli.benchmark import main as benchmark
from zoo.errors import UserError
from zoo.metrics.tokenizer_speed import Released

# what the tool calls of the released code, over a net of ours: the same results, other memory
STAND_IN = """
from types import SimpleNamespace
import torch
from torch import nn
from zoo.convert.cdt import from_reference
from zoo.nets.cdt import CDT, CDTConfig

CLIP_FIRST_CHUNK = False
SHIFT = 0.0


class ConditionedDiffusionTokenizer(nn.Module):
    def __init__(self, *, space_down, time_down, out_channels, latent_dim, context_dim, unet_dim,
                 new_upsample):
        super().__init__()
        print("a line that is no answer")
        self.net = CDT(CDTConfig(
            space_down=tuple(space_down), time_down=tuple(time_down), latent_channels=latent_dim,
            context_channels=out_channels, context_dim=context_dim, unet_dim=unet_dim,
            upsampling="nearest" if new_upsample else "transposed",
            padding="zeros" if new_upsample else "replicate"))
        self.time_factor, self.num_timesteps = self.net.compression[0], self.net.config.timesteps
        context = SimpleNamespace(
            encode=lambda x: (self.net.encode(x).mean, None),
            decode=lambda z: self.net.conditions(z)[0], clear_cache=lambda: None)
        self.model = SimpleNamespace(
            context_fn=context, diffusion_decode=self.decode,
            denoise_fn=SimpleNamespace(clear_cache=lambda: None))

    def load_state_dict(self, tensors, strict):
        assert strict
        from_reference(self.net, tensors)

    def decode(self, z, sample_steps, init, time):
        assert CLIP_FIRST_CHUNK
        assert sample_steps == 1 and time.tolist() == [0] * len(z)
        index = torch.full((len(z),), self.num_timesteps - 1)
        return self.net.denoise(init, index, self.net.conditions(z)[0]) + SHIFT
"""


def published() -> torch.nn.Module:
    """A narrow net of the released structure; the last levels are those of the published one."""
    from zoo.nets.cdt import CDT, CDTConfig

    config = {"context_dim": 4, "unet_dim": 4, "latent_channels": 3, "context_channels": 4}
    torch.manual_seed(0)
    return CDT(CDTConfig(**config, padding="zeros", upsampling="nearest"))  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_speed_beside_a_checkout(
    shift: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two sides get the same weights and noise: only a real difference shows as one."""
    published().save_pretrained(tmp_path / "net")  # type: ignore[operator]
    (tmp_path / "checkout" / "model").mkdir(parents=True)
    text = STAND_IN.replace("SHIFT = 0.0", f"SHIFT = {shift}")
    (tmp_path / "checkout" / "model" / "cdt.py").write_text(text)
    arguments = ["speed", "--models", f"dir:{tmp_path / 'net'}", "--out", str(tmp_path / "out")]
    arguments += ["--against", str(tmp_path / "checkout"), "--size", "5x16x24", "--device", "cpu"]
    assert benchmark([*arguments, "--parts", "encode", "decode", "--repetitions", "2"]) == 0
    assert "times as fast" in capsys.readouterr().out
    run = json.loads((tmp_path / "out" / "speed.json").read_text())["runs"][0]
    assert run["size"] == [5, 16, 24]
    assert run["against"] == "checkout"  # no path of this machine
    for part, error in (("encode", 0), ("decode", shift)):
        row = run["parts"][part]
        assert len(row["seconds"]["ours"]) == len(row["seconds"]["released"]) == 2
        assert row["ratios"] == [
            b / a for a, b in zip(row["seconds"]["ours"], row["seconds"]["released"], strict=True)
        ]
        busy = row["processor_seconds"]
        assert min(busy["ours"]) > 0
        assert row["processor_ratios"] == [
            b / a for a, b in zip(busy["ours"], busy["released"], strict=True)
        ]
        assert row["output_difference"]["max"] == pytest.approx(error, abs=1e-5)
        assert row["output_difference"]["deviation"] > 0
        assert set(row["peak_memory_bytes"]) == {"ours", "released"}


@pytest.mark.parametrize("latents", [1, 3])
def test_the_released_code_streams_latent_by_latent(latents: int) -> None:
    """One frame for the first latent, a chunk for each other, also in a warm-up of one."""
    seen: list[tuple[int, int, bool]] = []

    class Spy(Released):
        def __init__(self) -> None:
            self.net = SimpleNamespace(time_factor=4)

        def _decode(self, z: torch.Tensor, noise: torch.Tensor, *, first: bool) -> torch.Tensor:
            seen.append((z.shape[2], noise.shape[2], first))
            return noise

        def _forget(self) -> None:
            seen.append((0, 0, False))

    z, noise = torch.zeros(1, 16, latents, 2, 2), torch.randn(1, 3, 4 * latents - 3, 16, 16)
    assert torch.equal(Spy().stream(noise, z, noise), noise)
    assert seen == [(1, 1, True), *[(1, 4, False)] * (latents - 1), (0, 0, False)]


def test_what_is_compiled_is_timed_beside_plain_calls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Traced alone: inductor takes minutes."""
    arguments = ["speed", "--models", "klvae_video_tiny", "--out", str(tmp_path / "out")]
    arguments += [
        "--size",
        "5x16x16",
        "--device",
        "cpu",
        "--repetitions",
        "2",
        "--compile",
        "eager",
    ]
    with pytest.raises(UserError, match="give --parts stream"):
        benchmark(arguments)
    assert benchmark([*arguments, "--parts", "stream"]) == 0
    assert "ours compiled, it: plain" in capsys.readouterr().out
    run = json.loads((tmp_path / "out" / "speed.json").read_text())["runs"][0]
    row = run["parts"]["stream"]
    assert run["compiled"]
    assert [len(row["seconds"][side]) for side in ("ours", "plain")] == [2, 2]
    assert row["output_difference"]["max"] < 1e-4
    assert row["output_difference"]["deviation"] > 0


def test_speed_of_a_tokenizer_alone(tmp_path: Path) -> None:
    arguments = ["speed", "--models", "cdt_tiny", "--size", "5x64x64", "--out", str(tmp_path)]
    parts = ["decode", "stream", "train", "train-checkpointing"]
    arguments += ["--parts", *parts, "--repetitions", "1", "--device", "cpu"]
    assert benchmark(arguments) == 0
    run = json.loads((tmp_path / "speed.json").read_text())["runs"][0]
    assert list(run["parts"]) == parts
    assert run["parts"]["decode"]["flops"] > 5e8
    assert run["parts"]["decode"]["output_difference"] is None
    memory = {p: row["peak_memory_bytes"]["ours"] for p, row in run["parts"].items()}
    if memory["train"] is not None:
        assert memory["decode"] < memory["train"]
        assert memory["train-checkpointing"] < memory["train"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cdt_tiny", "tiue_tiny"], "mixes tokenizers"),
        (["cdt_tiny", "--size", "17"], "give FRAMESxHEIGHTxWIDTH for tokenizers"),
        (["cdt_tiny", "--size", "0x16x16"], "--size 0x16x16: give FRAMES"),
        (["cdt_tiny", "--size", "4x16x16"], r"4x16x16 doesn't fit cdt_tiny: give 1 \+ a multiple"),
        (["cdt_tiny", "--size", "5x20x16"], "multiples of 8 by 8"),
        (["cdt_tiny", "--against", "nowhere"], "nowhere holds no model/cdt.py"),
        (["cdt_tiny", "--compile"], "--compile is for a tokenizer.s streaming step"),
        (["tiue_tiny", "--against", "nowhere"], "tiue_tiny is a UNet: leave it out"),
        (["tiue_tiny", "--size", "8x8"], "--size 8x8: give the side"),
        (["tiue_tiny", "--size", "0"], "--size 0: give the side"),
        (["klvae_video_tiny", "--parts", "train"], "klvae_video_tiny is none"),
    ],
)
def test_mistakes_in_speed_of_tokenizers(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        benchmark(["speed", "--models", *arguments, "--device", "cpu", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "said"), [("cdt_tiny", "no place for block"), ("klvae_video_tiny", "is none")]
)
def test_speed_beside_a_checkout_needs_its_structure(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cdt.py").write_text("")
    with pytest.raises(UserError, match=said):
        benchmark(["speed", "--models", name, "--against", str(tmp_path), "--device", "cpu"])
