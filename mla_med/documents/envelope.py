"""Draft and source image -> what stands around the content of every DICOM document we write.

Patient, study, series, equipment, moment, flags, evidence, predecessors, UIDs and the file itself.
UNVERIFIED and PRELIMINARY always: no parameter, no setting and no state of the draft changes that.
The patient is read from a source image at this moment and is in no noun. Files are written in
ISO_IR 192 whatever the images say; a text that would not come back as it went in is an error.
UIDs follow from the content alone, so that one never names two different files. Knows nothing of
what a document says.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from highdicom.sr import (
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
)
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian

from mla_med.archive import is_file, open_file
from mla_med.dicom.quiet import libraries_silent as libraries_silent
from mla_med.documents.text import HASH_DIGITS, NOTICE
from mla_med.errors import OutputError
from mla_med.types import Draft, Finding, Provenance, Series

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

ALSO_READ = (
    *("TimezoneOffsetFromUTC", "ProcedureCodeSequence", "RequestAttributesSequence", "InstitutionName"),
    *("SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "Modality", "SpecificCharacterSet"),
)

TEXT_VRS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")

FORBIDDEN = re.compile(r"[^\t\n\f\r -\x7e\x80-\U0010ffff]")

LANGUAGES = {"en": "English", "zh": "Chinese"}

DEVICE = CodedConcept("121007", "DCM", "Device")
PERSON = CodedConcept("121006", "DCM", "Person")
PROCESSING_EQUIPMENT = CodedConcept("109102", "DCM", "Processing Equipment")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of DICOM document; the documents of one kind about one study are one series."""

    name: str
    sop_class_uid: str
    modality: str
    series_number: int
    words: str = ""
    """What the description of its series says beside the notice."""

    @property
    def description(self) -> str:
        return f"{NOTICE} ({self.words})" if self.words else NOTICE


@dataclass(frozen=True, slots=True)
class Reference:
    """A document that was written before."""

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str


@dataclass(frozen=True, slots=True)
class Revision:
    """A draft that takes the place of an earlier one, still preliminary: changed by a reviewer with a name,
    or drafted anew when more images had come."""

    reviewer: str | None
    """Family^Given, as DICOM writes names (PS3.5 6.2.1); None: nobody, it was drafted anew."""
    made_utc: str | None
    """ISO 8601 with seconds; None: when it was drafted."""
    predecessors: tuple[Reference, ...]
    """The documents that this revision takes the place of; at least one."""
    number: int = 2
    """2 for the first revision."""

    def __post_init__(self):
        assert self.predecessors
        assert self.number >= 2
        if self.reviewer is None:
            return
        if not self.reviewer.strip("^ ") or FORBIDDEN.search(self.reviewer):
            raise OutputError(
                "A revision needs the name of its reviewer, as Family^Given; give one.",
                code="REVIEWER_NOT_NAMED",
            )

    def of_class(self, sop_class_uid: str) -> tuple[Reference, ...]:
        """Of the predecessors those that are the same kind of document; where none is, all of them."""
        same = tuple(one for one in self.predecessors if one.sop_class_uid == sop_class_uid)
        return same or self.predecessors


DRAFTED_ANEW = "Drafted anew from all images of the study"


def reference_of(document: Dataset) -> Reference:
    return Reference(document.SOPClassUID, document.SOPInstanceUID, document.SeriesInstanceUID)


def read_header(path: Path, provenance: Provenance) -> Dataset:
    """Patient, study and request as one image of the study states them; OutputError where it is of another
    study or its texts do not decode."""
    header = read_image(path, [*COPIED, *ALSO_READ])
    if header.get("StudyInstanceUID") != provenance.study_uid:
        raise OutputError(
            f"The source image {path} is not of study {provenance.study_uid}, which was drafted; "
            "a document made from it could name another patient. Give an image of that study.",
            code="SOURCE_OF_OTHER_STUDY",
        )
    for keyword in COPIED:
        if "\ufffd" in str(header.get(keyword) or ""):
            raise OutputError(
                f"{keyword} of the source images does not decode in the character set that they state; "
                "correct SpecificCharacterSet in the images, then write again.",
                code="TEXT_LOST",
            )
    return header


