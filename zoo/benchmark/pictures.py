"""Strips of a model's best and worst clips: original, reconstruction, error."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zoo.benchmark.clips import Clip
from zoo.benchmark.models import Candidate
from zoo.benchmark.store import SHARED_BY, Row, Store, is_row_of, owner, whole_file
from zoo.data.transforms import to_uint8

SHOWN_FRAMES = 3
ERROR_GAIN = 4


def strip(x: Tensor, y: Tensor) -> NDArray[np.uint8]:
    """Three rows of frames, uint8 [3 * H,SHOWN_FRAMES * W,3]: original, result, error x 4.

    Args:
        x: original, uint8 [3,T,H,W].
        y: reconstruction, uint8 [3,T,H,W].
    """
    frames = np.unique(np.linspace(0, x.shape[1] - 1, SHOWN_FRAMES).round().astype(int))
    pairs = [v[:, frames].permute(1, 2, 3, 0).numpy() for v in (x, y)]
    error = np.abs(pairs[0].astype(np.int16) - pairs[1]) * ERROR_GAIN
    rows = [*pairs, error.clip(0, 255).astype(np.uint8)]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def encode(picture: NDArray[np.uint8]) -> bytes:
    """The picture as lossless WebP."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "WEBP", lossless=True, method=4)
    return out.getvalue()


def keep_pictures(store: Store, row: Candidate, clip: Clip, y: Tensor, psnr: float) -> None:
    """Write the strip of a clip that is the best or the worst so far, or among the shared ones.

    Pictures that are neither any more stay until the end of the run: `extremes` chooses.
    """
    known = [
        r["psnr"]
        for r in store.of_kind("clip")
        if is_row_of(r, row) and not r["seed"] and r["psnr"] is not None
    ]
    shared = [r for r in store.of_kind("clip") if r["label"] == SHARED_BY and r["psnr"] is not None]
    wanted = not known or psnr > max(known) or psnr < min(known)
    if wanted or clip.sha256 in extremes(shared):
        place = store.folder / "pictures" / owner(row)
        with whole_file(place / f"{clip.sha256}.webp") as file:
            file.write(encode(strip(clip.pixels, to_uint8(y))))


def extremes(rows: list[Row]) -> list[str]:
    """sha256 of the worst and of the best clip of these rows; ties go to the first."""
    if not rows:
        return []
    ordered = sorted(rows, key=lambda row: (row["psnr"], row["clip"]))
    return [ordered[0]["sha256"], ordered[-1]["sha256"]]
