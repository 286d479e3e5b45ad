"""Text encoders of text-to-image nets, behind one interface.

A net is trained on one encoder's states in one preparation (length, scale, padding): both belong to
the name, so that training and sampling can't differ.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from zoo.errors import UserError


class TextStates(NamedTuple):
    """Encoded prompts.

    Attributes:
        states: [B,L,D], what the net cross-attends to.
        truncated: for each prompt the number of tokens that did not fit, 0 if it fits.
    """

    states: Tensor
    truncated: list[int]


class TextEncoder(Protocol):
    """Prompts to states; `dim` is D, `tokens` is L."""

    dim: int
    tokens: int

    def __call__(self, prompts: Sequence[str]) -> TextStates:
        """Encode; the empty prompt is allowed (it is what guidance is measured against)."""


class CLIPText:
    """The CLIP text encoder of a Stable Diffusion folder: its last hidden state, padded.

    Args:
        tokenizer, encoder: transformers' CLIPTokenizer and CLIPTextModel; used as they are.
    """

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        self.dim: int = encoder.config.hidden_size
        self.tokens = min(
            int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings)
        )

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> TextStates:
        """Encode on the encoder's device."""
        full = self.tokenizer(list(prompts), truncation=False).input_ids
        fitted = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokens,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        device = next(self.encoder.parameters()).device
        states: Tensor = self.encoder(fitted.to(device))[0]
        return TextStates(states, [max(0, len(ids) - self.tokens) for ids in full])


class MiniLMText:
    """all-MiniLM-L6-v2 (Apache-2.0, 22.7 M parameters), fetched by the zoo when first used.

    Its last hidden state, 20 tokens, times 2 (to about unit variance), padding set to zero.
    """

    dim = 384
    tokens = 20
    scale: ClassVar[float] = 2.0
    _SEP: ClassVar[int] = 102

    def __init__(self) -> None:
        self._net: Any = None
        self._words: Any = None
        self.device = torch.device("cpu")

    def _load(self) -> None:
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        from zoo.assets import fetch_group
        from zoo.nets.pretrained import read_weights

        weights, words = fetch_group("minilm").values()
        config = BertConfig(
            hidden_size=self.dim,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=12,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        net: Any = BertModel(config, add_pooling_layer=True)
        net.eval().requires_grad_(False)
        tensors = read_weights(weights)
        # a constant table that newer versions of transformers make themselves
        tensors.pop("embeddings.position_ids", None)
        net.load_state_dict(tensors, strict=True)
        self._net, self._words = net, Tokenizer.from_file(str(words))
        self._words.no_truncation()
        self._words.no_padding()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> TextStates:
        """Encode on `device`; fetches the encoder (91 MB) on the first call.

        Raises:
            UserError: it can't be fetched; the message says where to put it.
        """
        if self._net is None:
            self._load()
        self._net.to(self.device)
        # one entry with its two special tokens for each prompt
        words = [encoded.ids for encoded in self._words.encode_batch(list(prompts))]
        ids = torch.zeros(len(words), self.tokens, dtype=torch.long)
        for row, found in zip(ids, words, strict=True):
            kept = [*found[: self.tokens - 1], self._SEP] if len(found) > self.tokens else found
            row[: len(kept)] = torch.tensor(kept)
        ids = ids.to(self.device)
        mask = (ids != 0).long()
        states = self._net(input_ids=ids, attention_mask=mask).last_hidden_state
        states = self.scale * states * mask[..., None]
        return TextStates(states, [max(0, len(found) - self.tokens) for found in words])


class CachedText:
    """States of known prompts, encoded once and kept in float16; others when they are asked for.

    The last few batches of others are kept, too: a training step asks for its captions repeatedly.

    Args:
        encode: prompts to states [B,L,D].
        prompts: the known ones, in an order that is the same whenever the run is.
    """

    recent: ClassVar[int] = 16

    def __init__(self, encode: Callable[[list[str]], Tensor], prompts: Iterable[str]) -> None:
        self.encode = encode
        known = list(dict.fromkeys(prompts))
        parts = [encode(known[i : i + 64]).half().cpu() for i in range(0, len(known), 64)]
        self._states = torch.cat(parts) if parts else torch.zeros(0)
        self._row = {prompt: row for row, prompt in enumerate(known)}
        self._recent: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """States [B,L,D] in float32."""
        if all(prompt in self._row for prompt in prompts):
            return self._states[[self._row[prompt] for prompt in prompts]].float()
        key = tuple(prompts)
        if key not in self._recent:
            self._recent[key] = self.encode(list(prompts)).float()
            if len(self._recent) > self.recent:
                self._recent.popitem(last=False)
        return self._recent[key]


TEXT_ENCODERS = ("clip", "minilm")


def text_encoder_for(dim: int) -> MiniLMText:
    """The encoder that comes without a folder and has `dim` channels.

    Raises:
        UserError: none has.
    """
    if dim != MiniLMText.dim:
        raise UserError(
            f"no text encoder of width {dim} comes without a folder: give a pipeline folder that "
            "holds its text encoder, as Stable Diffusion's do"
        )
    return MiniLMText()
