"""States that wait outside of memory.

The state of a stream has a few frames of every layer: where a frame is cut into tiles, the states
of all tiles together outgrow what one tile needs to run. `park` moves tensors into an unlinked file
that is mapped back: they stay tensors, and the system keeps as much of the file in memory as it has
room for.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from zoo.errors import RunError
from zoo.streaming import State

_ALIGNMENT = 64
# beside the tensors, not in them: they can be saved and sent like any others
_FILES: MutableMapping[Tensor, mmap.mmap] = WeakTensorKeyDictionary()


def park(state: State) -> State:
    """The same tensors on the CPU, backed by a file that is gone when they are.

    Raises:
        RunError: there is no room for the file.
    """
    layouts = {slot: _layout(tensor) for slot, tensor in state.items()}
    places: dict[str, int] = {}
    size = 0
    for slot, tensor in state.items():
        places[slot] = size
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    if not size:
        return {slot: tensor.cpu() for slot, tensor in state.items()}
    try:
        with tempfile.TemporaryFile(prefix="zoo-tiles-") as file:
            for slot, tensor in state.items():
                flat = tensor.permute(layouts[slot]).cpu().contiguous().flatten().view(torch.uint8)
                file.seek(places[slot])
                file.write(flat.numpy().data)
            file.truncate(size)
            file.flush()
            # copies on write: nobody writes, but torch asks for memory that one could write to
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise RunError(
            f"the tiles' states don't fit into {tempfile.gettempdir()} ({error}): "
            "let TMPDIR name a folder with more room"
        ) from error
    parked = {}
    for slot, tensor in state.items():
        if not tensor.numel():
            parked[slot] = tensor.cpu()
            continue
        order = layouts[slot]
        flat = torch.frombuffer(
            memory, dtype=tensor.dtype, count=tensor.numel(), offset=places[slot]
        )
        shape = [tensor.shape[axis] for axis in order]
        back = flat.view(shape).permute([order.index(axis) for axis in range(tensor.ndim)])
        _FILES[back] = memory
        parked[slot] = back
    return parked


def unpark(state: State, device: torch.device) -> State:
    """Copies of the tensors on `device`; what of their files was read for it leaves memory again.

    Tensors that aren't parked (a state that was saved and loaded, say) are taken as they are.
    """
    files: set[mmap.mmap] = set()
    tensors = {}
    for slot, tensor in state.items():
        memory = _FILES.get(tensor)
        tensors[slot] = tensor.to(device, copy=memory is not None)
        if memory is not None:
            files.add(memory)
    for memory in files:
        if hasattr(mmap, "MADV_DONTNEED"):
            memory.madvise(mmap.MADV_DONTNEED)
    return tensors


def _layout(tensor: Tensor) -> list[int]:
    """The axes from the widest stride to the narrowest: channels-last stays channels-last."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
