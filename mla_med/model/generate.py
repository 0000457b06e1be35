"""Findings, or slots of legal texts -> the text that the decoder prefers among the legal ones.

    slots = report_slots(findings, style)
    written = write_texts(model, fused, found, [slots], num_beams=4)

The decoder may only choose between wordings that the findings allow: a finite-state machine walks
the slots in order, so each is written exactly once, nothing else can be written at all, and the text
ends. A wording is a path through a trie of tokens, whatever the tokenizer is, compiled once for each slot
(Willard and Louf, 2023). Where only one token is legal the decoder is not asked: greedy writing goes from
choice to choice and reads what is forced between them at once (Zheng et al., SGLang, 2024), which gives the
tokens of `generate` in a fifth of the steps. Beam search is that of transformers.
"""

# B batch, R report tokens, V vocabulary

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mla_med.model.findings import FindingOutputs
from mla_med.model.fusion import Fused
from mla_med.model.mla import MLAModel
from mla_med.model.precision import in_its_precision, patients_of, sees_each_alone
from mla_med.model.seen import of_patients
from mla_med.model.slots import SlotMachine as SlotMachine
from mla_med.model.slots import Slots, State, Written, check_room
from mla_med.model.slots import report_slots as report_slots
from mla_med.model.step import TorchReader, can_step
from mla_med.model.writing import LEAST, write_side_by_side


def write_text(
    model: MLAModel,
    fused: Fused,
    findings: FindingOutputs,
    slots: Slots,
    num_beams: int = 1,
) -> str:
    """The report of one patient (batch of 1), greedy or by beam search; deterministic."""
    return write_texts(model, fused, findings, [slots], num_beams)[0].text


@torch.no_grad()
def write_texts(
    model: MLAModel,
    fused: Fused,
    findings: FindingOutputs,
    slots: Sequence[Slots],
    num_beams: int = 1,
    score: bool = False,
) -> list[Written]:
    """The reports of a batch, each with slots of its own; deterministic.

    With beams, the likeliest text that the search or the greedy choice found: a beam search alone may
    lose the greedy text on its way and end with a worse one. `score` fills `log_probabilities`."""
    assert len(fused.tokens_BSD) == len(slots)
    with in_its_precision(model):
        if not sees_each_alone(model):
            return _write(model, fused, findings, slots, num_beams, score)
        written = []
        for b, (one, own) in enumerate(zip(patients_of(fused), slots, strict=True)):
            written += _write(model, one, of_patients(findings, [b]), [own], num_beams, score)
        return written


def _write(
    model: MLAModel,
    fused: Fused,
    findings: FindingOutputs,
    slots: Sequence[Slots],
    num_beams: int,
    score: bool,
) -> list[Written]:
    machines = [SlotMachine(texts, model.tokenizer, model.config.eos_token_id) for texts in slots]
    check_room(machines, getattr(model.config.decoder, "max_position_embeddings", None))
    memory_BSE, mask_BS = model.memory(fused, findings)
    memory = {"memory_BSE": memory_BSE, "memory_mask_BS": mask_BS}
    greedy = _choose(model, memory, machines)
    if num_beams == 1:
        return _score(model, memory, machines, greedy) if score else greedy
    searched = _score(model, memory, machines, _search(model, memory, machines, num_beams))
    greedy = _score(model, memory, machines, greedy)
    return [
        beam if beam.log_probability > one.log_probability else one
        for beam, one in zip(searched, greedy, strict=True)
    ]


class LegalTokens(LogitsProcessor):
    """Takes every chance from tokens that the machine of their row does not allow; follows greedy rows
    and beams that change places."""

    def __init__(self, machines: Sequence[SlotMachine], prompt: int = 1):
        self.machines = machines
        self.prompt = prompt
        self.states: dict[tuple[int, bytes], State | None] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        written = input_ids[:, self.prompt :].cpu().numpy()
        beams = len(written) // len(self.machines)
        last = written[:, -1].tolist() if written.shape[1] else []
        # a row is known by what it has written: beam search moves rows about
        before = [row.tobytes() for row in written[:, :-1]]
        states: dict[tuple[int, bytes], State | None] = {}
        rows: list[int] = []
        columns: list[int] = []
        for row, ids in enumerate(written):
            patient = row // beams
            machine = self.machines[patient]
            state: State | None = machine.start
            if last:
                state = machine.advance(
                    self.states[patient, before[row]] if len(ids) > 1 else machine.start, last[row]
                )
            states[patient, ids.tobytes()] = state
            # a beam without a legal past only fills a place: all of it stays at minus infinity
            if state is not None:
                legal = machine.next(state)
                rows += [row] * len(legal)
                columns += legal
        self.states = states
        legal_scores = torch.full_like(scores, -math.inf)
        legal_scores[rows, columns] = _finite(scores[rows, columns])
        return legal_scores


def _finite(scores: Tensor) -> Tensor:
    """What is not a number would be the largest of all."""
    return scores.nan_to_num(LEAST).clamp(LEAST, -LEAST)


