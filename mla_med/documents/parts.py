"""What both pages of a draft share, the self-contained one and the reviewer's: macros, colours, filters.

Their words are English, and `t`, `said` and `term` in a template's context say them in the reader's
language. Knows no page around them, no pictures and no forms.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mla_med.documents import words
from mla_med.documents.text import sentence_findings
from mla_med.types import Report

TEMPLATES = Path(__file__).parent / "templates"
STYLE = TEMPLATES / "shared.css"
RULES = {
    "REQUIRED_SLOT": "Not said",
    "SAID_TWICE": "Said twice",
    "UNKNOWN_SENTENCE": "Cannot be checked",
    "NEGATION": "Present or absent",
    "SIDE": "Side",
    "SITE": "Site",
    "SIZE": "Size",
    "COUNT": "Count",
    "CHANGE": "Change",
    "NOT_A_FINDING": "No such finding",
    "IMPRESSION": "Impression",
    "SIDE_OF_EVIDENCE": "Side of the evidence",
    "SIDE_OF_REQUEST": "Side of the request",
    "INTERPRETATION": "Interpretation",
    "COMPARISON_WITHOUT_PRIOR": "Compares without a prior",
    "ORGAN_OF_OTHER_SEX": "Organ of the other sex",
    "CONTRAST": "Contrast medium",
    "NO_SUCH_PLACE": "No such place",
    "PRIOR_NOT_COMPARED": "Prior not compared",
}
"""What a page calls the rules of the linter."""


def environment(*folders: Path) -> Environment:
    """For the templates in these folders, and behind them the shared ones."""
    made = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["percent"] = percent
    made.filters["day"] = words.day
    made.globals["RULES"] = RULES
    return made


def speaking(language: str) -> dict[str, Callable[..., str]]:
    """What the macros ask of their context, for a page in this language."""
    return {
        "t": lambda english: words.say(english, language),
        "said": lambda code, english: words.said(code, english, language),
        "term": lambda examination, code: words.term(examination, code, language),
        "score_name": lambda name: words.score_name(name, language),
        "compared_term": lambda examination, one: words.compared_term(examination, one, language),
    }


def percent(share: float) -> str:
    """Nothing is certain."""
    return "> 99 %" if share > 0.99 else "< 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def numbers_of(report: Report) -> list[tuple[int, ...]]:
    """For each sentence, those of the impression behind the others, the numbers (from 1) of the findings
    that it states."""
    numbers = {id(finding): n for n, finding in enumerate(report.findings, start=1)}
    return [
        tuple(sorted({numbers[id(finding)] for finding in stated}))
        for part in (report.sentences, report.impression)
        for stated in sentence_findings(part, report)
    ]