def read_image(path: Path, tags: list[str] | None = None) -> Dataset:
    """The header of one image; of `tags` alone, where they are given."""
    if not is_file(path):  # reading a FIFO would wait for ever
        raise OutputError(f"The source image {path} is not there; give a file of the drafted study.")
    try:
        with open_file(path) as file:
            return dcmread(file, stop_before_pixels=True, specific_tags=tags)
    except (OSError, InvalidDicomError) as error:
        raise OutputError(f"The source image {path} is not readable DICOM; give another one.") from error


def envelope(draft: Draft, header: Dataset, kind: Kind, revision: Revision | None) -> Dataset:
    """Everything but the content, the SOP Instance UID and what only some kinds have."""
    provenance = draft.provenance
    document = _copied(header)
    document.SpecificCharacterSet = "ISO_IR 192"
    document.SOPClassUID = UID(kind.sop_class_uid)
    document.Modality = kind.modality
    document.SeriesInstanceUID = series_uid(draft, kind)
    document.SeriesNumber = kind.series_number
    document.SeriesDescription = kind.description
    document.InstanceNumber = revision.number if revision else 1
    document.update(equipment(provenance))
    document.ContributingEquipmentSequence = [_contribution(provenance)]
    document.update(moment(draft, header, revision))
    return document


def series_uid(draft: Draft, kind: Kind) -> str:
    """One for all documents of a kind that one set of weights makes of one study, revisions among them."""
    return derived_uid(draft.provenance, f"series {kind.name}".encode())


def _copied(header: Dataset) -> Dataset:
    copied = Dataset()
    for keyword in COPIED:
        value = header.get(keyword)
        if value is not None or keyword not in MAY_BE_ABSENT:
            setattr(copied, keyword, value)
    return copied


def equipment(provenance: Provenance) -> Dataset:
    made_by = Dataset()
    made_by.Manufacturer = MANUFACTURER
    made_by.ManufacturerModelName = provenance.model_name
    made_by.DeviceSerialNumber = provenance.weights_sha256[:HASH_DIGITS]
    made_by.SoftwareVersions = provenance.model_version
    return made_by


def _contribution(provenance: Provenance) -> Dataset:
    contribution = equipment(provenance)
    contribution.PurposeOfReferenceCodeSequence = [PROCESSING_EQUIPMENT]
    contribution.ContributionDescription = "Drafted the report"
    contribution.DeviceUID = device_uid(provenance)
    return contribution


def moment(draft: Draft, header: Dataset, revision: Revision | None) -> Dataset:
    """When the draft was made, on the clock of the images: one offset holds for a whole file."""
    created = made_at(draft, header, revision)
    when = Dataset()
    when.ContentDate = created.strftime("%Y%m%d")
    when.ContentTime = created.strftime("%H%M%S")
    when.TimezoneOffsetFromUTC = created.strftime("%z")[:5]
    return when


def made_at(draft: Draft, header: Dataset, revision: Revision | None) -> datetime:
    changed = revision.made_utc if revision else None
    created = datetime.fromisoformat(changed or draft.provenance.created_utc)
    return created.replace(tzinfo=created.tzinfo or UTC).astimezone(source_zone(header))


def source_zone(header: Dataset) -> timezone | None:
    """None, which is this machine's zone, where the images do not say theirs, or say nonsense."""
    offset = str(header.get("TimezoneOffsetFromUTC") or "")
    if len(offset) != 5 or offset[0] not in "+-" or not offset[1:].isdecimal():
        return None
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    if minutes > 14 * 60 or int(offset[3:]) > 59:
        return None  # no place on earth
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))


def report_attributes(draft: Draft, header: Dataset, kind: Kind, revision: Revision | None) -> Dataset:
    """The SR Document General module (PS3.3 C.17.2)."""
    general = Dataset()
    general.CompletionFlag = "COMPLETE"
    if draft.report is None:
        general.CompletionFlag = "PARTIAL"
        codes = ", ".join(reason.code for reason in draft.gate.reasons)
        general.CompletionFlagDescription = f"No draft: {codes}"[:64]
    general.VerificationFlag = "UNVERIFIED"
    general.PreliminaryFlag = "PRELIMINARY"
    general.ReferencedPerformedProcedureStepSequence = []
    general.PerformedProcedureCodeSequence = []
    general.AuthorObserverSequence = _authors(draft.provenance, header, revision)
    if revision is not None:
        general.PredecessorDocumentsSequence = predecessors(draft, kind, revision)
    general.update(evidence(draft, header))
    if draft.prior is not None and draft.prior.series:
        # not acquired for this request, and yet what the changes were measured on (PS3.3 C.17.2)
        general.PertinentOtherEvidenceSequence = [study_of(draft.prior.study_uid, draft.prior.series)]
    return general


