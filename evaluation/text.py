"""Pairs of texts -> BLEU-1..4, on sacrebleu's scale of 0 to 100.

sacrebleu counts, once for each pair; the sums of the counts are the score of a corpus, so the
bootstrap never sees a text again. Texts come in Python lists and never as lines: an empty one or
one that holds any kind of newline cannot shift a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from evaluation.score import Unit
from evaluation.statistics import Measure, Statistic

# B resamples, R reports, T = 10 sums (lengths of draft and reference, 4 matches, 4 totals), N orders
ORDERS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class BleuCounts:
    """sacrebleu's counts for each pair."""

    sums_RT: np.ndarray
    signature: str


def count_ngrams(references: Sequence[str], drafts: Sequence[str]) -> BleuCounts:
    assert len(references) == len(drafts)
    metric = BLEU(force=True)  # force: do not warn of texts that look tokenized
    sums = metric._extract_corpus_statistics(drafts, [references])
    return BleuCounts(np.array(sums, dtype=np.float64), f"{metric.get_signature()}|refs:full")


def bleu_measures(counts: BleuCounts) -> list[Measure]:
    """BLEU-4 first: it is the headline."""
    return [
        Measure(f"BLEU-{order}", _of_order(counts.sums_RT, order), counts.signature, Unit.POINTS)
        for order in reversed(ORDERS)
    ]


def sentence_bleu4(counts: BleuCounts) -> np.ndarray:
    """BLEU-4 of each pair, to rank pairs with; no score to publish."""
    return bleu(counts.sums_RT, max(ORDERS))


def bleu(sums_BT: np.ndarray, order: int) -> np.ndarray:
    """sacrebleu's compute_bleu with exponential smoothing, for many corpora at once."""
    draft_length, reference_length = sums_BT[:, 0], sums_BT[:, 1]
    matches_BN, totals_BN = sums_BT[:, 2 : 2 + order], sums_BT[:, 6 : 6 + order]
    unmatched_BN = (matches_BN == 0) & (totals_BN > 0)
    smoothed_BN = np.where(unmatched_BN, 0.5 ** np.cumsum(unmatched_BN, axis=1), matches_BN)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(np.where(totals_BN > 0, smoothed_BN / totals_BN, 0)).mean(axis=1)
        brevity = np.where(draft_length < reference_length, np.exp(1 - reference_length / draft_length), 1)
    return np.where(matches_BN.any(axis=1), 100 * brevity * np.exp(log_precision), 0.0)


def _of_order(sums_RT: np.ndarray, order: int) -> Statistic:
    return lambda counts_BR: bleu(counts_BR @ sums_RT, order)
