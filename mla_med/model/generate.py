"""Slots of legal token sequences -> the text that the decoder prefers among them.

The decoder may only choose between wordings that the findings allow: a finite-state machine walks
the slots in order, so each is written exactly once and nothing else can be written at all.
"""

# R report tokens

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mla_med.model.findings import FindingOutputs
from mla_med.model.fusion import Fused
from mla_med.model.mla import MLAModel


class SlotMachine:
    """After which tokens may which follow. `slots`: for each slot its legal texts, in order."""

    def __init__(self, slots: Sequence[Sequence[str]], tokenizer):
        self.end = tokenizer.eos_token_id
        self.slots = [[tuple(ids) for ids in tokenizer(list(texts))["input_ids"]] for texts in slots]
        for choices in self.slots:
            for a in choices:
                prefixed = [b for b in choices if b != a and b[: len(a)] == a]
                assert not prefixed, "one wording of a slot is the beginning of another"

    @property
    def longest(self) -> int:
        return sum(max(map(len, choices)) for choices in self.slots) + 1

    def allowed(self, written: Sequence[int]) -> list[int]:
        """The tokens that may come after `written`, which itself was allowed."""
        rest = tuple(written)
        for choices in self.slots:
            whole = [c for c in choices if rest[: len(c)] == c]
            if not whole:
                return sorted({c[len(rest)] for c in choices if c[: len(rest)] == rest})
            rest = rest[len(whole[0]) :]
        return [self.end]


@torch.no_grad()
def write_text(
    model: MLAModel,
    fused: Fused,
    findings: FindingOutputs,
    slots: Sequence[Sequence[str]],
    num_beams: int = 1,
) -> str:
    """The report of one patient (batch of 1), greedy or by beam search; deterministic."""
    assert len(fused.tokens_BSD) == 1
    machine = SlotMachine(slots, model.tokenizer)

    def allowed(_: int, ids_R: Tensor) -> list[int]:
        return machine.allowed(ids_R[1:].tolist())

    ids = model.generate(
        fused=fused,
        findings=findings,
        prefix_allowed_tokens_fn=allowed,
        max_new_tokens=machine.longest,
        num_beams=num_beams,
        do_sample=False,
        pad_token_id=model.config.pad_token_id,
        eos_token_id=model.config.eos_token_id,
    )
    return model.tokenizer.decode(ids[0], skip_special_tokens=True)