def _choose(model: MLAModel, memory: dict[str, Any], machines: Sequence[SlotMachine]) -> list[Written]:
    """Greedy: at each choice the likeliest legal token, and of equal ones the first."""
    lm = model.decoder.lm
    if can_step(lm):
        places = max(machine.longest for machine in machines)
        reader = TorchReader(lm, memory["memory_BSE"], memory["memory_mask_BS"], places)
        return write_side_by_side(reader, machines, model.config.bos_token_id)
    return _choose_in_turn(model, memory, machines)


def _choose_in_turn(
    model: MLAModel, memory: dict[str, Any], machines: Sequence[SlotMachine]
) -> list[Written]:
    """The same choice by choice, for any causal LM of transformers."""
    config, device = model.config, model.device
    written: list[list[int]] = []
    states: list[State] = []
    for machine in machines:
        tokens, state = machine.forced(machine.start)
        written.append(tokens)
        states.append(state)
    unread = [[config.bos_token_id, *tokens] for tokens in written]
    read = [0] * len(machines)
    mask_BR = torch.zeros(len(machines), 0, dtype=torch.long, device=device)
    cache = None
    while not all(machine.has_ended(state) for machine, state in zip(machines, states, strict=True)):
        width = max(map(len, unread))
        # rows of unlike length are filled in front: what is filled is masked, and takes no position
        ids_BR = torch.tensor([[config.pad_token_id] * (width - len(ids)) + ids for ids in unread])
        there_BR = torch.tensor([[k >= width - len(ids) for k in range(width)] for ids in unread])
        places_BR = (there_BR.cumsum(1) - 1 + torch.tensor(read)[:, None]).clamp(0)
        mask_BR = torch.cat([mask_BR, there_BR.to(mask_BR)], 1)
        output = model(
            input_ids=ids_BR.to(device),
            attention_mask=mask_BR,
            position_ids=places_BR.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **memory,
        )
        cache = output.past_key_values
        scores_BV = _finite(output.logits[:, -1])
        for row, machine in enumerate(machines):
            read[row] += len(unread[row])
            if machine.has_ended(states[row]):
                unread[row] = []
                continue
            legal = machine.next(states[row])
            best = int(scores_BV[row, list(legal)].argmax())
            after = machine.advance(states[row], legal[best])
            assert after is not None
            tokens, states[row] = machine.forced(after)
            unread[row] = [legal[best], *tokens]
            written[row] += unread[row]
    return [_to_written(machine, ids) for machine, ids in zip(machines, written, strict=True)]


def _search(
    model: MLAModel, memory: dict[str, Any], machines: Sequence[SlotMachine], num_beams: int
) -> list[Written]:
    """The best of a beam search, greedy with one beam, by `GenerationMixin.generate`."""
    config = model.config
    start_BR = torch.full((len(machines), 1), config.bos_token_id, device=model.device)
    ids_BR = model.generate(
        start_BR,
        **memory,
        logits_processor=LogitsProcessorList([LegalTokens(machines)]),
        max_new_tokens=max(machine.longest for machine in machines),
        num_beams=num_beams,
        # the likeliest text, not the likeliest token on average: a length is no merit of a wording
        length_penalty=None if num_beams == 1 else 0.0,
        do_sample=False,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
    )
    return [_to_written(machine, ids) for machine, ids in zip(machines, ids_BR[:, 1:].tolist(), strict=True)]


def _to_written(machine: SlotMachine, ids: Sequence[int]) -> Written:
    wordings, lengths = machine.read(ids)
    return Written("".join(wordings), wordings, tuple(ids[: sum(lengths) + 1]), ())


def _score(
    model: MLAModel, memory: dict[str, Any], machines: Sequence[SlotMachine], written: Sequence[Written]
) -> list[Written]:
    """The same texts with what the decoder thinks of them, in one pass over all tokens."""
    config = model.config
    longest = max(len(w.token_ids) for w in written)
    pad = config.pad_token_id
    ids_BR = torch.tensor(
        [[config.bos_token_id, *w.token_ids] + [pad] * (longest - len(w.token_ids)) for w in written],
        device=model.device,
    )
    there_BR = torch.tensor([[p < len(w.token_ids) for p in range(longest)] for w in written])
    logits_BRV = model(input_ids=ids_BR[:, :-1], attention_mask=there_BR.to(ids_BR), **memory).logits
    chosen_BR = logits_BRV.log_softmax(-1).gather(-1, ids_BR[:, 1:, None])[..., 0]
    scored = []
    for machine, one, row in zip(machines, written, chosen_BR.double().tolist(), strict=True):
        ends = [0]
        for length in (*machine.read(one.token_ids)[1], 1):
            ends.append(ends[-1] + length)
        parts = tuple(math.fsum(row[a:b]) for a, b in pairwise(ends))
        scored.append(replace(one, log_probabilities=parts))
    return scored
