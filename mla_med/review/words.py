"""What the page says, in the reader's language. English sentences are their own keys, codes have words in
en.toml, and zh.toml has all of it in Chinese."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from mla_med.report.schema import SCHEMAS
from mla_med.report.style import load_style
from mla_med.types import Finding, Side

LANGUAGES = ("en", "zh")
EXAMINATIONS = {"chest_ct": "CT chest", "brain_mr": "MR brain", "abdomen_ct": "CT abdomen"}
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


@cache
def table(language: str) -> dict[str, str]:
    path = Path(__file__).parent / f"{language}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["words"]


def say(english: str, language: str) -> str:
    return table(language).get(english, english)


@cache
def term(examination: str, code: str, language: str) -> str:
    """A finding's name."""
    style = load_style("prose", language)
    if language != "en" and examination in style.examinations:
        return style.wording(examination).terms.get(code, code)
    kind = SCHEMAS.get(examination, {}).get(code)
    words = kind.term if kind else code.replace("_", " ")
    return words[:1].upper() + words[1:]


@cache
def places(examination: str, code: str, language: str) -> tuple[tuple[str, str], ...]:
    """Every legal side and site: the value of a form, and its words."""
    style = load_style("prose", language)
    kind = SCHEMAS[examination][code]
    return tuple(
        (f"{side or '-'} {site or '-'}", style.place_words((side, site)) or "–") for side, site in kind.places
    )


def place_value(finding: Finding) -> str:
    return f"{finding.side or '-'} {finding.site or '-'}"


@cache
def codes_named(words: str) -> tuple[str, ...]:
    """Codes of findings whose name in either language holds these words."""
    wanted = words.casefold()
    found = [
        code
        for examination, schema in SCHEMAS.items()
        for code in schema
        if any(wanted in term(examination, code, language).casefold() for language in LANGUAGES)
        or wanted in code.replace("_", " ")
    ]
    return tuple(dict.fromkeys(found))


def side_words(side: Side | None, language: str) -> str:
    return load_style("prose", language).sides[side] if side else ""


def ago(seconds: float, language: str) -> str:
    """An age in the largest unit that fits."""
    for size, english in ((86_400, "{n} d"), (3_600, "{n} h"), (60, "{n} min")):
        if seconds >= size:
            return say(english, language).format(n=int(seconds // size))
    return say("now", language)
