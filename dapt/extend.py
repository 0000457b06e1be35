"""A model and the texts of a site -> the same model with tokens for what the site writes often.

A byte-level BPE goes on merging where its training stopped: the new merges come after the old ones, so that a
text without them is read as before. The row of a new token is the mean of the rows it was spelt with (as
Hewitt's mean of all rows, https://nlp.stanford.edu/~johnhew/vocab-expansion.html, but of those that say
something of it), so the first step is that of the old model, nearly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mla_med.errors import ConfigError
from mla_med.model.mla import MLAModel

AT_LEAST = 3
"""A pair that is rarer gets no token."""


def extend(model: MLAModel, texts: Iterable[str], most: int) -> list[str]:
    """Adds up to `most` tokens to model and tokenizer, in place; -> them, as the tokenizer writes them."""
    if model.tokenizer is None:
        raise ConfigError("This model reads bytes; there is no tokenizer to extend. Set model.extend to 0.")
    if model.config.lora is not None:
        raise ConfigError("With LoRA the rows of new tokens would be frozen. Set model.extend to 0.")
    old = model.tokenizer
    new, made = extended(old, texts, most)
    if not made:
        return []
    first = len(old)
    pieces = [[piece.id for piece in old.backend_tokenizer.model.tokenize(token)] for token in made]
    size = max(model.config.vocab_size, first + len(made))
    lm = model.decoder.lm
    lm.resize_token_embeddings(size, mean_resizing=False)
    _mean_rows(lm.get_input_embeddings().weight, first, pieces)
    if lm.get_output_embeddings().weight is not lm.get_input_embeddings().weight:
        _mean_rows(lm.get_output_embeddings().weight, first, pieces)
    model.text_encoder.embed = _longer(model.text_encoder.embed, size)
    _mean_rows(model.text_encoder.embed.weight, first, pieces)
    model.config.vocab_size = size
    assert not isinstance(model.config.decoder, (dict, str, type(None)))
    model.config.decoder.vocab_size = size
    model.tokenizer = new
    return made


def extended(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], most: int
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """-> a tokenizer with up to `most` more merges, and what they make."""
    backend = tokenizer.backend_tokenizer
    described = json.loads(backend.to_str())
    if described["model"]["type"] != "BPE":
        raise ConfigError(
            f"A tokenizer of kind {described['model']['type']} cannot go on merging. Set model.extend to 0."
        )
    words = _words(backend, texts)
    vocabulary: dict[str, int] = described["model"]["vocab"]
    merges: list[Any] = described["model"]["merges"]
    as_words = bool(merges) and isinstance(merges[0], str)
    made: list[str] = []
    following = len(tokenizer)
    while len(made) < most:
        pair, count = _commonest(words)
        if count < AT_LEAST:
            break
        token = pair[0] + pair[1]
        if token not in vocabulary:
            vocabulary[token] = following + len(made)
            made.append(token)
        merges.append(" ".join(pair) if as_words else list(pair))
        words = Counter({_merged(word, pair): n for word, n in words.items()})
    if not made:
        return tokenizer, []
    new = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        clean_up_tokenization_spaces=False,
        **tokenizer.special_tokens_map,
    )
    return new, made


def _words(backend: Tokenizer, texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    counted: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        counted.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    return Counter(
        {tuple(piece.value for piece in backend.model.tokenize(word)): n for word, n in counted.items()}
    )


def _commonest(words: Counter[tuple[str, ...]]) -> tuple[tuple[str, str], int]:
    pairs: Counter[tuple[str, str]] = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            pairs[pair] += n
    # of equally common ones the first in the alphabet: the same tokens from the same texts
    return min(pairs.items(), key=lambda item: (-item[1], item[0]), default=(("", ""), 0))


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    n = 0
    while n < len(word):
        if word[n : n + 2] == pair:
            out.append(pair[0] + pair[1])
            n += 2
        else:
            out.append(word[n])
            n += 1
    return tuple(out)


@torch.no_grad()
def _mean_rows(weight: Tensor, first: int, pieces: list[list[int]]) -> None:
    for n, ids in enumerate(pieces):
        # in the order they were made: a token of two new ones has their rows already
        weight[first + n] = weight[ids].mean(0)


def _longer(embedding: nn.Embedding, size: int) -> nn.Embedding:
    longer = nn.Embedding(size, embedding.embedding_dim, device=embedding.weight.device)
    with torch.no_grad():
        longer.weight.zero_()
        longer.weight[: len(embedding.weight)] = embedding.weight
    return longer
