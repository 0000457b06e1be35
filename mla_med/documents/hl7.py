"""Draft -> HL7 v2.5.1 ORU^R01: the report for an information system that takes no DICOM.

OBR-25 and every OBX-11 are P (preliminary; tables 0123 and 0085), MSH-18 is UNICODE UTF-8, MSH-10 follows
from the content: a message sent twice has one control ID. A revision has the filler order number of the
draft that it takes the place of. Text is escaped by chapter 2.7; knows nothing of MLLP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydicom.dataset import Dataset

from mla_med.documents import codes
from mla_med.documents.envelope import (
    DRAFTED_ANEW,
    MANUFACTURER,
    Revision,
    device_uid,
    made_at,
    patient_id,
    series_uid,
    utf8,
)
from mla_med.documents.fhir import EVIDENCE, evidence_words
from mla_med.documents.sr import BASIC_TEXT_SR
from mla_med.documents.sr3d import certainty_percent
from mla_med.documents.text import NOTICE, comparison_lines, complaint_lines
from mla_med.documents.words import page_language, say
from mla_med.report.schema import Code
from mla_med.types import Draft, Finding

ESCAPES = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\n": "\\.br\\", "\r": ""}
PRELIMINARY = "P"
PRODUCTION = "P"
"""Processing ID (table 0103): what is said of a real patient, however preliminary."""

REPORT = Code("18748-4", "LN", "Diagnostic imaging study")
FINDINGS = Code("59776-5", "LN", "Findings")
IMPRESSION = Code("19005-8", "LN", "Impressions")
SUMMARY = Code("55112-7", "LN", "Summary")
TECHNIQUE = Code("55111-9", "LN", "Current Procedure Descriptions")
PRIOR = Code("55114-3", "LN", "Prior Procedure Descriptions")
SITE = Code("363698007", "SCT", "Finding Site")
STUDY = Code("113014", "DCM", "DICOM Study")

REPRESENTATIONS = ("A", "I", "P")
"""Of the component groups of a DICOM name: alphabetic, ideographic, phonetic (table 0465)."""

Segment = Sequence[str]


def draft_to_hl7(draft: Draft, header: Dataset, sr_uid: str, revision: Revision | None = None) -> bytes:
    """`header`: of an image of the study (envelope.read_header). `sr_uid`: the Basic Text SR of this very
    draft."""
    made = made_at(draft, header, revision).strftime("%Y%m%d%H%M%S%z")
    body = [
        _patient(header),
        ["ORC", "RE", _placer(header), _filler(draft)],
        _request(draft, header, made),
        *([_note(revision)] if revision else []),
        *_observations(draft, sr_uid, made, revision),
    ]
    text = "".join("|".join(segment) + "\r" for segment in body)
    key = hashlib.sha256(utf8(text.replace("\r", "\n"), "the HL7 message")).hexdigest()[:20].upper()
    head = [
        "MSH",
        "^~\\&",
        MANUFACTURER,
        "",
        "",
        "",
        made,
        "",
        "ORU^R01^ORU_R01",
        key,
        PRODUCTION,
        "2.5.1",
    ]
    return ("|".join([*head, "", "", "", "", "", "UNICODE UTF-8"]) + "\r" + text).encode()


def escaped(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text)


def _patient(header: Dataset) -> Segment:
    issuer = escaped(str(header.get("IssuerOfPatientID") or ""))
    stated = escaped(patient_id(header, "an HL7 message"))
    sex = str(header.get("PatientSex") or "")
    return [
        *("PID", "1", "", f"{stated}^^^{issuer}^MR", ""),
        *(_name(str(header.get("PatientName") or "")), "", str(header.get("PatientBirthDate") or "")),
        sex if sex in ("F", "M", "O") else "U",
    ]


def _name(name: str) -> str:
    """DICOM's family^given^middle^prefix^suffix as HL7's XPN, each component group a repetition."""
    groups = []
    for group, kind in zip(name.split("="), REPRESENTATIONS, strict=False):
        if group.strip("^ "):
            family, given, middle, prefix, suffix = [
                escaped(p.strip()) for p in [*group.split("^"), *[""] * 4][:5]
            ]
            groups.append("^".join((family, given, middle, suffix, prefix, "", "L", kind)))
    return "~".join(groups)


def _request(draft: Draft, header: Dataset, made: str) -> Segment:
    taken = str(header.get("StudyDate") or "") + str(header.get("StudyTime") or "")[:6]
    accession = escaped(str(header.get("AccessionNumber") or ""))
    return [
        *("OBR", "1", _placer(header), _filler(draft), _coded(REPORT), "", "", taken),
        *[""] * 8,
        *(_person(str(header.get("ReferringPhysicianName") or "")), "", accession, "", "", ""),
        *(made, "", "RAD", PRELIMINARY),
    ]


def _placer(header: Dataset) -> str:
    items = header.get("RequestAttributesSequence") or []
    stated = [str(item.get("PlacerOrderNumberImagingServiceRequest") or "") for item in items]
    return escaped(stated[0]) if stated else ""


def _filler(draft: Draft) -> str:
    """One for a draft and its revisions."""
    return f"{series_uid(draft, BASIC_TEXT_SR)}^{MANUFACTURER}"


def _note(revision: Revision) -> Segment:
    replaced = ", ".join(one.sop_instance_uid for one in revision.of_class(BASIC_TEXT_SR.sop_class_uid))
    changed = DRAFTED_ANEW
    if revision.reviewer is not None:
        changed = f"Reviewed by {revision.reviewer.replace('^', ' ')}, who has not verified it"
    return ["NTE", "1", "", escaped(f"{changed}; takes the place of {replaced}.")]


def _observations(draft: Draft, sr_uid: str, made: str, revision: Revision | None) -> list[Segment]:
    rows = [("HD", STUDY, "", f"^{draft.provenance.study_uid}^ISO", "")]
    rows += [("FT", concept, "", escaped(text), "") for concept, text in _lines(draft, sr_uid)]
    for n, finding in enumerate(draft.report.findings if draft.report else (), start=1):
        rows += _finding_rows(finding, n, draft)
    person = _person(revision.reviewer) if revision and revision.reviewer else ""
    return [
        [
            *("OBX", str(n), kind, _coded(concept), sub, value, unit, "", "", "", "", PRELIMINARY),
            *("", "", made, "", person, "", f"{device_uid(draft.provenance)}^{MANUFACTURER}"),
        ]
        for n, (kind, concept, sub, value, unit) in enumerate(rows, start=1)
    ]


def _lines(draft: Draft, sr_uid: str) -> list[tuple[Code, str]]:
    origin = (SUMMARY, f"DICOM SR {sr_uid}")
    if draft.report is None:
        reasons = [(SUMMARY, f"{r.code}: {r.words}") for r in draft.gate.reasons]
        return [(SUMMARY, f"{NOTICE}. No draft."), *reasons, origin]
    report = draft.report
    failed = say("Failed check {words}", page_language(draft))
    lines = [
        (SUMMARY, f"{NOTICE}."),
        (TECHNIQUE, report.technique),
        *((FINDINGS, s.text) for s in report.sentences),
        *((IMPRESSION, s.text) for s in report.impression),
        *((PRIOR, line) for line in comparison_lines(draft)),
        *((SUMMARY, failed.format(words=line)) for line in complaint_lines(draft)),
        origin,
    ]
    return [(concept, text) for concept, text in lines if text]


def _finding_rows(finding: Finding, n: int, draft: Draft) -> list[tuple[str, Code, str, str, str]]:
    """OBX-4 ties the rows of one finding together."""
    assert draft.report is not None
    examination, sub = draft.report.examination, str(n)
    site = codes.site_code(finding, examination)
    rows = [
        ("CWE", codes.finding_code(finding, examination), sub, _coded(codes.PRESENCES[finding.presence]), "")
    ]
    if site is not None:
        rows.append(("CWE", SITE, sub, _coded(site), ""))
    if finding.side is not None:
        rows.append(("CWE", codes.LATERALITY, sub, _coded(codes.SIDES[finding.side]), ""))
    if finding.change is not None:
        rows.append(("CWE", codes.CHANGE, sub, _coded(codes.CHANGES[finding.change]), ""))
    measured = (
        (codes.size_code(finding), finding.size_mm, codes.MM),
        (codes.NUMBER_OF_LESIONS, finding.count, codes.ONE),
        (codes.CERTAINTY, certainty_percent(finding), codes.PERCENT),
    )
    rows += [("NM", name, sub, f"{v:g}", _coded(unit)) for name, v, unit in measured if v is not None]
    if finding.evidence is not None:
        rows.append(("FT", EVIDENCE, sub, escaped(evidence_words(finding)), ""))
    return rows


def _person(name: str) -> str:
    """XCN: no number, then the name."""
    if not name.strip("^ ="):
        return ""
    # the first representation that says something: an alphabetic one may be left out
    said = next(group for group in name.split("=") if group.strip("^ "))
    family, given, middle, *_ = [escaped(p.strip()) for p in [*said.split("^"), *[""] * 3]]
    return f"^{family}^{given}^{middle}"


def _coded(code: Code) -> str:
    return f"{escaped(code.value)}^{escaped(code.meaning)}^{code.scheme}"
