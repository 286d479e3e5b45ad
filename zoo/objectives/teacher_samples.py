"""Samples of a teacher, made once and kept in a file: what density ratios are learned from."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoo.errors import RunError, UserError

_LOG = logging.getLogger("zoo")


class TeacherSamples:
    """Latents of every caption as the teacher samples them, with its folder's own guidance.

    Args:
        path: a .safetensors file; it is made when there is none.
        each: samples of a caption.
        seed: of their noise.
        batch: samples at once while they are made.
        steps: sampling steps; None: the folder's own.

    Raises:
        UserError: numbers outside their range, or another kind of file.
    """

    def __init__(
        self,
        path: str,
        *,
        each: int = 1,
        seed: int = 0,
        batch: int = 32,
        steps: int | None = None,
    ) -> None:
        if each < 1 or batch < 1 or seed < 0:
            raise UserError(f"each = {each}, batch = {batch}, seed = {seed}: give 1, 1, 0 or more")
        self.path = Path(path).expanduser()
        if self.path.suffix != ".safetensors":
            raise UserError(f"{path} can't hold a teacher's samples: end its name in .safetensors")
        self.each, self.seed, self.batch, self.steps = each, seed, batch, steps
        self._rows: dict[str, int] = {}
        self._latents = torch.zeros(0)

    def prepare(
        self,
        teacher: Any,
        prompts: Sequence[str],
        *,
        report: Callable[[int, int], object] | None = None,
    ) -> None:
        """Read the file, or make it.

        Args:
            teacher: a TiUEPipeline.
            prompts: the captions; each counts once.
            report: told (samples made, samples to make).

        Raises:
            UserError: the file is of another teacher, other captions or other settings.
            RunError: it can't be written.
        """
        known = list(dict.fromkeys(prompts))
        made_for = self._fingerprint(teacher, known)
        if self.path.is_file():
            try:
                with safe_open(self.path, framework="pt") as file:
                    found = (file.metadata() or {}).get("made_for")
                    latents = file.get_tensor("latents")
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{self.path} can't be read as a teacher's samples ({error}): delete it"
                ) from error
            if found != made_for:
                raise UserError(
                    f"{self.path} holds samples of another teacher, other captions or another "
                    "seed: name another file, or delete it"
                )
        else:
            latents = self._make(teacher, known, report)
            self._save(latents, made_for)
        self._rows = {prompt: row for row, prompt in enumerate(known)}
        self._latents = latents

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """A sample of each caption, drawn from those it has: [B,c,h,w] in float32."""
        rows = torch.tensor([self._rows[prompt] for prompt in prompts])
        chosen = torch.randint(self.each, (len(rows),))
        return self._latents[rows, chosen].float()

    def _make(
        self, teacher: Any, prompts: list[str], report: Callable[[int, int], object] | None
    ) -> Tensor:
        jobs = [(prompt, number) for prompt in prompts for number in range(self.each)]
        _LOG.info("making %d samples of the teacher for %s", len(jobs), self.path)
        parts = []
        for first in range(0, len(jobs), self.batch):
            part = jobs[first : first + self.batch]
            seeds = [zlib.crc32(f"{self.seed} {number} {p}".encode()) for p, number in part]
            out = teacher([p for p, _ in part], seed=seeds, steps=self.steps, output_type="latent")
            parts.append(out.images.half().cpu())
            if report is not None:
                report(first + len(part), len(jobs))
        latents = torch.cat(parts)
        return latents.view(len(prompts), self.each, *latents.shape[1:])

    def _save(self, latents: Tensor, made_for: str) -> None:
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"latents": latents.contiguous()}, part, metadata={"made_for": made_for})
            part.replace(self.path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self.path} can't be written ({error})") from error
        finally:
            part.unlink(missing_ok=True)

    def _fingerprint(self, teacher: Any, prompts: list[str]) -> str:
        how = teacher.sampling(steps=self.steps)
        text = [prompts, self.each, self.seed, how.steps, how.anchors, how.guidance]
        digest = hashlib.sha256(json.dumps(text).encode())
        for name, value in sorted(teacher.unet.state_dict().items()):
            if "lora_" in name:  # adapters of a score net are not the teacher
                continue
            digest.update(name.replace(".base_layer", "").encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
