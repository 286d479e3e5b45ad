"""Start weights from another net: strict, or with every skipped key listed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo
from zoo.cli.train import free_folder, init_from
from zoo.cli.train_parser import explain
from zoo.errors import UserError


def test_init_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"context_dim": 8, "unet_dim": 8}
    given = zoo.create("cdt_tiny", **small)
    given.save_pretrained(tmp_path)
    name = f"dir:{tmp_path}"

    same = zoo.create("cdt_tiny", **small)
    assert init_from(same, name, strict=True) == []
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in given.state_dict().items())

    vae = zoo.create("klvae_video_tiny", context_dim=8)
    with pytest.raises(UserError, match=r"doesn't fit this net: body.*--init_strict false"):
        init_from(vae, name, strict=True)
    skipped = init_from(vae, name, strict=False)
    assert any(line.startswith("unet.") and "not in this net" in line for line in skipped)
    assert any(line.startswith("body.") and "missing" in line for line in skipped)
    assert not any(line.startswith("encoder.") for line in skipped)
    key = "encoder.stages.0.block.block1.space.weight"
    assert torch.equal(vae.state_dict()[key], given.state_dict()[key])


def test_a_run_never_takes_a_used_folder(tmp_path: Path) -> None:
    assert free_folder(tmp_path / "run") == tmp_path / "run"
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert free_folder(tmp_path / "run") == tmp_path / "run-3"


def test_unknown_keys_are_named_with_the_closest() -> None:
    known = ["trainer.max_steps", "trainer.max_time", "data.batch_size"]
    said = explain("unrecognized arguments: --trainer.max_stepz=5", known)
    assert said == "unknown key 'trainer.max_stepz': did you mean 'trainer.max_steps'?"
    assert "data.batch_size" in explain('Key "data.batchsize" is not expected', known)
    # as jsonargparse says it of a YAML file, of an option and of a class's setting
    said = explain("Subcommand 'fit' does not accept option 'trainer.max_tim'", known)
    assert "did you mean 'trainer.max_time'" in said
    nested = "Parser key \"model.net\":\n  Option 'context_dimm' is not accepted"
    assert "did you mean 'context_dim'" in explain(nested, [*known, "context_dim"])
