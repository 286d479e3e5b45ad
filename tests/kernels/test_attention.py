"""Attention against the formula in float64, and the processor against diffusers' own."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from zoo.errors import UserError
from zoo.kernels import attention, providers
from zoo.kernels.attention import _PROBED, BACKENDS, choose, probe, reference, resolve, why_not
from zoo.kernels.processor import ZooAttnProcessor, set_attention
from zoo.nets.kl_vae import KLVAE, KLVAEConfig

# these serve a CPU with gradients; the others have tests of their own
ON_CPU = ("auto", "sdpa", "sdpa-flash", "sdpa-math", "math")


def tensors(dtype: torch.dtype = torch.float32, *, keys: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("masked", ["no", "bool", "bias"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values_and_gradients(backend: str, masked: str, scale: float | None) -> None:
    q, k, v = (x.requires_grad_() for x in tensors())
    mask = {
        "no": None,
        "bool": torch.rand(2, 1, 1, 7) > 0.4,
        "bias": torch.randn(2, 1, 5, 7),
    }[masked]
    out = attention(q, k, v, mask=mask, scale=scale, backend=backend)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scores = torch.einsum("bhnd,bhmd->bhnm", wide[0], wide[1]) * (scale or 8**-0.5)
    if masked == "bias":
        scores = scores + mask
    elif masked == "bool":
        scores = torch.where(mask, scores, -1e9)
    expected = torch.einsum("bhnm,bhmd->bhnd", torch.softmax(scores, -1), wide[2])
    assert torch.allclose(out.double(), expected, atol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    for x, y in zip((q, k, v), wide, strict=True):
        assert torch.allclose(x.grad.double(), y.grad, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype)
    expected = attention(q.double(), k.double(), v.double(), backend="math")
    for backend in ON_CPU:
        out = attention(q, k, v, backend=backend)
        assert out.dtype == dtype
        assert torch.allclose(out.double(), expected, atol=2e-2)


def test_what_does_not_fit_is_named() -> None:
    q, k, v = tensors()
    with pytest.raises(ValueError, match="unknown attention backend 'flesh': use one of auto, sd"):
        attention(q, k, v, backend="flesh")
    with pytest.raises(ValueError, match=r"\(2, 3, 5, 8\), \(2, 3, 7, 8\), \(2, 3, 6, 8\)"):
        attention(q, k, v[:, :, :6])
    with pytest.raises(ValueError, match=r"torch\.float32, torch\.float32, torch\.float64"):
        attention(q, k, v.double())
    with pytest.raises(ValueError, match=r"\(2, 3, 5, 0\)"):
        attention(q[..., :0], k[..., :0], v[..., :0])
    for empty in ((q[:, :, :0], k, v), (q, k[:, :, :0], v[:, :, :0])):
        with pytest.raises(ValueError, match="an empty sequence has nothing to attend to"):
            attention(*empty)
    with pytest.raises(ValueError, match=r"\(5, 6\) doesn't broadcast to \(2, 3, 5, 7\)"):
        attention(q, k, v, mask=torch.zeros(5, 6))
    with pytest.raises(ValueError, match="cpu, meta, cpu"):
        attention(q, k.to("meta"), v)


def test_the_override_is_obeyed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors()
    call = providers.Call(q, k, v)
    monkeypatch.setenv("ZOO_ATTENTION", "math")
    assert resolve(call) == "math"
    assert resolve(call, "sdpa") == "sdpa"  # an argument is nearer than the environment
    assert torch.equal(attention(q, k, v), reference(q, k, v))
    monkeypatch.setenv("ZOO_ATTENTION", "auto")
    assert resolve(call) == choose(call) == "sdpa"
    monkeypatch.setenv("ZOO_ATTENTION", "flesh")
    with pytest.raises(ValueError, match=r"'flesh' \(from ZOO_ATTENTION\): use one of"):
        attention(q, k, v)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusals are those of a CPU")
def test_a_backend_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors()
    with pytest.raises(ValueError, match=r"'sdpa-cudnn' can't serve this call: .* runs on CUDA"):
        attention(q, k, v, backend="sdpa-cudnn")
    monkeypatch.setenv("ZOO_ATTENTION", "xformers")
    with pytest.raises(ValueError, match=r"'xformers' \(from ZOO_ATTENTION\) .* are on cpu"):
        attention(q, k, v)
    with pytest.raises(ValueError, match="no backward pass on a CPU"):
        attention(q.requires_grad_(), k, v, backend="flex")


def fake_xformers(*, wrong: bool = False) -> types.ModuleType:
    """Behaves as xformers does: [B,N,H,D], an additive bias in rows of a multiple of 8."""
    module = types.ModuleType("fake_xformers")
    module.calls = []

    def memory_efficient_attention(q, k, v, attn_bias=None, p=0.0, scale=None):
        module.calls.append((q.shape, None if attn_bias is None else attn_bias.shape))
        if attn_bias is not None:
            assert attn_bias.shape == (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
            assert attn_bias.stride(-2) % 8 == 0
            assert attn_bias.dtype == q.dtype
        out = reference(*(x.transpose(1, 2) for x in (q, k, v)), mask=attn_bias, scale=scale)
        return out.transpose(1, 2) + wrong

    module.memory_efficient_attention = memory_efficient_attention
    return module


@pytest.fixture
def provider(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[types.ModuleType]:
    """A fake xformers under the successor's name, as if CUDA tensors came."""
    module = fake_xformers(wrong=getattr(request, "param", False))
    monkeypatch.setitem(sys.modules, "fake_xformers", module)
    monkeypatch.setattr(providers, "XFORMERS_MODULES", ("not_there.ops", "fake_xformers"))
    monkeypatch.setitem(providers.RULES, "xformers", lambda call: providers.why_no_xformers())
    _PROBED.clear()
    providers._find_xformers.cache_clear()
    yield module
    _PROBED.clear()
    providers._find_xformers.cache_clear()


