"""What both pages of a draft share, the self-contained one and the reviewer's: macros, colours, filters.

Their words are English, and `t` and `said` in a template's context may say them otherwise. Knows no page
around them, no pictures and no forms.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mla_med.documents.text import sentence_findings
from mla_med.report.reasons import in_language
from mla_med.report.schema import SCHEMAS
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
    made.filters["day"] = day
    made.globals["RULES"] = RULES
    return made


def in_english() -> dict[str, Callable[..., str]]:
    """What the macros ask of their context, for a page in English."""
    return {"t": str, "said": lambda code, words: in_language(code, words, "en"), "term": term}


def term(examination: str, code: str) -> str:
    """A finding's name, at the beginning of a line."""
    kind = SCHEMAS.get(examination, {}).get(code)
    words = kind.term if kind else code.replace("_", " ")
    return words[:1].upper() + words[1:]


def percent(share: float) -> str:
    """Nothing is certain."""
    return "> 99 %" if share > 0.99 else "< 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def day(date: str) -> str:
    """YYYYMMDD as people read it; anything else as it stands."""
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdecimal() else date


def numbers_of(report: Report) -> list[tuple[int, ...]]:
    """For each sentence, those of the impression behind the others, the numbers (from 1) of the findings
    that it states."""
    numbers = {id(finding): n for n, finding in enumerate(report.findings, start=1)}
    return [
        tuple(sorted({numbers[id(finding)] for finding in stated}))
        for part in (report.sentences, report.impression)
        for stated in sentence_findings(part, report)
    ]
