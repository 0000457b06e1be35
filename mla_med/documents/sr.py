"""Draft -> DICOM Basic Text SR (TID 2000): what the PACS keeps of a draft.

UNVERIFIED and PRELIMINARY always: no parameter, no setting and no state of the draft changes that.
The patient is read from a source image at this moment and is in no noun. The file is written in
ISO_IR 192 whatever the images say; a text that would not come back as it went in is an error.
Derived UIDs follow from the content alone, so that a UID never names two different files.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    DeviceObserverIdentifyingAttributes,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian

from mla_med.archive import is_file, open_file
from mla_med.documents.text import HASH_DIGITS, NOTICE, comparison_lines, sentence_findings
from mla_med.errors import OutputError
from mla_med.types import Draft, Finding, Provenance, Sentence, Series

MANUFACTURER = "mla_med"

COPIED = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Patient and study attributes taken from the source image."""

MAY_BE_ABSENT = ("IssuerOfPatientID", "StudyDescription")
"""Type 3; the rest of COPIED is type 2 and stands empty where the source has none."""

ALSO_READ = ("TimezoneOffsetFromUTC", "ProcedureCodeSequence")

TEXT_VRS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")

FORBIDDEN = re.compile(r"[^\t\n\f\r -\x7e\x80-\U0010ffff]")

LANGUAGES = {"en": "English", "zh": "Chinese"}

CONTAINS = RelationshipTypeValues.CONTAINS
INFERRED_FROM = RelationshipTypeValues.INFERRED_FROM
HAS_CONCEPT_MOD = RelationshipTypeValues.HAS_CONCEPT_MOD

DEVICE = CodedConcept("121007", "DCM", "Device")
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
PROCESSING_EQUIPMENT = CodedConcept("109102", "DCM", "Processing Equipment")


def draft_to_sr(draft: Draft, source: Path | list[Path]) -> Dataset:
    """`source`: image files of the study; the first one lends its patient and study attributes."""
    path = source if isinstance(source, Path) else source[0]
    with _libraries_silent():
        header = _read_header(path, draft.provenance)
        sr = _document(draft, header)
        sr.update(_content(draft, header))
        sr.SOPInstanceUID = _derived_uid(draft.provenance, _bytes(sr))
        sr.file_meta = _file_meta(sr)
        sr.preamble = bytes(128)
        _refuse_loss(sr)
    return sr


@contextmanager
def _libraries_silent() -> Iterator[None]:
    # pydicom and highdicom print attribute values, patients' names among them, in their warnings.
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.disabled = True
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled


def _read_header(path: Path, provenance: Provenance) -> Dataset:
    if not is_file(path):  # reading a FIFO would wait for ever
        raise OutputError(f"The source image {path} is not there; give a file of the drafted study.")
    try:
        with open_file(path) as file:
            header = dcmread(file, stop_before_pixels=True, specific_tags=[*COPIED, *ALSO_READ])
    except (OSError, InvalidDicomError) as error:
        raise OutputError(f"The source image {path} is not readable DICOM; give another one.") from error
    if header.get("StudyInstanceUID") != provenance.study_uid:
        raise OutputError(
            f"The source image {path} is not of study {provenance.study_uid}, which was drafted; "
            "an SR made from it could name another patient. Give an image of that study.",
            code="SOURCE_OF_OTHER_STUDY",
        )
    return header


def _document(draft: Draft, header: Dataset) -> Dataset:
    sr = _copied(header)
    sr.SpecificCharacterSet = "ISO_IR 192"
    sr.SOPClassUID = BasicTextSRStorage
    sr.Modality = "SR"
    sr.SeriesInstanceUID = _derived_uid(draft.provenance, b"series")
    sr.SeriesNumber = 9000
    sr.SeriesDescription = NOTICE
    sr.InstanceNumber = 1
    sr.update(_equipment(draft.provenance))
    sr.ContributingEquipmentSequence = [_contribution(draft.provenance)]
    sr.update(_moment(draft.provenance, header))
    sr.update(_flags(draft))
    sr.ReferencedPerformedProcedureStepSequence = []
    sr.PerformedProcedureCodeSequence = []
    if study := _referenced_study(draft):
        sr.CurrentRequestedProcedureEvidenceSequence = [study]
    if draft.prior is not None and draft.prior.series:
        # not acquired for this request, and yet what the changes were measured on (PS3.3 C.17.2)
        sr.PertinentOtherEvidenceSequence = [_study_of(draft.prior.study_uid, draft.prior.series)]
    return sr


