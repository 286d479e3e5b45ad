"""FLOPs and memory of a CDT training step, counted on tensors without data: needs no GPU.

    python tests/scripts/cdt_training_cost.py            # the sizes of the README

FLOPs are torch's counter over the objective's forward pass, times 3 for forward and backward (times
4 with gradient checkpointing). Activations are the float32 storages that autograd keeps for the
backward pass; the peak of a step adds what one layer needs while it runs, which is not counted, and
bf16 autocast changes them (half for what convolutions keep, not for norms). LPIPS is left out: one
VGG frame a clip.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.diffusion.schedule import cosine_alpha_bar
from zoo.nets.blocks3d import set_gradient_checkpointing
from zoo.objectives import DenoisingObjective


def cost(name: str, frames: int, size: int, *, checkpointing: bool) -> tuple[float, float, float]:
    """(million parameters, forward TFLOPs, GB of kept activations) of one clip."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    cosine_alpha_bar(8192)  # kept between calls: it must be a real one
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = zoo.create(name).train()
        x = torch.empty(1, 3, frames, size, size)
        set_gradient_checkpointing(net, checkpointing)
        weights = {p.untyped_storage()._cdata for p in net.parameters()}
        objective = DenoisingObjective(lpips_weight=0)
        with (
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            objective(net, x, progress=0.0)
    held = sum(size for storage, size in kept.items() if storage not in weights)
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    return parameters, counter.get_total_flops() / 1e12, held / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=["cdt_small", "cdt_base"])
    parser.add_argument("--sizes", nargs="*", default=["17x128", "17x256"], help="FRAMESxPIXELS")
    options = parser.parse_args()
    print("| net | clip | M parameters | TFLOPs a clip: plain / checkpointing | GB, likewise |")
    print("|---|---|---|---|---|")
    for name in options.models:
        for text in options.sizes:
            frames, size = map(int, text.split("x"))
            parameters, flops, plain = cost(name, frames, size, checkpointing=False)
            _, _, less = cost(name, frames, size, checkpointing=True)
            # weights, gradients, two moments and the average, float32 each
            fixed = 20 * parameters / 1e3
            print(
                f"| {name} | {frames}x{size}x{size} | {parameters:.2f} | {3 * flops:.2f} / "
                f"{4 * flops:.2f} | {fixed:.1f} + {plain:.1f} / {fixed:.1f} + {less:.1f} a clip |"
            )


if __name__ == "__main__":
    main()
