"""Findings + text + header -> complaints: the linter. Each names the sentence and the rule.

First rules: what the text says against the findings, side against evidence, comparison without a
prior, contrast against the header, and a slot that is missing or said twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mla_med.report.parse import parse_sentence
from mla_med.report.schema import CHEST_CT
from mla_med.types import ClinicalContext, Complaint, Finding, Presence, Report, Side

_COMPARISON = re.compile(
    r"\b(unchanged|stable|interval|previous(?:ly)?|prior|compared|again seen|"
    r"increased|decreased|resolved|new)\b",
    re.IGNORECASE,
)
_CONTRAST = re.compile(r"\b(?<!without )(?:after|with|post)[- ](?:intravenous )?contrast\b", re.IGNORECASE)
MIDLINE_MM = 10.0
"""Evidence nearer to the middle than this says nothing about a side."""


def check_report(
    report: Report,
    context: ClinicalContext | None = None,
    contrast_given: bool | None = None,
    midline_mm: float = 0.0,
    style: str = "prose",
) -> tuple[Complaint, ...]:
    """Complaints in the order of the sentences. `midline_mm`: the patient's middle along x (RAS)."""
    return (
        *_check_slots(report),
        *_check_sentences(report, style),
        *_check_impression(report),
        *_check_sides(report.findings, midline_mm),
        *_check_words(report, context, contrast_given),
    )


def _check_slots(report: Report) -> Iterable[Complaint]:
    said = [code for sentence in report.sentences for code in sentence.codes]
    for code, kind in CHEST_CT.items():
        if said.count(code) != 1:
            times = "not said" if code not in said else f"said {said.count(code)} times"
            yield Complaint("REQUIRED_SLOT", f"{kind.term} is {times}; a complete report says it once.")


def _check_sentences(report: Report, style: str) -> Iterable[Complaint]:
    truth = {f.code: f for f in report.findings}
    for sentence in report.sentences:
        stated = parse_sentence(sentence.text, style, report.language)
        if stated is None:
            yield Complaint(
                "UNKNOWN_SENTENCE", "The sentence states nothing that can be checked.", sentence.text
            )
            continue
        finding = truth[stated.code]
        for rule, said, found in (
            ("NEGATION", stated.presence, finding.presence),
            ("SIDE", stated.side, finding.side),
            ("SITE", stated.site, finding.site),
            ("SIZE", stated.size_mm, finding.size_mm),
        ):
            if said != found:
                yield Complaint(rule, f"The sentence says {said}, the finding is {found}.", sentence.text)
                break


def _check_impression(report: Report) -> Iterable[Complaint]:
    present = {f.code for f in report.findings if f.presence is Presence.PRESENT}
    said = {code for s in report.impression for code in s.codes}
    unsure = {f.code for f in report.findings if f.presence is Presence.CANNOT_SAY}
    for code in sorted(present - said):
        yield Complaint("IMPRESSION", f"{CHEST_CT[code].term} is present and not in the impression.")
    for code in sorted(said - present - unsure):
        yield Complaint("IMPRESSION", f"The impression says {CHEST_CT[code].term}, which is not a finding.")


def _check_sides(findings: Iterable[Finding], midline_mm: float) -> Iterable[Complaint]:
    for finding in findings:
        if finding.evidence is None or finding.side not in (Side.RIGHT, Side.LEFT):
            continue
        low, high = finding.evidence.box_mm
        x = (low[0] + high[0]) / 2 - midline_mm
        if abs(x) > MIDLINE_MM and (x > 0) != (finding.side is Side.RIGHT):
            seen = "right" if x > 0 else "left"
            yield Complaint(
                "SIDE_OF_EVIDENCE",
                f"{CHEST_CT[finding.code].term} is said to be {finding.side}, its evidence "
                f"lies {abs(x):.0f} mm to the {seen}.",
            )


def _check_words(
    report: Report, context: ClinicalContext | None, contrast_given: bool | None
) -> Iterable[Complaint]:
    for sentence in (*report.sentences, *report.impression):
        if not (context and context.prior) and (match := _COMPARISON.search(sentence.text)):
            yield Complaint(
                "COMPARISON_WITHOUT_PRIOR", f"'{match[0]}' compares, and there is no prior.", sentence.text
            )
    if contrast_given is False and _CONTRAST.search(report.technique):
        yield Complaint(
            "CONTRAST", "The technique says contrast medium, the header has none.", report.technique
        )