@pytest.mark.parametrize("masked", ["no", "bool", "bias"])
def test_xformers_gets_its_own_layout(provider: types.ModuleType, masked: str) -> None:
    q, k, v = tensors()
    mask = {"no": None, "bool": torch.rand(2, 1, 1, 7) > 0.4, "bias": torch.randn(5, 7)}[masked]
    out = attention(q, k, v, mask=mask, scale=0.7, backend="xformers")
    torch.testing.assert_close(out, reference(q, k, v, mask=mask, scale=0.7))
    assert provider.calls[-1][0] == (2, 5, 3, 8)


def test_a_backend_is_probed_once_a_process(provider: types.ModuleType) -> None:
    q, k, v = tensors()
    for _ in range(3):
        attention(q, k, v, backend="xformers")
    assert len(provider.calls) == 4  # three calls and one probe


@pytest.mark.parametrize("provider", [True], indirect=True)
def test_a_wrong_backend_is_found_out(provider: types.ModuleType) -> None:
    q, k, v = tensors()
    with pytest.raises(ValueError, match="can't serve this call: its probe is off by 1 from the"):
        attention(q, k, v, backend="xformers")


def test_a_raising_backend_is_explained(
    provider: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*arguments, **options):
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(provider, "memory_efficient_attention", raising)
    q, k, v = tensors()
    with pytest.raises(ValueError, match="probe failed with RuntimeError: no kernel image is avai"):
        attention(q, k, v, backend="xformers")


