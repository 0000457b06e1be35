"""What the page says, in the reader's language. English sentences are their own keys, codes have words in
en.toml, and zh.toml has all of it in Chinese; what a draft's own page says too is in documents.words."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from mla_med.documents import words as shared
from mla_med.documents.words import LANGUAGES, term
from mla_med.documents.words import compared_term as compared_term
from mla_med.documents.words import score_name as score_name
from mla_med.report import reasons
from mla_med.report.schema import SCHEMAS
from mla_med.report.style import load_style
from mla_med.types import Finding

EXAMINATIONS = {"chest_ct": "CT chest", "brain_mr": "MR brain", "abdomen_ct": "CT abdomen"}


@cache
def table(language: str) -> dict[str, str]:
    """Its own words before those that it shares: a column of the worklist is no heading of a report."""
    path = Path(__file__).parent / f"{language}.toml"
    return shared.table(language) | tomllib.loads(path.read_text(encoding="utf-8"))["words"]


def say(english: str, language: str) -> str:
    return table(language).get(english, english)


def said(code: str, english: str, language: str) -> str:
    """What the page, the gate, the reader, the linter or a comparison said."""
    known = say(english, language)
    return known if known != english else reasons.in_language(code, english, language)


def refusal(code: str, language: str) -> str:
    """What a code of the gate means, in a few words."""
    return reasons.meaning(code, language) or code.replace("_", " ").capitalize()


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


def ago(seconds: float, language: str) -> str:
    """An age in the largest unit that fits."""
    for size, english in ((86_400, "{n} d"), (3_600, "{n} h"), (60, "{n} min")):
        if seconds >= size:
            return say(english, language).format(n=int(seconds // size))
    return say("now", language)
