"""CDT's sampling: cost, eta, streams of many steps; and that the published nets can be trained."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.nets.zoo_of_nets import BUILDERS, make, video
from zoo.diffusion.samplers import ddim_step
from zoo.diffusion.schedule import cosine_alpha_bar
from zoo.errors import UserError
from zoo.nets.blocks3d import set_gradient_checkpointing
from zoo.nets.cdt import CDT
from zoo.objectives import DenoisingObjective
from zoo.streaming import State

NETS = ["cdt_tiny", "like_base", "like_small"]


def cdt(name: str, *, dtype: torch.dtype = torch.float32) -> CDT:
    net = make(name, dtype=dtype)
    assert isinstance(net, CDT)
    return net


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "tflops"), [("cdt_base", 20.37), ("cdt_small", 4.62)])
def test_cdt_one_step_costs_no_more_than_the_released_code(name: str, tflops: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = zoo.create(name).eval()
        assert isinstance(net, CDT)
        net.decode(torch.empty(1, 16, 5, 32, 32))
    assert 0.8 * tflops < counter.get_total_flops() / 1e12 < 1.002 * tflops


@pytest.mark.parametrize("name", NETS)
def test_cdt_four_steps_cost_four_unets_and_one_context(name: str) -> None:
    with torch.device("meta"):
        net = BUILDERS[name]().eval()
        assert isinstance(net, CDT)
        z = torch.empty(1, net.latent_channels, 4, 4, 6)

        def flops(call: object) -> int:
            with FlopCounterMode(display=False) as counter:
                assert callable(call)
                call()
            return counter.get_total_flops()

        contexts, base = net.conditions(z)
        x, index = torch.empty(1, 3, 13, 32, 48), torch.zeros(1)
        context = flops(lambda: net.conditions(z))
        unet = flops(lambda: net.denoise(x, index, contexts, base=base))
        assert context > 0
        whole = {n: flops(lambda n=n: net.decode(z, steps=n)) for n in (1, 4)}
        stream = {
            n: flops(lambda n=n: list(net.stream_decode(z.split(1, dim=2), steps=n)))
            for n in (1, 4)
        }
    for steps in (1, 4):
        assert whole[steps] == context + steps * unet
    # what doesn't depend on frames (the embedding of the time) is computed in each chunk
    unet_in_chunks = stream[1] - context
    assert unet_in_chunks == pytest.approx(unet, rel=2e-2)
    assert stream[4] == context + 4 * unet_in_chunks


@pytest.mark.parametrize("name", NETS)
def test_cdt_streams_with_fresh_noise_equal_the_whole(name: str) -> None:
    net = cdt(name, dtype=torch.float64).with_sampling(gamma=1.0, eta=0.7)
    z = net.encode(video(13, dtype=torch.float64)).mean
    whole = net.decode(z, steps=3, generator=generator())
    for chunk in (1, 3):
        pieces = net.stream_decode(z.split(chunk, dim=2), steps=3, generator=generator())
        error = (torch.cat(list(pieces), dim=2) - whole).abs().max()
        assert error < 1e-12 * whole.abs().max(), chunk
    plain = net.with_sampling(eta=0.0).decode(z, steps=3, generator=generator())
    assert not torch.allclose(plain, whole, rtol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_cdt_two_streams_of_four_steps_share_a_net(name: str) -> None:
    """Interleaved streams are exact, and a state that went through torch.save goes on exactly."""
    net = cdt(name)
    latents = [net.encode(x).mean for x in (video(13), video(13).flip(3))]
    generators = [generator(1), generator(2)]

    def alone(number: int) -> Tensor:
        pieces = latents[number].split(1, dim=2)
        given = generator(1 + number)
        return torch.cat(list(net.stream_decode(pieces, steps=4, generator=given)), dim=2)

    want = [alone(0), alone(1)]
    states: list[State | None] = [None, None]
    got: list[list[Tensor]] = [[], []]
    for pieces in zip(*(z.split(1, dim=2) for z in latents), strict=True):
        for number, z in enumerate(pieces):
            x, state = net.decode_step(z, states[number], steps=4, generator=generators[number])
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            states[number] = torch.load(file, weights_only=True)
            got[number].append(x)
    for number in range(2):
        assert torch.equal(torch.cat(got[number], dim=2), want[number])


def test_cdt_ddim_step_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    alpha_bar = cosine_alpha_bar(1000)
    betas = 1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])
    scheduler = DDIMScheduler(
        1000, trained_betas=betas.numpy(), prediction_type="sample", clip_sample=False
    )
    scheduler.set_timesteps(10)  # 100 indices between steps
    x, x0, noise = torch.randn(3, 1, 3, 2, 4, 4, generator=generator(), dtype=torch.float64)
    for index in (900, 500, 100):
        for eta in (0.0, 0.5, 1.0):
            theirs = scheduler.step(x0, index, x, eta=eta, variance_noise=noise).prev_sample
            ours = ddim_step(
                x,
                x0,
                alpha_bar=float(alpha_bar[index]),
                next_alpha_bar=float(alpha_bar[index - 100]),
                eta=eta,
                noise=noise,
            )
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), (index, eta)


def test_cdt_refuses_what_it_cannot_do() -> None:
    net = cdt("like_small")
    for values, said in (
        ({"gamma": -1.0}, "gamma = -1"),
        ({"eta": 1.5}, r"eta = 1\.5"),
        ({"gamma": float("nan")}, "gamma = nan"),
    ):
        with pytest.raises(UserError, match=said):
            net.with_sampling(**values)
    x = video(5)
    with pytest.raises(UserError, match="T >= 1"):
        net.encode(x[:, :, :0])
    x[0, 0, 2, 3, 4] = float("nan")
    with pytest.raises(UserError, match="1 of 11520 pixels are NaN"):
        net.encode(x)
    with pytest.raises(UserError, match="pixels are NaN"):
        next(net.stream_encode(x.split(3, dim=2)))
    z = torch.zeros(1, 5, 2, 2, 3)
    with pytest.raises(UserError, match=r"\[B,3,t,h,w\]"):
        net.decode(z)
    with pytest.raises(UserError, match="steps = 0"):
        net.decode(z[:, :3], steps=0)
    with pytest.raises(UserError, match="steps = 9000: give 1 to 8192"):
        net.decode(z[:, :3], steps=9000)


@pytest.mark.parametrize("name", NETS)
def test_cdt_gradient_checkpointing_changes_memory_alone(name: str) -> None:
    net = BUILDERS[name]()
    objective = DenoisingObjective(lpips_weight=0, pure_noise=0.3)
    gradients: list[list[Tensor | None]] = []
    held = []
    for on in (False, True):
        set_gradient_checkpointing(net, on)
        torch.manual_seed(0)
        net.zero_grad()
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = objective(net, video(9), progress=0.0).total
        held.append(sum(kept.values()))
        total.backward()
        gradients.append([p.grad for p in net.parameters()])
    assert held[1] < 0.6 * held[0]
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain is None) == (recomputed is None)
        assert plain is None or recomputed is None or torch.equal(plain, recomputed)


@pytest.mark.parametrize("name", ["like_base", "like_small"])
def test_cdt_published_nets_train_from_our_initialisation(name: str) -> None:
    """The released code starts with zeros: 2 of 520 parameters get a gradient. Here: all do."""
    torch.manual_seed(0)
    net = BUILDERS[name]()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    objective = DenoisingObjective(lpips_weight=0, pure_noise=0.5)
    x = torch.nn.functional.avg_pool3d(video(9, 48, 48), (1, 3, 3)) * 2
    losses = []
    for step in range(12):
        terms = objective(net, x, progress=0.0)
        optimizer.zero_grad()
        terms.total.backward()
        if step == 1:  # attention's output starts at zero: its inputs learn from the second step on
            dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
            assert not dead, dead
        optimizer.step()
        losses.append(float(terms.terms["mse"].detach()))
    assert losses[-1] < 0.7 * losses[0]