def test_an_import_that_fails_is_explained(
    provider: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Built for another torch: importing raises something that isn't an ImportError."""
    (tmp_path / "broken_xformers.py").write_text("raise RuntimeError('built for torch 1.0')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(providers, "XFORMERS_MODULES", ("broken_xformers", "not_there.ops"))
    q, k, v = tensors()
    with pytest.raises(ValueError, match=r"built for torch 1\.0, not_there is not installed"):
        attention(q, k, v, backend="xformers")


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("masked", ["no", "bool", "bias"])
def test_flex_masks(masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a mask is handed over, on the uncompiled function (the probe compiles it: slow)."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(providers, "_compiled_flex", lambda: flex_attention)
    q, k, v = tensors()
    seeded = torch.Generator().manual_seed(0)
    seen = torch.rand(2, 1, 1, 7, generator=seeded) > 0.4
    bias = torch.randn(5, 7, generator=seeded)
    mask = {"no": None, "bool": seen, "bias": bias}[masked]
    out = attention(q, k, v, mask=mask, scale=0.7, backend="flex")
    torch.testing.assert_close(out, reference(q, k, v, mask=mask, scale=0.7))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [64, 512])
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_gpu(backend: str, width: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(2, 1, 96, width, generator=generator).to("cuda", torch.bfloat16)
        for _ in range(3)
    ]
    for x in leaves:
        x.requires_grad_()
    mask = torch.rand(2, 1, 1, 96, device="cuda") > 0.4 if masked else None
    if reason := why_not(backend, providers.Call(*leaves, mask)):
        assert "probe" not in reason, reason
        assert backend not in ("auto", "sdpa", "sdpa-math", "math"), reason
        plain = width == 64 and not masked
        assert not (plain and backend in ("sdpa-flash", "sdpa-efficient")), reason
        pytest.skip(reason)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out, wanted = attention(*leaves, mask=mask, backend=backend), reference(*exact, mask=mask)
    assert (out.double() - wanted).abs().max() < 2e-2
    found = torch.autograd.grad(out.sum(), leaves)
    for a, b in zip(found, torch.autograd.grad(wanted.sum(), exact), strict=True):
        assert (a.double() - b).abs().max() < 2e-2 * b.abs().max().clamp_min(1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_wide_head_goes_to_a_kernel_that_takes_it() -> None:
    x = torch.randn(1, 1, 1024, 512, device="cuda", dtype=torch.bfloat16)
    assert choose(providers.Call(x, x, x)) == "sdpa-efficient"


def test_probe_is_none_for_what_works() -> None:
    for backend in ("sdpa-flash", "sdpa-math"):
        assert probe(backend, torch.device("cpu"), torch.float32) is None


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("normed", [None, "layer_norm"])
def test_processor_equals_diffusers(cross: bool, normed: str | None) -> None:
    torch.manual_seed(0)
    block = Attention(
        query_dim=24,
        cross_attention_dim=10 if cross else None,
        heads=3,
        dim_head=8,
        qk_norm=normed,
        cross_attention_norm=normed if cross else None,
    ).eval()
    x = torch.randn(2, 6, 24)
    source = torch.randn(2, 5, 10) if cross else None
    bias = torch.randn(2, 1, 5 if cross else 6)
    with torch.no_grad():
        for mask in (None, bias):
            block.set_processor(AttnProcessor2_0())
            expected = block(x, source, attention_mask=mask)
            block.set_processor(ZooAttnProcessor())
            assert torch.equal(block(x, source, attention_mask=mask), expected)
            block.set_processor(ZooAttnProcessor("math"))
            assert torch.allclose(block(x, source, attention_mask=mask), expected, atol=1e-6)


def test_processor_serves_an_autoencoder() -> None:
    """One head, group norm and residual inside, over [B,C,H,W]."""
    torch.manual_seed(0)
    net = AutoencoderKL(block_out_channels=(16,), norm_num_groups=4).eval()
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = net(x).sample
        set_attention(net)
        assert torch.equal(net(x).sample, expected)


def test_the_image_vae_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = KLVAE(KLVAEConfig(block_channels=(16,), norm_groups=4, layers=1, latent_channels=2))
    x = torch.zeros(1, 3, 8, 8)
    assert net.encode(x).mean.shape == (1, 2, 8, 8)
    monkeypatch.setenv("ZOO_ATTENTION", "flesh")
    with pytest.raises(UserError, match="'flesh'"):
        net.encode(x)


def test_set_attention_refuses() -> None:
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=8,
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    )
    with pytest.raises(UserError, match="added key and value projections"):
        set_attention(net)
    with pytest.raises(UserError, match="unknown attention backend 'flesh'"):
        set_attention(net, "flesh")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ON_CPU)
def test_attention_compiles_in_one_graph(backend: str, dynamic: bool) -> None:
    torch.compiler.reset()  # one function is compiled for so many kinds of arguments only
    q, k, v = tensors()
    compiled = torch.compile(attention, fullgraph=True, dynamic=dynamic, backend="eager")
    found = compiled(q, k, v, backend=backend)
    torch.testing.assert_close(found, attention(q, k, v, backend=backend))
