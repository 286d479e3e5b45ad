"""The streaming step through torch.compile and as a graph is the plain one, and forks like it.

Backend "eager" traces everything that the compiler gets (one graph, no breaks) and fuses nothing:
inductor takes minutes for a net on a CPU. CUDA graphs are stood for by doing the work again.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.nets.zoo_of_nets import make
from zoo.compiled import CompiledStep, Graph
from zoo.errors import UserError
from zoo.nets.cdt import CDT
from zoo.nets.tiling import Tiled
from zoo.nets.tokenizer import Tokenizer
from zoo.registry import create

NETS = ["cdt_tiny", "klvae_video_tiny"]
SLACK = 1e-5  # of float32: the same operations


def latents(net: Tokenizer) -> Tensor:
    return torch.randn(1, net.latent_channels, 4, 3, 2, generator=torch.Generator().manual_seed(5))


def stream(net: Tokenizer, step: CompiledStep | None, chunk: int = 1, steps: int = 1) -> Tensor:
    pieces = latents(net).split(chunk, dim=2)
    generator = torch.Generator().manual_seed(3)
    return torch.cat(
        list(net.stream_decode(pieces, steps=steps, generator=generator, step=step)), dim=2
    )


def again(work: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
    """What a graph does: the same work in the same memory."""
    outputs = work()

    def replay() -> None:
        for held, new in zip(outputs, work(), strict=True):
            held.copy_(new)

    return replay, outputs


@pytest.mark.parametrize("name", NETS)
def test_a_compiled_stream_is_the_plain_one(name: str) -> None:
    net = make(name)
    step = CompiledStep(net, backend="eager")
    wanted = stream(net, None)
    assert wanted.std() > 1e-3
    assert (stream(net, step) - wanted).abs().max() < SLACK * wanted.abs().max()


def test_sampling_steps_and_other_chunks() -> None:
    net = make("cdt_tiny")
    assert isinstance(net, CDT)
    net = net.with_sampling(eta=1.0)  # fresh noise in every step
    step = CompiledStep(net, backend="eager")
    wanted = stream(net, None, chunk=2, steps=2)
    found = stream(net, step, chunk=2, steps=2)
    assert (found - wanted).abs().max() < SLACK * wanted.abs().max()


def test_a_graph_serves_streams_that_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for a first chunk, one for all others; each stream's state is its own."""
    captures: list[int] = []

    def capture(work: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        captures.append(1)
        return again(work)

    monkeypatch.setattr("zoo.compiled.capture_on_cuda", capture)
    net = make("like_small")
    step = CompiledStep(net, graphs=True, backend="eager")
    wanted = stream(net, None)
    for _ in range(2):
        assert (stream(net, step) - wanted).abs().max() < SLACK * wanted.abs().max()
    assert len(captures) == 2

    z = latents(net).split(1, dim=2)
    noise = [torch.Generator().manual_seed(n) for n in (1, 1)]
    _, old = step(z[0], None, generator=noise[0])
    kept = {name: memory.clone() for name, memory in old.items()}
    one, _ = step(z[1], old, generator=torch.Generator().manual_seed(2))
    held = one.clone()
    two, _ = step(z[2], old, generator=torch.Generator().manual_seed(2))
    assert torch.equal(one, held), "the next chunk wrote into this one's pixels"
    assert all(torch.equal(old[name], kept[name]) for name in old)
    _, plain = net.decode_step(z[0], None, generator=noise[1])
    for found, piece in ((one, z[1]), (two, z[2])):
        pixels, _ = net.decode_step(piece, plain, generator=torch.Generator().manual_seed(2))
        assert (found - pixels).abs().max() < SLACK * pixels.abs().max()
    assert len(captures) == 2


def test_latents_of_another_net_are_refused() -> None:
    step = CompiledStep(make("like_small"), backend="eager")
    with pytest.raises(UserError, match="don't fit this net"):
        step(torch.zeros(1, 9, 1, 2, 2), None)
    with pytest.raises(UserError, match="at least 1 sampling step"):
        step(torch.zeros(1, 3, 1, 2, 2), None, steps=0)


def test_nets_without_such_a_step_are_refused() -> None:
    net = make("like_small")
    with pytest.raises(UserError, match="tiles share one noise field"):
        CompiledStep(Tiled(net, tile=64))
    net.streams = False
    with pytest.raises(UserError, match="needs its whole clip"):
        CompiledStep(net)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_cuda_graphs_give_the_plain_stream(backend: str) -> None:
    net = create("cdt_tiny").cuda().eval()
    assert isinstance(net, Tokenizer)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter.data, std=0.05)
    step = CompiledStep(net, backend=backend)
    pieces = latents(net).cuda().split(1, dim=2)
    results = []
    for way in (None, step, step):
        source = torch.Generator().manual_seed(3)
        with torch.no_grad():
            results.append(
                torch.cat(list(net.stream_decode(pieces, generator=source, step=way)), 2)
            )
    assert isinstance(next(iter(step._graphs.values())), Graph)
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-3, atol=1e-3)
