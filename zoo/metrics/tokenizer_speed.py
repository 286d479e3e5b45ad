"""Times parts of a tokenizer, ours or a checkout of the released CDT, in a process of its own.

    python -m zoo.metrics.tokenizer_speed '{"model": "cdt_small", "size": [17, 128, 128], ...}'

answers one line of JSON for each line of input: "seconds PART" or "memory PART", where a part is a
method of Ours or train-checkpointing. `Worker` is the other end. One net a process, because the
released code keeps its padding in a class attribute and the peak of memory is that of a process.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.compiled import CompiledStep
from zoo.convert.cdt import to_reference
from zoo.hub import load
from zoo.nets.blocks3d import set_gradient_checkpointing
from zoo.nets.cdt import CDT
from zoo.nets.tokenizer import Tokenizer
from zoo.registry import create, presets

_SEED = 7
# glibc keeps what is freed, else page faults hide the work; or returns it, so that a peak is one
_FAST = {"MMAP_MAX": 0, "TRIM_THRESHOLD": 2**34, "TOP_PAD": 2**28}
_EXACT = {"MMAP_THRESHOLD": 2**16, "TRIM_THRESHOLD": 2**16}


class Worker:
    """A process that times one net; `ask` waits for it."""

    def __init__(self, config: dict[str, Any], *, exact_memory: bool = False) -> None:
        settings = _EXACT if exact_memory else _FAST
        malloc = {f"MALLOC_{name}_": str(value) for name, value in settings.items()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zoo.metrics.tokenizer_speed", json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | malloc,
            text=True,
        )

    def ask(self, what: str) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            RuntimeError: it ended; its own message is on the error stream.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the empty answer below says so
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended with status {self._process.wait()}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def build(name: str, device: str) -> Tokenizer:
    """A net of the zoo; presets get seeded weights, none of them zero, scaled by their fan-in."""
    if name not in presets():
        trained: Any = load(name, device=device)
        return cast(Tokenizer, trained.requires_grad_(False))
    net = create(name)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(draw / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(("norm" in key and key.endswith("weight")) + 0.2 * draw)
    return cast(Tokenizer, net.to(device).eval().requires_grad_(False))


class Ours:
    """Parts of a net of the zoo. All take x, z and noise; each uses what it needs.

    Args:
        net: what is timed.
        compiled: stream through torch.compile with this backend and, on CUDA, CUDA graphs.
    """

    def __init__(self, net: Tokenizer, *, compiled: str | None = None) -> None:
        self.net = net
        self.step = None if compiled is None else CompiledStep(net, backend=compiled)

    def encode(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        return self.net.encode(x).mean

    def decode(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        return self.net.decode(z, generator=_noise_source())

    def stream(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        latents = torch.split(z, 1, dim=2)
        pieces = self.net.stream_decode(latents, generator=_noise_source(), step=self.step)
        return torch.cat(list(pieces), dim=2)

    def train(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        net = self.net
        assert isinstance(net, CDT)
        contexts, base = net.conditions(net.encode(x).mean)
        index = torch.full((len(x),), net.config.timesteps - 1)
        return net.denoise(noise, index, contexts, base=base)


class Released:
    """The same parts of the released CDT, one pass over all frames, as at 17x128x128 it makes."""

    def __init__(self, net: CDT, checkout: Path) -> None:
        config = net.config
        sys.path.insert(0, str(checkout))
        self.module: Any = importlib.import_module("model.cdt")
        self.net: Any = self.module.ConditionedDiffusionTokenizer(
            space_down=list(config.space_down),
            time_down=list(config.time_down),
            out_channels=config.context_channels,
            latent_dim=config.latent_channels,
            context_dim=config.context_dim,
            unet_dim=config.unet_dim,
            new_upsample=config.upsampling == "nearest",
        )
        self.net.load_state_dict(to_reference(net), strict=True)
        self.net.eval().requires_grad_(False)

    def encode(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        mean: Tensor = self.net.model.context_fn.encode(x)[0]
        self._forget()
        return mean

    def decode(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        y = self._decode(z, noise, first=True)
        self._forget()
        return y

    def stream(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        first, rest = noise[:, :, :1], noise[:, :, 1:]
        # torch splits nothing into one piece of nothing
        cuts = [first, *(torch.split(rest, self.net.time_factor, dim=2) if rest.shape[2] else ())]
        pieces = [
            self._decode(latent, cut, first=number == 0)
            for number, (latent, cut) in enumerate(zip(torch.split(z, 1, dim=2), cuts, strict=True))
        ]
        self._forget()
        return torch.cat(pieces, dim=2)

    def train(self, x: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        self.module.CLIP_FIRST_CHUNK = True
        model = self.net.model
        contexts = model.context_fn.decode(model.context_fn.encode(x)[0])
        last = (self.net.num_timesteps - 1) / self.net.num_timesteps
        y: Tensor = model.denoise_fn(noise, torch.full((len(x), 1), last), context=contexts)
        self._forget()
        return y

    def _decode(self, z: Tensor, noise: Tensor, *, first: bool) -> Tensor:
        self.module.CLIP_FIRST_CHUNK = first
        index = torch.zeros(len(z), dtype=torch.long, device=z.device)
        y: Tensor = self.net.model.diffusion_decode(z, sample_steps=1, init=noise, time=index)
        return y

    def _forget(self) -> None:
        self.net.model.context_fn.clear_cache()
        self.net.model.denoise_fn.clear_cache()


def _noise_source() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)


class Bench:
    """One net, one clip: runs parts and says what they cost."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.device = torch.device(config["device"])
        dtype: torch.dtype = getattr(torch, config["dtype"])
        net = build(config["model"], config["device"])
        frames, height, width = config["size"]
        generator = _noise_source()
        x = torch.rand(config["batch"], 3, frames, height, width, generator=generator) * 2 - 1
        time_, down, across = net.compression
        latents = (1 + (frames - 1) // time_, height // down, width // across)
        z = torch.randn(config["batch"], net.latent_channels, *latents, generator=generator)
        gamma = net.config.gamma if isinstance(net, CDT) else 1.0
        # as the zoo's samplers draw it: frame by frame
        generator = _noise_source()
        fields = [
            torch.randn(config["batch"], 3, height, width, generator=generator, dtype=dtype)
            for _ in range(frames)
        ]
        self.inputs = [t.to(self.device, dtype) for t in (x, z, gamma * torch.stack(fields, 2))]
        if config["checkout"]:
            assert isinstance(net, CDT)
            self.parts: Ours | Released = Released(net, Path(config["checkout"]))
        else:
            # graphs hold the weights: the net is where it stays
            net.to(self.device, dtype)
            self.parts = Ours(net, compiled=config["compiled"])
        self.module: nn.Module = self.parts.net
        self.module.to(self.device, dtype)
        self.out = Path(config["out"])
        self._warm: set[str] = set()

    def run(self, part: str, *, frames: int | None = None) -> Tensor:
        """Run a part once, on the whole clip or its first frames."""
        inputs = [tensor[:, :, :frames] for tensor in self.inputs]
        if not part.startswith("train"):
            with torch.no_grad():
                y: Tensor = getattr(self.parts, part)(*inputs)
            return y
        set_gradient_checkpointing(self.module, part != "train")
        self.module.requires_grad_(True)
        y = self.parts.train(*inputs)
        F.mse_loss(y.float(), inputs[0].float()).backward()  # type: ignore[no-untyped-call]
        self.module.zero_grad()
        self.module.requires_grad_(False)
        return y.detach()

    def warm(self, part: str) -> None:
        """Run it on one frame, so that libraries load and plans are made before anything counts.

        What is compiled runs on every frame: later chunks are compiled apart from the first.
        """
        if part not in self._warm:
            compiled = isinstance(self.parts, Ours) and self.parts.step is not None
            self.run(part, frames=None if compiled else 1)
            self._warm.add(part)

    def seconds(self, part: str) -> dict[str, Any]:
        """Run once with the clock on; the result is left in the folder `out`.

        On a CPU also the processor's seconds, of all threads: other jobs of a busy machine don't
        count in them.
        """
        self.warm(part)
        self._wait()
        begin, busy = time.perf_counter(), time.process_time()
        y = self.run(part)
        self._wait()
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
        path = self.out / f"{os.getpid()}-{part}.pt"
        torch.save(y.float().cpu(), path)
        on_cpu = self.device.type == "cpu"
        return {
            "seconds": seconds,
            "processor_seconds": busy if on_cpu else None,
            "output": str(path),
        }

    def memory(self, part: str) -> dict[str, Any]:
        """The peak of a run above what is there before it, in bytes; None where nobody counts."""
        self.warm(part)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.run(part)
            return {"bytes": torch.cuda.max_memory_allocated(self.device) - before}
        clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
        if not clear.exists():
            return {"bytes": None}

        def kilobytes(field: str) -> int:
            line = next(x for x in status.read_text().splitlines() if x.startswith(field))
            return int(line.split()[1])

        clear.write_text("5")  # the high-water mark falls to what is resident now
        before = kilobytes("VmRSS")
        self.run(part)
        return {"bytes": 1024 * (kilobytes("VmHWM") - before)}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def serve(config: dict[str, Any]) -> None:
    """Answer requests until the input ends."""
    # what the released code prints must not look like an answer
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        bench = Bench(config)
        for line in sys.stdin:
            what, part = line.split()
            answer = bench.memory(part) if what == "memory" else bench.seconds(part)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
