"""What a training step needs, computed on tensors without data: no GPU, no weights, no films."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from zoo.diffusion.schedule import cosine_alpha_bar
from zoo.nets.blocks3d import Recomputed, set_gradient_checkpointing
from zoo.nets.cdt import CDT
from zoo.nets.tokenizer import Tokenizer
from zoo.objectives import DenoisingObjective, Objective, ReconstructionObjective
from zoo.registry import create

Precision = Literal["fp32", "bf16"]
Strategy = Literal["ddp", "fsdp2"]


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """A training step on one GPU.

    Attributes:
        parameters: of the net.
        trained: of these, those with a gradient.
        flops: of forward and backward passes, once more forward with checkpointing; products and
            convolutions alone, as torch counts them.
        kept: bytes that autograd keeps of the forward pass.
        transient: bytes that the backward pass holds beside them, a recomputed block included.
    """

    parameters: int
    trained: int
    flops: float
    kept: int
    transient: int

    def state(self, strategy: Strategy, gpus: int) -> dict[str, int]:
        """Bytes on each GPU of what stays between steps, float32 each; FSDP2 divides it.

        Weights, gradients, AdamW's two moments and the average.
        """
        parts = 1 if strategy == "ddp" else gpus
        counts = {
            "weights": self.parameters,
            "gradients": self.trained,
            "optimizer state": 2 * self.trained,
            "average": self.parameters,
        }
        return {name: -(-4 * count // parts) for name, count in counts.items()}

    def memory(self, strategy: Strategy, gpus: int) -> int:
        """Peak bytes on each GPU."""
        return sum(self.state(strategy, gpus).values()) + self.kept + self.transient


def step_cost(
    name: str,
    *,
    frames: int,
    size: tuple[int, int],
    batch: int = 1,
    checkpointing: bool = False,
    precision: Precision = "fp32",
) -> StepCost:
    """Cost of a step of a preset's usual objective, without LPIPS.

    Args:
        name: a tokenizer that is trained (families cdt and kl_vae).
        frames, size: of a clip, T and (H,W); pictures have T = 1.
        batch: clips a GPU.
        checkpointing: recompute activations in the backward pass.
        precision: bf16 is autocast: weights and norms stay float32.
    """
    cosine_alpha_bar(8192)  # kept between calls: it must be a real one
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = create(name).train()
        assert isinstance(net, Tokenizer)
        x = torch.empty(batch, 3, frames, *size)
        objective: Objective = (
            DenoisingObjective(lpips_weight=0)
            if isinstance(net, CDT)
            else ReconstructionObjective(lpips_weight=0)
        )
        kept = _Kept(net)
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: kept.keep(tensor), lambda tensor: tensor
            ),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            with FlopCounterMode(display=False) as counter:
                objective(net, x, progress=0.0)
            # the gradients of a layer's input and output, both as large as the largest activation
            transient = 2 * kept.largest
            if checkpointing:
                # one block at a time is as if nothing had been recomputed
                transient += kept.block
                set_gradient_checkpointing(net, True)
                kept = _Kept(net)
                objective(net, x, progress=0.0)
    return StepCost(
        parameters=sum(p.numel() for p in net.parameters()),
        trained=sum(p.numel() for p in net.parameters() if p.requires_grad),
        flops=(4 if checkpointing else 3) * float(counter.get_total_flops()),
        kept=kept.total,
        transient=transient,
    )


class _Kept:
    """What autograd keeps of a forward pass, each storage once; weights not counted."""

    def __init__(self, net: nn.Module) -> None:
        self.total = self.largest = self.block = 0
        self._weights = {p.untyped_storage()._cdata for p in net.parameters()}
        self._seen: set[int] = set()
        self._alive: list[Tensor] = []  # so that no other storage gets a number that was seen
        self._before: list[int] = []
        for module in net.modules():
            if isinstance(module, Recomputed):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights | self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)
            self.total += storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())
        return tensor

    def _enter(self, module: nn.Module, given: object) -> None:
        self._before.append(self.total)

    def _leave(self, module: nn.Module, given: object, output: object) -> None:
        self.block = max(self.block, self.total - self._before.pop())
