"""Finding where numbers stop being finite, so that a run that ends can say why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from zoo.errors import StepError
from zoo.lit.sharding import whole_tensor


def check_terms(
    terms: dict[str, Tensor],
    *,
    step: int,
    clips: Sequence[str],
    net: nn.Module,
    again: Callable[[], object],
    shared: dict[str, Tensor],
) -> None:
    """Stop a run whose loss isn't finite, before it reaches the weights.

    Args:
        terms: scalars by name.
        step: for the message.
        clips: keys of the batch, for the message.
        net: whose layers are searched for the first that overflowed.
        again: runs the same batch through `net` once more.
        shared: the terms as means over all processes (`mean_over_processes`): a process whose own
            are finite stops at the same step as the one whose aren't.

    Raises:
        StepError: a term is not finite; the term, the clips and the first layer are named.
    """
    if _finite(shared):
        return
    if _finite(terms):
        raise StepError(f"step {step}: the loss is not finite in another process, which names it")
    names = ", ".join(name for name, value in terms.items() if not torch.isfinite(value).all())
    said = f"step {step}: the loss term {names} is not finite on the clips {', '.join(clips)}"
    where = first_overflow(net, again)
    if where is None:
        raise StepError(f"{said}: lower the learning rate or check the clips")
    layer, dtype = where
    if dtype == torch.float16:
        raise StepError(
            f"{said}: {layer} overflowed in float16, which ends at 65504: "
            "use --trainer.precision bf16-mixed or 32-true"
        )
    raise StepError(f"{said}: {layer} overflowed first: lower the learning rate or check the clips")


def _finite(terms: dict[str, Tensor]) -> bool:
    return bool(torch.isfinite(torch.stack([v.detach().float() for v in terms.values()])).all())


def mean_over_processes(terms: dict[str, Tensor], strategy: Strategy) -> dict[str, Tensor]:
    """Detached scalars, averaged by one reduction; with one process the same values."""
    values = torch.stack([v.detach() for v in terms.values()])
    reduced = strategy.reduce(values, reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(terms, reduced, strict=True))


def check_gradient(weights: Iterable[Tensor], *, step: int, who: str) -> None:
    """Stop a run before a gradient that isn't finite reaches the weights of `who`.

    Gradients are averaged over the processes before: all of them see the same.

    Raises:
        StepError: the gradient is not finite.
    """
    norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
    if not torch.isfinite(whole_tensor(norm)):
        raise StepError(
            f"step {step}: the gradient of {who} is not finite: lower the learning rate or use a "
            "wider precision"
        )


def first_overflow(net: nn.Module, forward: Callable[[], object]) -> tuple[str, torch.dtype] | None:
    """The path and dtype of the first layer of `net` that makes infinity or NaN of finite input."""
    found: list[tuple[str, torch.dtype]] = []

    def watch(path: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, given: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append((path, output.dtype))

        return hook

    leaves = [(path, m) for path, m in net.named_modules() if path and not any(m.children())]
    handles = [module.register_forward_hook(watch(path)) for path, module in leaves]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
