"""Draft -> plain text for people, and which sentence of a report states which of its findings.

Knows no DICOM, no layout and no patient.
"""

from __future__ import annotations

from mla_med.documents.words import compared_term, day, page_language, said, say
from mla_med.types import Comparison, Draft, Finding, Provenance, Report, Sentence

NOTICE = "AI DRAFT - NOT FOR DIAGNOSIS"
"""First on every page, first in every file."""

HEADINGS = ("Technique", "Findings", "Impression", "Comparison", "Checks that failed")

HASH_DIGITS = 16
"""How much of the weights' sha256 people see; the whole of it is in draft.json."""


def draft_to_text(draft: Draft, changed_by: str = "") -> str:
    """The report under its notice; of a refusal, the reasons and nothing else. `changed_by`: the reviewer
    of a revision."""
    body = _refusal_blocks(draft) if draft.report is None else _report_blocks(draft)
    language = page_language(draft)
    return "\n\n".join((say(NOTICE, language), *body, _origin(draft.provenance, changed_by, language))) + "\n"


def sentence_findings(sentences: tuple[Sentence, ...], report: Report) -> list[tuple[Finding, ...]]:
    """For each sentence the findings it states.

    A sentence names codes. Where a code has as many sentences as findings, they pair in order, so
    that each of two nodules gets its own sentence; else the sentence is given all of that code.
    """
    return [
        tuple(finding for code in s.codes for finding in _stated(code, n, sentences, report.findings))
        for n, s in enumerate(sentences)
    ]


def _stated(
    code: str, n: int, sentences: tuple[Sentence, ...], findings: tuple[Finding, ...]
) -> tuple[Finding, ...]:
    of_code = tuple(f for f in findings if f.code == code)
    stating = [k for k, s in enumerate(sentences) if code in s.codes]
    return (of_code[stating.index(n)],) if len(stating) == len(of_code) else of_code


def comparison_lines(draft: Draft) -> list[str]:
    """What was measured against the prior examination, in the language of the report; nothing where there is
    none."""
    if draft.prior is None or draft.report is None:
        return []
    language = page_language(draft)
    date, uid = draft.prior.study_date, draft.prior.study_uid
    if date:
        first = say("Compared by measurement with the examination of {day}, study {uid}.", language)
    else:
        first = say("Compared by measurement with the examination, study {uid}.", language)
    return [
        first.format(day=date if language == "en" else day(date), uid=uid),
        *(_compared(c, draft.report.examination, language) for c in draft.prior.comparisons),
    ]


def _compared(one: Comparison, examination: str, language: str) -> str:
    return say("{finding}: {change}; {measured}.", language).format(
        finding=compared_term(examination, one, language),
        change=say(one.change or "no change can be told", language),
        measured=as_said("COMPARED", one.words, language),
    )


def as_said(code: str, words: str, language: str) -> str:
    """In English as it was said, codes and all."""
    return words if language == "en" else said(code, words, language)


def complaint_lines(draft: Draft) -> list[str]:
    """What the checks said, each behind its rule, in the language of the report."""
    language = page_language(draft)
    return [f"{c.rule}: {as_said(c.rule, c.words, language)}" for c in draft.complaints]


def _report_blocks(draft: Draft) -> list[str]:
    assert draft.report is not None
    sections = (
        [draft.report.technique],
        [s.text for s in draft.report.sentences],
        [s.text for s in draft.report.impression],
        comparison_lines(draft),
        complaint_lines(draft),
    )
    headings = (say(heading, page_language(draft)).upper() for heading in HEADINGS)
    return [
        "\n".join((heading, *lines)) for heading, lines in zip(headings, sections, strict=True) if any(lines)
    ]


def _refusal_blocks(draft: Draft) -> list[str]:
    return ["No draft.", "\n".join(f"{r.code}: {r.words}" for r in draft.gate.reasons)]


def changed_words(changed_by: str, language: str = "en") -> str:
    """Of a revision: by whom, as DICOM writes names, and that this is no signature."""
    name = changed_by.split("=")[0].replace("^", " ").strip()
    words = say("Reviewed by {name}, who has not verified it.", language)
    return words.format(name=name or changed_by)


def _origin(provenance: Provenance, changed_by: str, language: str) -> str:
    words = say(
        "Written by {model} (weights {weights}) at {made}; unverified and preliminary. Study {uid}.", language
    )
    written = words.format(
        model=f"{provenance.model_name} {provenance.model_version}",
        weights=provenance.weights_sha256[:HASH_DIGITS],
        made=provenance.created_utc,
        uid=provenance.study_uid,
    )
    return f"{written} {changed_words(changed_by, language)}" if changed_by else written
