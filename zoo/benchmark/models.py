"""What is scored: anything that encodes and decodes, and the trivial codes beside it."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zoo.errors import RunError, UserError
from zoo.hub import find_folder, load
from zoo.metrics.evaluation import average_pool
from zoo.nets.foreign.folder import holds_foreign
from zoo.nets.pca import BlockPCA, PCAConfig
from zoo.nets.pretrained import CONFIG_FILE, WEIGHTS_FILE

PCA_FILE = Path(__file__).with_name("pca.safetensors")
BLOCK = (4, 8, 8)


@dataclass
class Candidate:
    """A row of the table before it is measured.

    Attributes:
        label: its name in the table, unique.
        source: what the user gave.
        fingerprint: of its weights: rows of other weights are another model's.
        build: makes the object; called once and only if something is left to measure.
        baseline: one of the trivial codes.
        steps: sampling steps of a diffusion decoder.
    """

    label: str
    source: str
    fingerprint: str
    build: Callable[[], Any]
    baseline: bool = False
    steps: int = 1


class Coder:
    """A candidate's object behind one interface, whatever of it it implements.

    `encode(x)` gets [B,3,T,H,W] in [-1,1] and may return the latents, or an object with them as
    `.mean`, `.latent_dist` or `.latents`; `decode(z)` may take any of `size`, `steps` and
    `generator` and may return the pixels or an object with them as `.sample`.
    """

    def __init__(self, label: str, model: Any) -> None:
        self.label = label
        self.model = model
        for name in ("encode", "decode"):
            if not callable(getattr(model, name, None)):
                raise UserError(f"{label} has no {name}(): give an object with encode and decode")
        parameters = inspect.signature(model.decode).parameters
        any_key = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes = {k for k in ("size", "steps", "generator") if any_key or k in parameters}

    @property
    def net(self) -> nn.Module | None:
        """The module with the parameters, if it is one."""
        return self.model if isinstance(self.model, nn.Module) else None

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents of clips."""
        z = self.model.encode(x)
        z = getattr(z, "latent_dist", z)
        for name in ("mean", "latents", "latent"):
            if not isinstance(z, Tensor):
                z = getattr(z, name, z)
        if not isinstance(z, Tensor):
            raise UserError(f"{self.label}: encode() gives a {type(z).__name__}, not latents")
        return z

    @torch.no_grad()
    def decode(
        self, z: Tensor, *, size: tuple[int, int, int], steps: int, generator: torch.Generator
    ) -> Tensor:
        """Pixels of latents, cropped to `size`."""
        given = {"size": size, "steps": steps, "generator": generator}
        y = self.model.decode(z, **{k: v for k, v in given.items() if k in self._takes})
        y = getattr(y, "sample", y)
        if not isinstance(y, Tensor) or y.ndim != 5:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise UserError(f"{self.label}: decode() gives {got}, not pixels [B,3,T,H,W]")
        if any(have < want for have, want in zip(y.shape[2:], size, strict=True)):
            raise UserError(
                f"{self.label}: {size} pixels (T,H,W) come back as {tuple(y.shape[2:])}"
            )
        return y[:, :, : size[0], : size[1], : size[2]]


def generator_for(key: str, seed: int) -> torch.Generator:
    """The noise of a clip: a function of its key and the seed, not of what ran before."""
    # torch's generator on a CPU looks at 32 bits only
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {key}".encode()))


class AveragePool:
    """The crudest code: the mean of each 8x8 block of each frame, bicubic back."""

    compression = (1, BLOCK[1], BLOCK[2])

    def encode(self, x: Tensor) -> Tensor:
        """Block means."""
        return average_pool(x, factor=BLOCK[1], upsample=False)

    def decode(self, z: Tensor, *, size: tuple[int, int, int]) -> Tensor:
        """Bicubic back to the size."""
        frames = z.movedim(2, 1).flatten(0, 1)
        back = nn.functional.interpolate(frames, size=size[1:], mode="bicubic", align_corners=False)
        return back.view(z.shape[0], z.shape[2], *back.shape[1:]).movedim(1, 2)


