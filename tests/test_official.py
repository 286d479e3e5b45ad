"""Released weights by name: fetched once, converted once, remembered; and every way to fail."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import zoo
from tests.cli.test_tools import tool
from tests.scripts.cdt_reference import seeded
from zoo.cli.convert import main
from zoo.convert import cdt
from zoo.convert.cdt import save_checkpoint, to_reference
from zoo.errors import UserError
from zoo.nets.cdt import CDT, CDTConfig


def narrow() -> CDT:
    """A net of the published structure that is quick to save."""
    config = CDTConfig(context_dim=4, unet_dim=4, latent_channels=3)
    net = CDT(config)
    weights = {k: seeded(k, tuple(v.shape)) for k, v in to_reference(net).items()}
    cdt.from_reference(net, weights)
    return net


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that serves one narrow checkpoint, and a registry whose cdt_base is as narrow."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "snapshots" / "abc123" / "cdt_base.ckpt"
    save_checkpoint(narrow(), file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    monkeypatch.setattr(cdt, "PRESETS", ("cdt_base",))
    monkeypatch.setattr(cdt, "_on_meta", lambda _: narrow())
    return file


def test_official_weights_are_converted_once(
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="zoo"):
        net = zoo.load("cdt_base.official")
    assert isinstance(net, CDT)
    assert any("abc123" in m and "trusted on first use" in m for m in caplog.messages)
    want = narrow().state_dict()
    assert all(torch.equal(v, want[k]) for k, v in net.state_dict().items())
    models = tmp_path / "cache" / "models"
    assert sorted(p.name for p in models.iterdir()) == [
        "cdt_base.official",
        "cdt_base.official.source.json",
    ]
    assert json.loads((models / "cdt_base.official.source.json").read_text())["file"] == (
        "cdt_base.ckpt"
    )
    hub.unlink()
    zoo.load("cdt_base.official")  # from the cache

    (models / "cdt_base.official" / "config.json").unlink()
    other = narrow()
    with torch.no_grad():
        other.unet.head.bias.add_(1)
    save_checkpoint(other, hub)
    with pytest.raises(UserError, match=r"has sha256 \w+, not \w+ as first seen"):
        zoo.load("cdt_base.official")
    hub.write_bytes(hub.read_bytes()[:1000])
    memo = models / "cdt_base.official.source.json"
    memo.unlink()
    with pytest.raises(UserError, match="not a whole checkpoint"):
        zoo.load("cdt_base.official")
    assert not memo.exists()  # the next file isn't held to the one that broke off
    memo.write_text("{")
    with pytest.raises(UserError, match=r"source\.json can't be read \(JSONDecodeError.*delete it"):
        zoo.load("cdt_base.official")


def _client_error() -> Exception:
    """What the hub's HTTP client raises when a connection breaks."""
    from huggingface_hub.errors import HfHubHTTPError

    kind: type[Exception] = HfHubHTTPError.__bases__[0]
    return kind("peer closed connection without sending complete message body")


def _missing() -> Exception:
    from huggingface_hub import errors

    client = sys.modules[errors.Response.__module__.partition(".")[0]]
    response = client.Response(404, request=client.Request("GET", "https://huggingface.co"))
    return errors.RemoteEntryNotFoundError("404 Client Error", response=response)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (_client_error, "peer closed connection.*try again later"),
        (lambda: OSError("Consistency check failed: size 1, not 2"), "Consistency check failed"),
        (lambda: RuntimeError("Data processing error: CAS service error"), "CAS service error"),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), "the disk is full, free space"),
        (lambda: PermissionError(13, "denied", "/hub"), r"can't be written \(/hub\), set HF_HOME"),
        (_missing, "the repository has no such file"),
    ],
    ids=["broken off", "too short", "storage", "full disk", "read-only", "no such file"],
)
@pytest.mark.parametrize("name", ["cdt_base.official", "wan21_vae.official"])
def test_a_download_that_fails_is_one_sentence(
    name: str,
    raised: Callable[[], Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise raised()

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(UserError, match=f"can't fetch .*huggingface.*{said}") as refused:
        zoo.load(name)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_the_hubs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache links to blobs named by the sha256 that the hub states."""
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / hashlib.sha256(b"whole").hexdigest()
    blob.write_bytes(b"who")
    link = tmp_path / "snapshots" / "abc123" / "cdt_base.ckpt"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(link))
    with pytest.raises(UserError, match=r"is not the file that the hub states for .*remove it"):
        zoo.load("cdt_base.official")
    assert not (tmp_path / "cache").exists()


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no route")

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"can't fetch yangnianzu/CDT/cdt_small\.ckpt.*no network"):
        zoo.load("cdt_small.official")
    assert not list(tmp_path.iterdir())


def test_official_names_are_listed() -> None:
    assert {"cdt_base.official", "cdt_small.official"} <= set(
        zoo.list_models("cdt*", pretrained=True)
    )
    assert "yangnianzu/CDT" in zoo.info("cdt_base.official").source
    with pytest.raises(UserError, match=r"its trained weights: cdt_base\.official"):
        zoo.load("cdt_base")


def test_convert_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = narrow()
    net.save_pretrained(tmp_path / "model")
    back = ("--family", "cdt", "--back", "-o", "theirs.ckpt")
    done = tool(tmp_path, "convert", "dir:model", *back)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "theirs.ckpt"
    tensors = cdt.read_checkpoint(tmp_path / "theirs.ckpt")
    assert all(torch.equal(v, tensors[k]) for k, v in to_reference(net).items())

    monkeypatch.chdir(tmp_path)
    out = ["--family", "cdt", "-o", "out"]
    for arguments, said in (
        (["theirs.ckpt", *out], "fits neither cdt_base nor"),
        (["none.ckpt", *out], "there is no file none.ckpt"),
        (["theirs.ckpt", "--family", "cdt", "-o", "model"], "model holds a model already"),
        (["dir:model", *back], "theirs.ckpt exists"),
        (["theirs.ckpt", "--family", "cdtt", "-o", "out"], "'cdtt'"),
    ):
        with pytest.raises(UserError, match=said):
            main(arguments)
    assert not (tmp_path / "out").exists()
