"""Memory tokens and a prompt -> logits of the next report token.

A GPT-2 with cross-attention and a projection into its width. Knows nothing of images or findings.
"""

# B batch, S memory tokens, D width of the fused tokens, E width of the decoder

from __future__ import annotations

from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel


class ReportDecoder(nn.Module):
    def __init__(self, config: GPT2Config, width: int):
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.n_embd))
        self.lm = GPT2LMHeadModel(config)
        # transformers guesses it from the class name, fails for GPT-2, and warns.
        self.lm.loss_type = "ForCausalLM"

    def memory_BSE(self, tokens_BSD: Tensor) -> Tensor:
        return self.project(tokens_BSD)

    def forward(self, input_ids, memory_BSE: Tensor | None, memory_mask_BS: Tensor | None, **kwargs):
        """Without a memory it is a plain causal LM, for pre-training on report text."""
        return self.lm(
            input_ids=input_ids,
            encoder_hidden_states=memory_BSE,
            encoder_attention_mask=memory_mask_BS,
            **kwargs,
        )
