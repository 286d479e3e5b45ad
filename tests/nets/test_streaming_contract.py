"""What every streaming net promises: chunks equal the whole, streams don't meet, state is data."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from tests.nets.zoo_of_nets import STREAMING, make, video
from zoo.errors import UserError
from zoo.nets.tokenizer import Tokenizer
from zoo.streaming import State

NETS = sorted(STREAMING)
# float64 shows that the results are equal. In float32, norms over the four channels of these toy
# nets magnify how convolutions of other lengths round: by 1e-4 where one thread computes
TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-12}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def encode_in(net: Tokenizer, x: Tensor, chunk: int) -> Tensor:
    return torch.cat(list(net.stream_encode(x.split(chunk, dim=2))), dim=2)


def decode_in(net: Tokenizer, z: Tensor, chunk: int, steps: int) -> Tensor:
    pieces = net.stream_decode(z.split(chunk, dim=2), steps=steps, generator=generator())
    return torch.cat(list(pieces), dim=2)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_chunks_equal_the_whole(name: str, dtype: torch.dtype) -> None:
    net = make(name, dtype=dtype)
    x = video(11, dtype=dtype)  # not 1 + 4k: the stream ends with repeated frames, as the clip does
    z = net.encode(x).mean
    scale = z.abs().max()
    for chunk in (1, 2, 3, 11):
        assert (encode_in(net, x, chunk) - z).abs().max() < TOLERANCE[dtype] * scale, chunk
    time = net.compression[0]
    assert z.shape[2] == 1 + -(-10 // time)
    for steps in (1, 3):
        y = net.decode(z, steps=steps, generator=generator())
        assert y.shape[2] == 1 + (z.shape[2] - 1) * time
        for chunk in (1, 2, 3, 4):
            error = (decode_in(net, z, chunk, steps) - y).abs().max()
            assert error < TOLERANCE[dtype] * y.abs().max(), (steps, chunk)


@pytest.mark.parametrize("name", NETS)
def test_the_past_does_not_see_the_future(name: str) -> None:
    net = make(name, dtype=torch.float64)
    x = video(9, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 5:] += 0.5
    z, other = net.encode(x).mean, net.encode(changed).mean
    past = 1 + 4 // net.compression[0]
    # equal but for how a convolution over other frames rounds
    assert (z[:, :, :past] - other[:, :, :past]).abs().max() < 1e-12
    assert not torch.allclose(z[:, :, past:], other[:, :, past:])
    z_changed = z.clone()
    z_changed[:, :, past:] += 1
    y, other = (net.decode(v, generator=generator()) for v in (z, z_changed))
    assert (y[:, :, :5] - other[:, :, :5]).abs().max() < 1e-12
    assert not torch.allclose(y[:, :, 5:], other[:, :, 5:])


@pytest.mark.parametrize("name", NETS)
def test_interleaved_streams_and_a_failure_do_not_meet(name: str) -> None:
    net = make(name)
    first, second = video(9), -video(9).flip(3)
    alone = [encode_in(net, x, 4) for x in (first, second)]
    states: list[State | None] = [None, None]
    got: list[list[Tensor]] = [[], []]
    for pieces in zip(first.split(4, dim=2), second.split(4, dim=2), strict=True):
        for number, piece in enumerate(pieces):
            posterior, states[number] = net.encode_step(piece, states[number])
            got[number].append(posterior.mean)
        with pytest.raises(UserError):
            net.encode_step(torch.zeros(2, 3, 0, 16, 24), states[0])
        if any(state.numel() for state in (states[0] or {}).values()):
            with pytest.raises((RuntimeError, UserError)):
                net.encode_step(torch.zeros(2, 3, 4, 40, 24), states[0])  # another height
    for number in range(2):
        assert torch.equal(torch.cat(got[number], dim=2), alone[number])


@pytest.mark.parametrize("name", NETS)
def test_state_is_data(name: str) -> None:
    """Steps never change the old state; it replays bit for bit, also after torch.save; a stream
    leaves a batch by indexing."""
    net = make(name, dtype=torch.float64)
    z = net.encode(video(17, dtype=torch.float64)).mean
    _, state = net.decode_step(z[:, :, :2], None, generator=generator())
    before = {k: v.clone() for k, v in state.items()}
    y, _ = net.decode_step(z[:, :, 2:4], state, generator=generator())
    assert state.keys() == before.keys()
    assert all(torch.equal(state[k], before[k]) for k in state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again, _ = net.decode_step(
        z[:, :, 2:4], torch.load(file, weights_only=True), generator=generator()
    )
    assert torch.equal(again, y)
    one = {k: v[1:] for k, v in state.items()}
    if name.startswith(("cdt", "like")):
        return  # its noise is drawn for the whole batch, so one clip's differs
    alone, _ = net.decode_step(z[1:, :, 2:4], one)
    assert (alone - y[1:]).abs().max() < 1e-11 * y.abs().max()


def test_nets_with_other_padding_do_not_disturb() -> None:
    x = video(9)
    net = make("like_small")
    before = net.encode(x).mean
    make("like_base").encode(x)
    assert torch.equal(net.encode(x).mean, before)


def test_stream_crops_to_size() -> None:
    net = make("klvae_video_tiny")
    x = video(10, 18, 29)
    z = net.encode(x).mean
    whole = net.decode(z, size=(10, 18, 29))
    pieces = list(net.stream_decode(z.split(1, dim=2), size=(10, 18, 29)))
    assert whole.shape == x.shape
    assert [p.shape[2] for p in pieces] == [1, 4, 4, 1]
    assert (torch.cat(pieces, dim=2) - whole).abs().max() < 1e-5
