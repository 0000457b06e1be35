"""Some next tokens of each text and a cache of static size -> logits where they are asked for.

The small GPT-2 that ships, written out: what a runtime without transformers can run as one graph, and without
what `generate` does around every token. Keys and values of what was read before are an input, those of the
new tokens an output, and whoever calls writes them into the cache. Knows nothing of findings or of texts.
"""

# B batch, T new tokens of a text, R places of the cache, S memory tokens, W wanted logits of a text, V
# vocabulary, L blocks, H heads, E width of a head, X width of the decoder

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mla_med.model.attention import gather_tokens, join_heads, split_heads
from mla_med.model.writing import filled


class DecoderStep(nn.Module):
    def __init__(self, lm: Any):
        super().__init__()
        self.lm = lm
        self.heads = lm.config.n_head

    def memory_keys(self, memory_BSX: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory in every block, (L, B, H, S, E): they are the same for every
        token."""
        pairs = [
            _linear(block.crossattention.c_attn, memory_BSX).chunk(2, -1) for block in self.lm.transformer.h
        ]
        keys, values = zip(*pairs, strict=True)
        return (
            torch.stack([split_heads(x, self.heads) for x in keys]),
            torch.stack([split_heads(x, self.heads) for x in values]),
        )

    def forward(
        self,
        ids_BT: Tensor,
        first_B: Tensor,
        wanted_BW: Tensor,
        keys_LBHRE: Tensor,
        values_LBHRE: Tensor,
        memory_keys_LBHSE: Tensor,
        memory_values_LBHSE: Tensor,
        memory_mask_BS: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Texts go on at `first_B`; shorter ones are filled behind. `wanted_BW`: places among the new tokens
        whose logits (B, W, V) are wanted. Also the keys and values (L, B, H, T, E) of the new tokens."""
        gpt = self.lm.transformer
        order_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        places_BT = (first_B[:, None] + order_T).clamp(max=self.lm.config.n_positions - 1)
        x_BTX = gpt.wte(ids_BT) + gpt.wpe(places_BT)
        before_BR = torch.arange(keys_LBHRE.shape[3], device=ids_BT.device) < first_B[:, None]
        seen_BTR = before_BR[:, None].expand(-1, ids_BT.shape[1], -1)
        seen_BTT = (order_T <= order_T[:, None])[None].expand(ids_BT.shape[0], -1, -1)
        seen_B1TK = torch.cat([seen_BTR, seen_BTT], -1)[:, None]
        memory_B11S = memory_mask_BS[:, None, None]
        new_keys, new_values = [], []
        for n, block in enumerate(gpt.h):
            asked = _linear(block.attn.c_attn, block.ln_1(x_BTX))
            q, k, v = (split_heads(x, self.heads) for x in asked.chunk(3, -1))
            new_keys.append(k)
            new_values.append(v)
            k, v = torch.cat([keys_LBHRE[n], k], 2), torch.cat([values_LBHRE[n], v], 2)
            x_BTX = x_BTX + _linear(block.attn.c_proj, join_heads(_attend(q, k, v, seen_B1TK)))
            q = split_heads(_linear(block.crossattention.q_attn, block.ln_cross_attn(x_BTX)), self.heads)
            looked = _attend(q, memory_keys_LBHSE[n], memory_values_LBHSE[n], memory_B11S)
            x_BTX = x_BTX + _linear(block.crossattention.c_proj, join_heads(looked))
            hidden = block.mlp.act(_linear(block.mlp.c_fc, block.ln_2(x_BTX)))
            x_BTX = x_BTX + _linear(block.mlp.c_proj, hidden)
        wanted_BWX = gather_tokens(x_BTX, wanted_BW)
        return self.lm.lm_head(gpt.ln_f(wanted_BWX)), torch.stack(new_keys), torch.stack(new_values)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A Conv1D of transformers without its view to a fixed shape, which a graph would keep as numbers."""
    if isinstance(layer, Conv1D):
        return x @ layer.weight + layer.bias
    return layer(x)


def _attend(q_BHTE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, seen: Tensor) -> Tensor:
    scores_BHTK = q_BHTE @ k_BHKE.transpose(-1, -2) * (1 / math.sqrt(q_BHTE.shape[-1]))
    return scores_BHTK.masked_fill(~seen, -1e9).softmax(-1) @ v_BHKE


def can_step(lm: Any) -> bool:
    """Whether the decoder is one that DecoderStep writes out."""
    config = lm.config
    return (
        config.model_type == "gpt2"
        and config.add_cross_attention
        and config.scale_attn_weights
        and not config.scale_attn_by_inverse_layer_idx
    )


class TorchReader:
    """A batch of texts that begins, and what the decoder keeps of it: see writing.Reader."""

    def __init__(self, lm: Any, memory_BSX: Tensor, mask_BS: Tensor, places: int):
        self.step = DecoderStep(lm)
        self.memory = (*self.step.memory_keys(memory_BSX), mask_BS.bool())
        blocks, batch, heads, _, width = self.memory[0].shape
        self.keys = memory_BSX.new_zeros(blocks, batch, heads, places, width)
        self.values = torch.zeros_like(self.keys)

    @torch.no_grad()
    def read(
        self, ids: Sequence[Sequence[int]], first: Sequence[int], wanted: Sequence[Sequence[int]]
    ) -> np.ndarray:
        device = self.keys.device
        ids_BT, wanted_BW = (torch.from_numpy(filled(rows)).to(device) for rows in (ids, wanted))
        logits_BWV, keys, values = self.step(
            ids_BT, torch.tensor(first, device=device), wanted_BW, self.keys, self.values, *self.memory
        )
        for row, (begin, text) in enumerate(zip(first, ids, strict=True)):
            self.keys[:, row, :, begin : begin + len(text)] = keys[:, row, :, : len(text)]
            self.values[:, row, :, begin : begin + len(text)] = values[:, row, :, : len(text)]
        return logits_BWV.float().cpu().numpy()
