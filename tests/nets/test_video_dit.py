"""The generator: a stream is the whole clip, causal, and refuses what isn't its own."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import zoo
from tests.latent_videos import generator, tokenizer
from zoo.errors import UserError
from zoo.nets.video_dit import VideoDiT
from zoo.nets.video_dit_blocks import patches, unpatches
from zoo.nets.video_dit_config import VideoDiTConfig
from zoo.streaming import State

CASES = list(itertools.product(("full", "factorised"), (1, 2), (1, 2)))
# float32: gate of 1e-5 of the largest value
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def inputs(
    frames: int = 9, *, chunk: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, finished ones, times and text of two clips."""
    draw = torch.Generator().manual_seed(1)
    noisy, past = torch.randn(2, 2, 4, frames, 4, 6, generator=draw, dtype=torch.float64)
    times = torch.rand(2, -(-frames // chunk), generator=draw, dtype=torch.float64)
    text = torch.randn(2, 2, 24, generator=draw, dtype=torch.float64)
    times = times.repeat_interleave(chunk, 1)[:, :frames]
    return noisy.to(dtype), past.to(dtype), times.to(dtype), text.to(dtype)


def whole(net: VideoDiT, noisy: Tensor, past: Tensor, times: Tensor, text: Tensor) -> Tensor:
    """As in training."""
    begins = torch.ones(len(noisy), dtype=torch.bool)
    return net(noisy, times, text, past=past, past_times=torch.zeros_like(times), begins=begins)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])
@pytest.mark.parametrize(("attention", "chunk", "patch"), CASES)
@torch.no_grad()
def test_stream_equals_training_and_the_cacheless_whole(
    attention: str, chunk: int, patch: int, dtype: torch.dtype
) -> None:
    net = generator(attention=attention, chunk=chunk, patch=patch, window=4).to(dtype)
    noisy, past, times, text = inputs(chunk=chunk, dtype=dtype)
    clip = whole(net, noisy, past, times, text)
    state: State | None = None
    largest = clip.abs().max()
    assert largest > 0.1
    for begin in range(0, 9, chunk):
        part = slice(begin, min(9, begin + chunk))
        got, _ = net.step(noisy[:, :, part], times[:, begin], text, state)
        assert (got - clip[:, :, part]).abs().max() < TOLERANCE[dtype] * largest
        film = torch.cat([past[:, :, :begin], noisy[:, :, part]], dim=2)
        at = torch.cat([torch.zeros_like(times[:, :begin]), times[:, part]], dim=1)
        without = net.whole(film, at, text)[:, :, part]
        assert (got - without).abs().max() < TOLERANCE[dtype] * largest
        _, state = net.step(past[:, :, part], torch.zeros(2, dtype=dtype), text, state)


@pytest.mark.parametrize("attention", ["full", "factorised"])
@torch.no_grad()
def test_a_chunk_sees_its_past_and_nothing_later(attention: str) -> None:
    net = generator(attention=attention, chunk=2, window=4).double()
    noisy, past, times, text = inputs(8, chunk=2)
    before = whole(net, noisy, past, times, text)
    later, earlier = past.clone(), past.clone()
    later[:, :, 4:] += 1  # seen by chunks after it only
    earlier[:, :, 0] += 1
    changed = whole(net, noisy, later, times, text)
    assert torch.equal(before[:, :, :6], changed[:, :, :6])
    assert (before - changed)[:, :, 6:].abs().max() > 1e-3
    assert (before - whole(net, noisy, earlier, times, text))[:, :, 2:4].abs().max() > 1e-3
    other = noisy.clone()
    other[:, :, 3] += 1  # its own chunk, and no other: they see finished latents
    moved = (before - whole(net, other, past, times, text)).abs().amax(dim=(0, 1, 3, 4))
    assert (moved[2:4] > 1e-3).all()
    assert (moved[[0, 1, 4, 5, 6, 7]] == 0).all()


@torch.no_grad()
def test_memory_is_constant_and_states_are_data() -> None:
    net = generator(window=3).double()
    noisy, past, _, text = inputs(12)
    state, sizes = None, []
    for latent in past.split(1, dim=2):
        before = None if state is None else {k: v.clone() for k, v in state.items()}
        _, new = net.step(latent, torch.zeros(2).double(), text, state)
        assert state is None or all(torch.equal(state[k], before[k]) for k in state)  # type: ignore[index]
        state = new
        sizes.append(sum(value.numel() for value in state.values()))
    assert len(set(sizes[2:])) == 1
    # a stream leaves a batch by indexing
    one = {k: v[1:] for k, v in state.items()}  # type: ignore[union-attr]
    both, _ = net.step(noisy[:, :, :1], torch.ones(2).double(), text, state)
    alone, _ = net.step(noisy[1:, :, :1], torch.ones(1).double(), text[1:], one)
    assert (alone - both[1:]).abs().max() < 1e-12


