"""Strips of pictures that a person looks at."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from zoo.data.transforms import to_uint8

ERROR_GAIN = 4


def save_strip(path: Path, x: Tensor, y: Tensor, *, frames: int = 4) -> None:
    """A PNG with input | reconstruction | error (times 4, grey is none); one row a clip.

    Args:
        path: written under a temporary name, then renamed.
        x, y: original and reconstruction, [B,3,T,H,W] in [-1,1].
        frames: pictures of each clip, spread over its time.
    """
    times = torch.linspace(0, x.shape[2] - 1, min(frames, x.shape[2])).round().long()
    error = (y - x) * ERROR_GAIN / 2
    columns = [v[:, :, times.to(v.device)] for v in (x, y, error)]
    rows = [
        torch.cat([frame for column in columns for frame in column[clip].unbind(1)], dim=-1)
        for clip in range(len(x))
    ]
    picture = to_uint8(torch.cat(rows, dim=-2)).movedim(0, -1).cpu().numpy()
    part = path.with_name(f".{path.name}.part")
    Image.fromarray(picture).save(part, format="PNG")
    os.replace(part, path)
