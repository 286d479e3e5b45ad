"""LPIPS backbones are read without trusting the file."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.objectives.backbones import load_lpips_backbone


def _network() -> dict[str, Any]:
    random_ = np.random.default_rng(0)

    def layer(i: int) -> dict[str, Any]:
        kernel = random_.standard_normal((3, 2, 4 + i, 5)).astype(np.float32)
        return {"kernel": kernel, "bias": np.arange(5, dtype=np.float32)}

    return {"AlexNet_0": {f"Conv_{i}": layer(i) for i in range(5)}, "NetLinLayer_0": {}}


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_loads_a_backbone(module: bytes, tmp_path: Path) -> None:
    network = _network()
    data = pickle.dumps(network, protocol=3)
    data = data.replace(b"numpy._core.multiarray", module)
    assert module in data
    (tmp_path / "a.ckpt").write_bytes(data)
    found = load_lpips_backbone("alexnet", tmp_path / "a.ckpt")
    assert list(found) == [f"{i}.{kind}" for i in range(5) for kind in ("weight", "bias")]
    kernel = network["AlexNet_0"]["Conv_2"]["kernel"]  # height, width, in, out
    assert found["2.weight"].shape == (5, 6, 3, 2)
    assert found["2.weight"].flags.c_contiguous
    assert found["2.weight"][4, 5, 2, 1] == kernel[2, 1, 5, 4]
    assert found["2.bias"].tolist() == [0, 1, 2, 3, 4]


class Evil:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("how", ["posix.system", "builtins.eval", "numpy.fromfile"])
def test_a_malicious_pickle_runs_nothing(how: str, tmp_path: Path) -> None:
    network, mark = _network(), tmp_path / "mark"
    evil = {
        "posix.system": Evil(os.system, f"touch {mark}"),
        "builtins.eval": Evil(eval, f"open({str(mark)!r}, 'w')"),
        "numpy.fromfile": Evil(np.fromfile, str(tmp_path / "a.ckpt"), np.uint8),
    }[how]
    network["AlexNet_0"]["Conv_4"]["extra"] = evil
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(network))
    with pytest.raises(UserError, match=re.escape(f"asks for {how}")):
        load_lpips_backbone("alexnet", tmp_path / "a.ckpt")
    assert not mark.exists()


@pytest.mark.parametrize(
    "fault", ["truncated", "no pickle", "other net", "shape", "type", "absent"]
)
def test_a_useless_backbone_file(fault: str, tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "a.ckpt"
    layer = network["AlexNet_0"]["Conv_1"]
    if fault == "shape":
        layer["bias"] = layer["bias"][:4]
    if fault == "type":
        layer["kernel"] = layer["kernel"].astype(object)
    data = pickle.dumps(network, protocol=3)
    data = {"truncated": data[:-200], "no pickle": b"<html>"}.get(fault, data)
    if fault != "absent":
        path.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_lpips_backbone("vgg16" if fault == "other net" else "alexnet", path)
