"""Small films, models and a cache of its own; no network is asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from zoo.data.video import VideoWriter

MODEL = '''
import torch

class Half(torch.nn.Module):
    """Half the size and back, with a little noise."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.noise = noise

    def encode(self, x):
        return torch.nn.functional.avg_pool3d(x, (1, 2, 2))

    def decode(self, z, generator=None):
        y = torch.nn.functional.interpolate(z, scale_factor=(1.0, 2.0, 2.0))
        return y + self.noise * torch.randn(y.shape, generator=generator)

def build():
    return Half()

def noisy():
    return Half(0.05)

class Breaks(Half):
    def encode(self, x):
        raise RuntimeError("sizes must be multiples of 32")

def breaks():
    return Breaks()

class Stops(Half):
    calls = 0

    def encode(self, x):
        Stops.calls += 1
        if Stops.calls > 3:
            raise KeyboardInterrupt
        return super().encode(x)

def stops():
    return Stops()
'''


def write_film(
    path: Path, *, frames: int, width: int = 40, height: int = 32, speed: int = 3
) -> Path:
    """A film of a moving wave."""
    y, x = np.mgrid[:height, :width]
    with VideoWriter(path, width=width, height=height, rate=Fraction(30)) as writer:
        for t in range(frames):
            wave = 128 + 80 * np.sin((x + y + speed * t) / 6)
            writer.write(np.stack([wave, wave[::-1], 255 - wave], -1).astype("u1"))
    return path


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two films of 13 and 9 frames, and models beside it."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "a.mp4", frames=13)
    write_film(folder / "b.mp4", frames=9, speed=5)
    (tmp_path / "half.py").write_text(MODEL)
    return folder
