"""What the pages of a draft say, in the reader's language.

English words are their own keys, and `templates/zh.toml` has them in Chinese. What gate, reader and linter
said is recognised by `report.reasons`; names of findings and places come from the styles. Knows no page.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from mla_med.report import reasons
from mla_med.report.schema import SCHEMAS
from mla_med.report.style import load_style
from mla_med.types import Comparison, Draft, Finding, Side

LANGUAGES = ("en", "zh")
TAGS = {"en": "en", "zh": "zh-Hans"}
"""As RFC 5646 names what is written here: the words are Simplified Chinese."""
_WORDS = Path(__file__).parent / "templates"


def page_language(draft: Draft, of_refusal: str = "en") -> str:
    """Of the frame around a draft: that of its report, where there are words for it. A refusal has no
    report, and takes what the draft would have been written in."""
    language = draft.report.language if draft.report else of_refusal
    return language if language in LANGUAGES else "en"


@cache
def table(language: str) -> dict[str, str]:
    """English words and their own; empty for English."""
    if language not in LANGUAGES or language == "en":
        return {}
    return tomllib.loads((_WORDS / f"{language}.toml").read_text(encoding="utf-8"))["words"]


def say(english: str, language: str) -> str:
    return table(language).get(english, english)


def said(code: str, english: str, language: str) -> str:
    """What the gate, the reader, the linter or a comparison said."""
    known = say(english, language)
    return known if known != english else reasons.in_language(code, english, language)


@cache
def term(examination: str, code: str, language: str = "en") -> str:
    """A finding's name, at the beginning of a line."""
    style = load_style("prose", language)
    if language != "en" and examination in style.examinations:
        return style.wording(examination).terms.get(code, code)
    kind = SCHEMAS.get(examination, {}).get(code)
    words = kind.term if kind else code.replace("_", " ")
    return words[:1].upper() + words[1:]


def day(date: str) -> str:
    """YYYYMMDD as people read it, in every language as ISO 8601 (in China GB/T 7408.1); anything else as it
    stands."""
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdecimal() else date


def compared_term(examination: str, one: Comparison, language: str) -> str:
    """The name of the finding that was compared and, in brackets, where it is stated to be."""
    place = load_style("prose", language).place_words((one.side, one.site))
    return _with(term(examination, one.code, language), place, language)


def score_name(name: str, language: str) -> str:
    """Of what the gate measured; behind a space, the sequence of which."""
    what, _, sequence = name.partition(" ")
    return _with(say(what.replace("_", " ").capitalize(), language), sequence, language)


def _with(words: str, more: str, language: str) -> str:
    return say("{words} ({more})", language).format(words=words, more=more) if more else words


def side_of(finding: Finding, language: str) -> str:
    """Empty where none is stated."""
    words = "both sides" if finding.side is Side.BILATERAL else finding.side or ""
    return say(words, language)


def site_of(finding: Finding, language: str) -> str:
    """Empty where none is stated."""
    site = finding.site or ""
    own = {} if language == "en" else load_style("prose", language).sites
    return own.get(site, site.replace("_", " "))
