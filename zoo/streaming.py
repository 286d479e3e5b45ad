"""Streaming in time: the whole mechanism.

A net that is causal in time can be fed a video chunk by chunk and give what it would have given for
the whole. All it must remember are the last few frames in front of each temporal layer. That memory
is a `State` and belongs to the caller:

    y0, state = net.step(x0, None)       # None: the first chunk
    y1, state = net.step(x1, state)      # the old state is never modified

so two streams can share a net, a failed call leaves nothing behind, and a state can be saved with
`torch.save`. Inside, only the temporal leaves (`Temporal` subclasses: causal convolutions, time
down- and up-sampling) touch memory: each reads `carry.read(slot)` and writes `carry.write(slot)`
once a call. Training and whole-clip calls pass `carry=None`, which costs nothing.

The rule that makes every chunking exact: a leaf keeps the part of its PADDED input that its next
output still needs. Strides, chunks shorter than the kernel and first chunks then need no special
case; a chunk that completes no output gives a tensor with zero frames.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoo.kernels.conv3d import join

State = dict[str, Tensor]
"""Memory of a stream: tensors keyed by the path of the layer that needs them, batch first."""


class Carry:
    """What one call of `step` reads (the old state) and writes (the new one)."""

    def __init__(self, state: State | None = None) -> None:
        self._old: State = {} if state is None else state
        # slots that this call does not reach (a stride upstream gave no frame) keep their memory
        self.state: State = dict(self._old)
        self._written: set[str] = set()
        self._prefix = ""

    def scope(self, name: str) -> Carry:
        """The same memory under another name: a net that runs several times a chunk has several."""
        view = Carry.__new__(Carry)
        view._old, view.state, view._written = self._old, self.state, self._written
        view._prefix = f"{self._prefix}{name}:"
        return view

    def read(self, slot: str) -> Tensor | None:
        """The tensor that the last chunk left in `slot`; None in the first chunk of a stream."""
        return self._old.get(self._prefix + slot)

    def take(self, name: str) -> State:
        """What the last chunk left of a net with a state of its own, known here as `name`."""
        head = f"{self._prefix}{name}:"
        return {k.removeprefix(head): v for k, v in self._old.items() if k.startswith(head)}

    def put(self, name: str, state: State) -> None:
        """Leave that net's new state for the next chunk."""
        self.state.update({f"{self._prefix}{name}:{k}": v for k, v in state.items()})

    def write(self, slot: str, memory: Tensor) -> None:
        """Leave `memory` for the next chunk. It is copied: a view would keep its whole chunk."""
        key = self._prefix + slot
        assert key not in self._written, f"slot {key} written twice in one call"
        self._written.add(key)
        self.state[key] = memory.detach().clone()


class Temporal(nn.Module):
    """A layer with memory in time. Its `slot` is its path in the net, set by `name_slots`."""

    slot: str = ""


def name_slots(net: nn.Module) -> None:
    """Give every temporal layer of `net` its path as slot. Called once, when the net is built."""
    for path, module in net.named_modules():
        if isinstance(module, Temporal):
            module.slot = path


def windows(front: Tensor, x: Tensor, *, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
    """Split a padded stream into what is ready for a temporal kernel and what must wait.

    Args:
        front: memory or padding in front of this chunk, [B,C,F,H,W].
        x: this chunk, [B,C,T,H,W].
        kernel: frames an output needs.
        stride: frames between outputs.

    Returns:
        ready: the frames from which n = (F + T - kernel) // stride + 1 outputs can be computed
            (zero frames when there is none).
        rest: the frames that the next chunk still needs.
    """
    padded = join(front, x)
    count = max(0, (padded.shape[2] - kernel) // stride + 1)
    ready = padded[:, :, : (count - 1) * stride + kernel] if count else padded[:, :, :0]
    return ready, padded[:, :, count * stride :]
