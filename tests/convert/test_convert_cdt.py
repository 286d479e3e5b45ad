"""The released CDT: its keys, its numbers, and checkpoints that are not one."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from tests.scripts.cdt_reference import (
    DATA,
    NOISE_SEED,
    SETTINGS,
    golden_noise,
    golden_video,
    seeded,
)
from zoo.convert.cdt import (
    from_reference,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    to_reference,
)
from zoo.errors import UserError
from zoo.nets.cdt import CDT, CDTConfig

FULL = {"cdt_base": 192_592_755, "cdt_small": 120_672_838}


def narrow(name: str) -> CDT:
    """Our twin of a narrow reference net, with the same seeded weights."""
    settings = SETTINGS[name]
    base = settings.get("new_upsample", False)
    net = CDT(
        CDTConfig(
            latent_channels=settings["latent_dim"],
            context_dim=settings["context_dim"],
            context_channels=settings["out_channels"],
            space_down=tuple(settings["space_down"]),
            padding="zeros" if base else "replicate",
            upsampling="nearest" if base else "transposed",
            unet_dim=settings["unet_dim"],
        )
    )
    weights = {k: seeded(k, tuple(v.shape)) for k, v in to_reference(net).items()}
    from_reference(net, weights)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("name", FULL)
def test_cdt_keys_and_shapes_are_the_released_ones(name: str) -> None:
    with torch.device("meta"):
        net = zoo.create(name)
    assert isinstance(net, CDT)
    assert sum(p.numel() for p in net.parameters()) == FULL[name]
    assert net.compression == (4, 8, 8)
    ours = {key: list(tensor.shape) for key, tensor in to_reference(net).items()}
    theirs = json.loads(gzip.decompress((DATA / f"{name}.keys.json.gz").read_bytes()))
    assert ours == theirs


@pytest.mark.parametrize("name", ["narrow_base", "narrow_small"])
def test_cdt_golden_numbers_of_the_released_code(name: str) -> None:
    net = narrow(name)
    golden = {k: torch.from_numpy(v) for k, v in np.load(DATA / f"{name}.npz").items()}
    posterior = net.encode(golden_video())

    def close(ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()

    close(posterior.mean, golden["mean"])
    assert posterior.logvar is not None
    close(posterior.logvar, golden["logvar"].clamp(-30, 20))
    for steps in (1, 4):
        generator = torch.Generator().manual_seed(NOISE_SEED)
        close(
            net.decode(golden["mean"], steps=steps, generator=generator), golden[f"decode{steps}"]
        )
    assert not torch.allclose(golden["decode1"], golden["decode4"], atol=1e-2)
    assert golden_noise().shape == golden["decode1"].shape


def test_goldens_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 200_000


@pytest.mark.parametrize("wrapper", [(), ("state_dict",), ("state_dict", "module"), ("module",)])
def test_convert_cdt_both_ways(
    wrapper: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = narrow("narrow_small")
    content: object = dict(to_reference(net))
    for name in reversed(wrapper):
        content = {name: content}
    torch.save(content, tmp_path / "theirs.ckpt")
    tensors = read_checkpoint(tmp_path / "theirs.ckpt")
    again = CDT(net.config)
    from_reference(again, tensors)
    state = net.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    save_checkpoint(again, tmp_path / "back.ckpt")
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[k], tensors[k]) for k in tensors)
    assert torch.allclose(again.latent_std, torch.tensor(1 / 1.3))


class Evil:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, (f"open({str(self.path)!r}, 'w').write('ran')",))


def test_convert_cdt_says_what_is_wrong(tmp_path: Path) -> None:
    good = {k: v.half() for k, v in to_reference(narrow("narrow_small")).items()}
    key = "model.denoise_fn.final_conv.1.bias"

    def refused(name: str, content: object, said: str) -> None:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(UserError, match=said) as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)

    with pytest.raises(UserError, match="there is no file"):
        load_checkpoint(tmp_path / "none.ckpt")
    refused("width.ckpt", good, r"fits neither cdt_base nor cdt_small.*is \(\d.*and \d+ more")
    refused("other.ckpt", {"decoder.conv.weight": torch.zeros(1)}, "holds no CDT.*decoder.conv")
    refused("list.ckpt", [torch.zeros(1)], "holds no dict of weights")
    refused("text.ckpt", good | {key: "text"}, f"something other than a tensor at {key}")
    refused("garbage.ckpt", b"this is no pickle", "not a whole checkpoint")
    refused("empty.ckpt", b"", "not a whole checkpoint")
    buffer = io.BytesIO()
    torch.save(good, buffer)
    whole = buffer.getvalue()
    for share in (0.1, 0.5, 0.99):
        refused(f"cut{share}.ckpt", whole[: int(share * len(whole))], "not a whole checkpoint")
    ran = tmp_path / "ran"
    refused("evil.ckpt", good | {"x": Evil(ran)}, r"asks for [\w.]*exec.*do not trust it")
    refused("old_evil.ckpt", pickle.dumps(Evil(ran), protocol=2), "do not trust it")
    assert not ran.exists()
    assert zipfile.is_zipfile(tmp_path / "evil.ckpt")


def test_convert_cdt_names_missing_and_unexpected_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = narrow("narrow_small")
    monkeypatch.setattr("zoo.convert.cdt.PRESETS", ("narrow",))
    monkeypatch.setattr("zoo.convert.cdt._on_meta", lambda _: CDT(net.config))
    good = to_reference(net)
    torch.save({"state_dict": good}, tmp_path / "good.ckpt")
    name, loaded = load_checkpoint(tmp_path / "good.ckpt")
    assert name == "narrow"
    assert not loaded.training
    key = "model.denoise_fn.final_conv.1.bias"
    torch.save({k: v for k, v in good.items() if k != key}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=f"missing {key}$"):
        load_checkpoint(tmp_path / "a.ckpt")
    torch.save(good | {"loss.vgg.weight": torch.zeros(3)}, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match=r"unexpected loss\.vgg\.weight; --ignore"):
        load_checkpoint(tmp_path / "b.ckpt")
    assert load_checkpoint(tmp_path / "b.ckpt", ignore=["loss.*"])[0] == "narrow"
    with pytest.raises(UserError, match=r"no place for block = 'light', patch = 4, pca = True"):
        to_reference(zoo.create("cdt_tiny"))
