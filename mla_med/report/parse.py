"""Text -> Report: the inverse of render, for text in a known style.

A sentence that the style does not hold is kept without a code: nothing is guessed, nothing is lost.
"""

from __future__ import annotations

import re
from functools import cache

from mla_med.report.render import complete_findings
from mla_med.report.schema import CHEST_CT
from mla_med.report.styles import Style, load_style
from mla_med.types import Finding, Presence, Report, Sentence, Side

_PRESENCES = {"present": Presence.PRESENT, "absent": Presence.ABSENT, "cannot_say": Presence.CANNOT_SAY}


def parse_report(text: str, style: str = "prose", language: str = "en") -> Report:
    """-> Report with one finding for each sentence that the style knows, the first if it says two
    things of one code. Codes that no sentence states are absent."""
    sections = _split_sections(text, load_style(style, language))
    sentences: list[Sentence] = []
    findings: dict[str, Finding] = {}
    for sentence in _split_sentences(sections["findings"]):
        finding = parse_sentence(sentence, style, language)
        sentences.append(Sentence(sentence, (finding.code,) if finding else ()))
        if finding:
            findings.setdefault(finding.code, finding)
    impression = tuple(Sentence(s) for s in _split_sentences(sections["impression"]))
    return Report(
        complete_findings(findings.values()), tuple(sentences), impression, sections["technique"], language
    )


def parse_sentence(sentence: str, style: str = "prose", language: str = "en") -> Finding | None:
    """The finding that one sentence states, None where the style has no such sentence."""
    for code, presence, pattern in _patterns(style, language):
        match = pattern.fullmatch(sentence)
        if match:
            return _to_finding(code, presence, match.groupdict(), load_style(style, language))
    return None


@cache
def _patterns(style: str, language: str) -> tuple[tuple[str, Presence, re.Pattern], ...]:
    pack = load_style(style, language)
    return tuple(
        (code, presence, _to_pattern(phrase, pack))
        for code in CHEST_CT
        for key, presence in _PRESENCES.items()
        for phrase in pack[code][key]
    )


def _to_pattern(phrase: str, pack: Style) -> re.Pattern:
    pattern = re.escape(phrase)
    for slot, values in (("side", pack["sides"].values()), ("site", pack["sites"].values()), ("size", None)):
        words = r"\d{1,3}" if values is None else "|".join(map(re.escape, values))
        pattern = pattern.replace(re.escape("{" + slot + "}"), f"(?P<{slot}>{words})")
    return re.compile(pattern)


def _to_finding(code: str, presence: Presence, slots: dict[str, str], pack: Style) -> Finding:
    sides = {word: Side(side) for side, word in pack["sides"].items()}
    sites = {word: site for site, word in pack["sites"].items()}
    return Finding(
        code=code,
        presence=presence,
        site=sites.get(slots.get("site", "")),
        side=sides.get(slots.get("side", "")),
        size_mm=float(slots["size"]) if "size" in slots else None,
    )


def _split_sections(text: str, pack: Style) -> dict[str, str]:
    """Section name -> its text. Text without headings is all findings."""
    heads = {h: name for name, h in pack["headings"].items()}
    parts = re.split("(" + "|".join(map(re.escape, heads)) + ")", text)
    sections = dict.fromkeys(pack["headings"], "")
    if len(parts) == 1:
        return sections | {"findings": text.strip()}
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        sections[heads[head]] += body.strip()
    return sections


def _split_sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]
