"""A tokenizer's streaming step through torch.compile and, on CUDA, as a CUDA graph.

A stream decodes chunk after chunk of one shape: what launching its kernels costs can be paid once,
and elementwise passes can be fused. Compiling takes minutes. On a CPU that is for narrow nets:
torch.compile doesn't use the zoo's own convolutions, which begin at 64 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor

from zoo.diffusion.samplers import generator_noise
from zoo.errors import UserError
from zoo.nets.tiling import Tiled
from zoo.nets.tokenizer import Tokenizer
from zoo.streaming import Carry, State

_MOST_SHAPES = 128  # of chunks, over all nets of a process; torch's own limit is 8
Capture = Callable[[Callable[[], list[Tensor]]], tuple[Callable[[], None], list[Tensor]]]
"""Given work without arguments: what does it again, and the tensors that then hold its results."""


class CompiledStep:
    """Stands for `net.decode_step`: the same arguments, results and errors.

        step = CompiledStep(net)
        for pixels in net.stream_decode(latents, step=step): ...

    The first chunk of a stream and the second are compiled, the others reuse the second's code.
    Each further shape of chunk is compiled, and kept as a graph, once. States stay the caller's:
    a graph's own memory is copied in before it runs, and out after.

    Args:
        net: in eval mode; later changes of its weights count, a move to another device does not.
        graphs: replay CUDA graphs; None: where the net is on CUDA.
        backend: of torch.compile; "eager" fuses nothing, so it needs no compiler and no minutes,
            and a graph of it saves the launches alone.

    Raises:
        UserError: a net whose chunks don't stream, or that decodes in tiles.
    """

    def __init__(
        self, net: Tokenizer, *, graphs: bool | None = None, backend: str = "inductor"
    ) -> None:
        if not net.streams:
            raise UserError(f"{type(net).__name__} needs its whole clip: it has no step to compile")
        if isinstance(net, Tiled):
            raise UserError("tiles share one noise field: compile a net that isn't tiled")
        self._net = net
        on_cuda = next(net.parameters()).device.type == "cuda"
        self._capture: Capture | None = (
            capture_on_cuda if graphs or (graphs is None and on_cuda) else None
        )
        decode: Any = self._decode
        self._compiled: Callable[..., tuple[Tensor, State]] = torch.compile(
            decode, backend=backend, dynamic=False, fullgraph=True
        )
        self._graphs: dict[tuple[Any, ...], Graph] = {}

    @torch.no_grad()
    def __call__(
        self,
        z: Tensor,
        state: State | None,
        *,
        steps: int = 1,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, State]:
        """As `Tokenizer.decode_step`, without gradients."""
        self._net.check_latents(z, steps=steps)
        # a generator can be neither compiled nor captured: noise is drawn here
        needed = self._net.noise_needed(z, state, steps=steps)
        fields = None if needed is None else generator_noise(generator)(*needed)
        if self._capture is None:
            return self._run(z, state, fields, steps)
        names = [] if state is None else sorted(state)
        inputs = [z, *([] if fields is None else [fields]), *((state or {})[n] for n in names)]
        key = (steps, state is None, *names, *((t.shape, t.dtype, t.device) for t in inputs))
        if key not in self._graphs:
            self._graphs[key] = Graph(
                self._flat(names, state is None, fields is not None, steps), inputs, self._capture
            )
        return self._graphs[key](inputs)

    def _flat(
        self, names: list[str], first: bool, noisy: bool, steps: int
    ) -> Callable[..., tuple[Tensor, State]]:
        """The step as a function of tensors alone."""

        def run(z: Tensor, *others: Tensor) -> tuple[Tensor, State]:
            fields, memory = (others[0], others[1:]) if noisy else (None, others)
            state = None if first else dict(zip(names, memory, strict=True))
            return self._run(z, state, fields, steps)

        return run

    def _run(
        self, z: Tensor, state: State | None, fields: Tensor | None, steps: int
    ) -> tuple[Tensor, State]:
        # the limit is a function's, for all nets of a process; beyond it the call would fail
        with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES):
            return self._compiled(z, state, fields, steps)

    def _decode(
        self, z: Tensor, state: State | None, fields: Tensor | None, steps: int
    ) -> tuple[Tensor, State]:
        carry = Carry(state)

        def drawn(like: Tensor, frames: int) -> Tensor:
            assert fields is not None
            return fields

        return self._net._decode(z, carry, steps=steps, noise=drawn), carry.state


class Graph:
    """A step captured once, replayed on other inputs of the same shapes.

    Args:
        run: tensors to pixels and state.
        inputs: of the first call.
        capture: see `Capture`.
    """

    def __init__(
        self, run: Callable[..., tuple[Tensor, State]], inputs: list[Tensor], capture: Capture
    ) -> None:
        self._inputs = [t.clone() for t in inputs]
        names: list[str] = []

        def work() -> list[Tensor]:
            pixels, state = run(*self._inputs)
            names[:] = state
            return [pixels, *state.values()]

        self._replay, self._outputs = capture(work)
        self._names = names

    def __call__(self, inputs: list[Tensor]) -> tuple[Tensor, State]:
        """Pixels and state of these inputs, in memory of their own."""
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._replay()
        pixels, *state = (t.clone() for t in self._outputs)
        return pixels, dict(zip(self._names, state, strict=True))


def capture_on_cuda(
    work: Callable[[], list[Tensor]],
) -> tuple[Callable[[], None], list[Tensor]]:
    """A CUDA graph of `work`; run three times before, as compilers and libraries settle then."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    return graph.replay, outputs
