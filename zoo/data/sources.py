"""Where samples come from: folders of films and of images, as map-style datasets."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.assets import cache_root
from zoo.data.cache import Facts, cached_film
from zoo.data.limits import open_image
from zoo.data.pictures import IMAGE_SUFFIXES, to_rgb
from zoo.data.reader import TIME_SLACK, short_side_size
from zoo.data.source import File, Source
from zoo.data.transforms import resize_short_side
from zoo.data.video import VIDEO_SUFFIXES, probe_times, read_clip, select_frames
from zoo.errors import UserError

_SPARE_BYTES = 2 * 1024**3  # disk the frame cache leaves free


class VideoFolder(Source):
    """Clips from films.

    In training the films are weighted by their frames and the indices are spread evenly over
    them; in evaluation the clips are the films' successive windows of `frames` frames.

    Args:
        root: see `Source`.
        frames: frames a clip T.
        size: see `Source`.
        short_side: see `Source`.
        rate: frames a second to sample at. None: consecutive frames.
        train: see `Source`.
        clips_per_film: samples an epoch for each film, on average (training only).
        cache_gb: films are decoded once and kept in the cache folder where all of them together
            take at most this much (10^9 bytes) and the disk has room; 0: never.
        flip: see `Source`.
        seed: see `Source`.
        files: see `Source`.
        max_broken: see `Source`; films too short for a clip count as broken.
    """

    suffixes = VIDEO_SUFFIXES

    def __init__(
        self,
        root: str | list[str],
        *,
        frames: int = 17,
        size: int = 64,
        short_side: int | tuple[int, int] | None = None,
        rate: float | None = None,
        train: bool = True,
        clips_per_film: int = 4,
        cache_gb: float = 4.0,
        flip: bool = True,
        seed: int = 0,
        files: list[str] | None = None,
        max_broken: float = 0.1,
    ) -> None:
        super().__init__(
            root,
            size=size,
            short_side=short_side,
            train=train,
            flip=flip,
            seed=seed,
            files=files,
            max_broken=max_broken,
        )
        if frames < 1 or clips_per_film < 1 or (rate is not None and rate <= 0):
            raise UserError(
                f"frames={frames}, clips_per_film={clips_per_film} and rate={rate} must be above 0"
            )
        self.frames = frames
        self.rate = rate
        self.clips_per_film = clips_per_film
        self.cache_gb = cache_gb
        self._cached = False
        # Film i owns the places [ends[i - 1], ends[i]): frames in training, windows in evaluation.
        self._ends = np.zeros(0, dtype=np.int64)
        self._start_counts = self._ends

    def __len__(self) -> int:
        return self.clips_per_film * len(self.usable) if self.train else int(self._ends[-1])

    def _probe(self, path: Path) -> Facts:
        info, times = probe_times(path)
        even = np.abs(times - np.arange(info.frames) / float(info.rate)).max() < 0.6 * TIME_SLACK
        return {
            "frames": info.frames,
            "width": info.width,
            "height": info.height,
            "duration": info.duration,
            "rate": str(info.rate),
            "times": None if even else [round(float(time), 6) for time in times],
        }

    def _objection(self, facts: Facts) -> str | None:
        if self._starts(facts):
            return None
        at = "" if self.rate is None else f" at {self.rate:g} frames a second"
        return f"too short for {self.frames} frames{at} ({facts['frames']} frames)"

    def _arrange(self) -> None:
        count = self._weight if self.train else self._windows
        self._start_counts = np.array([self._starts(file.facts) for file in self.usable])
        self._ends = np.cumsum([count(file.facts) for file in self.usable], dtype=np.int64)
        sizes = [(file.facts["frames"], *self._stored_size(file.facts)) for file in self.usable]
        needed = sum(3 * frames * width * height for frames, width, height in sizes)
        root = cache_root()
        while not root.exists():
            root = root.parent
        room = shutil.disk_usage(root).free - _SPARE_BYTES
        self._cached = needed <= min(self.cache_gb * 1e9, room)

    def _weight(self, facts: Facts) -> int:
        return int(facts["frames"])

    def _windows(self, facts: Facts) -> int:
        if self.rate is None:
            return int(facts["frames"]) // self.frames
        end = _time(facts, int(facts["frames"]) - 1) + _gap(facts)
        # A window needs its last frame, not the time that frame is shown for.
        last_start = end - (self.frames - 1) / self.rate - 1e-9
        return int(last_start // (self.frames / self.rate)) + 1

    def _starts(self, facts: Facts) -> int:
        """How many frames a clip can start at."""
        frames = int(facts["frames"])
        if self.rate is None:
            return max(0, frames - self.frames + 1)
        span = (self.frames - 1) / self.rate
        times = np.array(facts["times"] or np.arange(frames) * _gap(facts))
        return int((times + span < times[-1] + _gap(facts) - 1e-9).sum())

    def _locate(self, index: int, rng: np.random.Generator | None) -> tuple[int, float]:
        if rng is None:
            number = int(np.searchsorted(self._ends, index, side="right"))
            window = index - (int(self._ends[number - 1]) if number else 0)
            if self.rate is not None:
                return number, window * self.frames / self.rate
            return number, _time(self.usable[number].facts, window * self.frames)
        # Evenly spread with a random offset each: all films get their share in every epoch.
        place = (index + rng.random()) / len(self) * float(self._ends[-1])
        number = min(int(np.searchsorted(self._ends, place, side="right")), len(self._ends) - 1)
        facts = self.usable[number].facts
        before = int(self._ends[number - 1]) if number else 0
        share = (place - before) / self._weight(facts)
        starts = int(self._start_counts[number])
        return number, _time(facts, min(int(share * starts), starts - 1))

    def _stored_size(self, facts: Facts) -> tuple[int, int]:
        return short_side_size(facts["width"], facts["height"], short_side=self.short_side[1])

    def _read(self, file: File, start: float) -> tuple[Tensor, str]:
        suffix = f"@{start:.3f}"
        if self._cached:
            try:
                film, times = cached_film(file.path, size=self._stored_size(file.facts))
            except OSError:
                self._cached = False  # no room after all: read the film itself from now on
            else:
                picked = select_frames(
                    times, frames=self.frames, start=start, rate=self.rate, gap=_gap(file.facts)
                )
                if len(picked) < self.frames:
                    raise UserError(f"{file.path} can only be decoded in part; replace it")
                # A slice of the map costs nothing until it is cropped; a list of rows is a copy.
                first = int(picked[0])
                even = bool(np.array_equal(picked, np.arange(first, first + self.frames)))
                rows = film[first : first + self.frames] if even else film[picked]
                return torch.from_numpy(np.asarray(rows)).permute(3, 0, 1, 2), suffix
        video = read_clip(
            file.path,
            frames=self.frames,
            start=start,
            rate=self.rate,
            short_side=self.short_side[1],
        )
        return video, suffix


class ImageFolder(Source):
    """Images, each a clip of one frame (T = 1); an epoch holds every image once.

    They are upright (EXIF), transparency lies over black. The arguments are those of `Source`.
    """

    suffixes = IMAGE_SUFFIXES

    def __len__(self) -> int:
        return len(self.usable)

    def _probe(self, path: Path) -> Facts:
        with open_image(path) as image:
            return {"frames": 1, "width": image.width, "height": image.height}

    def _locate(self, index: int, rng: np.random.Generator | None) -> tuple[int, float]:
        return index, 0.0

    def _read(self, file: File, start: float) -> tuple[Tensor, str]:
        with open_image(file.path) as image:
            rgb = np.array(to_rgb(image))
        video = torch.from_numpy(rgb).permute(2, 0, 1).unsqueeze(1)
        return resize_short_side(video, short_side=self.short_side[1]), ""


def _gap(facts: Facts) -> float:
    return 1.0 / float(Fraction(facts["rate"]))


def _time(facts: Facts, number: int) -> float:
    return float(facts["times"][number]) if facts["times"] else number * _gap(facts)
