"""The text encoders against transformers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.tiny_pipelines import tiny_clip
from tests.wanted import or_skip
from zoo.assets import cache_root, fetch_group
from zoo.errors import UserError
from zoo.text import CLIPText, MiniLMText, text_encoder_for


@pytest.fixture(scope="module")
def minilm() -> MiniLMText:
    or_skip(lambda: fetch_group("minilm"))
    return MiniLMText()


@pytest.mark.assets
def test_minilm_is_transformers_own(minilm: MiniLMText, tmp_path: Path) -> None:
    """Loaded another way: AutoModel and AutoTokenizer from a folder of the same files."""
    from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

    weights, words = fetch_group("minilm").values()
    os.symlink(weights, tmp_path / "model.safetensors")
    BertConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=6, architectures=["BertModel"]
    ).save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(words), pad_token="[PAD]", sep_token="[SEP]", cls_token="[CLS]"
    )
    prompts = ["a red apple, 3d", "", "two crossed flags of " + "very " * 30 + "far countries"]
    batch = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=20, return_tensors="pt"
    )
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path).eval()(**batch).last_hidden_state
    got = minilm(prompts)
    keep = batch["attention_mask"][..., None]
    assert torch.allclose(got.states, 2 * expected * keep, atol=1e-4)
    assert got.states.shape == (3, 20, 384)
    assert (got.states[0, 8:] == 0).all()
    assert got.truncated[:2] == [0, 0]
    assert got.truncated[2] > 15


@pytest.mark.assets
def test_minilm_knows_what_is_alike(minilm: MiniLMText) -> None:
    a, b, c = minilm(["a red apple", "an apple that is red", "the flag of Norway"]).states.sum(1)
    near = torch.cosine_similarity(a, b, dim=0)
    assert near > torch.cosine_similarity(a, c, dim=0) + 0.2


def test_minilm_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert cache_root() == tmp_path
    with pytest.raises(UserError, match=r"minilm_l6_v2.*ZOO_OFFLINE forbids"):
        MiniLMText()(["x"])


def test_clip_truncates_and_says_so(tmp_path: Path) -> None:
    tokenizer, encoder = tiny_clip(tmp_path)
    text = CLIPText(tokenizer, encoder)
    got = text(["a b", "", "a b " * 20])
    assert got.states.shape == (3, 12, 24)
    assert got.truncated == [0, 0, 40 + 2 - 12]
    ids = tokenizer("a b", padding="max_length", max_length=12, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(got.states[0], encoder(ids)[0][0])


def test_other_widths_are_refused() -> None:
    assert text_encoder_for(384).tokens == 20
    with pytest.raises(UserError, match="width 768"):
        text_encoder_for(768)