def evidence(draft: Draft, header: Dataset) -> Dataset:
    """The images of the chosen series (for a refusal, of every series that was looked at), and the request
    that they were made for, where the images state it."""
    found = Dataset()
    used = [v.series for v in draft.verdicts if v.chosen or draft.report is None]
    if any(series.instances for series in used):
        found.CurrentRequestedProcedureEvidenceSequence = [study_of(draft.provenance.study_uid, used)]
    if requests := [_request(item, header) for item in header.get("RequestAttributesSequence") or []]:
        found.ReferencedRequestSequence = requests
    return found


def _request(item: Dataset, header: Dataset) -> Dataset:
    """Of what an image says of its order (PS3.3 10.6) what a document says of it (PS3.3 C.17-2)."""
    request = Dataset()
    request.StudyInstanceUID = header.StudyInstanceUID
    request.ReferencedStudySequence = []
    request.AccessionNumber = item.get("AccessionNumber") or header.get("AccessionNumber")
    request.PlacerOrderNumberImagingServiceRequest = item.get("PlacerOrderNumberImagingServiceRequest")
    request.FillerOrderNumberImagingServiceRequest = item.get("FillerOrderNumberImagingServiceRequest")
    request.RequestedProcedureID = item.get("RequestedProcedureID")
    request.RequestedProcedureDescription = item.get("RequestedProcedureDescription")
    request.RequestedProcedureCodeSequence = [
        CodedConcept(*code) for code in codes_in(item.get("RequestedProcedureCodeSequence"))
    ]
    return request


def codes_in(sequence: Iterable[Dataset] | None) -> list[tuple[str, str, str]]:
    """Value, scheme and meaning of those items that are whole."""
    read = [
        (c.get("CodeValue"), c.get("CodingSchemeDesignator"), c.get("CodeMeaning")) for c in sequence or []
    ]
    return [
        (str(value), str(scheme), str(meaning))
        for value, scheme, meaning in read
        if value and scheme and meaning
    ]


def _authors(provenance: Provenance, header: Dataset, revision: Revision | None) -> list[Dataset]:
    device = Dataset()
    device.ObserverType = "DEV"
    device.StationName = provenance.model_name[:16]
    device.DeviceUID = device_uid(provenance)
    device.Manufacturer = MANUFACTURER
    device.ManufacturerModelName = provenance.model_name
    device.InstitutionName = ""
    device.InstitutionCodeSequence = []
    if revision is None or revision.reviewer is None:
        return [device]
    person = Dataset()
    person.ObserverType = "PSN"
    person.PersonName = revision.reviewer
    person.PersonIdentificationCodeSequence = []
    person.InstitutionName = header.get("InstitutionName") or ""
    person.InstitutionCodeSequence = []
    return [person, device]


def predecessors(draft: Draft, kind: Kind, revision: Revision) -> list[Dataset]:
    """Predecessor Documents Sequence (0040,A360)."""
    study = Dataset()
    study.StudyInstanceUID = draft.provenance.study_uid
    by_series: dict[str, dict[str, str]] = {}
    for one in revision.of_class(kind.sop_class_uid):
        by_series.setdefault(one.series_uid, {})[one.sop_instance_uid] = one.sop_class_uid
    study.ReferencedSeriesSequence = [_referenced_series(*item) for item in by_series.items()]
    return [study]


