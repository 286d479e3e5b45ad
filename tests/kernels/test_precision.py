"""What is said of this machine's precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zoo.kernels.precision import bfloat16_of_cpu


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    bfloat16_of_cpu.cache_clear()
    yield
    bfloat16_of_cpu.cache_clear()


@pytest.mark.parametrize(
    ("amx", "avx512", "vendor", "wanted"),
    [
        (True, True, "GenuineIntel", "tiles"),
        (False, True, "GenuineIntel", "slow"),
        (False, True, "AuthenticAMD", "vectors"),
        (False, False, "AuthenticAMD", "slow"),
    ],
)
def test_bfloat16_of_cpu(
    amx: bool, avx512: bool, vendor: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(Path, "read_text", lambda self: f"vendor_id\t: {vendor}\n")
    assert bfloat16_of_cpu() == wanted


def test_a_system_without_cpuinfo_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)

    def missing(self: Path) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", missing)
    assert bfloat16_of_cpu() == "slow"
