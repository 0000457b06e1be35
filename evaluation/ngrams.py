"""Many texts at once -> how often each n-gram stands in each, in arrays.

What BLEU, CIDEr, chrF and repetition are made of. Texts are rows of numbers here, one per word or per
character; knows no words and no scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np

# T texts, P places (words or characters of all texts in a row), G distinct n-grams of a text, over all texts
_LARGEST = 1 << 62


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts as numbers, one behind the other."""

    ids_P: np.ndarray
    lengths_T: np.ndarray

    @property
    def num_kinds(self) -> int:
        return int(self.ids_P.max()) + 1 if self.ids_P.size else 1


@dataclass(frozen=True, slots=True)
class Grams:
    """The n-grams of one order. Sorted by text, then by n-gram; one n-gram has one number in all texts."""

    text_G: np.ndarray
    gram_G: np.ndarray
    count_G: np.ndarray
    num_texts: int

    def of(self, first: int, behind: int) -> Grams:
        """Of some of the texts, counted from 0 again."""
        begin, end = np.searchsorted(self.text_G, [first, behind])
        return Grams(
            self.text_G[begin:end] - first, self.gram_G[begin:end], self.count_G[begin:end], behind - first
        )

    def take(self, texts: np.ndarray) -> Grams:
        """Of these texts in this order, a text as often as it is named."""
        begin_T = np.searchsorted(self.text_G, np.arange(self.num_texts + 1))
        num = np.diff(begin_T)[texts]
        place = np.repeat(begin_T[texts] - (np.cumsum(num) - num), num) + np.arange(num.sum())
        return Grams(
            np.repeat(np.arange(len(texts)), num), self.gram_G[place], self.count_G[place], len(texts)
        )

    def renumber(self) -> tuple[Grams, int]:
        """With the smallest numbers, in the same order, and how many there are."""
        known, gram_G = np.unique(self.gram_G, return_inverse=True)
        return Grams(self.text_G, gram_G, self.count_G, self.num_texts), len(known)

    @property
    def totals_T(self) -> np.ndarray:
        return np.bincount(self.text_G, self.count_G, minlength=self.num_texts)

    @property
    def distinct_T(self) -> np.ndarray:
        return np.bincount(self.text_G, minlength=self.num_texts)


def number_words(texts: Sequence[Sequence[str]]) -> Rows:
    numbers: defaultdict[str, int] = defaultdict(count().__next__)
    lengths_T = np.fromiter(map(len, texts), np.int64, len(texts))
    ids_P = np.fromiter(map(numbers.__getitem__, chain.from_iterable(texts)), np.int64, int(lengths_T.sum()))
    return Rows(ids_P, lengths_T)


def number_characters(texts: Sequence[str]) -> Rows:
    lengths_T = np.fromiter(map(len, texts), np.int64, len(texts))
    codes_P = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    alphabet = np.flatnonzero(np.bincount(codes_P)) if codes_P.size else np.zeros(0, np.int64)
    number = np.zeros(int(alphabet[-1]) + 1 if alphabet.size else 1, np.int64)
    number[alphabet] = np.arange(alphabet.size)
    return Rows(number[codes_P], lengths_T)


def count_grams(rows: Rows, orders: int) -> Iterator[Grams]:
    """Order 1 first."""
    ids_P, num_texts, kinds = rows.ids_P, len(rows.lengths_T), rows.num_kinds
    text_P = np.repeat(np.arange(num_texts), rows.lengths_T)
    gram_P, num_grams = ids_P, kinds
    for order in range(1, orders + 1):
        if order > 1:
            inside_P = text_P[: max(len(gram_P) - 1, 0)] == text_P[order - 1 :]
            if num_grams * kinds * max(num_texts, 1) > _LARGEST:  # give the n-grams smaller numbers
                known, gram_P = np.unique(gram_P, return_inverse=True)
                num_grams = len(known)
            gram_P = gram_P[:-1] * kinds + ids_P[order - 1 :]
            num_grams *= kinds
        else:
            inside_P = np.ones(len(gram_P), bool)
        keys = np.sort((text_P[: len(gram_P)] * num_grams + gram_P)[inside_P])
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        text_G, gram_G = np.divmod(keys[first], num_grams)
        yield Grams(text_G, gram_G, np.diff(first, append=len(keys)), num_texts)


def shared(drafts: Grams, references: Grams, owner_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in `drafts` and in `references` of each n-gram that both texts of a pair hold. `owner_T`: the
    number of the draft that a reference belongs to."""
    if not drafts.gram_G.size or not references.gram_G.size:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    base = 1 + max(int(drafts.gram_G.max()), int(references.gram_G.max()))
    ours = drafts.text_G * base + drafts.gram_G
    theirs = owner_T[references.text_G] * base + references.gram_G
    place = np.minimum(np.searchsorted(ours, theirs), len(ours) - 1)
    hit = np.flatnonzero(ours[place] == theirs)
    return place[hit], hit
