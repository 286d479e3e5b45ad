"""What makes two results comparable, frozen: everything here is in the protocol's hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from zoo.errors import UserError, closest

SCHEMA_VERSION = 1
SSIM_WINDOW = 11  # pixels: no frame may be smaller


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How clips are made and scored.

    Attributes:
        name: `zoo`, or whose published protocol it follows.
        frames: frames a clip T.
        size: pixels of both sides: the shorter side is scaled to it, then the centre is cut out.
        rate: frames a second that faster films are thinned to, by a whole step; None: as they are.
        tail: what becomes of a film's last frames that don't fill a clip: `drop`, or `repeat` the
            last frame.
        resize: how frames are scaled: `bilinear` (antialiased, on 8-bit RGB of the film's size) or
            `bicubic` (as in training, by the decoder's scaler).
        lpips: its network, `alexnet` or `vgg16`.
        lpips_spatial: averages of full-size distance maps in place of the layers' means.
        windows: `all` clips of a film one after the other, or the `first` one.
        cuts: `keep` all clips, or `drop` those with a cut or without motion (package-clips).
        rounding: the reconstruction is rounded to this type before it is scored.
        ssim: its window.
        frechet_frames: image networks see every so many frames of a clip.
        kid: the estimator.
    """

    name: str = "zoo"
    frames: int = 17
    size: int = 128
    rate: float | None = None
    tail: str = "drop"
    resize: str = "bilinear"
    lpips: str = "alexnet"
    lpips_spatial: bool = False
    windows: str = "all"
    cuts: str = "keep"
    rounding: str = "uint8"
    ssim: str = "gaussian 11x11, sigma 1.5"
    frechet_frames: int = 4
    kid: str = "cubic polynomial, paired U-statistic, 100 subsets of min(1000, N / 2)"

    def hash(self, data: str) -> str:
        """16 hex digits over all fields and the data set's definition."""
        text = {"schema": SCHEMA_VERSION, "data": data, **dataclasses.asdict(self)}
        return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """One line for people."""
        rate = "native rate" if self.rate is None else f"at most {self.rate:g} frames a second"
        tail = "" if self.tail == "drop" else ", the last clip filled with its last frame"
        windows = "clips one after the other" if self.windows == "all" else "a film's first clip"
        net = {"alexnet": "Alex", "vgg16": "VGG"}[self.lpips]
        spatial = ", spatial" if self.lpips_spatial else ""
        frames = f"{self.frames} frames, {rate}, {windows}{tail}; " if self.frames > 1 else ""
        return (
            f"{frames}shorter side to {self.size} pixels ({self.resize}), centre cut; outputs "
            f"rounded to {self.rounding}; PSNR, SSIM ({self.ssim}) and LPIPS-{net}{spatial} of "
            "each frame, averaged over the clip, then over clips"
        )


PROTOCOLS: dict[str, Protocol] = {
    "zoo": Protocol(),
    # arXiv 2503.03708 and its released evaluation
    "cdt": Protocol(name="cdt", size=256, lpips_spatial=True, windows="first"),
    # arXiv 2412.13061, table 1, and its released evaluation
    "vidtok": Protocol(name="vidtok", size=256, rate=30.0, tail="repeat", lpips="vgg16"),
}


def protocol(name: str, **changes: Any) -> Protocol:
    """A named protocol with changes; a changed one no longer bears the name alone.

    Raises:
        UserError: unknown name, or a frame count or size that is too small.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol '{name}': did you mean '{closest(name, PROTOCOLS)[0]}'?")
    asked = {key: value for key, value in changes.items() if value is not None}
    for key, least in (("frames", 1), ("size", SSIM_WINDOW)):
        if asked.get(key, least) < least:
            raise UserError(f"--{key} {asked[key]}: give at least {least}")
    return dataclasses.replace(PROTOCOLS[name], **asked)
