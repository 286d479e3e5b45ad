"""TiUEUNet against its parent, diffusers' UNet2DConditionModel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.nets.toy_unet import TOY, inputs, toy
from zoo.errors import UserError
from zoo.kernels.processor import set_attention
from zoo.nets.tiue import EncoderFeatures, TiUEUNet

VARIANTS: dict[str, dict[str, Any]] = {
    "sd15": {},
    "sd21": {"use_linear_projection": True, "attention_head_dim": (2, 4, 4)},
    "pooled text": {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
    "centred": {"center_input_sample": True},
    "no mid block": {"mid_block_type": None},
    "projected text": {"encoder_hid_dim": 12, "encoder_hid_dim_type": "text_proj"},
    "time activation": {"time_embedding_act_fn": "silu"},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "no output norm": {"norm_num_groups": None, "mid_block_type": None},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_halves_equal_the_parent_bit_for_bit(variant: str, dtype: torch.dtype) -> None:
    if variant == "no output norm":
        # diffusers can't build one without groups; the branch is that of nets without conv_norm_out
        parent = toy(mid_block_type=None).to(dtype)
        parent.conv_norm_out = None
        net = TiUEUNet.from_unet(toy(mid_block_type=None)).to(dtype)
        net.conv_norm_out = None
    else:
        parent = toy(**VARIANTS[variant]).to(dtype)
        net = TiUEUNet.from_unet(toy(**VARIANTS[variant])).to(dtype)
    set_attention(net)
    x, t, text = inputs(parent)
    expected = parent(x, t, text).sample
    assert torch.equal(net.decode(net.encode(x, t, text), t, text), expected)
    assert expected.std() > 0.01
    for same in (500, 500.0, torch.tensor(500)):
        got = net.decode(net.encode(x, same, text), torch.full((3,), 500), text)
        assert torch.equal(got, parent(x, same, text).sample)


@pytest.mark.parametrize("size", [(16, 16), (13, 9), (8, 20), (5, 5)])
def test_odd_sizes_equal_the_parent(size: tuple[int, int]) -> None:
    parent = toy()
    net = TiUEUNet.from_unet(parent)
    x, t, text = inputs(parent, size)
    got = net.decode(net.encode(x, t, text), t, text)
    assert torch.equal(got, parent(x, t, text).sample)


def test_gradients_equal_the_parents() -> None:
    parent, other = toy().requires_grad_(True), toy().requires_grad_(True)
    net = TiUEUNet.from_unet(other)
    x, t, text = inputs(parent)
    parent(x, t, text).sample.square().mean().backward()
    net.decode(net.encode(x, t, text), t, text).square().mean().backward()
    for (name, a), b in zip(parent.named_parameters(), net.parameters(), strict=True):
        # the time embedding is made twice: its gradient is the same sum in another order
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6), name
        assert a.grad.any(), name


def test_nothing_of_the_parent_is_replaced() -> None:
    assert "forward" not in TiUEUNet.__dict__
    assert "__init__" not in TiUEUNet.__dict__


def test_folders_go_both_ways(tmp_path: Path) -> None:
    parent = toy()
    parent.save_pretrained(tmp_path / "plain")
    net = TiUEUNet.from_pretrained(tmp_path / "plain")
    net.save_pretrained(tmp_path / "tiue")
    back = UNet2DConditionModel.from_pretrained(tmp_path / "tiue")
    assert type(back) is UNet2DConditionModel
    states = [each.state_dict() for each in (parent, net, back)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        assert torch.equal(tensor, states[2][name])
    public = [
        json.loads(json.dumps({k: v for k, v in n.config.items() if k[0] != "_"}))
        for n in (parent, net, back)
    ]
    assert public[0] == public[1] == public[2]


def test_zoo_loads_both_kinds_of_folder(tmp_path: Path) -> None:
    parent = toy()
    parent.save_pretrained(tmp_path / "plain")
    net = zoo.load(f"dir:{tmp_path / 'plain'}", dtype=torch.bfloat16)
    assert isinstance(net, TiUEUNet)
    assert net.dtype == torch.bfloat16
    assert not net.training
    parent.save_pretrained(tmp_path / "old", safe_serialization=False)
    assert (tmp_path / "old" / "diffusion_pytorch_model.bin").is_file()
    old = zoo.load(f"dir:{tmp_path / 'old'}").state_dict()
    assert all(torch.equal(old[key], tensor) for key, tensor in parent.state_dict().items())
    for stored, loaded in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        # a CPU computes in no float16
        toy().to(stored).save_pretrained(tmp_path / str(stored))
        assert zoo.load(f"dir:{tmp_path / str(stored)}").dtype == loaded
    net = zoo.load(f"dir:{tmp_path / 'plain'}")
    assert net.dtype == torch.float32
    net.save_pretrained(tmp_path / "pipeline" / "unet")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    again = zoo.load(f"dir:{tmp_path / 'pipeline'}")
    x, t, text = inputs(parent)
    assert torch.equal(again(x, t, text).sample, parent(x, t, text).sample)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    net = toy()
    net.save_pretrained(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="can't be loaded"):
        zoo.load(f"dir:{folder}")
    weights.unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        zoo.load(f"dir:{folder}")
    torch_state = net.state_dict()
    del torch_state["conv_in.bias"]
    from safetensors.torch import save_file

    save_file(torch_state | {"more.weight": torch.zeros(1)}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing conv_in\.bias.*unexpected more\.weight"):
        zoo.load(f"dir:{folder}")
    for bad, said in (
        ('{"_class_name": "SD3Transformer2DModel"}', "SD3Transformer2DModel"),
        ('{"_class_name": 3}', "config.json"),
        ("not json", "not JSON"),
    ):
        (folder / "config.json").write_text(bad)
        with pytest.raises(UserError, match=said):
            zoo.load(f"dir:{folder}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({"num_class_embeds": 10}, "class embeddings"),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
            | {"projection_class_embeddings_input_dim": 72},
            "addition_embed_type = 'text_time'",
        ),
        ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8}, "image_proj"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim = 8"),
        ({"attention_type": "gated"}, "grounding boxes"),
    ],
)
def test_what_would_be_dropped_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TiUEUNet.from_unet(toy(**changes))
    net = TiUEUNet(**TOY | changes)
    x, t, text = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 7, 24)
    with pytest.raises(UserError, match=said):
        net.encode(x, t, text)
    with pytest.raises(UserError, match=said):
        net.decode(EncoderFeatures(x, ()), t, text)


def test_batches_that_differ_are_refused() -> None:
    net = TiUEUNet.from_unet(toy())
    x, t, text = inputs(net)
    with pytest.raises(UserError, match=r"sample \(3, 4, 16, 16\), text \(2, 7, 24\)"):
        net.encode(x, 5, text[:2])
    with pytest.raises(UserError, match=r"sample \(3, 4, 16, 16\).*timestep \(2,\)"):
        net.encode(x, t[:2], text)
    features = net.encode(x, 5, text)
    with pytest.raises(UserError, match="batch sizes differ"):
        net.decode(features.repeat(2), t, text.repeat(2, 1, 1))
    with pytest.raises(UserError, match="batch sizes differ"):
        net.decode(features, torch.tensor(5), text)
    with pytest.raises(UserError, match="a Linear can't be a TiUE net"):
        TiUEUNet.from_unet(torch.nn.Linear(1, 1))


def test_both_halves_compile_without_graph_breaks() -> None:
    net = TiUEUNet.from_unet(toy())
    set_attention(net)
    x, t, text = inputs(net)
    encode = torch.compile(net.encode, fullgraph=True, backend="eager")
    decode = torch.compile(net.decode, fullgraph=True, backend="eager")
    expected = net.decode(net.encode(x, t, text), t, text)
    assert torch.equal(decode(encode(x, t, text), t, text), expected)


@pytest.mark.parametrize("name", ["tiue_sd15", "tiue_sd21"])
def test_presets_are_the_published_nets(name: str) -> None:
    """Parameters as published; FLOPs of TiUE with 4 steps at most .757 of the plain model's."""
    with torch.device("meta"):
        net = zoo.create(name)
        x, t = torch.empty(1, 4, 64, 64), torch.zeros(1)
        text = torch.empty(1, 77, net.config.cross_attention_dim)
    count = {"tiue_sd15": 859_520_964, "tiue_sd21": 865_910_724}[name]
    assert sum(p.numel() for p in net.parameters()) == count
    with FlopCounterMode(display=False) as encoder:
        features = net.encode(x, t, text)
    with FlopCounterMode(display=False) as decoder:
        net.decode(features.repeat(4), t.repeat(4), text.repeat(4, 1, 1))
    with FlopCounterMode(display=False) as plain:
        net(x, t, text)
    halves = encoder.get_total_flops() + decoder.get_total_flops() / 4
    # each half makes the time embedding
    assert plain.get_total_flops() <= halves <= 1.0001 * plain.get_total_flops()
    flops = encoder.get_total_flops() + decoder.get_total_flops()
    assert flops <= 0.757 * 4 * plain.get_total_flops()


def test_the_tiny_preset() -> None:
    net = zoo.create("tiue_tiny")
    assert isinstance(net, TiUEUNet)
    assert sum(p.numel() for p in net.parameters()) <= 8e6
    x, text = torch.randn(2, 4, 16, 16), torch.randn(2, 20, 384)
    t = torch.tensor([999, 1])
    assert net.decode(net.encode(x, t, text), t, text).shape == x.shape
    assert zoo.list_models(family="tiue") == ["tiue_sd15", "tiue_sd21", "tiue_tiny"]
    with pytest.raises(UserError, match="widht"):
        zoo.create("tiue_tiny", widht=(32, 64))


def test_names_do_not_import_diffusers() -> None:
    code = (
        "import sys, time, torch; begin = time.perf_counter(); import zoo; zoo.list_models(); "
        "heavy = ('diffusers', 'transformers', 'lightning'); "
        "print(time.perf_counter() - begin, *(m for m in heavy if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    assert not heavy
    assert float(seconds) < 2.5
    assert done.stderr == ""
