"""Models from the hub, by a server on this machine: pinned, checked, whole; every way to fail."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

import zoo
from tests.fake_hub import COMMIT, FakeHub, fake_hub
from zoo.cli import info as info_command
from zoo.cli import pull, push
from zoo.errors import Unavailable, UserError
from zoo.nets.pretrained import Pretrained
from zoo.remote import parse_source, sha256


def card(folder: Path, **changes: Any) -> None:
    """A card and metrics as a shipped folder has them."""
    text = {
        "licence": "Apache-2.0",
        "metrics": {"psnr": 28.5},
        "sha256": sha256(folder / "model.safetensors"),
    }
    (folder / "metrics.json").write_text(json.dumps(text | changes))
    (folder / "README.md").write_text("# net\n")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    net = zoo.create("klvae_video_tiny")
    assert isinstance(net, Pretrained)
    net.half().save_pretrained(tmp_path / "repo")
    card(tmp_path / "repo")
    return tmp_path / "repo"


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(model) as server:
        whole = huggingface_hub.hf_hub_download

        def download(repo: str, name: str, **options: Any) -> str:
            options |= {"endpoint": server.address, "cache_dir": tmp_path / "cache"}
            return str(whole(repo, name, **options))

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        yield server


def test_fetches_once_from_one_commit_and_then_needs_no_network(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = zoo.load("hf:org/net@v1")
    want = zoo.load(f"dir:{hub.folder}").state_dict()
    assert not net.training
    assert all(torch.equal(v, want[k]) for k, v in net.state_dict().items())
    assert sorted(hub.gets) == ["README.md", "config.json", "metrics.json", "model.safetensors"]
    zoo.load("hf:org/net", revision=COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    zoo.load(f"hf:org/net@{COMMIT}")
    assert isinstance(Pretrained.from_pretrained("hf:org/net@v1"), type(net))
    assert len(hub.gets) == 4


def test_other_bytes_than_the_hub_states_are_refused(hub: FakeHub) -> None:
    data = bytearray((hub.folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    hub.changed["model.safetensors"] = bytes(data)
    with pytest.raises(UserError, match=r"not the file that the hub states for hf:org/net"):
        zoo.load("hf:org/net")


def test_a_half_download_is_never_used(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut.add("model.safetensors")
    with pytest.raises(Unavailable, match=r"can't fetch model\.safetensors of hf:org/net \("):
        zoo.load("hf:org/net")
    assert not list((tmp_path / "cache").rglob("snapshots/*/model.safetensors"))
    hub.cut.clear()
    zoo.load("hf:org/net")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:org/other", "no such repository"),
        ("hf:org/net@v9", "no such revision"),
        ("hf:../net", "is no repository"),
        ("hf:https://example.com/org/net", "is no repository"),
        ("hf:org/net/deep", "is no repository"),
        ("hf:org/..", "is no repository"),
        ("../net", "is no name of a model"),
        ("a/b", "is no name of a model"),
        ("https://example.com/x", "is no name of a model"),
    ],
)
def test_bad_names(hub: FakeHub, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        zoo.load(name)
    assert not hub.gets


def test_repositories_without_config_or_safetensors(hub: FakeHub) -> None:
    (hub.folder / "model.safetensors").rename(hub.folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        zoo.load("hf:org/net")
    (hub.folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"can't|has no config\.json"):
        zoo.load("hf:org/net@main")


def test_no_network_read_only_cache_and_full_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    for error, said in (
        (LocalEntryNotFoundError("no route"), "no network, or HF_HUB_OFFLINE is set"),
        (PermissionError(errno.EROFS, "Read-only", "/cache"), r"can't be written \(/cache\)"),
        (OSError(errno.ENOSPC, "No space"), "the disk is full"),
    ):

        def fail(*_: object, error: OSError = error, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        with pytest.raises(UserError, match=said):
            zoo.load("hf:org/net")


def test_revisions() -> None:
    assert parse_source("org/net", "v1") == parse_source("org/net@v1") == ("org/net", "v1")
    with pytest.raises(UserError, match="differ"):
        parse_source("org/net@v1", "v2")
    with pytest.raises(UserError, match="has no revisions"):
        zoo.load("dir:somewhere", revision="v1")


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch BOOM",)


def test_tampered_weights_pickles_and_other_configs(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    weights, config = model / "model.safetensors", model / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"has sha256 \w+, not \w+ as metrics\.json"):
        zoo.load(f"dir:{model}")
    weights.write_bytes(pickle.dumps(Boom()))
    card(model)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        zoo.load(f"dir:{model}")
    assert not (model / "BOOM").exists()
    weights.write_bytes(whole)
    card(model)
    text = json.loads(config.read_text())
    text["config"]["new_setting"] = 3
    config.write_text(json.dumps(text))
    with pytest.raises(UserError, match="unknown key 'new_setting'"):
        zoo.load(f"dir:{model}")


def test_push_needs_licence_metrics_and_their_own_weights(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[list[str]] = []

    class Api:
        def create_repo(self, repo: str, **_: Any) -> None:
            assert repo == "org/net"

        def upload_folder(self, *, folder_path: Path, **_: Any) -> SimpleNamespace:
            sent.append(sorted(p.name for p in folder_path.iterdir()))
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    net = zoo.load(f"dir:{model}", dtype=torch.float16)  # as stored
    assert isinstance(net, Pretrained)
    assert net.push_to_hub("org/net", card=model) == "https://hub/commit/1"
    assert push.main([f"dir:{model}", "org/net"]) == 0
    assert capsys.readouterr().out == "https://hub/commit/1\n"
    assert sent == [["README.md", "config.json", "metrics.json", "model.safetensors"]] * 2
    for missing in ("licence", "metrics"):
        card(model, **{missing: None})
        with pytest.raises(UserError, match=f"has no '{missing}'"):
            net.push_to_hub("org/net", card=model)
    card(model)
    with torch.no_grad():
        next(net.parameters()).add_(1)
    with pytest.raises(UserError, match="has sha256"):
        net.push_to_hub("org/net", card=model)
    (model / "README.md").unlink()
    with pytest.raises(UserError, match=r"has no README\.md"):
        push.main([f"dir:{model}", "org/net"])
    with pytest.raises(UserError, match="no repository to push to"):
        push.main([f"dir:{model}", "org/net@v1"])
    assert len(sent) == 2


def test_info_and_pull(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info_command.main(["klvae_video_tiny"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "kl_vae"
    out = tmp_path / "copy"
    assert pull.main([f"dir:{model}", "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in model.iterdir())
    with pytest.raises(UserError, match="exists"):
        pull.main([f"dir:{model}", "-o", str(out)])


def test_two_processes_load_at_once(model: Path, tmp_path: Path) -> None:
    with fake_hub(model) as server:
        code = "import zoo; print(zoo.load('hf:org/net@v1').latent_channels)"
        env = os.environ | {
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(tmp_path / "hf"),
            "PYTHONPATH": str(Path(zoo.__file__).parents[1]),
        }
        both = [
            subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        said = [process.communicate(timeout=120)[0].split() for process in both]
        assert said == [[b"16"], [b"16"]]
        assert server.gets.count("model.safetensors") == 1