def frozen_pca(channels: int) -> BlockPCA:
    """The PCA that ships with the benchmark: the same for everybody, whatever the data."""
    net = BlockPCA(PCAConfig(latent_channels=channels, compression=BLOCK))
    for name, value in load_file(PCA_FILE).items():
        getattr(net, name).copy_(value[:channels] if name.endswith("basis") else value)
    return net.eval()


def baselines() -> list[Candidate]:
    """Average pool 8, PCA-8 and PCA-16: rows of every table."""
    frozen = hashlib.sha256(PCA_FILE.read_bytes()).hexdigest()[:16]
    rows = [Candidate("pool-8", "pool-8", "1", AveragePool, baseline=True)]
    for channels in (8, 16):
        build = partial(frozen_pca, channels)
        label = f"PCA-{channels}"
        rows.append(Candidate(label, label, frozen, build, baseline=True))
    return rows


def candidate(text: str, *, device: str) -> Candidate:
    """A model of the command line: a name of the zoo, dir:PATH, or FILE.py:FUNCTION.

    Raises:
        UserError: there is no such thing; nothing is loaded yet.
    """
    file, _, function = text.rpartition(":")
    if file.endswith(".py"):
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"there is no file {path}: give FILE.py:FUNCTION")
        digest = hashlib.sha256(path.read_bytes() + function.encode()).hexdigest()[:16]
        label = path.stem if function == "build" else f"{path.stem}.{function}"
        return Candidate(label, text, digest, partial(_call, path, function, device))
    if text.startswith("dir:"):
        folder = Path(text.removeprefix("dir:")).expanduser()
        label = folder.parent.name if folder.name == "export" else folder.name
    else:
        folder, label = find_folder(text), text  # refuses a preset, which has no weights
    weights = hashlib.sha256()
    for path in _model_files(folder):
        with path.open("rb") as opened:
            while piece := opened.read(1 << 24):
                weights.update(piece)
    build = partial(load, text, device=device)
    return Candidate(label or text, text, weights.hexdigest()[:16], build)


def _model_files(folder: Path) -> list[Path]:
    """Config and weights of a model folder, of the zoo's own or of a diffusers autoencoder."""
    config = folder / CONFIG_FILE
    names = [WEIGHTS_FILE]
    if holds_foreign(folder):
        names = sorted(p.name for p in folder.glob("diffusion_pytorch_model*.safetensors"))
    files = [config, *(folder / name for name in names)]
    if not names or not all(path.is_file() for path in files):
        raise UserError(f"{folder} is no model folder: it lacks {CONFIG_FILE} or {WEIGHTS_FILE}")
    return files


def candidates(texts: list[str], *, steps: int, device: str) -> list[Candidate]:
    """The baselines and the models, each with a label of its own.

    Raises:
        UserError: as `candidate`, or one is given twice.
    """
    rows, seen = baselines(), {"pool-8", "PCA-8", "PCA-16"}
    for text in texts:
        row = candidate(text, device=device)
        row.steps = steps
        if any(row.source == other.source for other in rows):
            raise UserError(f"{text} is given twice in --models")
        stem, number = row.label, 1
        while row.label in seen:
            number += 1
            row.label = f"{stem}-{number}"
        seen.add(row.label)
        rows.append(row)
    return rows


def _call(path: Path, function: str, device: str) -> Any:
    """What the user's function returns; its module is imported under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"_zoo_benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        build = getattr(module, function)
    except AttributeError as error:
        raise UserError(f"{path} has no function {function}") from error
    except Exception as error:  # the user's own code may raise anything
        raise RunError(f"{path} can't be imported ({type(error).__name__}: {error})") from error
    model = build()
    if isinstance(model, nn.Module):
        model = model.eval().to(device)
    return model
