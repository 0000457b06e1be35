"""Drafts of two systems on the same references -> each score of both, the gap, and whether it is chance.

Paired bootstrap for the interval, approximate randomisation for p (`statistics.paired_randomisation`), Holm
over the scores. Both values are those of the tables: each system is measured alone, against the same
references. Knows no texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluation.score import Interval
from evaluation.statistics import (
    TRIALS,
    Measure,
    Resamples,
    difference,
    estimate,
    holm,
    paired_randomisation,
    to_gap,
)

SEED = 23


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
    ours: Sequence[Measure],
    theirs: Sequence[Measure],
    drawn: Resamples,
    groups: Sequence[str],
    trials: int = TRIALS,
) -> tuple[ComparisonRow, ...]:
    """The same measures of A and of B, made of sums; `groups` (patients) are swapped as a whole."""
    rows = [_row(a, b, drawn, groups, trials) for a, b in zip(ours, theirs, strict=True)]
    tested = [k for k, row in enumerate(rows) if not math.isnan(row.p)]
    for k, p in zip(tested, holm([rows[k].p for k in tested]), strict=True):
        rows[k] = replace(rows[k], p_holm=p)
    return tuple(rows)


def _row(a: Measure, b: Measure, drawn: Resamples, groups: Sequence[str], trials: int) -> ComparisonRow:
    assert a.name == b.name
    assert a.sums is not None
    assert b.sums is not None
    of_a, of_b = (estimate(measure.statistic, drawn) for measure in (a, b))
    gap = to_gap(difference(a.statistic, b.statistic, of_a, of_b, drawn), a.higher_is_better)
    p, smallest = paired_randomisation(a.sums.each_RT, b.sums.each_RT, a.sums.value_of, groups, trials, SEED)
    return ComparisonRow(
        score=a.name,
        a=of_a.value,
        b=of_b.value,
        gap=math.nan if gap is None else gap.value,
        gap_ci95=(math.nan, math.nan) if gap is None else gap.ci95,
        p=p,
        p_holm=math.nan,
        smallest_p=smallest,
        signature=f"{a.signature}|ar:{trials}|seed:{SEED}|by:{drawn.by}",
    )
