"""What one run of the evaluation found, as values: what the page, the tables and the JSON are written from.

Knows no files and computes nothing but the verdict, which is a matter of words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from evaluation.calibration import Reliability, RiskCoverage
from evaluation.compare import ComparisonRow
from evaluation.floors import NEAREST
from evaluation.judges import Judged
from evaluation.perturb import CardRow
from evaluation.score import FindingRow, Gap, Row
from evaluation.subgroups import SubgroupRow

DECIDING = ("findings F1 macro", "findings F1 micro")
"""Must clear every floor, or nothing shows that the drafts know the images."""
WORDING = "BLEU-4"
HEADLINES = (*DECIDING, WORDING)
"""Findings first, because wording alone is bought by a constant report."""
DETAILS = ("side accuracy", "site accuracy", "size agreement")
"""Of the findings that both have; what a draft without images guesses as well is worth nothing."""
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


class Grade(StrEnum):
    UNKNOWN = "unknown"
    """No findings to compare, or no floor to compare with."""
    BAD = "bad"
    """In its findings, a floor is not cleared."""
    MIXED = "mixed"
    """Its findings clear every floor, but something is amiss."""
    GOOD = "good"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is the model any good? One sentence that answers without the rest of the page, and what it rests on."""

    grade: Grade
    words: str
    reasons: tuple[str, ...]


def below(row: Row) -> tuple[str, ...]:
    """The floors that are not cleared, without the neighbour, who has read the reference."""
    return tuple(name for name in row.not_cleared if name != NEAREST)


def below_retrieval(row: Row) -> bool:
    return NEAREST in row.not_cleared


def verdict_of(scores: Scores) -> Verdict:
    facts, on = scores.facts, _on(scores.facts)
    if not _read(facts):
        return Verdict(
            Grade.UNKNOWN,
            "Nobody can say: in none of the references could a finding be read, present or absent.",
            ("Are they reports of this examination, in this language?",),
        )
    if not facts["findings_in_references"]:
        return Verdict(
            Grade.UNKNOWN,
            f"Nobody can say: {on}no finding could be read as present in the references.",
            ("Only the wording could be compared, and wording alone is bought by a constant report.",),
        )
    named = {row.score.name: row for row in scores.rows}
    deciding = [named[name] for name in DECIDING if name in named and _is_measured(named[name])]
    if not deciding:
        return Verdict(
            Grade.UNKNOWN,
            f"Nobody can say: {on}no difference from a draft without images can be told from chance.",
            ("It takes reports of two patients at least, and of thirty to be of use.",),
        )
    faults = _faults(named)
    beside = [
        row
        for name in (*DETAILS, WORDING)
        # nothing can be above a floor that is right in its few matches
        if (row := named.get(name)) and below(row) and row.score.value < 1
    ]
    reasons = (
        *(_beside_best(row) for row in deciding),
        *(faults or ("Few findings are invented, missed or misplaced.",)),
        *(f"Not better than without images: {_against_floor(row)}." for row in beside),
    )
    if facts["empty_drafts"] == facts["num_reports"]:
        return Verdict(Grade.BAD, "No: every draft is empty.", reasons)
    if facts["distinct_drafts"] == 1 and facts["num_reports"] > 1:
        return Verdict(
            Grade.BAD, "No: every draft is the same text, so none can be of what its images show.", reasons
        )
    failed = [row for row in deciding if below(row)]
    if failed:
        failed.sort(key=lambda row: min(gap.value for gap in _gaps(row)))
        kept = "".join(f" (in {row.score.name} it is)" for row in deciding if not below(row))
        if _read(facts) < FEW_REPORTS and all(gap.value > 0 for row in failed for gap in _gaps(row)):
            chance = "it is better than writing without images by no more than chance could make it"
            return Verdict(Grade.UNKNOWN, f"Nobody can say: {on}{chance}.", reasons)
        blind = f"{on}it is not shown to be better than writing without images{kept}"
        return Verdict(Grade.BAD, f"No: {blind}: {_against_floor(failed[0])}.", reasons)
    finds = f"{on}it finds what is there better than every draft written without images"
    amiss = [row for row in beside if _is_amiss(row)]
    if amiss:
        worse = ", and ".join(_against_floor(row) for row in amiss)
        return Verdict(
            Grade.MIXED, f"Not yet: {finds}, but in {_what(amiss)} it is no better: {worse}.", reasons
        )
    if faults:
        return Verdict(Grade.MIXED, f"Not yet: {finds}, but with too many errors: {faults[0]}", reasons)
    return Verdict(Grade.GOOD, f"Yes: {finds}, and with few errors.", reasons)


