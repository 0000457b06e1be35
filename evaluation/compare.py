"""Drafts of two systems on the same references -> each score of both, the gap, and whether it is chance.

Paired bootstrap for the interval; approximate randomisation for p: which of the two drafts of a case (of a
patient) is whose is drawn anew, and p = (c + 1) / (N + 1), which is never 0 (Phipson and Smyth, 2010). Of few
patients all 2^G ways are tried, and no p can be below 2 / 2^G: the smallest is printed beside each. Holm over
the scores.
Knows no texts: the measures run over both sets of drafts at once, first all of A, then all of B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.score import Interval
from evaluation.statistics import Estimate, Measure, Resamples, holm

# B resamples or trials, R references: measures take counts over 2 R reports
TRIALS = 10_000
SEED = 23
_AT_ONCE = 4_000_000
"""Counts that are held at a time."""


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One score of A and of B. The gap is positive where B is better, whichever way the score points."""

    score: str
    a: float
    b: float
    gap: float
    gap_ci95: Interval
    p: float
    p_holm: float
    smallest_p: float
    """No difference, however large, could have had a smaller one."""
    signature: str

    @property
    def winner(self) -> str:
        if math.isnan(self.p_holm) or self.p_holm >= 0.05:
            return ""
        return "B" if self.gap > 0 else "A"


def compare(
    measures: Sequence[Measure], drawn: Resamples, groups: Sequence[str], trials: int = TRIALS
) -> tuple[ComparisonRow, ...]:
    """`drawn` and `groups` are over the references, the measures over both sets of drafts of them."""
    names, group_R = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    rows = [_row(measure, drawn, group_R, len(names), trials) for measure in measures]
    tested = [k for k, row in enumerate(rows) if not math.isnan(row.p)]
    adjusted = holm([rows[k].p for k in tested]) if tested else []
    for k, p in zip(tested, adjusted, strict=True):
        rows[k] = replace(rows[k], p_holm=float(p))
    return tuple(rows)


def _row(
    measure: Measure, drawn: Resamples, group_R: np.ndarray, num_groups: int, trials: int
) -> ComparisonRow:
    num, sign = len(group_R), 1 if measure.higher_is_better else -1
    none_R = np.zeros(num)
    both = measure.statistic(np.stack([np.r_[none_R + 1, none_R], np.r_[none_R, none_R + 1]]))
    a, b = (float(value) for value in both)
    gap = sign * (b - a)
    zeros_BR = np.zeros_like(drawn.counts_BR)
    of_a_B = measure.statistic(np.hstack([drawn.counts_BR, zeros_BR]))
    of_b_B = measure.statistic(np.hstack([zeros_BR, drawn.counts_BR]))
    smallest = 2.0 ** (1 - num_groups) if _is_exact(num_groups, trials) else 1 / (trials + 1)
    p = float("nan") if math.isnan(gap) else _randomised_p(measure, group_R, num_groups, abs(gap), trials)
    return ComparisonRow(
        score=measure.name,
        a=a,
        b=b,
        gap=gap,
        gap_ci95=Estimate(gap, sign * (of_b_B - of_a_B)).ci95,
        p=p,
        p_holm=float("nan"),
        smallest_p=smallest,
        signature=f"{measure.signature}|ar:{trials}|seed:{SEED}|by:{drawn.by}",
    )


def _is_exact(num_groups: int, trials: int) -> bool:
    return num_groups < 60 and 2**num_groups <= trials


def _randomised_p(measure: Measure, group_R: np.ndarray, num_groups: int, gap: float, trials: int) -> float:
    """Of few groups every way is tried, and p is exact."""
    is_exact = _is_exact(num_groups, trials)
    ways = 2**num_groups if is_exact else trials
    rng, as_large, valid = np.random.default_rng(SEED), 0, 0
    step = max(1, _AT_ONCE // (2 * len(group_R)))
    for begin in range(0, ways, step):
        size = min(step, ways - begin)
        if is_exact:
            swap_BG = np.arange(begin, begin + size)[:, None] >> np.arange(num_groups) & 1
        else:
            swap_BG = rng.integers(0, 2, size=(size, num_groups))
        swap_BR = swap_BG[:, group_R].astype(np.float64)
        first = measure.statistic(np.hstack([1 - swap_BR, swap_BR]))
        second = measure.statistic(np.hstack([swap_BR, 1 - swap_BR]))
        gaps = np.abs(second - first)
        gaps = gaps[np.isfinite(gaps)]
        as_large += int((gaps >= gap - 1e-12).sum())
        valid += len(gaps)
    return as_large / valid if is_exact else (as_large + 1) / (valid + 1)
