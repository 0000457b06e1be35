"""Draft -> plain text for people, and which sentence of a report states which of its findings.

Knows no DICOM, no layout and no patient.
"""

from __future__ import annotations

from mla_med.types import Draft, Finding, Provenance, Report, Sentence

NOTICE = "AI DRAFT - NOT FOR DIAGNOSIS"
"""First on every page, first in every file."""

HEADINGS = {
    "en": ("TECHNIQUE", "FINDINGS", "IMPRESSION", "COMPARISON", "CHECKS THAT FAILED"),
    "zh": ("检查技术", "影像表现", "诊断印象", "与既往检查比较", "未通过的核查"),
}
"""By the language of the report."""

HASH_DIGITS = 16
"""How much of the weights' sha256 people see; the whole of it is in draft.json."""


def draft_to_text(draft: Draft, changed_by: str = "") -> str:
    """The report under its notice; of a refusal, the reasons and nothing else. `changed_by`: the reviewer
    of a revision."""
    body = _refusal_blocks(draft) if draft.report is None else _report_blocks(draft)
    return "\n\n".join((NOTICE, *body, _origin(draft.provenance, changed_by))) + "\n"


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
    """What was measured against the prior examination; nothing where there is none."""
    if draft.prior is None:
        return []
    prior = draft.prior
    of = f" of {prior.study_date}" if prior.study_date else ""
    return [
        f"Compared by measurement with the examination{of}, study {prior.study_uid}.",
        *(
            f"{c.code.replace('_', ' ')}: {c.change or 'no change can be told'}; {c.words}."
            for c in prior.comparisons
        ),
    ]


def _report_blocks(draft: Draft) -> list[str]:
    assert draft.report is not None
    sections = (
        [draft.report.technique],
        [s.text for s in draft.report.sentences],
        [s.text for s in draft.report.impression],
        comparison_lines(draft),
        [f"{c.rule}: {c.words}" for c in draft.complaints],
    )
    headings = HEADINGS.get(draft.report.language, HEADINGS["en"])
    return [
        "\n".join((heading, *lines)) for heading, lines in zip(headings, sections, strict=True) if any(lines)
    ]


def _refusal_blocks(draft: Draft) -> list[str]:
    return ["No draft.", "\n".join(f"{r.code}: {r.words}" for r in draft.gate.reasons)]


def changed_words(changed_by: str) -> str:
    """Of a revision: by whom, as DICOM writes names, and that this is no signature."""
    name = changed_by.split("=")[0].replace("^", " ").strip()
    return f"Changed by {name or changed_by}, who has not verified it."


def _origin(provenance: Provenance, changed_by: str) -> str:
    changed = f" {changed_words(changed_by)}" if changed_by else ""
    return (
        f"Written by {provenance.model_name} {provenance.model_version} "
        f"(weights {provenance.weights_sha256[:HASH_DIGITS]}) at {provenance.created_utc}; "
        f"unverified and preliminary. Study {provenance.study_uid}.{changed}"
    )