def study_of(uid: str, series: Iterable[Series]) -> Dataset:
    study = Dataset()
    study.StudyInstanceUID = uid
    study.ReferencedSeriesSequence = [
        _referenced_series(uid, classes) for uid, classes in _by_series(series).items() if classes
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


def observers(provenance: Provenance, revision: Revision | None) -> ObservationContext:
    """TID 1001: the device, and the reviewer of a revision."""
    device = DeviceObserverIdentifyingAttributes(
        uid=device_uid(provenance),
        name=provenance.model_name,
        manufacturer_name=MANUFACTURER,
        model_name=f"{provenance.model_name} {provenance.model_version}",
        serial_number=provenance.weights_sha256[:HASH_DIGITS],
    )
    person = None
    if revision is not None and revision.reviewer is not None:
        person = ObserverContext(PERSON, PersonObserverIdentifyingAttributes(revision.reviewer))
    return ObservationContext(
        observer_person_context=person, observer_device_context=ObserverContext(DEVICE, device)
    )


def cited(findings: Iterable[Finding]) -> dict[str, list[int] | None]:
    """The SOP Instance UIDs of the slices that these findings were seen on, each once, and which frames of
    it; None: the whole."""
    found: dict[str, list[int] | None] = {}
    for uid, frames in (image for f in findings if f.evidence for image in f.evidence.cited):
        known = found.setdefault(uid, [])
        found[uid] = None if known is None or not frames else list(dict.fromkeys((*known, *frames)))
    return found


def class_of(draft: Draft) -> dict[str, str]:
    """SOP Instance UID -> SOP Class UID of every image that was looked at."""
    return {i.sop_instance_uid: i.sop_class_uid for v in draft.verdicts for i in v.series.instances}


def device_uid(provenance: Provenance) -> str:
    """One for each set of weights, whatever study it reads."""
    return uid_of(b"device", provenance.weights_sha256.encode())


def derived_uid(provenance: Provenance, content: bytes) -> str:
    return uid_of(provenance.study_uid.encode(), provenance.weights_sha256.encode(), content)


def uid_of(*parts: bytes) -> str:
    digest = hashlib.sha256(b"\0".join(parts)).digest()
    return f"2.25.{int.from_bytes(digest[:16])}"


def finish(document: Dataset, provenance: Provenance) -> Dataset:
    """Named by its own content, with its file meta information, and proven to lose no text."""
    document.SOPInstanceUID = derived_uid(provenance, _dataset_bytes(document))
    document.file_meta = _file_meta(document)
    document.preamble = bytes(128)  # what a reader of the other format could run (CVE-2019-11687) is zero
    refuse_loss(document)
    return document


def _file_meta(document: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    before = document.get("file_meta")
    meta.TransferSyntaxUID = before.TransferSyntaxUID if before else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = document.SOPClassUID
    meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    return meta


def refuse_loss(document: Dataset) -> None:
    """Encode, read back, compare every text: the library replaces what it cannot encode. Of control
    characters DICOM allows four; what a reader makes of the others is not ours to guess."""
    written = dcmread(io.BytesIO(_dataset_bytes(document)), force=True)
    for before, after in zip(texts_of(document), texts_of(written), strict=True):
        if before != after or FORBIDDEN.search(before[1]):
            raise OutputError(
                f"A text of {before[0]} in a document of study {document.StudyInstanceUID} does not survive "
                "encoding; look for control characters or broken characters in it.",
                code="TEXT_LOST",
            )


def utf8(text: str, what: str) -> bytes:
    """For documents that are no DICOM; OutputError where a character would be lost on the way."""
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        encoded = b""
    if text and (not encoded or FORBIDDEN.search(text)):
        raise OutputError(
            f"A text of {what} does not survive encoding; look for control characters or broken "
            "characters in it.",
            code="TEXT_LOST",
        )
    return encoded


def patient_id(header: Dataset, what: str) -> str:
    """OutputError where it is not stated: beside the images a document may do without, alone it may not."""
    stated = str(header.get("PatientID") or "").strip()
    if not stated:
        raise OutputError(
            f"The images state no PatientID; {what} without one belongs to nobody. Leave out this format.",
            code="PATIENT_NOT_STATED",
        )
    return stated


def texts_of(dataset: Dataset) -> list[tuple[str, str]]:
    return [(e.keyword, str(e.value or "")) for e in dataset.iterall() if e.VR in TEXT_VRS]


def _dataset_bytes(document: Dataset) -> bytes:
    file = io.BytesIO()
    bare = Dataset(document)  # without the file meta information, which names the UID to be derived
    bare.save_as(file, implicit_vr=False, little_endian=True)
    return file.getvalue()


def file_bytes(document: Dataset) -> bytes:
    """The document as a DICOM file."""
    file = io.BytesIO()
    document.save_as(file, enforce_file_format=True)
    return file.getvalue()
