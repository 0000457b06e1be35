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
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mla_med.errors import ConfigError, ReportError
from mla_med.model.findings import FindingOutputs
from mla_med.model.fusion import Fused
from mla_med.model.mla import MLAModel
from mla_med.report.check import check_text
from mla_med.report.render import (
    body_text,
    impression_choices,
    interpretation_choices,
    render_report,
    sentence_choices,
)
from mla_med.report.style import Style, load_style
from mla_med.types import ClinicalContext, Finding

Slots = Sequence[Sequence[str]]
"""For each place of a text, in order, its legal wordings."""
LEAST = -1e4
"""What a legal token counts at least: at minus infinity it would tie with the forbidden ones, and a text
below -1e9 with the beams that transformers has not filled yet."""
_MARK = "\ue000"


@dataclass(frozen=True, slots=True)
class Written:
    """A text, and how the decoder came to it."""

    text: str
    wordings: tuple[str, ...]
    """What was chosen for each slot: together, the text."""
    token_ids: tuple[int, ...]
    """With the end."""
    log_probabilities: tuple[float, ...]
    """Of each slot, then of the end, as the decoder alone would have it, without the constraint. Empty
    where they were not asked for."""

    @property
    def log_probability(self) -> float:
        return math.fsum(self.log_probabilities)


def report_slots(
    findings: Iterable[Finding],
    style: Style | None = None,
    examination: str = "chest_ct",
    codes: Collection[str] | None = None,
    interpretations: Sequence[str] = (),
    prior: bool = False,
) -> list[tuple[str, ...]]:
    """What a report of these findings may say, laid out as `body_text` lays it out: a slot for each
    finding, each sentence of the impression and each interpretation, and the fixed words between them.

    Without a prior there is nothing to compare with: a finding that has changed is a ReportError, and
    wordings that compare are no choice."""
    style = style or load_style()
    report = render_report(findings, style, examination, codes=codes, interpretations=interpretations)
    if changed := [f.code for f in report.findings if f.change is not None and not prior]:
        raise ReportError(
            f"Finding '{changed[0]}' has changed, and there is no prior to compare with. Give the prior, or "
            "leave the change out.",
            code="CHANGE_WITHOUT_PRIOR",
        )
    unsaid = list(report.findings)
    choices = []
    for sentence in report.sentences:
        finding = next(f for f in unsaid if f.code in sentence.codes)
        unsaid.remove(finding)
        choices.append(sentence_choices(finding, style, examination))
    for slot in (
        *impression_choices(report.findings, style, examination),
        *interpretation_choices(interpretations, style, examination),
    ):
        choices.append(tuple(sentence.text for sentence in slot))
    if not prior:
        choices = [_without_comparison(texts, style.language) for texts in choices]
    blank = replace(
        report,
        sentences=tuple(replace(s, text=_MARK) for s in report.sentences),
        impression=tuple(replace(s, text=_MARK) for s in report.impression),
    )
    return _lay_out(body_text(blank, style).split(_MARK), choices)


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
    machines = [SlotMachine(texts, model.tokenizer, model.config.eos_token_id) for texts in slots]
    _check_room(model, machines)
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


State = tuple[int, int]
"""A slot, and a node of its trie; the end is the slot after the last."""


