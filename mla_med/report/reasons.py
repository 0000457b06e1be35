"""A code and its English words -> the same in another language, for gate, reader and linter.

A draft keeps the words as they were written, with what was measured in them. So the sentence is recognised
and said again around the same values (`reasons.toml`). Where it is not known the code is named, and the
English words follow. Knows no page.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

from mla_med.report.schema import SCHEMAS
from mla_med.report.style import load_style

LONGEST = 600
"""Characters of words that are looked at: what is longer was written by somebody else."""


def in_language(code: str, words: str, language: str) -> str:
    """Where a language has no words, the English ones, with names of findings in the place of their codes."""
    table = _table().get(language)
    if table is None:
        return _CODE.sub(lambda code: _terms().get(code[0], code[0]), words)
    if len(words) <= LONGEST and (said := _said(words, "say", language)):
        return said
    named = meaning(code, language)
    return f"{named}（{words}）" if named else words


def meaning(code: str, language: str) -> str:
    """Of a code by itself; empty where the language has no word for it."""
    return _table().get(language, {}).get("any", {}).get(code, "")


def value_in_language(text: str, language: str) -> str:
    """What stands in a place of a sentence: a word that is known, or several, a part, or as it is."""
    if language not in _table():
        return text
    known = _values(language)
    if text.casefold() in known:
        return known[text.casefold()]
    several = re.split(r", | or | and ", text)
    if len(several) > 1 and all(one.casefold() in known for one in several):
        return "、".join(known[one.casefold()] for one in several)
    return _said(text, "parts", language) or text


_CODE = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)+")


@cache
def _terms() -> dict[str, str]:
    return {code: kind.term for schema in SCHEMAS.values() for code, kind in schema.items()}


@cache
def _table() -> dict[str, dict[str, dict[str, str]]]:
    path = Path(__file__).with_suffix(".toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _said(words: str, part: str, language: str) -> str:
    """Empty where none of the sentences, or of the parts of one, is that."""
    for pattern, other in _patterns(part, language):
        if match := pattern.fullmatch(words):
            return other.format(**{k: value_in_language(v, language) for k, v in match.groupdict().items()})
    return ""


@cache
def _patterns(part: str, language: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Those with the most words of their own first: a value must not swallow half a sentence."""
    said = sorted(_table()[language][part].items(), key=lambda pair: -len(re.sub(r"\{\w+\}", "", pair[0])))
    return tuple((_pattern(english), other) for english, other in said)


def _pattern(english: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", english)
    return re.compile("".join(f"(?P<{p}>.+?)" if n % 2 else re.escape(p) for n, p in enumerate(parts)))


@cache
def _values(language: str) -> dict[str, str]:
    """Words of places, presence and change, names of findings and of what they mean, by what they are in
    English."""
    style = load_style("prose", language)
    known = {}
    for examination, schema in SCHEMAS.items():
        if examination in style.examinations:
            terms = style.wording(examination).terms
            for code, kind in schema.items():
                known[code.casefold()] = known[kind.term.casefold()] = terms.get(code, kind.term)
                for side, site in kind.places:
                    words = style.place_words((side, site))
                    if site:
                        known[site] = style.place_words((None, site))
                        known[f"{side} {site}"] = words or known[site]
            for key, sentences in style.wording(examination).interpretations.items():
                known[key.replace("_", " ")] = sentences[0].removesuffix(style.stop)
    own = {english.casefold(): other for english, other in _table()[language]["values"].items()}
    return known | own
