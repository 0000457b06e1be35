"""Some next tokens of each text and a cache of static size -> logits where they are asked for.

The small GPT-2 that ships, written out: what a runtime without transformers can run as one graph, and without
what `generate` does around every token. Keys and values of what was read before are an input, those of the
new tokens an output, and whoever calls writes them into the cache. Knows nothing of findings or of texts.
"""

# B batch, T new tokens of a text, N of all texts, R places of the cache, S memory tokens, W wanted logits of
# a text, V vocabulary, L blocks, H heads, E width of a head, X width of the decoder

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mla_med.model.attention import gather_tokens, join_heads, split_heads


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
        order_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        before_BR = torch.arange(keys_LBHRE.shape[3], device=ids_BT.device) < first_B[:, None]
        seen_BTR = before_BR[:, None].expand(-1, ids_BT.shape[1], -1)
        seen_BTT = (order_T <= order_T[:, None])[None].expand(ids_BT.shape[0], -1, -1)
        seen_B1TK = torch.cat([seen_BTR, seen_BTT], -1)[:, None]
        memory_B11S = memory_mask_BS[:, None, None]
        new_keys, new_values = [], []

        def before(n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
            new_keys.append(k)
            new_values.append(v)
            k, v = torch.cat([keys_LBHRE[n], k], 2), torch.cat([values_LBHRE[n], v], 2)
            return join_heads(_attend(q, k, v, seen_B1TK))

        def look(n: int, q: Tensor) -> Tensor:
            q = split_heads(q, self.heads)
            return join_heads(_attend(q, memory_keys_LBHSE[n], memory_values_LBHSE[n], memory_B11S))

        x_BTX = self.through(self.embed(ids_BT, first_B[:, None] + order_T), before, look)
        logits_BWV = self.logits(gather_tokens(x_BTX, wanted_BW))
        return logits_BWV, torch.stack(new_keys), torch.stack(new_values)

    def embed(self, ids: Tensor, places: Tensor) -> Tensor:
        gpt = self.lm.transformer
        # what only fills may stand behind the last place
        return gpt.wte(ids) + gpt.wpe(places.clamp(max=self.lm.config.n_positions - 1))

    def through(self, x: Tensor, before: Callable[..., Tensor], look: Callable[..., Tensor]) -> Tensor:
        """All blocks. In block n a token takes `before(n, q, k, v)` from those before it, and `look(n, q)`
        from the memory."""
        for n, block in enumerate(self.lm.transformer.h):
            asked = _linear(block.attn.c_attn, block.ln_1(x))
            x = x + _linear(block.attn.c_proj, before(n, *asked.chunk(3, -1)))
            q = _linear(block.crossattention.q_attn, block.ln_cross_attn(x))
            x = x + _linear(block.crossattention.c_proj, look(n, q))
            x = x + _linear(block.mlp.c_proj, block.mlp.act(_linear(block.mlp.c_fc, block.ln_2(x))))
        return x

    def logits(self, x: Tensor) -> Tensor:
        return self.lm.lm_head(self.lm.transformer.ln_f(x))


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
    """A batch of texts that begins, and what the decoder keeps of it: see writing.Reader.

    New tokens of all texts go through the layers as one row, N of them, without filling; only attention is
    text by text, over what that text has read and the memory that it has, so that nothing is masked."""

    def __init__(self, lm: Any, memory_BSX: Tensor, mask_BS: Tensor, places: int):
        self.step = DecoderStep(lm)
        self.memory = [
            self.step.memory_keys(memory_SX[mask_S.bool()][None])
            for memory_SX, mask_S in zip(memory_BSX, mask_BS, strict=True)
        ]
        blocks, _, heads, _, width = self.memory[0][0].shape
        self.keys = memory_BSX.new_zeros(len(memory_BSX), blocks, heads, places, width)
        self.values = torch.zeros_like(self.keys)

    @torch.no_grad()
    def read(
        self, ids: Sequence[Sequence[int]], first: Sequence[int], wanted: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        device, heads = self.keys.device, self.step.heads
        begins = list(accumulate(map(len, ids), initial=0))
        # row, where its tokens are among the N, and the places that they take
        rows = [
            (row, slice(begins[row], begins[row + 1]), slice(begin, begin + len(text)))
            for row, (begin, text) in enumerate(zip(first, ids, strict=True))
            if text
        ]
        seen = [
            torch.ones(new.stop - new.start, new.stop, dtype=torch.bool, device=device).tril(new.start)
            for _, _, new in rows
        ]

        def before(n: int, q_NX: Tensor, k_NX: Tensor, v_NX: Tensor) -> Tensor:
            q_HNE, k_HNE, v_HNE = (split_heads(x[None], heads)[0] for x in (q_NX, k_NX, v_NX))
            looked = []
            for (row, here, new), seen_TK in zip(rows, seen, strict=True):
                keys_HRE, values_HRE = self.keys[row, n], self.values[row, n]
                keys_HRE[:, new], values_HRE[:, new] = k_HNE[:, here], v_HNE[:, here]
                k, v = keys_HRE[None, :, : new.stop], values_HRE[None, :, : new.stop]
                looked.append(F.scaled_dot_product_attention(q_HNE[None, :, here], k, v, seen_TK))
            return join_heads(torch.cat(looked, 2))[0]

        def look(n: int, q_NX: Tensor) -> Tensor:
            q_HNE = split_heads(q_NX[None], heads)[0]
            looked = []
            for row, here, _ in rows:
                keys_LBHSE, values_LBHSE = self.memory[row]
                looked.append(
                    F.scaled_dot_product_attention(q_HNE[None, :, here], keys_LBHSE[n], values_LBHSE[n])
                )
            return join_heads(torch.cat(looked, 2))[0]

        ids_N = torch.tensor([token for text in ids for token in text], device=device)
        places_N = torch.cat([torch.arange(new.start, new.stop, device=device) for _, _, new in rows])
        x_NX = self.step.through(self.step.embed(ids_N, places_N), before, look)
        asked = [begins[row] + place for row, places in enumerate(wanted) for place in places]
        logits_WV = self.step.logits(x_NX[asked]).float().cpu().numpy()
        return np.split(logits_WV, list(accumulate(map(len, wanted)))[:-1])
