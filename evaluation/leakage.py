"""Reports to score and reports of the training -> which of the former a model has seen, whole or nearly.

    python -m evaluation.leakage REFERENCES TRAINING

Ids and patients that both files hold, reports with the same words, and reports of which most runs of eight
words (14 characters of Chinese) stand in one training report. Reads words alone: two normal chests may be
reported in the same words by the same hand, so a share is to be read beside what the training set shares with
itself. Knows no images.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from evaluation.ngrams import Grams, count_grams, number_words
from evaluation.pairs import REFERENCES, read_rows, read_texts
from evaluation.tokens import tokenise
from mla_med.errors import MlaMedError, ReportError

# T texts, G distinct runs of words of a text over all texts
RUN = 8
"""Words in a row; shorter runs are the idiom of the field and not of a report."""
RUN_CHINESE = 14
"""Characters in a row, as there are no blanks between words."""
NEAR = 0.8
"""Of the runs of a report, in one training report."""
_AT_ONCE = 256
_CHINESE = "\u4e00-\u9fff"
_PIECE = re.compile(rf"[{_CHINESE}]|[^{_CHINESE}，。；：、！？（）]+")


@dataclass(frozen=True, slots=True)
class Leak:
    """A text, the training text that is nearest to it, and how much of it stands there."""

    text: int
    train: int
    share: float
    is_same: bool
    """All words, in the same order."""


@dataclass(frozen=True, slots=True)
class Leakage:
    """What two files have in common."""

    num_texts: int
    num_train: int
    leaks: tuple[Leak, ...]
    common_ids: tuple[str, ...] = ()
    common_patients: tuple[str, ...] = ()

    @property
    def num_same(self) -> int:
        return sum(leak.is_same for leak in self.leaks)

    @property
    def share(self) -> float:
        """Of the texts, those that leaked, whole or nearly."""
        return len(self.leaks) / self.num_texts

    def __str__(self) -> str:
        return (
            f"{self.num_same} of {self.num_texts} reports stand in the {self.num_train} of the training "
            f"word for word, {len(self.leaks) - self.num_same} more with {NEAR:.0%} of their runs of "
            f"{RUN} words ({RUN_CHINESE} characters of Chinese); "
            f"{len(self.common_ids)} ids and {len(self.common_patients)} patients are in both."
        )


def check_leakage(references: Path, train: Path) -> Leakage:
    tested, trained = list(read_rows(references, REFERENCES)), list(read_rows(train, REFERENCES))
    seen_ids = {row.id for row in trained}
    seen_patients = {str(row.meta["patient"]) for row in trained if row.meta.get("patient")}
    patients = dict.fromkeys(str(row.meta["patient"]) for row in tested if row.meta.get("patient"))
    return Leakage(
        num_texts=len(tested),
        num_train=len(trained),
        leaks=find_leaks([row.text for row in tested], [row.text for row in trained]),
        common_ids=tuple(row.id for row in tested if row.id in seen_ids),
        common_patients=tuple(name for name in patients if name in seen_patients),
    )


def leakage_words(references: Path, train: Path) -> Iterator[str]:
    """In words, a line for each kind; nothing where nothing leaked."""
    try:
        found = check_leakage(references, train)
    except ReportError:  # training reports may be texts alone, without ids
        tested, trained = read_texts(references), read_texts(train)
        found = Leakage(len(tested), len(trained), find_leaks(tested, trained))
    if found.leaks:
        near = len(found.leaks) - found.num_same
        yield (
            f"{found.num_same} of {found.num_texts} references stand word for word in the training reports, "
            f"and {near} nearly: what the model wrote there it may have learnt by heart."
        )
    if found.common_ids or found.common_patients:
        yield (
            f"{len(found.common_ids)} ids and {len(found.common_patients)} patients are in the references "
            "and in the training reports."
        )


def find_leaks(texts: Sequence[str], train: Sequence[str]) -> tuple[Leak, ...]:
    """In the order of the texts. One shorter than a run leaks only as a whole; an empty one never."""
    words = [_words_of(text) for text in (*texts, *train)]
    first: dict[tuple[str, ...], int] = {}
    for k, told in enumerate(words[len(texts) :]):
        first.setdefault(told, k)
    nearest, shares = _nearest(words, len(texts))
    leaks = []
    for k, told in enumerate(words[: len(texts)]):
        if told and told in first:
            leaks.append(Leak(k, first[told], 1.0, True))
        elif shares[k] >= NEAR:
            leaks.append(Leak(k, int(nearest[k]), float(shares[k]), False))
    return tuple(leaks)


def _words_of(text: str) -> tuple[str, ...]:
    """Of Chinese each character."""
    return tuple(piece for token in tokenise(text) for piece in _PIECE.findall(token))


def _nearest(words: Sequence[Sequence[str]], num_texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of the first texts the nearest of the others, by runs of the length of its own language."""
    nearest, shares = np.zeros(num_texts, np.intp), np.zeros(num_texts)
    is_chinese = np.array([2 * sum(map(_is_chinese, told)) > len(told) for told in words[:num_texts]], bool)
    for chinese, run in ((False, RUN), (True, RUN_CHINESE)):
        which = np.flatnonzero(is_chinese == chinese)
        if which.size:
            asked = [*(words[int(k)] for k in which), *words[num_texts:]]
            nearest[which], shares[which] = _nearest_by(asked, len(which), run)
    return nearest, shares


def _is_chinese(word: str) -> bool:
    return "\u4e00" <= word[0] <= "\u9fff"


def _nearest_by(words: Sequence[Sequence[str]], num_texts: int, run: int) -> tuple[np.ndarray, np.ndarray]:
    *_, runs = count_grams(number_words(words), run)
    tested, trained = runs.of(0, num_texts), runs.of(num_texts, len(words))
    _, number_G = np.unique(runs.gram_G, return_inverse=True)
    num_runs = int(number_G.max(initial=0)) + 1
    ours = _as_matrix(tested, number_G[: len(tested.gram_G)], num_runs)
    theirs = _as_matrix(trained, number_G[len(tested.gram_G) :], num_runs).T.tocsc()
    nearest, shares = np.zeros(num_texts, np.intp), np.zeros(num_texts)
    for begin in range(0, num_texts, _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        held = (ours[some] @ theirs).toarray()
        nearest[some] = held.argmax(axis=1)
        shares[some] = held.max(axis=1) / np.maximum(tested.distinct_T[some], 1)
    return nearest, shares


def _as_matrix(grams: Grams, number_G: np.ndarray, num_runs: int) -> sparse.csr_array:
    ones = np.ones(len(number_G), np.int32)
    return sparse.csr_array((ones, (grams.text_G, number_G)), shape=(grams.num_texts, num_runs))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.leakage", description="Seen in training?")
    parser.add_argument("references", type=Path, help="reports to be scored, JSON lines or CSV")
    parser.add_argument("train", type=Path, help="reports that the model was trained on")
    given = parser.parse_args(arguments)
    try:
        found = check_leakage(given.references, given.train)
    except MlaMedError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
