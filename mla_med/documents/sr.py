"""Draft -> DICOM Basic Text SR (TID 2000): the words, which the PACS keeps of a draft.

Follows PS3.16 TID 2000, whose order is significant and which allows no other rows: numbers of the
model (confidence, boxes) stand in the Comprehensive 3D SR. Knows the content; what stands around it
is the envelope's.
"""

from __future__ import annotations

from pathlib import Path

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage

from mla_med.documents.envelope import (
    LANGUAGES,
    Kind,
    Revision,
    cited,
    class_of,
    codes_in,
    envelope,
    finish,
    libraries_silent,
    observers,
    read_header,
    report_attributes,
)
from mla_med.documents.text import NOTICE, comparison_lines, complaint_lines, sentence_findings
from mla_med.documents.words import page_language, say
from mla_med.types import Draft, Sentence

BASIC_TEXT_SR = Kind("sr", BasicTextSRStorage, "SR", 9000)

CONTAINS = RelationshipTypeValues.CONTAINS
INFERRED_FROM = RelationshipTypeValues.INFERRED_FROM
HAS_CONCEPT_MOD = RelationshipTypeValues.HAS_CONCEPT_MOD

REPORT = CodedConcept("18748-4", "LN", "Diagnostic Imaging Report")
PROCEDURE_REPORTED = CodedConcept("121058", "DCM", "Procedure reported")
PROCEDURE_DESCRIPTIONS = CodedConcept("121064", "DCM", "Current Procedure Descriptions")
PRIOR_PROCEDURE_DESCRIPTIONS = CodedConcept("121066", "DCM", "Prior Procedure Descriptions")
PROCEDURE_DESCRIPTION = CodedConcept("121065", "DCM", "Procedure Description")
FINDINGS = CodedConcept("121070", "DCM", "Findings")
FINDING = CodedConcept("121071", "DCM", "Finding")
IMPRESSIONS = CodedConcept("121072", "DCM", "Impressions")
IMPRESSION = CodedConcept("121073", "DCM", "Impression")
SUMMARY = CodedConcept("121111", "DCM", "Summary")
BEST_ILLUSTRATION = CodedConcept("121080", "DCM", "Best illustration of finding")


def draft_to_sr(draft: Draft, source: Path | list[Path], revision: Revision | None = None) -> Dataset:
    """`source`: image files of the study; the first one lends its patient and study attributes."""
    path = source if isinstance(source, Path) else source[0]
    with libraries_silent():
        return text_sr(draft, read_header(path, draft.provenance), revision)


def text_sr(draft: Draft, header: Dataset, revision: Revision | None) -> Dataset:
    sr = envelope(draft, header, BASIC_TEXT_SR, revision)
    sr.update(report_attributes(draft, header, BASIC_TEXT_SR, revision))
    sr.update(_content(draft, header, revision))
    return finish(sr, draft.provenance)


def _content(draft: Draft, header: Dataset, revision: Revision | None) -> Dataset:
    root = ContainerContentItem(REPORT, is_content_continuous=False, template_id="2000")
    root.ContentSequence = [
        *_procedure_reported(header),
        *LanguageOfContentItemAndDescendants(_language(draft)),
        *observers(draft.provenance, revision),
        *(_refusal_sections(draft) if draft.report is None else _report_sections(draft)),
    ]
    return root


def _procedure_reported(header: Dataset) -> list[ContentItem]:
    return [
        CodeContentItem(PROCEDURE_REPORTED, CodedConcept(*code), HAS_CONCEPT_MOD)
        for code in codes_in(header.get("ProcedureCodeSequence"))[:1]
    ]


def _language(draft: Draft) -> CodedConcept:
    language = "en" if draft.report is None else draft.report.language
    return CodedConcept(language, "RFC5646", LANGUAGES.get(language, language))


def _report_sections(draft: Draft) -> list[ContentItem]:
    report = draft.report
    assert report is not None
    failed = say("Failed check {words}", page_language(draft))
    complaints = [_text(PROCEDURE_DESCRIPTION, failed.format(words=line)) for line in complaint_lines(draft)]
    return [
        *_section(PROCEDURE_DESCRIPTIONS, [_text(PROCEDURE_DESCRIPTION, report.technique)]),
        *_section(
            PRIOR_PROCEDURE_DESCRIPTIONS,
            [_text(PROCEDURE_DESCRIPTION, line) for line in comparison_lines(draft)],
        ),
        *_section(FINDINGS, _statements(FINDING, report.sentences, draft)),
        *_section(IMPRESSIONS, _statements(IMPRESSION, report.impression, draft)),
        *_section(SUMMARY, complaints),
    ]


def _refusal_sections(draft: Draft) -> list[ContentItem]:
    """The reasons alone: no word on findings, not even in what a check complained of."""
    reasons = [_text(PROCEDURE_DESCRIPTION, f"{r.code}: {r.words}") for r in draft.gate.reasons]
    return _section(SUMMARY, [_text(PROCEDURE_DESCRIPTION, f"{NOTICE}. No draft."), *reasons])


def _section(heading: CodedConcept, items: list[ContentItem]) -> list[ContentItem]:
    items = [item for item in items if item.TextValue]
    if not items:
        return []
    section = ContainerContentItem(heading, is_content_continuous=False, relationship_type=CONTAINS)
    section.ContentSequence = items
    return [section]


def _statements(concept: CodedConcept, sentences: tuple[Sentence, ...], draft: Draft) -> list[ContentItem]:
    assert draft.report is not None
    classes = class_of(draft)
    items = []
    for sentence, findings in zip(sentences, sentence_findings(sentences, draft.report), strict=True):
        item = _text(concept, sentence.text)
        if images := [_image(uid, classes[uid], frames) for uid, frames in cited(findings).items()]:
            item.ContentSequence = images
        items.append(item)
    return items


def _text(concept: CodedConcept, words: str) -> TextContentItem:
    # Spaces at the end of a UT are padding to DICOM; left in, the text would not come back equal.
    return TextContentItem(concept, words.rstrip(), CONTAINS)


def _image(sop_instance_uid: str, sop_class_uid: str, frames: list[int] | None) -> ImageContentItem:
    return ImageContentItem(
        BEST_ILLUSTRATION, sop_class_uid, sop_instance_uid, frames, relationship_type=INFERRED_FROM
    )
