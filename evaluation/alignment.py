"""Two rows of words -> how much of their order they share: longest common subsequence, METEOR.

Pair by pair, in plain Python. Knows no corpora and no tokenisers.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache

import snowballstemmer

BETA = 1.2
"""Of ROUGE-L, as pycocoevalcap has it: recall counts 1.44 times as much as precision."""
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA = 0.9, 3.0, 0.5
"""Lavie and Agarwal, METEOR, WMT 2007, section 2; the defaults of nltk."""
_NO_ROUGE_WORD = re.compile(r"[^a-z0-9]+")
_PORTER = snowballstemmer.stemmer("porter")


def rouge_l(references: Sequence[Sequence[str]], draft: Sequence[str]) -> float:
    """ROUGE-L (Lin, ROUGE, 2004, section 3) with the best precision and the best recall of all references."""
    lengths = [common_length(reference, draft) for reference in references]
    precision = max(lengths) / len(draft)
    recall = max(n / len(reference) for n, reference in zip(lengths, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Of the longest common subsequence. A bit of `row` is 0 where the subsequence grows, so one addition
    does a whole row of the table (Crochemore et al., Information Processing Letters 80, 2001)."""
    places: defaultdict[str, int] = defaultdict(int)
    bit = 1
    for word in first:
        places[word] |= bit
        bit <<= 1
    row = whole = bit - 1
    for word in second:
        found = row & places.get(word, 0)
        row = ((row + found) | (row - found)) & whole
    return len(first) - row.bit_count()


def rouge_words(text: str) -> list[str]:
    """Of the package rouge_score with use_stemmer=True: letters and digits, long words stemmed."""
    words = _NO_ROUGE_WORD.sub(" ", text.lower()).split()
    return [stem(word) if len(word) > 3 else word for word in words]


def rouge_n(references: Sequence[Sequence[str]], draft: Sequence[str], order: int) -> float:
    """F1 of n-grams, of the best reference (Lin, 2004, section 2), as rouge_score has it."""
    return max(
        _f1((_grams(reference, order) & _grams(draft, order)).total(), len(reference), len(draft), order)
        for reference in references
    )


def rouge_l_f1(references: Sequence[Sequence[str]], draft: Sequence[str]) -> float:
    """Of the best reference, precision and recall alike, as rouge_score has it."""
    return max(_f1(common_length(reference, draft), len(reference), len(draft)) for reference in references)


def _f1(matched: int, told: int, drafted: int, order: int = 1) -> float:
    return 2 * matched / (told + drafted - 2 * (order - 1)) if matched else 0.0


def _grams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[k:] for k in range(order)), strict=False))


def meteor(reference: Sequence[str], draft: Sequence[str]) -> float:
    """METEOR with words that are equal, then words with an equal Porter stem; no synonyms, no paraphrases."""
    pairs = _match(dict(enumerate(draft)), dict(enumerate(reference)))
    used_draft, used_reference = {a for a, _ in pairs}, {b for _, b in pairs}
    pairs += _match(
        {k: stem(word) for k, word in enumerate(draft) if k not in used_draft},
        {k: stem(word) for k, word in enumerate(reference) if k not in used_reference},
    )
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(draft), len(pairs) / len(reference)
    mean = precision * recall / (METEOR_ALPHA * precision + (1 - METEOR_ALPHA) * recall)
    pairs.sort()
    follows = sum(b[0] == a[0] + 1 and b[1] == a[1] + 1 for a, b in itertools.pairwise(pairs))
    chunks = len(pairs) - follows
    return mean * (1 - METEOR_GAMMA * (chunks / len(pairs)) ** METEOR_BETA)


def _match(draft: dict[int, str], reference: dict[int, str]) -> list[tuple[int, int]]:
    """Places of equal words, from the end of both texts, as nltk does."""
    places: dict[str, list[int]] = {}
    for k, word in reference.items():
        places.setdefault(word, []).append(k)
    pairs = []
    for k in reversed(draft):
        if left := places.get(draft[k]):
            pairs.append((k, left.pop()))
    return pairs


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    return _PORTER.stemWord(word.lower())
