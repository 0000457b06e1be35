"""What one run of the evaluation found, as values: what the page, the tables and the JSON are written from.

Knows no files and computes nothing but the verdict, which is a matter of words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.calibration import Reliability, RiskCoverage
from evaluation.compare import ComparisonRow
from evaluation.floors import NEAREST
from evaluation.judges import Judged
from evaluation.perturb import CardRow
from evaluation.score import FindingRow, Row
from evaluation.subgroups import SubgroupRow

HEADLINES = ("findings F1 macro", "findings F1 micro", "BLEU-4")
"""What the verdict rests on: findings first, because wording alone is bought by a constant report."""
MANY_ERRORS = 0.1
FEW_REPORTS = 30


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive characters of a text, and what is to be said of them."""

    text: str
    kind: str = ""
    """right, missed, invented, contradicted, differs (side, site, size), conflict; empty: nothing."""
    words: str = ""


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One pair: its scores and its faults."""

    id: str
    scores: Mapping[str, float]
    missed: tuple[str, ...]
    invented: tuple[str, ...]
    contradicted: tuple[str, ...]
    """Of those invented, what the reference denies."""
    differs: tuple[str, ...]
    """Matched findings of which the side, the site or the size is another."""
    conflicts: tuple[str, ...]
    """Kinds of sentences that say otherwise."""
    temporal: bool
    """Compares, and there is no prior."""
    empty: bool

    @property
    def num_errors(self) -> int:
        return (
            len(self.missed)
            + len(self.invented)
            + len(self.contradicted)  # counted twice: a contradiction is the graver invention
            + len(self.differs)
            + len(self.conflicts)
            + self.temporal
        )


@dataclass(frozen=True, slots=True)
class Case:
    """One of the worst pairs, as it is shown."""

    row: CaseRow
    reference: tuple[Piece, ...]
    draft: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything one run measured; `facts` says on what and with what (all JSON values)."""

    rows: tuple[Row, ...]
    findings: tuple[FindingRow, ...]
    cases: tuple[CaseRow, ...]
    worst: tuple[Case, ...]
    floors: Mapping[str, str]
    """Name of each floor -> what it is, in words."""
    facts: Mapping[str, Any]
    subgroups: tuple[SubgroupRow, ...] = ()
    card: tuple[CardRow, ...] = ()
    reliabilities: tuple[Reliability, ...] = ()
    risk: RiskCoverage | None = None
    comparison: tuple[ComparisonRow, ...] = ()
    judged: tuple[Judged, ...] = ()

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.score.name in (name, f"findings {name}"))

    def value_of(self, name: str) -> tuple[float, bool] | None:
        """The value, and whether higher is better; None where there is no such score."""
        for row in self.rows:
            if row.score.name == name:
                return row.score.value, row.higher_is_better
        return None

    @property
    def flagged(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if below(row))

    @property
    def headlines(self) -> tuple[Row, ...]:
        return tuple(row for name in HEADLINES for row in self.rows if row.score.name == name)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is the model any good? `grade`: unknown (no findings to compare), bad (a floor is not cleared), mixed
    (many errors), good."""

    grade: str
    words: str
    reasons: tuple[str, ...]


def below(row: Row) -> tuple[str, ...]:
    """The floors that are not cleared, without the neighbour, who has read the reference."""
    return tuple(name for name in row.not_cleared if name != NEAREST)


def below_retrieval(row: Row) -> bool:
    return NEAREST in row.not_cleared


def verdict_of(scores: Scores) -> Verdict:
    facts = scores.facts
    failed = [row for row in scores.headlines if below(row)]
    said = f"{facts['num_reports']} reports"
    if not facts["findings_in_references"]:
        return Verdict(
            "unknown",
            f"No reference of these {said} states a finding that could be read.",
            ("Only the wording could be compared, and wording alone is bought by a constant report.",),
        )
    errors = _errors(scores)
    if failed:
        failed.sort(key=lambda row: min(row.gaps[name].value for name in below(row)))
        worse = ", and ".join(_against_floor(row) for row in failed[:2])
        return Verdict(
            "bad", f"Not shown to be better than writing without looking at images: {worse}.", errors
        )
    best = [row for row in scores.headlines if not math.isnan(row.score.value)]
    margin = ", ".join(
        f"{row.score.name} {row.score.value:.2f} (best floor {_best(row):.2f})" for row in best
    )
    many = [e for e in errors if not e.startswith("Few")]
    if many:
        return Verdict(
            "mixed",
            f"Better than every draft that looks at no image, but with many errors: {margin}.",
            errors,
        )
    return Verdict("good", f"Far from every floor and with few errors on {said}: {margin}.", errors)


def _errors(scores: Scores) -> tuple[str, ...]:
    wanted = (
        ("hallucination", "of the findings that the drafts state are not in the reference"),
        ("omission", "of the findings in the references are missing in the draft"),
        ("conflicting drafts", "of the drafts hold a sentence that says otherwise (side, denial or size)"),
        ("temporal claims without prior", "of the drafts compare with a prior that there is not"),
    )
    named = {row.score.name: row.score.value for row in scores.rows}
    found = [
        f"{named[name]:.0%} {words}."
        for name, words in wanted
        if name in named and not math.isnan(named[name]) and named[name] > MANY_ERRORS
    ]
    side = named.get("side accuracy", math.nan)
    if not math.isnan(side) and side < 1 - MANY_ERRORS:
        found.append(f"{1 - side:.0%} of the matched findings are on the wrong side.")
    return tuple(found) or ("Few findings are invented, missed or on the wrong side.",)


def warnings_of(scores: Scores) -> list[str]:
    facts = scores.facts
    counted = {
        "drafts are missing and score as empty reports": len(facts["missing"]),
        "ids have several drafts, none of which counts": len(facts["duplicate"]),
        "drafts are empty": facts["empty_drafts"],
        "references are empty": facts["empty_references"],
        "references could not be read for findings": facts["references_not_parsed"],
        "drafts could not be read for findings": facts["drafts_not_parsed"],
    }
    found = [f"{count} of {facts['num_reports']} {words}." for words, count in counted.items() if count]
    unread, num = facts["references_without_a_reading"], facts["num_reports"]
    if unread > MANY_ERRORS * num:
        found.append(
            f"In {unread} of {num} references no finding could be read, present or absent: the scores of "
            "findings speak for the others only."
        )
    if facts["unknown"]:
        found.append(f"{len(facts['unknown'])} drafts have no reference and were left out.")
    if facts["distinct_drafts"] == 1 and facts["num_reports"] > 1:
        found.append("Every draft is the same text: this is a constant report, a floor and no model.")
    if facts["num_reports"] < FEW_REPORTS:
        found.append(f"Only {facts['num_reports']} reports: the intervals are rough.")
    if not facts["floors_from_train"]:
        found.append(
            "No training reports were given, so the constant was chosen among the references themselves, "
            "which favours it."
        )
    for row in scores.card:
        if not row.num or row.holds:
            continue
        if row.kind == "fault":
            words = f"only {row.caught:.0%} of the planted faults “{row.name}” are seen: there may be more"
        else:
            words = f"{row.caught:.0%} of the harmless changes “{row.name}” raise an alarm: less may be wrong"
        found.append(f"On these references {words} than is said here.")
    return found + list(facts["leakage"])


def _against_floor(row: Row) -> str:
    """The worst of the floors that are not cleared."""
    name = min(below(row), key=lambda floor: row.gaps[floor].value)
    value, floor = row.score.value, row.floors[name].value
    if row.gaps[name].value > 0:
        return f"{row.score.name} {value:.2f} is not clearly above the {floor:.2f} of {_article(name)}"
    return f"{row.score.name} is {value:.2f} where {_article(name)} gets {floor:.2f}"


def _article(floor: str) -> str:
    return f"calling everything {floor.split()[-1]}" if floor.startswith("all ") else f"a {floor} report"


def _best(row: Row) -> float:
    values = [s.value for name, s in row.floors.items() if name != NEAREST and not math.isnan(s.value)]
    if not values:
        return math.nan
    return max(values) if row.higher_is_better else min(values)