def _copied(header: Dataset) -> Dataset:
    sr = Dataset()
    for keyword in COPIED:
        value = header.get(keyword)
        if "\ufffd" in str(value or ""):
            raise OutputError(
                f"{keyword} of the source images does not decode in the character set that they state; "
                "correct SpecificCharacterSet in the images, then write again.",
                code="TEXT_LOST",
            )
        if value is not None or keyword not in MAY_BE_ABSENT:
            setattr(sr, keyword, value)
    return sr


def _equipment(provenance: Provenance) -> Dataset:
    equipment = Dataset()
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName = provenance.model_name
    equipment.DeviceSerialNumber = provenance.weights_sha256[:HASH_DIGITS]
    equipment.SoftwareVersions = provenance.model_version
    return equipment


def _contribution(provenance: Provenance) -> Dataset:
    contribution = _equipment(provenance)
    contribution.PurposeOfReferenceCodeSequence = [PROCESSING_EQUIPMENT]
    contribution.ContributionDescription = "Drafted the report"
    contribution.DeviceUID = _device_uid(provenance)
    return contribution


def _moment(provenance: Provenance, header: Dataset) -> Dataset:
    """When the draft was made, on the clock of the images: one offset holds for a whole file."""
    created = datetime.fromisoformat(provenance.created_utc)
    created = created.replace(tzinfo=created.tzinfo or UTC).astimezone(_source_zone(header))
    moment = Dataset()
    moment.ContentDate = created.strftime("%Y%m%d")
    moment.ContentTime = created.strftime("%H%M%S")
    moment.TimezoneOffsetFromUTC = created.strftime("%z")[:5]
    return moment


def _source_zone(header: Dataset) -> timezone | None:
    """None, which is this machine's zone, where the images do not say theirs."""
    offset = str(header.get("TimezoneOffsetFromUTC") or "")
    if len(offset) != 5 or offset[0] not in "+-" or not offset[1:].isdecimal():
        return None
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))


def _flags(draft: Draft) -> Dataset:
    flags = Dataset()
    flags.CompletionFlag = "COMPLETE"
    if draft.report is None:
        flags.CompletionFlag = "PARTIAL"
        codes = ", ".join(reason.code for reason in draft.gate.reasons)
        flags.CompletionFlagDescription = f"No draft: {codes}"[:64]
    flags.VerificationFlag = "UNVERIFIED"
    flags.PreliminaryFlag = "PRELIMINARY"
    return flags


def _referenced_study(draft: Draft) -> Dataset | None:
    """The images of the chosen series; for a refusal, of every series that was looked at."""
    used = [v for v in draft.verdicts if v.chosen or draft.report is None]
    if not used:
        return None
    return _study_of(draft.provenance.study_uid, [v.series for v in used])


def _study_of(uid: str, series: Iterable[Series]) -> Dataset:
    study = Dataset()
    study.StudyInstanceUID = uid
    study.ReferencedSeriesSequence = [
        _referenced_series(uid, classes) for uid, classes in _by_series(series).items()
    ]
    return study


def _by_series(series: Iterable[Series]) -> dict[str, dict[str, str]]:
    """Series UID -> SOP Instance UID -> SOP Class UID: frames and split series come together again."""
    found: dict[str, dict[str, str]] = {}
    for one in series:
        classes = {i.sop_instance_uid: i.sop_class_uid for i in one.instances}
        found.setdefault(one.series_uid, {}).update(classes)
    return found


