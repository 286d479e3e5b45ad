"""Reading the backbones of LPIPS: pickles of numpy arrays, read without running anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zoo.errors import UserError

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own, without naming its private module
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # as written before numpy 2
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}

_DAMAGE: tuple[type[Exception], ...] = (pickle.UnpicklingError, EOFError, LookupError, MemoryError)
_DAMAGE += (AttributeError, TypeError, ValueError, OverflowError)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler of plain containers and numpy arrays that can run nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise UserError(
                f"the pickle asks for {module}.{name}, which a file of arrays has no use for: "
                "do not trust it, delete it and let the zoo fetch the backbone anew"
            )
        return _ADMITTED[module, name]


def load_lpips_backbone(
    name: Literal["vgg16", "alexnet"], path: str | Path
) -> dict[str, npt.NDArray[np.float32]]:
    """The convolutions of an LPIPS backbone, from the asset "lpips_<name>.ckpt".

    Returns:
        In order "0.weight" (out, in, height, width), "0.bias" (out,), "1.weight", ..., numbered by
        convolution: 13 for vgg16, 5 for alexnet; float32.

    Raises:
        UserError: unknown name, unreadable file, a pickle that asks for anything but numpy arrays
            (nothing of it is run), or one that holds another network.
    """
    if name not in ("vgg16", "alexnet"):
        raise UserError(f"there is no LPIPS backbone {name!r}: use vgg16 or alexnet")
    key, count = ("VGG16_0", 13) if name == "vgg16" else ("AlexNet_0", 5)
    try:
        with open(path, "rb") as file:
            layers = _ArraysOnly(file).load()[key]
        found: dict[str, npt.NDArray[np.float32]] = {}
        for i in range(count):
            kernel, bias = layers[f"Conv_{i}"]["kernel"], layers[f"Conv_{i}"]["bias"]
            if kernel.ndim != 4 or bias.shape != kernel.shape[3:]:
                raise ValueError(f"Conv_{i} has shapes {kernel.shape} and {bias.shape}")
            if kernel.dtype != np.float32 or bias.dtype != np.float32:
                raise ValueError(f"Conv_{i} is not float32")
            # the file keeps height, width, in, out
            found[f"{i}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
            found[f"{i}.bias"] = np.ascontiguousarray(bias)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path") from error
    except _DAMAGE as error:
        what = f"{path} holds no {name} backbone ({type(error).__name__}: {error})"
        raise UserError(f"{what}: delete it and fetch lpips_{name}.ckpt anew") from error
    return found
