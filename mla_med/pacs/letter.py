"""Final bytes -> what a delivery has to know of them, whether they may leave, and whether what a PACS
gives back is the same document.

Parses and compares; builds and changes nothing. Identifiers that it reads stay in memory.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from mla_med.dicom.header import MALFORMED, quiet_pydicom
from mla_med.errors import PacsError
from mla_med.logs import log

UID = re.compile(r"[0-9]+(\.[0-9]+){1,31}")
MAX_UID = 64

COERCIBLE = frozenset(
    (
        "SpecificCharacterSet",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "IssuerOfPatientID",
        "ReferringPhysicianName",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "StudyDescription",
    )
)
"""What a PACS may set to its own record of patient and study when it stores (PS3.4 B.4.1.3, coercion).
PatientID and AccessionNumber are not among them: a draft that moved to another patient is for a person."""

_EVIDENCE = (
    "CurrentRequestedProcedureEvidenceSequence",
    "PertinentOtherEvidenceSequence",
    "IdenticalDocumentsSequence",
)


@dataclass(frozen=True, slots=True)
class Letter:
    """One document, as its destination knows it."""

    study_uid: str
    series_uid: str
    uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    content: bytes = field(repr=False)


def read_letter(content: bytes) -> Letter:
    """PacsError with DOCUMENT_UNREADABLE or UID_INVALID."""
    dataset = parse(content, tags=["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
    study, series, uid, sop_class = (
        check_uid(str(dataset.get(keyword, "")))
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    )
    return Letter(study, series, uid, sop_class, str(dataset.file_meta.TransferSyntaxUID), content)


def is_uid(text: str) -> bool:
    """Nothing but digits and dots (PS3.5 9.1)."""
    return len(text) <= MAX_UID and bool(UID.fullmatch(text))


def only_uids(told: Iterable[str]) -> list[str]:
    """What a PACS says of one study must not hide the others."""
    told = list(told)
    uids = [text for text in told if is_uid(text)]
    if len(uids) < len(told):
        log("passed_over", level="warning", count=len(told) - len(uids), code="UID_INVALID")
    return uids


def check_uid(uid: str) -> str:
    """It goes into addresses and queries."""
    if not is_uid(uid):
        raise PacsError("A UID is not one: digits and dots, 64 at most.", code="UID_INVALID")
    return uid


def work_of(content: bytes) -> tuple[str, tuple[str, ...]]:
    """A drafted document -> its study, and which work it is: images, weights and version, and what it
    follows. Not its words: the same work worded anew is the same work."""
    dataset = _whole(content)
    images = [
        str(instance.ReferencedSOPInstanceUID)
        for keyword in _EVIDENCE
        for study in dataset.get(keyword) or ()
        for series in study.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedSOPSequence") or ()
    ]
    images += [
        str(instance.ReferencedSOPInstanceUID)
        for instance in dataset.get("SourceInstanceSequence") or ()
        if "ReferencedSOPInstanceUID" in instance
    ]
    maker = [
        str(dataset.get(k, ""))
        for k in ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber")
    ]
    return str(dataset.StudyInstanceUID), (*sorted(set(images)), "|", *maker, "|", *predecessors_of(content))


def predecessors_of(content: bytes) -> tuple[str, ...]:
    """UIDs of the documents that it says it takes the place of."""
    named = {
        str(instance.ReferencedSOPInstanceUID)
        for study in _whole(content).get("PredecessorDocumentsSequence") or ()
        for series in study.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedSOPSequence") or ()
    }
    return tuple(sorted(named))


def place_of(letter: Letter) -> str:
    """What a reference to it needs beside its UID; see `read_place`."""
    return f"{letter.sop_class_uid} {letter.series_uid}"


def read_place(place: str) -> tuple[str, str]:
    """-> its SOP Class UID, its Series Instance UID."""
    sop_class_uid, series_uid = place.split()
    return sop_class_uid, series_uid


def kind_of(content: bytes) -> str:
    """A short name of what it is, for the ledger and for metrics: SR, DOC, KO, SEG."""
    return re.sub(r"[^A-Z0-9_]", "", str(_whole(content).get("Modality", "")))[:16] or "OTHER"


# May it leave?


def complaints(content: bytes) -> tuple[str, ...]:
    """Reason codes why these bytes must not be sent; none if they may."""
    from mla_med.documents.check import check_alone  # brings highdicom, which only a commit needs

    return tuple(dict.fromkeys(problem.code for problem in check_alone(content, _whole(content))))


# Is it the same?


def difference(sent: bytes, got: bytes) -> str:
    """A reason code, empty where what came back is what was sent, coercion of the patient's and study's
    description aside."""
    if _without_meta(sent) == _without_meta(got):
        return ""
    mine, theirs = parse(sent), parse(got)
    for keyword, code in (("PatientID", "PATIENT_CHANGED"), ("AccessionNumber", "ACCESSION_CHANGED")):
        if str(mine.get(keyword) or "") != str(theirs.get(keyword) or ""):
            return code
    with quiet_pydicom():
        try:
            before, after = _plain(mine), _plain(theirs)
        except MALFORMED:
            return "CONTENT_DIFFERS"
    # elements that the store added are its own business; what was sent must be there
    return "" if all(after.get(tag) == value for tag, value in before.items()) else "CONTENT_DIFFERS"


def _plain(dataset: Dataset) -> dict[str, Any]:
    """By tag, every text decoded; an empty value stands for an absent one."""
    kept = Dataset()
    for element in dataset:
        if element.keyword not in COERCIBLE:
            kept.add(element)
    plain = kept.to_json_dict(bulk_data_threshold=2**62, bulk_data_element_handler=None)
    return {tag: value for tag, value in plain.items() if value.keys() != {"vr"}}


def _without_meta(content: bytes) -> bytes | None:
    """The data set, where the file begins as PS3.10 7.1 says."""
    if content[128:132] != b"DICM" or content[132:140] != b"\x02\0\0\0UL\x04\0":
        return None
    return content[144 + int.from_bytes(content[140:144], "little") :]


@lru_cache(maxsize=2)
def _whole(content: bytes) -> Dataset:
    """Read once by all that look at it before it is committed. Not to be changed."""
    return parse(content)


def parse(content: bytes, tags: list[str] | None = None) -> Dataset:
    with quiet_pydicom():
        try:
            return dcmread(io.BytesIO(content), specific_tags=tags)
        except (InvalidDicomError, OSError, *MALFORMED):
            raise PacsError("A document is no readable DICOM file.", code="DOCUMENT_UNREADABLE") from None


def read_content(path: Path) -> bytes:
    """A document's file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PacsError(f"Cannot read {path}: {error.strerror}.", code="DOCUMENT_UNREADABLE") from error