def _referenced_series(uid: str, classes: dict[str, str]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = uid
    series.ReferencedSOPSequence = []
    for sop_instance_uid, sop_class_uid in classes.items():
        instance = Dataset()
        instance.ReferencedSOPClassUID = sop_class_uid
        instance.ReferencedSOPInstanceUID = sop_instance_uid
        series.ReferencedSOPSequence.append(instance)
    return series


def _content(draft: Draft, header: Dataset) -> Dataset:
    """TID 2000, whose order is significant and which allows no other rows."""
    root = ContainerContentItem(REPORT, is_content_continuous=False, template_id="2000")
    root.ContentSequence = [
        *_procedure_reported(header),
        *LanguageOfContentItemAndDescendants(_language(draft)),
        *_observer(draft.provenance),
        *(_refusal_sections(draft) if draft.report is None else _report_sections(draft)),
    ]
    return root


def _procedure_reported(header: Dataset) -> list[ContentItem]:
    return [
        CodeContentItem(
            PROCEDURE_REPORTED,
            CodedConcept(code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning),
            HAS_CONCEPT_MOD,
        )
        for code in (header.get("ProcedureCodeSequence") or [])[:1]
        if code.get("CodeValue") and code.get("CodingSchemeDesignator") and code.get("CodeMeaning")
    ]


def _language(draft: Draft) -> CodedConcept:
    language = "en" if draft.report is None else draft.report.language
    return CodedConcept(language, "RFC5646", LANGUAGES.get(language, language))


def _observer(provenance: Provenance) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=_device_uid(provenance),
        name=provenance.model_name,
        manufacturer_name=MANUFACTURER,
        model_name=f"{provenance.model_name} {provenance.model_version}",
        serial_number=provenance.weights_sha256[:HASH_DIGITS],
    )
    return ObservationContext(observer_device_context=ObserverContext(DEVICE, device))


def _report_sections(draft: Draft) -> list[ContentItem]:
    report = draft.report
    assert report is not None
    complaints = [_text(PROCEDURE_DESCRIPTION, f"Failed check {c.rule}: {c.words}") for c in draft.complaints]
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
    classes = {i.sop_instance_uid: i.sop_class_uid for v in draft.verdicts for i in v.series.instances}
    items = []
    for sentence, findings in zip(sentences, sentence_findings(sentences, draft.report), strict=True):
        item = _text(concept, sentence.text)
        if images := [_image(uid, classes[uid]) for uid in _cited(findings)]:
            item.ContentSequence = images
        items.append(item)
    return items


def _text(concept: CodedConcept, words: str) -> TextContentItem:
    # Spaces at the end of a UT are padding to DICOM; left in, the text would not come back equal.
    return TextContentItem(concept, words.rstrip(), CONTAINS)


def _cited(findings: tuple[Finding, ...]) -> list[str]:
    cited = [uid for f in findings if f.evidence for uid in f.evidence.sop_instance_uids]
    return list(dict.fromkeys(cited))


def _image(sop_instance_uid: str, sop_class_uid: str) -> ImageContentItem:
    return ImageContentItem(
        BEST_ILLUSTRATION, sop_class_uid, sop_instance_uid, relationship_type=INFERRED_FROM
    )


def _device_uid(provenance: Provenance) -> str:
    """One for each set of weights, whatever study it reads."""
    return _uid(b"device", provenance.weights_sha256.encode())


def _derived_uid(provenance: Provenance, content: bytes) -> str:
    return _uid(provenance.study_uid.encode(), provenance.weights_sha256.encode(), content)


def _uid(*parts: bytes) -> str:
    digest = hashlib.sha256(b"\0".join(parts)).digest()
    return f"2.25.{int.from_bytes(digest[:16])}"


def _file_meta(sr: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sr.SOPClassUID
    meta.MediaStorageSOPInstanceUID = sr.SOPInstanceUID
    return meta


def _refuse_loss(sr: Dataset) -> None:
    """Encode, read back, compare every text: the library replaces what it cannot encode. Of control
    characters DICOM allows four; what a reader makes of the others is not ours to guess."""
    written = dcmread(io.BytesIO(_bytes(sr)), force=True)
    for before, after in zip(_texts(sr), _texts(written), strict=True):
        if before != after or FORBIDDEN.search(before[1]):
            raise OutputError(
                f"A text of {before[0]} in the SR of study {sr.StudyInstanceUID} does not survive "
                "encoding; look for control characters or broken characters in it.",
                code="TEXT_LOST",
            )


def _texts(dataset: Dataset) -> list[tuple[str, str]]:
    return [(e.keyword, str(e.value or "")) for e in dataset.iterall() if e.VR in TEXT_VRS]


def _bytes(sr: Dataset) -> bytes:
    file = io.BytesIO()
    sr.save_as(file, implicit_vr=False, little_endian=True)
    return file.getvalue()
