"""Scores -> page.html: one file that tells a stranger in a minute whether the drafts are any good.

Without scripts, links or fonts from elsewhere; every text in it is escaped. It holds the reports of the
worst pairs, so it is as confidential as they are. Knows no files; every number is shown by the functions
that write the tables, so page and tables cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from evaluation.calibration import Reliability, RiskCoverage
from evaluation.floors import NEAREST
from evaluation.results import HEADLINES, Scores, below, best_floor, verdict_of, warnings_of
from evaluation.score import NOT_MEASURED, Row, Score, Unit, show, show_interval
from evaluation.tables import CLEARING, cleared, row_name, values

PLOTTED = {
    "findings F1 macro": "Do both texts state the same findings? Rare ones count as much as common ones.",
    "findings F1 micro": "The same over all statements together: common findings weigh more.",
    "BLEU-4": "Do they use the same words? A constant report can score well here.",
}
ERRORS = {
    "hallucination": "of the findings in the drafts are not in the reference",
    "contradiction": "of the findings in the drafts are expressly denied by the reference",
    "omission": "of the findings in the references are missing",
    "wrong side": "of the findings that both have are on another side",
    "wrong size": "of the sizes of findings that both have differ by more than 10 % and 2 mm, or are missing",
    "conflicting drafts": "of the drafts hold a sentence that says otherwise",
    "temporal claims without prior": "of the drafts without a prior compare with one",
}
FLOORS = {
    "constant": "one report for every case, the best that could be chosen",
    "normal": "one report without findings for every case",
    "random": "the report of another case",
    NEAREST: "the most similar report of another case, chosen by somebody who had read the reference: what "
    "looking up old reports could reach at best, and no bar to clear",
    "all positive": "every finding said to be there, in every case",
    "all negative": "every finding said not to be there",
}
COMPARED = (*HEADLINES, "hallucination", "omission", "side accuracy", "size agreement", "conflicting drafts")
"""Shown at once; the other scores of two systems are folded away."""
_COMPLEMENTS = {"wrong side": "side accuracy", "wrong size": "size agreement"}
# of one plot, in CSS pixels
_WIDTH, _LEFT, _RIGHT, _BAR, _STEP = 360, 118, 44, 12, 20
_SQUARE = 250


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a plot, in pixels; low and high are the ends of the whisker."""

    label: str
    shown: str
    y: float
    x: float
    low: float | None
    high: float | None
    kind: str
    """draft, floor, or peeked: the neighbour who has read the reference."""


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    words: str
    alt: str
    height: float
    flagged: bool
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class ErrorBar:
    """One kind of error, as a share."""

    name: str
    words: str
    shown: str
    percent: float
    signature: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A square plot: points in pixels, y downwards."""

    title: str
    words: str
    points: tuple[tuple[float, float, float], ...]
    """x, y, radius."""
    diagonal: bool


def to_html(scores: Scores) -> str:
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (files("evaluation") / "page.html.jinja").read_text(encoding="utf-8")
    return page.from_string(template).render(
        scores=scores,
        facts=scores.facts,
        verdict=verdict_of(scores),
        warnings=warnings_of(scores),
        plots=[plot(scores[name], words) for name, words in PLOTTED.items()],
        errors=error_bars(scores),
        findings=sorted(
            (row for row in scores.findings if row.num_references or row.num_drafts),
            key=lambda row: -row.num_references,
        ),
        unseen=[row.code for row in scores.findings if not (row.num_references or row.num_drafts)],
        groups=[
            row
            for row in scores.subgroups
            if not math.isnan(row.value) and (row.score == "findings F1 micro" or row.is_worse)
        ],
        small_groups=sorted(
            {f"{r.field} {r.group} ({r.num})" for r in scores.subgroups if math.isnan(r.value)}
        ),
        floor_words={name: FLOORS[name] for name in scores.floors},
        compared=[row for row in scores.comparison if row.score in COMPARED],
        compared_too=[row for row in scores.comparison if row.score not in COMPARED],
        wins={side: sum(row.winner == side for row in scores.comparison) for side in "AB"},
        card_scores=("BLEU-4", "findings F1 micro"),
        curves=curves(scores),
        clearing=CLEARING,
        below=below,
        row_name=row_name,
        best_floor=best_floor,
        cleared=cleared,
        values=values,
        number=number,
        signed=signed,
        show=show,
        show_interval=show_interval,
        rate=Unit.RATE,
        nearest=NEAREST,
        width=_WIDTH,
        left=_LEFT,
        bar=_BAR,
        square=_SQUARE,
    )


def plot(row: Row, words: str = "") -> Plot:
    shown: dict[str, Score] = {"these drafts": row.score, **row.floors}
    bars = tuple(_bar(name, score, row.unit, place) for place, (name, score) in enumerate(shown.items()))
    return Plot(
        title=row.score.name,
        words=words,
        alt="; ".join(f"{bar.label} {bar.shown}" for bar in bars),
        height=len(bars) * _STEP + 2,
        flagged=bool(below(row)),
        bars=bars,
    )


def error_bars(scores: Scores) -> list[ErrorBar]:
    named = {row.score.name: row.score for row in scores.rows}
    made = []
    for name, words in ERRORS.items():
        score = named.get(_COMPLEMENTS.get(name, name))
        if score is None:
            continue
        value, low, high = score.value, *score.ci95
        if name in _COMPLEMENTS:
            value, low, high = 1 - value, 1 - high, 1 - low
        shown = NOT_MEASURED if math.isnan(value) else f"{value:.0%}"
        if not math.isnan(low):
            shown += f" [{100 * low:.0f}, {100 * high:.0f}]"
        made.append(ErrorBar(name, words, shown, 0.0 if math.isnan(value) else 100 * value, score.signature))
    return made


def curves(scores: Scores) -> list[Curve]:
    made = [_reliability_curve(some) for some in scores.reliabilities[:1]]
    if scores.risk is not None:
        made.append(_risk_curve(scores.risk))
    return made


def number(value: float, digits: int = 3) -> str:
    return NOT_MEASURED if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    return NOT_MEASURED if math.isnan(value) else f"{value:+.3f}"


def _reliability_curve(some: Reliability) -> Curve:
    most = max(b.count for b in some.bins)
    points = [
        (b.stated * _SQUARE, (1 - b.came_true) * _SQUARE, 3 + 7 * math.sqrt(b.count / most))
        for b in some.bins
        if b.count
    ]
    return Curve(
        title=f"Reliability, {some.count} statements",
        words=f"ECE {some.ece:.3f} (equal mass {some.ece_equal_mass:.3f}), Brier {some.brier:.3f}. Across: "
        "the stated probability of a finding; up: how often it was there. On the line, 80 % means 80 %.",
        points=tuple((round(x, 1), round(y, 1), round(r, 1)) for x, y, r in points),
        diagonal=True,
    )


def _risk_curve(risk: RiskCoverage) -> Curve:
    at = ", ".join(f"{value:.2f} at {coverage:.0%}" for coverage, value in risk.risk_at.items())
    points = zip(risk.coverage, risk.risk, strict=True)
    return Curve(
        title="Risk against coverage",
        words=f"AURC {risk.aurc:.3f}, E-AURC {risk.e_aurc:.3f}; risk (1 - F1 of a report) {at}. Across: "
        "the share of reports kept, the surest first; up: the mean risk among them. Low at the left is good.",
        points=tuple((round(x * _SQUARE, 1), round((1 - y) * _SQUARE, 1), 2.0) for x, y in points),
        diagonal=False,
    )


def _bar(name: str, score: Score, unit: Unit, place: int) -> Bar:
    full = {Unit.POINTS: 100, Unit.TEN: 10}.get(unit, 1)
    low, high = (None if math.isnan(end) else _pixel(end / full) for end in score.ci95)
    x = 0.0 if math.isnan(score.value) else _pixel(score.value / full)
    kind = "draft" if place == 0 else "peeked" if name == NEAREST else "floor"
    return Bar(name, show(score.value, unit), place * _STEP + 4, x, low, high, kind)


def _pixel(share: float) -> float:
    return round(share * (_WIDTH - _LEFT - _RIGHT), 1)
