"""Networks whose features are compared: each is found, fetched, or not measured for a reason.

A distance is named after its network. None ever stands in for another.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.assets import cache_root, fetch
from zoo.data.transforms import to_uint8
from zoo.errors import UserError
from zoo.metrics.reconstruction import frames_of
from zoo.nets.pickles import load_pickle

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)
I3D_FILE = "i3d_torchscript.pt"
FRAME_STEP = 4  # image networks see every fourth frame of a clip: neighbours are near copies


@dataclass(frozen=True)
class FeatureNet:
    """A loaded network.

    Attributes:
        name: what a Frechet distance of its features is called.
        kid_name: what a kernel distance of them is called.
        dimensions: D.
        version: sha256 of its weights, shortened.
        video: whether a clip is one sample; else each of its frames seen is.
    """

    name: str
    kid_name: str
    dimensions: int
    version: str
    video: bool
    run: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features [N,D] of clips [B,3,T,H,W] in [-1,1], rounded to 8 bits."""
        clips = to_uint8(x)
        seen = clips if self.video else frames_of(clips[:, :, ::FRAME_STEP])
        return self.run(seen).float().cpu()


def load_networks(
    device: torch.device | str = "cpu", *, video: bool
) -> tuple[list[FeatureNet], dict[str, str]]:
    """All networks that can be had, and for the others the reason by name.

    Args:
        device: where they run.
        video: whether clips have several frames; video networks are left out otherwise.
    """
    loaders: dict[str, Callable[[torch.device | str], FeatureNet]] = {
        "rFID": load_inception,
        "FD-MobileNetV2": load_mobilenet,
    }
    if video:
        loaders |= {"FVD": load_i3d, "FVD-TransNetV2": load_transnet}
    found, missing = [], {}
    for name, load in loaders.items():
        try:
            found.append(load(device))
        except UserError as error:
            missing[name] = str(error)
    return found, missing


def load_mobilenet(device: torch.device | str = "cpu") -> FeatureNet:
    """MobileNetV2's pooled features, 1280 of each frame at 224x224 (bilinear, antialiased)."""
    from torchvision.models import mobilenet_v2

    path = fetch("mobilenet_v2.pth")
    net = mobilenet_v2()
    net.load_state_dict(load_pickle(path))
    trunk = net.features.eval().requires_grad_(False).to(device)
    mean, std = (
        torch.tensor(v, device=device).view(3, 1, 1)
        for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def run(frames: Tensor) -> Tensor:
        x = _resize(frames.to(device), (224, 224)) / 255
        result: Tensor = trunk((x - mean) / std).mean(dim=(2, 3))
        return result

    return FeatureNet(
        "FD-MobileNetV2", "KID-MobileNetV2", 1280, _version(path), video=False, run=run
    )


def load_transnet(device: torch.device | str = "cpu") -> FeatureNet:
    """TransNetV2's last stack, averaged: 256 of each clip at 27x48 (bilinear, antialiased)."""
    from zoo.metrics.transnet import DIMENSIONS, SIZE, TransNetTrunk

    path = fetch("transnetv2.pth")
    net = TransNetTrunk()
    net.load_published(load_pickle(path))
    net.eval().requires_grad_(False).to(device)

    def run(clips: Tensor) -> Tensor:
        small = _resize(frames_of(clips.to(device)), SIZE).round()
        result: Tensor = net(small.view(len(clips), -1, 3, *SIZE).movedim(1, 2))
        return result

    return FeatureNet(
        "FVD-TransNetV2", "KVD-TransNetV2", DIMENSIONS, _version(path), video=True, run=run
    )


def load_inception(
    device: torch.device | str = "cpu", *, path: Path | None = None, layer: str = "2048"
) -> FeatureNet:
    """The Inception of FID as torch-fidelity has it, its TensorFlow-1 resize to 299 included.

    Args:
        device: where it runs.
        path: weights; None: the usual file, fetched into the cache.
        layer: torch-fidelity's name of the features.

    Raises:
        UserError: torch-fidelity or its weights can't be had.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError("torch-fidelity isn't installed: pip install torch-fidelity") from error
    path = _inception_file() if path is None else path
    try:
        # torch-fidelity unpickles the file without limits: let only tensors through
        load_pickle(path)
    except UserError as error:
        raise UserError(f"{path} holds no Inception weights ({error})") from error
    net: nn.Module = FeatureExtractorInceptionV3(
        "inception-v3-compat", [layer], feature_extractor_weights_path=str(path)
    )
    net = net.to(device)

    def run(frames: Tensor) -> Tensor:
        result: Tensor = net(frames.to(device))[0]
        return result

    return FeatureNet("rFID", "KID", int(layer), _version(path), video=False, run=run)


def load_i3d(device: torch.device | str = "cpu") -> FeatureNet:
    """The I3D of FVD: StyleGAN-V's TorchScript file, which the user brings.

    Raises:
        UserError: it isn't in the cache.
    """
    path = cache_root() / "assets" / I3D_FILE
    if not path.is_file():
        raise UserError(f"no package has I3D's weights: put {I3D_FILE} of StyleGAN-V at {path}")
    try:
        net = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise UserError(f"{path} is no TorchScript file: fetch it anew") from error

    def run(clips: Tensor) -> Tensor:
        result: Tensor = net(
            clips.to(device).float(), rescale=True, resize=True, return_features=True
        )
        return result

    return FeatureNet("FVD", "KVD", 400, _version(path), video=True, run=run)


def _inception_file() -> Path:
    """FID's weights: in our cache or torch's, else fetched; known by the hash in their name."""
    path = cache_root() / "assets" / INCEPTION_FILE
    for place in (path, Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE):
        if place.is_file():
            return place
    for variable in ("ZOO_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}:
            raise UserError(f"{INCEPTION_FILE} isn't at {path} and {variable} forbids fetching it")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(INCEPTION_URL, timeout=20) as answer, part.open("wb") as out:
            while chunk := answer.read(1 << 20):
                out.write(chunk)
        if not _version(part).startswith("6726825d"):
            raise UserError(f"{INCEPTION_URL} sent another file: put the right one at {path}")
        os.replace(part, path)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"no package has FID's Inception and {INCEPTION_URL} gave no answer ({reason}): "
            f"put it at {path}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _version(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(
        frames.float(), size=size, mode="bilinear", antialias=True, align_corners=False
    )