@torch.no_grad()
def test_states_of_others_are_refused() -> None:
    net, other = generator(), generator()
    other.read_in.weight.add_(0.01)
    z, time, text = torch.zeros(2, 4, 1, 4, 4), torch.zeros(2), torch.zeros(2, 2, 24)
    _, state = net.step(z, time, text, None)
    with pytest.raises(UserError, match=r"state is of another net.*state=None"):
        other.step(z, time, text, state)
    with pytest.raises(UserError, match=r"state of 2 films with 16 tokens.*of 1 with 16"):
        net.step(z[:1], time[:1], text[:1], state)
    with pytest.raises(UserError, match="2 latents at once: this net's chunks have 1"):
        net.step(z.repeat(1, 1, 2, 1, 1), time, text, state)
    pairs = generator(chunk=2)
    _, ended = pairs.step(z, time, text, None)
    with pytest.raises(UserError, match="last chunk had 1 of 2 latents"):
        pairs.step(z, time, text, ended)
    with pytest.raises(UserError, match=r"\(2, 5, 1, 4, 4\).*\[B,4,t,h,w\]"):
        net.step(torch.zeros(2, 5, 1, 4, 4), time, text, None)
    with pytest.raises(UserError, match="3x4 don't divide into patches of 2x2"):
        generator(patch=2).step(torch.zeros(2, 4, 1, 3, 4), time, text, None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"heads": 5}, "dim = 24 with 5 heads"),
        ({"chunk": 2, "window": 3}, "chunk = 2 and window = 3"),
        ({"path": "flow"}, "path = 'flow': give rectified_flow or v_diffusion"),
        ({"attention": "half"}, "attention = 'half': give full or factorised"),
        ({"attention": "factorised", "depth": 1}, "depth = 1 with factorised"),
    ],
)
def test_impossible_settings(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        VideoDiTConfig(**({"dim": 24, "heads": 2} | values))  # type: ignore[arg-type]


def test_presets() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in zoo.create(name).parameters()) / 1e6
            for name in zoo.list_models(family="video_dit")
        }
    assert set(sizes) == {"video_dit_base", "video_dit_small", "video_dit_tiny"}
    assert sizes["video_dit_tiny"] < 4.5  # 9 MB in half precision
    assert 550 < sizes["video_dit_base"] < 700  # Latte-XL/2 has 674


def test_a_new_net_predicts_nothing_and_learns_everywhere() -> None:
    torch.manual_seed(0)
    net = VideoDiT(VideoDiTConfig(latent_channels=4, dim=24, depth=2, heads=2, text_dim=24))
    noisy, past, times, text = inputs(3, dtype=torch.float32)
    for step in range(3):
        out = whole(net, noisy, past, times, text)
        assert step or not out.any()
        (out - noisy).square().mean().backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad
    still = [name for name, p in net.named_parameters() if not p.grad.any()]  # type: ignore[union-attr]
    assert not still
    net.checkpointing = True
    again = torch.autograd.grad(
        (whole(net, noisy, past, times, text) - noisy).square().mean(), net.read_in.weight
    )[0]
    net.checkpointing = False
    plain = torch.autograd.grad(
        (whole(net, noisy, past, times, text) - noisy).square().mean(), net.read_in.weight
    )[0]
    assert torch.allclose(again, plain, atol=1e-6)


def test_saved_and_loaded(tmp_path: Path) -> None:
    net = generator(attention="factorised", path="v_diffusion")
    net.save_pretrained(tmp_path)
    back = zoo.load(f"dir:{tmp_path}")
    assert isinstance(back, VideoDiT)
    assert back.config == net.config
    assert torch.equal(back.signature(), net.signature())


def test_patches() -> None:
    x = torch.randn(2, 3, 2, 4, 6)
    tokens = patches(x, 2)
    assert tokens.shape == (2, 2, 6, 12)
    assert torch.equal(tokens[0, 1, 5].view(3, 2, 2), x[0, :, 1, 2:, 4:])
    assert torch.equal(unpatches(tokens, x, 2), x)


def test_tokenizers_of_other_latents_are_refused() -> None:
    net, mine = generator(), tokenizer()
    with pytest.raises(UserError, match=r"of 4 channels.*dir:five those of 5"):
        net.check_tokenizer(tokenizer(channels=5), name="dir:five")
    with pytest.raises(UserError, match="dir:blank has no latent statistics"):
        net.bind(
            tokenizer(measured=False), name="dir:blank", size=(4, 4), rate=12.5, weights="a" * 64
        )
    net.bind(mine, name="dir:mine", size=(4, 4), rate=12.5, weights="a" * 64)
    with pytest.raises(UserError, match=r"of dir:mine \(weights aaaaaaaa\), not of dir:other"):
        net.check_tokenizer(tokenizer(seed=1), name="dir:other", weights="b" * 64)
    z = torch.randn(2, 4, 1, 2, 2)
    assert torch.allclose(net.normalize(net.denormalize(z)), z, atol=1e-6)
    assert net.latent_mean.equal(mine.latent_mean)
