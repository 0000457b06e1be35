"""Findings + clinical context -> what they mean together: the part of an impression that images alone
cannot give. The same consolidation is pneumonia in a patient with fever and asks for a tumour to be
excluded in one without.

Rules are data (`interpretations.toml`), each with its source; the first rule of a finding that holds is
taken. Knows no wording: a style has the phrases.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mla_med.report.schema import SCHEMAS
from mla_med.types import ClinicalContext, Finding, Presence, Sex


@dataclass(frozen=True, slots=True)
class Interpretation:
    """When it may be said. A condition that is not given holds."""

    key: str
    examination: str
    finding: str
    known: tuple[str, ...] = ()
    """One of these is known of the patient (keys of [words])."""
    unknown: tuple[str, ...] = ()
    """None of these is."""
    min_age: float = 0.0
    max_age: float = 200.0
    sex: Sex | None = None
    min_mm: float = 0.0
    below_mm: float = 1e9
    several: bool = False
    """Only where there is more than one of it."""


def interpret(
    findings: Iterable[Finding], context: ClinicalContext, examination: str = "chest_ct"
) -> tuple[str, ...]:
    """Keys of what may be said, in the order of the schema, at most one for each finding code. Nothing is
    said of a patient of whom nothing is known."""
    if not (context.indication or context.protocol or context.prior):
        return ()
    known = known_of(context)
    largest: dict[str, float] = {}
    number: Counter[str] = Counter()
    for finding in findings:
        if finding.presence is Presence.PRESENT:
            size = finding.size_mm or 0.0
            largest[finding.code] = max(size, largest.get(finding.code, 0.0))
            number[finding.code] += finding.count or 1
    said: dict[str, str] = {}
    for rule in rules(examination):
        open_ = rule.finding in largest and rule.finding not in said
        open_ = open_ and (not rule.several or number[rule.finding] > 1)
        if open_ and _holds(rule, context, known, largest[rule.finding]):
            said[rule.finding] = rule.key
    return tuple(said[code] for code in SCHEMAS[examination] if code in said)


def known_of(context: ClinicalContext) -> frozenset[str]:
    """Keys of [words] that the request speaks of and does not deny."""
    text = " ".join((context.indication, context.protocol)).casefold()
    return frozenset(key for key in _words() if _asserted(key, text))


@cache
def rules(examination: str) -> tuple[Interpretation, ...]:
    """The rules of an examination in the order in which they are tried."""
    table = _table()["rules"].get(examination, {})
    return tuple(_to_rule(key, row, examination) for key, row in table.items())


def _holds(rule: Interpretation, context: ClinicalContext, known: frozenset[str], size_mm: float) -> bool:
    age = context.age_years
    ages = (rule.min_age, rule.max_age) == (0.0, 200.0) or (
        age is not None and rule.min_age <= age < rule.max_age
    )
    return (
        ages
        and (not rule.known or bool(known & set(rule.known)))
        and not known & set(rule.unknown)
        and (rule.sex is None or context.sex is rule.sex)
        and rule.min_mm <= size_mm < rule.below_mm
    )


def _asserted(key: str, text: str) -> bool:
    before, behind = _doubts(key)
    for match in _words()[key].finditer(text):
        said_before, said_behind = text[max(0, match.start() - _REACH) : match.start()], text[match.end() :]
        denied = _DENIED.search(said_before) or _DENIED_BEHIND.match(said_behind)
        if not (denied or before.search(said_before) or behind.match(said_behind)):
            return True
    return False


_REACH = 80
"""How many characters before a word its denial is looked for."""
_DENIED = re.compile(
    r"""(?:\b(?:no|not|without|never)\b(?:(?!\b(?:but|however|although)\b)[^,.;])*
      | \bden(?:ies|ied)\b(?:(?!\b(?:but|however|although|known|has)\b)[^.;])*  # a list, commas and all
      | (?:没有|否认|无(?!明显诱因|诱因|力|痛))[^，,。；;]*  # 、 goes on with the list
      | 不)$""",
    re.VERBOSE,
)
_DENIED_BEHIND = re.compile(
    r"\w*(?:\s*[:：]\s*(?:no\b|none\b|negative\b|无|否)|\s+(?:was |is )?(?:excluded|ruled out))"
)


@cache
def _words() -> dict[str, re.Pattern[str]]:
    return {key: re.compile("|".join(words)) for key, words in _table()["words"].items()}


@cache
def _doubts(key: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What makes a word of this key a question: before it within its clause, and right behind it."""
    doubts = _table()["doubts"]
    before, behind = ("|".join(doubts[where].get(key, ["(?!)"])) for where in ("before", "behind"))
    return re.compile(f"(?:{before})(?:(?!known)[^,.;，。；])*$"), re.compile(rf"\w*?\s*(?:{behind})")


@cache
def _table() -> dict:
    return tomllib.loads((Path(__file__).parent / "interpretations.toml").read_text(encoding="utf-8"))


def _to_rule(key: str, row: dict, examination: str) -> Interpretation:
    assert row["finding"] in SCHEMAS[examination], f"{key}: no finding {row['finding']}"
    unheard = {*row.get("known", ()), *row.get("unknown", ())} - set(_words())
    assert not unheard, f"{key}: no words for {unheard}"
    return Interpretation(
        key=key,
        examination=examination,
        finding=row["finding"],
        known=tuple(row.get("known", ())),
        unknown=tuple(row.get("unknown", ())),
        min_age=row.get("min_age", 0.0),
        max_age=row.get("max_age", 200.0),
        sex=Sex(row["sex"]) if "sex" in row else None,
        min_mm=row.get("min_mm", 0.0),
        below_mm=row.get("below_mm", 1e9),
        several=row.get("several", False),
    )
