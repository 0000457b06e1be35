"""Clinical context -> text tokens (B, L, D) and which of them are real.

Knows ids and, without a tokenizer, bytes. Knows nothing of images or of what the words mean.
"""

# B batch, L text tokens, D width

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mla_med.model.attention import MaskedTransformerBlock, blank_padding

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]


class TextEncoder(nn.Module):
    def __init__(self, vocab_size: int, positions: int, text_dim: int, width: int, heads: int, depth: int):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, text_dim)
        self.place = nn.Embedding(positions, text_dim)
        self.blocks = nn.ModuleList(MaskedTransformerBlock(text_dim, heads) for _ in range(depth))
        self.project = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        ids_BL = ids_BL.masked_fill(~mask_BL, 0)
        places_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        text_BLD = self.embed(ids_BL) + self.place(places_L)
        for block in self.blocks:
            text_BLD = block(text_BLD, mask_BL.to(text_BLD.dtype))
        return blank_padding(self.project(text_BLD), mask_BL)


def to_ids(
    text: str | list[str] | Tensor | None,
    mask_BL: Tensor | None,
    batch: int,
    tokenize: Tokenize,
    pad: int,
    longest: int,
) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, L), L at least 1. No text is one padding token; one text serves every image."""
    if isinstance(text, Tensor):
        mask_BL = text != pad if mask_BL is None else mask_BL.bool()
        return text[:, :longest], mask_BL[:, :longest]
    texts = [text or ""] * batch if text is None or isinstance(text, str) else text
    return pad_ids([list(ids)[:longest] for ids in tokenize(texts)], pad)


def pad_ids(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(1, *(len(row) for row in rows))
    ids_BL = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask_BL = torch.tensor([[place < len(row) for place in range(longest)] for row in rows])
    return ids_BL, mask_BL


def byte_tokenizer(offset: int) -> Tokenize:
    """UTF-8 bytes as ids, for a model without a tokenizer."""
    return lambda texts: [[byte + offset for byte in text.encode()] for text in texts]


def hf_tokenizer(tokenizer: Any) -> Tokenize:
    """The ids of a transformers tokenizer, without special tokens."""
    return lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]
