"""What was measured, as values that cannot be printed bare.

Knows how a score looks. Knows nothing of texts, findings or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

NOT_MEASURED = "–"
Interval = tuple[float, float]


class Unit(StrEnum):
    POINTS = "0-100"
    RATE = "0-1"
    TEN = "0-10"
    MM = "mm"


@dataclass(frozen=True, slots=True)
class Score:
    """A value with its interval and how it was made. NaN: there was nothing to measure."""

    name: str
    value: float
    ci95: Interval
    signature: str
    num_reports: int

    def __str__(self) -> str:
        return (
            f"{self.name} {self.value:.4g} [{self.ci95[0]:.4g}, {self.ci95[1]:.4g}] "
            f"(n={self.num_reports}, {self.signature})"
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """How much better the drafts are than a floor on the same reports; positive is better."""

    value: float
    ci95: Interval

    @property
    def clears(self) -> bool:
        return self.ci95[0] > 0


@dataclass(frozen=True, slots=True)
class Row:
    """One score of the drafts beside the same score of every floor that can have it."""

    score: Score
    unit: Unit
    higher_is_better: bool
    floors: Mapping[str, Score]
    gaps: Mapping[str, Gap]
    """Floors without a value have no gap."""

    @property
    def not_cleared(self) -> tuple[str, ...]:
        return tuple(name for name, gap in self.gaps.items() if not gap.clears)


@dataclass(frozen=True, slots=True)
class FindingRow:
    """One finding code over all reports."""

    code: str
    num_references: int
    num_drafts: int
    num_matched: int
    precision: Score
    recall: Score
    f1: Row


def show(value: float, unit: Unit) -> str:
    """A number for a table cell; its signature stands beside the table."""
    if math.isnan(value):
        return NOT_MEASURED
    return f"{value:.3f}" if unit in (Unit.RATE, Unit.TEN) else f"{value:.1f}"


def show_interval(score: Score, unit: Unit) -> str:
    if math.isnan(score.ci95[0]):
        return show(score.value, unit)
    low, high = (show(bound, unit) for bound in score.ci95)
    return f"{show(score.value, unit)} [{low}, {high}]"


def score_texts(
    references: Sequence[str | Sequence[str]], drafts: Sequence[str], protocol: str = "coco"
) -> dict[str, Score]:
    """For training loops: the text scores by name, each with its signature and without an interval (NaN),
    which takes what a loop has no time for. Imports no torch. BLEU-4 of a validation pass:

    >>> score_texts(["No nodule.", "No effusion."], ["No nodule.", "No mass."])["BLEU-1"].value
    0.75
    """
    from evaluation.text import text_scores  # which builds on this file

    nowhere = (math.nan, math.nan)
    return {
        name: Score(name, score.value, nowhere, score.signature, score.n)
        for name, score in text_scores(references, drafts, protocol).items()
    }
