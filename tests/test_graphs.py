"""Tokenizers as graphs: equal to the net, streams too, by torch.export and by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.nets.zoo_of_nets import BUILDERS, make
from zoo.cli import graphs as command
from zoo.errors import RunError, UserError
from zoo.graphs import facts_of, graphs, run_onnx, unet_graphs, write
from zoo.nets.tiue.unet import TiUEUNet
from zoo.nets.tokenizer import Tokenizer
from zoo.registry import create

SIZE = (9, 16, 24)


QUICK = ("klvae_video_tiny", "klvae_image_tiny", "published_image_vae", "pca")
EVERY = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in BUILDERS]


@pytest.mark.parametrize("name", EVERY)
def test_every_net_becomes_programs_of_plain_operators(name: str, tmp_path: Path) -> None:
    rows = write(graphs(make(name), size=SIZE, batch=2), tmp_path / "out", format="torch")
    assert [row.file for row in rows] == ["encode.pt2", "decode.pt2"]
    assert all(row.error is not None and row.error < 1e-5 for row in rows)
    for row in rows:
        made = torch.export.load(tmp_path / "out" / row.file)
        used = {str(node.target) for node in made.graph.nodes if node.op == "call_function"}
        assert used
        assert not [target for target in used if "zoo" in target]
        assert [n.split("_")[0] for n in made.graph_signature.user_inputs] == ["x", "rest"][
            : len(row.inputs)
        ]


def _frames(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows, dim=2)


def _stream(folder: Path, way: str, chunks: list[Tensor], noise: list[Tensor]) -> Tensor:
    """What a program that has nothing but the files would do."""
    table = {row["file"]: row for row in json.loads((folder / "graphs.json").read_text())["graphs"]}
    out: list[Tensor] = []
    state: dict[str, Tensor] = {}
    for index, chunk in enumerate(chunks):
        file = f"{way}_{'next' if index else 'first'}.onnx"
        given = {"pixels": chunk, "latents": chunk, **state}
        if noise:
            given["noise"] = noise[index]
        row = table[file]
        assert all(list(given[name].shape) == shape for name, shape in row["inputs"].items())
        made = run_onnx(folder / file, [given[name] for name in row["inputs"]])
        named = dict(zip(row["outputs"], made, strict=True))
        out.append(made[0])
        state = {k.removeprefix("next_"): v for k, v in named.items() if k.startswith("next_")}
    return _frames(out)


@pytest.mark.parametrize("name", ["cdt_tiny", pytest.param("like_base", marks=pytest.mark.slow)])
def test_a_stream_of_onnx_files_is_the_whole_clip(name: str, tmp_path: Path) -> None:
    net = make(name)
    torch.manual_seed(0)
    clip = torch.rand(1, 3, *SIZE) * 2 - 1
    rows = write(graphs(net, size=(1, *SIZE[1:]), chunk=1), tmp_path / "out", facts=facts_of(net))
    assert json.loads((tmp_path / "out" / "graphs.json").read_text())["net"] == net.architecture
    assert all(row.error is not None and row.error < 1e-4 for row in rows)
    with torch.no_grad():
        mean = net.encode(clip).mean
    pieces = list(clip.split([1, 4, 4], dim=2))
    got = _stream(tmp_path / "out", "encode", pieces, [])
    assert (got - mean).abs().max() < 1e-4 * mean.abs().max()
    noise = torch.randn(1, 3, *SIZE) if "noise" in rows[2].inputs else torch.empty(0)
    whole: Any = net._decode(mean, None, steps=1, noise=lambda *_: noise)
    drawn = list(noise.split([1, 4, 4], dim=2)) if len(noise) else []
    back = _stream(tmp_path / "out", "decode", list(mean.split(1, dim=2)), drawn)
    assert back.shape == whole.shape
    assert (back - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_every_net_under_onnxruntime(name: str, tmp_path: Path) -> None:
    rows = write(graphs(make(name), size=SIZE), tmp_path / "whole")
    rows += write(graphs(make(name), size=SIZE, chunk=2, steps=2), tmp_path / "steps")
    assert all(row.error is not None and row.error < 1e-4 for row in rows)


def test_noise_is_an_input_and_counts() -> None:
    _, decode = graphs(make("cdt_tiny"), size=SIZE, steps=2)
    latents, noise = decode.inputs.values()
    assert noise.shape == (1, 3, *SIZE)
    (a,), (b,) = decode.module(latents, noise), decode.module(latents, -noise)
    assert (a - b).abs().max() > 1e-3


def test_mistakes_get_a_sentence_and_leave_nothing(tmp_path: Path) -> None:
    net = make("pca")
    out = tmp_path / "out"
    for arguments, said in (
        ({"size": (8, 16, 24)}, "1 \\+ k \\* 4 frames .* such as 9x16x24"),
        ({"size": (9, 15, 24)}, "size 9x15x24"),
        ({"size": SIZE, "steps": 0}, "steps = 0"),
        ({"size": SIZE, "chunk": 0}, "chunk = 0"),
    ):
        with pytest.raises(UserError, match=said):
            graphs(net, **arguments)  # type: ignore[arg-type]
    net.streams = False
    with pytest.raises(UserError, match="can't stream"):
        graphs(net, size=SIZE, chunk=1)
    with pytest.raises(UserError, match="unknown format 'pickle'"):
        write(graphs(net, size=SIZE), out, format="pickle")
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with pytest.raises(UserError, match="exists"):
        write(graphs(net, size=SIZE), out, format="torch")
    assert not list(out.iterdir())


def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("pca").save_pretrained(tmp_path / "net")
    call = [f"dir:{tmp_path / 'net'}", "--size", "9x16x24", "--format", "torch", "-o"]
    assert command.main([*call, str(tmp_path / "out")]) == 0
    assert "decode.pt2: largest difference" in capsys.readouterr().out
    table = json.loads((tmp_path / "out" / "graphs.json").read_text())
    assert table["graphs"][1]["inputs"] == {"latents": [1, 5, 3, 2, 3]}
    with pytest.raises(UserError, match="17x128x128"):
        command.main([*call, str(tmp_path / "other"), "--size", "9x16"])
    monkeypatch.setattr(command, "LIMIT", -1.0)
    with pytest.raises(RunError, match="differs from its net"):
        command.main([*call, str(tmp_path / "third")])


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_the_halves_of_a_unet(format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create("tiue_tiny").eval()
    assert isinstance(net, TiUEUNet)
    encode, decode = unet_graphs(net, size=(16, 12), batch=2, steps=3, tokens=5)
    rows = write([encode, decode], tmp_path / "out", format=format)
    assert all(row.error is not None and row.error < 1e-4 for row in rows)
    x, times, text = encode.inputs.values()
    with torch.no_grad():
        features = encode.module(x, times, text)
        (made,) = decode.module(*features, torch.tensor([999, 999, 500, 500, 1, 1]), text)
        for index, step in enumerate((999, 500, 1)):
            plain = net.decode(net.encode(x, times, text), torch.full((2,), step), text)
            assert torch.allclose(made[2 * index : 2 * index + 2], plain, atol=1e-5)
    with pytest.raises(UserError, match="steps = 0"):
        unet_graphs(net, size=(16, 16), steps=0)


def test_only_tokenizers_and_unets_become_graphs(tmp_path: Path) -> None:
    net: Any = create("video_dit_tiny")
    assert not isinstance(net, Tokenizer)
    net.save_pretrained(tmp_path / "net")
    with pytest.raises(UserError, match="of tokenizers and UNets"):
        command.main([f"dir:{tmp_path / 'net'}", "-o", str(tmp_path / "out")])