def _on(facts: Mapping[str, Any]) -> str:
    """What the reader has to know of the reports before the sentence; mostly nothing."""
    num, read = facts["num_reports"], _read(facts)
    few = ", which are few," if 1 < read < FEW_REPORTS else ""
    if read < (1 - MANY_ERRORS) * num:
        return f"on the {read} of {num} reports that could be read{few} "
    if num == 1:
        return "on this one report "
    return f"on these {num} reports{few} " if few else ""


def _read(facts: Mapping[str, Any]) -> int:
    return facts["num_reports"] - facts["references_without_a_reading"]


def _gaps(row: Row) -> list[Gap]:
    return [row.gaps[name] for name in below(row)]


def _beside_best(row: Row) -> str:
    floor = best_floor(row)
    said = f"{row.score.name} {row.score.value:.2f}"
    if floor is None:
        return f"{said}."
    return f"{said}; the best without images, {_article(floor[0])}, has {floor[1]:.2f}."


def _is_measured(row: Row) -> bool:
    """Whether any floor has a value and the difference an interval."""
    return any(not math.isnan(gap.ci95[0]) for gap in row.gaps.values())


def _is_amiss(row: Row) -> bool:
    """Often wrong, or shown to be worse than a floor. A floor that is right in its few matches, beside a
    draft that is nearly always right, is nothing to reproach it with."""
    worse = any(gap.ci95[1] < 0 for gap in _gaps(row))
    return worse or row.score.name == WORDING or row.score.value < 1 - MANY_ERRORS


def _what(rows: Sequence[Row]) -> str:
    said = [_IN_WORDS[row.score.name] for row in rows]
    return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


_IN_WORDS = {"side accuracy": "side", "site accuracy": "site", "size agreement": "size", WORDING: "wording"}


def _faults(named: Mapping[str, Row]) -> tuple[str, ...]:
    """In words, the largest share first."""
    shares = []
    for name, (words, is_complement) in _FAULTS.items():
        value = named[name].score.value if name in named else math.nan
        wrong = 1 - value if is_complement else value
        if wrong > MANY_ERRORS:  # NaN is not
            shares.append((wrong, f"{wrong:.0%} {words}."))
    return tuple(words for _, words in sorted(shares, key=lambda pair: -pair[0]))


_FAULTS = {
    "hallucination": ("of the findings that the drafts state are not in the reference", False),
    "omission": ("of the findings in the references are missing in the draft", False),
    "side accuracy": ("of the findings that both have are on another side in the draft", True),
    "site accuracy": ("of the findings that both have are at another site in the draft", True),
    "size agreement": ("of the sizes in the references are another in the draft, or missing", True),
    "conflicting drafts": (
        "of the drafts hold a sentence that says otherwise than the reference (side, denial or size)",
        False,
    ),
    "temporal claims without prior": ("of the drafts without a prior examination compare with one", False),
}


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
    chinese = facts["references_in_chinese"]
    if facts["language"] != "zh" and chinese:
        found.append(
            f"{chinese} of {num} references hold Chinese, and were read as {facts['language']}: "
            "score Chinese reports by themselves, as --language zh."
        )
    if facts["language"] == "zh" and chinese < num:
        found.append(f"{num - chinese} of {num} references hold no Chinese, and were read as Chinese.")
    if chinese > num / 2 and facts["protocol"] != "zh":
        found.append(
            f"Protocol {facts['protocol']} parts words at blanks, which Chinese does not have: its text "
            "scores mean little here; take --protocol zh."
        )
    if facts["unknown"]:
        found.append(f"{len(facts['unknown'])} drafts have no reference and were left out.")
    if facts["distinct_drafts"] == 1 and facts["num_reports"] > 1:
        found.append("Every draft is the same text: this is a constant report, a floor and no model.")
    if facts["copied_drafts"] == facts["num_reports"]:
        found.append("Every draft is its reference, word for word. Were the references given twice?")
    if 1 < facts["num_reports"] < FEW_REPORTS:
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
    if floor.startswith("all "):
        return f"calling everything {floor.split()[-1]}"
    return {"constant": "the same report for all", "random": "another case's report"}.get(
        floor, f"a {floor} report"
    )


def best_floor(row: Row) -> tuple[str, float] | None:
    """Of those that have read nothing of the case."""
    values = {n: s.value for n, s in row.floors.items() if n != NEAREST and not math.isnan(s.value)}
    if not values:
        return None
    name = (max if row.higher_is_better else min)(values, key=values.__getitem__)
    return name, values[name]
