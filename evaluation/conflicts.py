"""Reference + draft -> sentences of the draft that say otherwise: another side, a denial, another size.

A sentence is laid beside that sentence of the reference which has the same words apart from the sides
(the denials, the sizes); where these then differ, the two conflict. It needs no list of findings, so it
sees "the left adrenal" become the right one; it sees nothing in a sentence that has no counterpart.
Knows English and Chinese. Two sentences may conflict and both be true; that is for a reader to judge.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

KINDS = ("side", "denial", "size")
ALIKE = 0.75
"""Dice overlap of the words from which on two sentences are held to speak of the same."""
FEWEST_WORDS = 2
"""A counterpart has at least as many words in common, unless every word is."""
_MM = {"mm": 1.0, "cm": 10.0}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SENTENCE = {
    # a stop inside brackets, "(cyst?) of the liver", ends nothing; quotation marks stand for bullets
    "en": re.compile(r"[^\n;•]+?(?:\.[\"”]?(?=\s|$|[A-Z])|[!?][\"”]?(?=\s+[\"“A-Z]|\s*$)|[;\n•]|$)"),
    "zh": re.compile(r"[^\n。！？；;]+[。！？；;]?"),
}
_TOKEN = {
    "en": re.compile(r"\d+(?:[.,]\d+)?|[a-z]+(?:n't)?"),
    "zh": re.compile(r"\d+(?:[.,]\d+)?|[a-z]+|未见|未及|未|无|没有|不|左|右|双|两侧|[\u4e00-\u9fff]"),
}
_SIDES = {
    "en": {"left": "L", "right": "R", "bilateral": "LR", "bilaterally": "LR", "both": "LR"},
    "zh": {"左": "L", "右": "R", "双": "LR", "两侧": "LR"},
}
_DENIALS = {
    "en": _set(
        "no not without none nor neither never cannot absent negative free isn't aren't wasn't weren't "
        "doesn't don't didn't hasn't haven't"
    ),
    "zh": _set("未见 未及 未 无 没有 不"),
}
# words that a sentence has or lacks without saying anything else by it
_IDLE = {
    "en": _set(
        "a an the is are was were be been being there it this that of in on at to and or with as which has "
        "have had any evidence sign signs seen observed detected identified noted found visible visualized "
        "visualised demonstrated demonstrates present appreciated evident shown show shows"
    ),
    "zh": _set("见 可 及 的 了 有 示"),
}
_UNITS = frozenset(("mm", "cm", "x", "by"))
_SIZE = re.compile(
    r"(?<![a-z0-9_.,])(\d+(?:[.,]\d+)?)"
    r"(?=(?:\s*(?:x|×|\*|by|-|–|~)\s*\d+(?:[.,]\d+)?)*\s*(mm|cm)(?![a-z]))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Characters [start, end) of the draft against the sentence of the reference."""

    kind: str
    start: int
    end: int
    reference: str


@dataclass(frozen=True, slots=True)
class _Words:
    """Of a sentence, wherever it stands."""

    text: str
    frames: tuple[frozenset[str], ...]
    """For each of KINDS, the words without those that it compares."""
    orders: tuple[tuple[str, ...], ...]
    """The same words, in order."""
    said: tuple[tuple, ...]
    """For each of KINDS, what it compares, in order."""


Span = tuple[int, int]


@lru_cache(maxsize=1 << 13)
def find_conflicts(reference: str, draft: str, language: str = "en") -> tuple[Conflict, ...]:
    """One conflict a sentence at most: the first of KINDS."""
    if reference == draft:
        return ()
    theirs = [words for _, words in _read(reference, language)]
    return tuple(_conflicts(theirs, _read(draft, language)))


def _conflicts(references: Sequence[_Words], drafts: Iterable[tuple[Span, _Words]]) -> Iterator[Conflict]:
    known = {sentence.text for sentence in references}
    for (start, end), sentence in drafts:
        if sentence.text in known:
            continue
        for k, kind in enumerate(KINDS):
            against = _counterpart(sentence, references, k)
            if against is not None:
                yield Conflict(kind, start, end, against.text)
                break


def _counterpart(sentence: _Words, references: Sequence[_Words], k: int) -> _Words | None:
    """The sentence that this one conflicts with; None where one of the most alike says the same."""
    best, alike = 0.0, []
    words = sentence.frames[k]
    if not words:
        return None
    for other in references:
        shared = len(words & other.frames[k])
        overlap = 2 * shared / (len(words) + len(other.frames[k])) if shared else 0.0
        if overlap < ALIKE or (shared < FEWEST_WORDS and overlap < 1):
            continue
        if overlap > best + 1e-9:
            best, alike = overlap, [other]
        elif overlap > best - 1e-9:
            alike.append(other)
    if not alike or any(_same(sentence, other, k) for other in alike):
        return None
    return alike[0]


def _same(sentence: _Words, other: _Words, k: int) -> bool:
    mine, theirs = sentence.said[k], other.said[k]
    if mine == theirs:
        return True
    if KINDS[k] == "size":
        return not mine or not theirs or _same_sizes(mine, theirs)
    if sentence.orders[k] == other.orders[k]:  # word for word the same, so what differs is what was changed
        return False
    if KINDS[k] == "side":
        # "both lungs" for "the right and the left lung", and a side left out or added, is not another side
        return (
            not mine
            or not theirs
            or Counter("".join(mine)) == Counter("".join(theirs))
            or set("".join(mine)) == set("".join(theirs))
        )
    return bool(mine) == bool(theirs)


def _same_sizes(mine: tuple, theirs: tuple) -> bool:
    shorter, longer = sorted((mine, theirs), key=len)
    rest = list(longer)
    for size in shorter:
        near = [other for other in rest if abs(size - other) <= max(0.1 * max(size, other), 0.11)]
        if not near:
            return False
        rest.remove(near[0])
    return True


def _read(text: str, language: str) -> Iterator[tuple[Span, _Words]]:
    for match in _SENTENCE[language].finditer(text):
        if said := match[0].strip():
            start = match.start() + len(match[0]) - len(match[0].lstrip())
            yield (start, start + len(said)), _to_words(said, language)


@lru_cache(maxsize=1 << 14)
def _to_words(text: str, language: str) -> _Words:
    lower = text.lower()
    sizes = tuple(round(float(m[1].replace(",", ".")) * _MM[m[2].lower()], 2) for m in _SIZE.finditer(lower))
    sides, denials, idle = _SIDES[language], _DENIALS[language], _IDLE[language]
    tokens = [token for token in _TOKEN[language].findall(lower) if token not in idle]
    is_size = [token in _UNITS or token[0].isdigit() for token in tokens]
    frames = (
        [t for t, sized in zip(tokens, is_size, strict=True) if t not in sides and not sized],
        [t for t, sized in zip(tokens, is_size, strict=True) if t not in denials and not sized],
        [t for t, sized in zip(tokens, is_size, strict=True) if not sized],
    )
    return _Words(
        text=" ".join(lower.split()),
        frames=tuple(frozenset(words) for words in frames),
        orders=tuple(tuple(words) for words in frames),
        said=(
            tuple(sides[t] for t in tokens if t in sides),
            tuple(t for t in tokens if t in denials),
            sizes,
        ),
    )
