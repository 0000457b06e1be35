"""Findings -> slots of legal texts -> a machine that knows which token may follow which.

A finite-state machine walks the slots in order, so each is written exactly once, nothing else can be written
at all, and the text ends. A wording is a path through a trie of tokens, whatever the tokenizer is, compiled
once for each slot (Willard and Louf, 2023) and kept: most slots of most reports say the same.

Knows texts and token ids; knows no network and no runtime.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from mla_med.errors import ConfigError, ReportError
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
class Choice:
    """Where more than one token is legal on the way to a wording."""

    place: int
    node: int
    legal: tuple[int, ...]
    columns: np.ndarray
    """The same, to index logits with."""
    token: int
    """Of the wording."""


@dataclass(frozen=True, slots=True)
class Path:
    """A wording as tokens."""

    tokens: tuple[int, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class _Trie:
    """The wordings of one slot as token paths from node 0."""

    after: tuple[dict[int, int], ...]
    """By node: token -> the node that it leads to."""
    legal: tuple[tuple[int, ...], ...]
    """By node: its tokens, in order."""
    wording: dict[int, str]
    """Leaf -> the whole wording."""
    paths: dict[int, Path]
    """Leaf -> its tokens."""
    first_leaf: tuple[int, ...]
    """By node: the leaf that its first tokens lead to."""
    longest: int


def check_room(machines: Sequence[SlotMachine], places: int | None) -> None:
    """`places`: of the decoder; None where it has no end."""
    longest = max(machine.longest for machine in machines)
    if places is not None and longest > places:
        raise ConfigError(
            f"This report takes up to {longest} tokens, and the decoder has places for {places}. Take a "
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
    legal = tuple(tuple(sorted(tokens)) for tokens in after)
    first_leaf = [0] * len(after)
    # a node is made before those behind it
    for node in reversed(range(len(after))):
        first_leaf[node] = first_leaf[after[node][legal[node][0]]] if legal[node] else node
    return _Trie(
        tuple(after),
        legal,
        wording,
        {path[0]: path[1] for path in (_path_of(tokens, after, legal) for tokens in paths)},
        tuple(first_leaf),
        max(len(p) for p in paths),
    )


def _path_of(
    tokens: Sequence[int], after: Sequence[dict[int, int]], legal: Sequence[tuple[int, ...]]
) -> tuple[int, Path]:
    """The leaf, and how it is reached."""
    node, choices = 0, []
    for place, token in enumerate(tokens):
        if len(legal[node]) > 1:
            choices.append(Choice(place, node, legal[node], np.array(legal[node]), token))
        node = after[node][token]
    return node, Path(tuple(tokens), tuple(choices))


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