class SlotMachine:
    """After which tokens may which follow. `slots`: for each slot its legal texts, in order.

    `end`: the token that ends the text; by default the tokenizer's."""

    def __init__(self, slots: Slots, tokenizer: Any, end: int | None = None):
        self.end = tokenizer.eos_token_id if end is None else end
        self.tries = [_trie_of(tokenizer, tuple(dict.fromkeys(texts))) for texts in slots]
        self._last = (len(self.tries), 0)
        self._ended = (len(self.tries) + 1, 0)
        self.start: State = (0, 0)

    @property
    def longest(self) -> int:
        """Tokens of the longest text, with its end."""
        return sum(trie.longest for trie in self.tries) + 1

    def next(self, state: State) -> tuple[int, ...]:
        """The tokens that may come in this state, in order; after the end, only the end again."""
        slot, node = state
        return self.tries[slot].legal[node] if slot < len(self.tries) else (self.end,)

    def advance(self, state: State | None, token: int) -> State | None:
        """The state after a token; None where it was illegal."""
        if state is None or state == self._ended:
            return state
        if state == self._last:
            return self._ended if token == self.end else None
        slot, node = state
        after = self.tries[slot].after[node].get(token)
        if after is None:
            return None
        return (slot + 1, 0) if after in self.tries[slot].wording else (slot, after)

    def forced(self, state: State) -> tuple[list[int], State]:
        """The tokens that have to come after this state, up to the next choice or the end."""
        tokens = []
        while state != self._ended and len(self.next(state)) == 1:
            (token,) = self.next(state)
            after = self.advance(state, token)
            assert after is not None
            tokens.append(token)
            state = after
        return tokens, state

    def has_ended(self, state: State) -> bool:
        return state == self._ended

    def allowed(self, written: Sequence[int]) -> tuple[int, ...]:
        """The tokens that may come after `written`; none where it was illegal."""
        state: State | None = self.start
        for token in written:
            state = self.advance(state, token)
        return () if state is None else self.next(state)

    def read(self, written: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Legal tokens up to the end -> the wording of each slot, and how many tokens each has."""
        wordings, lengths, begun = [], [], 0
        slot, node = self.start
        for place, token in enumerate(written, 1):
            if slot == len(self.tries):
                assert token == self.end
                break
            node = self.tries[slot].after[node][token]
            if node in self.tries[slot].wording:
                wordings.append(self.tries[slot].wording[node])
                lengths.append(place - begun)
                slot, node, begun = slot + 1, 0, place
        assert slot == len(self.tries), "the text ends before its last slot"
        return tuple(wordings), tuple(lengths)


@dataclass(frozen=True, slots=True)
class _Trie:
    """The wordings of one slot as token paths from node 0."""

    after: tuple[dict[int, int], ...]
    """By node: token -> the node that it leads to."""
    legal: tuple[tuple[int, ...], ...]
    """By node: its tokens, in order."""
    wording: dict[int, str]
    """Leaf -> the whole wording."""
    longest: int


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


def _check_room(model: MLAModel, machines: Sequence[SlotMachine]) -> None:
    room = getattr(model.config.decoder, "max_position_embeddings", None)
    longest = max(machine.longest for machine in machines)
    if room is not None and longest > room:
        raise ConfigError(
            f"This report takes up to {longest} tokens, and the decoder has places for {room}. Take a "
            "decoder with more places, a tokenizer trained on this language, or a shorter style.",
            code="REPORT_TOO_LONG",
        )


@lru_cache(maxsize=20_000)
def _trie_of(tokenizer: Any, texts: tuple[str, ...]) -> _Trie:
    """Compiled once for each slot: most slots of most reports say the same."""
    after: list[dict[int, int]] = [{}]
    wording: dict[int, str] = {}
    paths = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for text, path in zip(texts, paths, strict=True):
        node = 0
        for token in path:
            if token not in after[node]:
                after[node][token] = len(after)
                after.append({})
            node = after[node][token]
        if node in wording:
            raise ReportError(
                f"The tokenizer writes '{wording[node]}' and '{text}' the same way. Take a byte-level one.",
                code="TOKENS_AMBIGUOUS",
            )
        wording[node] = text
    if early := [text for node, text in wording.items() if after[node] or node == 0]:
        raise ReportError(
            f"'{early[0]}' is the beginning of another wording of the same statement, so its end cannot be "
            "told. Change one of the two phrases of the style.",
            code="WORDING_AMBIGUOUS",
        )
    return _Trie(
        tuple(after), tuple(tuple(sorted(legal)) for legal in after), wording, max(len(p) for p in paths)
    )


def _without_comparison(texts: Sequence[str], language: str) -> tuple[str, ...]:
    legal = tuple(text for text in texts if not _compares(text, language))
    if not legal:
        raise ReportError(
            f"Every wording of '{texts[0]}' compares, and there is no prior. Give the style a phrase that "
            "compares with nothing.",
            code="CHANGE_WITHOUT_PRIOR",
        )
    return legal


@lru_cache(maxsize=20_000)
def _compares(text: str, language: str) -> bool:
    complaints = check_text(text, language, ClinicalContext())
    return any(complaint.rule == "COMPARISON_WITHOUT_PRIOR" for complaint in complaints)


def _lay_out(between: Sequence[str], choices: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The fixed words around the slots, cut where tokenizers cut: a line break ends what stands before
    it, a blank begins what follows."""
    slots: list[tuple[str, ...]] = []
    for words, texts in zip(between, (*choices, ("",)), strict=True):
        rest = words.lstrip("\n")
        breaks = words[: len(words) - len(rest)]
        if breaks and slots:
            slots[-1] = tuple(text + breaks for text in slots[-1])
        fixed = rest.rstrip(" ")
        if fixed:
            slots.append((fixed,))
        if texts != ("",):
            slots.append(tuple(rest[len(fixed) :] + text for text in texts))
    return slots
