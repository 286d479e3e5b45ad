"""Parked states are the same tensors, and take no memory while they wait."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from zoo.errors import RunError
from zoo.parking import park, unpark

CPU = torch.device("cpu")


def resident() -> float:
    """MB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def test_tensors_come_back_as_they_were() -> None:
    state = {
        "plain": torch.randn(2, 3, 2, 4, 5),
        "last": torch.randn(1, 6, 2, 4, 5).to(memory_format=torch.channels_last_3d),
        "half": torch.randn(1, 7, 2, 3, 3).bfloat16(),
        "empty": torch.zeros(2, 0),
        "size": torch.tensor([[3, 4]]),
    }
    parked = park(state)
    for got in (parked, unpark(parked, CPU), unpark(state, CPU), unpark(park(parked), CPU)):
        assert got.keys() == state.keys()
        for slot, tensor in state.items():
            assert torch.equal(got[slot], tensor)
            assert got[slot].dtype == tensor.dtype
            assert got[slot].stride() == tensor.stride()
    assert park({"empty": torch.zeros(2, 0)})["empty"].shape == (2, 0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_parked_states_take_no_memory() -> None:
    # in a process of its own: one that has trained keeps freed memory (kernels/allocator.py)
    subprocess.run(
        [sys.executable, "-c", "from tests.test_parking import parks; parks()"],
        check=True,
        cwd=Path(__file__).parents[1],
    )


def parks() -> None:
    """Park 400 MB and get them back, within 60 MB."""
    before = resident()
    parked = [park({"x": torch.full((25_000_000,), float(i))}) for i in range(4)]
    assert resident() - before < 60
    for i, state in enumerate(parked):
        assert unpark(state, CPU)["x"][-1] == i
    assert resident() - before < 60


def test_no_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(RunError, match="let TMPDIR name a folder"):
        park({"x": torch.zeros(3)})
