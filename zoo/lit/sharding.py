"""FSDP2 by Lightning: weights, gradients and optimizer state divided over all processes.

`--trainer.strategy fsdp2`. A checkpoint is one file with whole tensors, the same as without
sharding, so that it goes on in any strategy and any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from zoo.nets.blocks3d import FrameAttention, ResnetBlock

UNITS = (ResnetBlock, FrameAttention)
# what is called from outside in the place of forward
ENTRIES = ("encode", "decode", "conditions", "denoise")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class FSDP2(ModelParallelStrategy):
    """Data parallel over all processes, nothing else; saves whole tensors."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **arguments)

    def setup_environment(self) -> None:
        """Lightning divides over nodes only, unless it is told."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Give each process its part of the whole tensors.

        Returns:
            All of the checkpoint, for the callbacks and loops.
        """
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
        assert self.model is not None
        weights = checkpoint.get("current_model_state", checkpoint["state_dict"])
        set_model_state_dict(self.model, dict(weights), options=_WHOLE)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = _by_name(self.model, optimizer, state)
            set_optimizer_state_dict(self.model, optimizer, named, options=_WHOLE)
        return checkpoint


StrategyRegistry.register("fsdp2", FSDP2, description=FSDP2.__doc__ or "", override=True)


def _by_name(model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state with the names of weights in the place of their numbers."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups, values = [], {}
    for own, given in zip(optimizer.param_groups, state["param_groups"], strict=True):
        group = [names[id(weight)] for weight in own["params"]]
        groups.append({**given, "params": group})
        for name, number in zip(group, given["params"], strict=True):
            if number in state["state"]:
                values[name] = state["state"][number]
    return {"state": values, "param_groups": groups}


def shard(module: LightningModule, net: nn.Module) -> None:
    """Divide a net over the processes of its trainer: block by block, the rest together."""
    mesh = module.device_mesh["data_parallel"]  # type: ignore[index]
    if isinstance(net, FSDPModule):
        return
    for unit in [m for m in net.modules() if isinstance(m, UNITS)]:
        fully_shard(unit, mesh=mesh)
    fully_shard(net, mesh=mesh)
    for name in ENTRIES:
        if hasattr(net, name):
            register_fsdp_forward_method(net, name)


def hold(net: nn.Module, whole: bool) -> None:
    """Gather all weights before validation, whose batches differ in number between processes."""
    for part in net.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(not whole, recurse=False)
            part.unshard() if whole else part.reshard()


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor that may be divided; shares its memory."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole_tensor(value: Tensor) -> Tensor:
    """All of a tensor that may be divided, then on the CPU; every process calls it."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def like(value: Tensor, whole: Tensor) -> Tensor:
    """This process's part of `whole`, divided as `value` is."""
    if not isinstance(value, DTensor):
        return whole.to(value.device)
    # every process has the whole: nothing is sent
    return distribute_tensor(
        whole.to(value.device), value.device_mesh, value.placements, src_data_rank=None
    )


def gathered(net: nn.Module) -> nn.Module:
    """A net of its own with the whole weights; every process calls it, the first gets them."""
    if not isinstance(net, FSDPModule):
        return net
    weights = get_model_state_dict(net, options=_WHOLE)
    kind: Any = next(k for k in type(net).__mro__ if not issubclass(k, FSDPModule))
    built: nn.Module = kind(net.config)
    if weights:
        built.load_state_dict(weights)
    return built
