"""An image of a study -> whose it is, for the moment in which a page shows it. Kept nowhere: not in a row,
a log, a session, a cache or an address.

What headers hold is hostile until shown otherwise: characters that are not seen or turn the direction of
what follows (Unicode UAX 9: a name can be made to read as another one) are taken out, and length is bounded.
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from mla_med.archive import open_file
from mla_med.dicom.header import MALFORMED
from mla_med.dicom.quiet import quiet_pydicom

LONGEST = 96
"""Characters of one value; PS3.5 6.2 allows 64 a component group."""
FILES_TRIED = 20
_TAGS = [
    *("SpecificCharacterSet", "StudyInstanceUID", "SeriesInstanceUID", "PatientName", "PatientID"),
    *("PatientBirthDate", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate", "StudyTime"),
    *("StudyDescription", "Manufacturer", "ManufacturerModelName", "ReferringPhysicianName"),
]


@dataclass(frozen=True, slots=True)
class Patient:
    """As the images state it. Its repr says nothing: an error must not either."""

    name: str = field(default="", repr=False)
    patient_id: str = field(default="", repr=False)
    birth_date: str = field(default="", repr=False)
    sex: str = field(default="", repr=False)
    accession: str = field(default="", repr=False)
    study_date: str = field(default="", repr=False)
    study: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """What is counted of a study, and is nobody's."""

    scanner: str = ""
    subgroup: str = ""


def read_patient(folder: Path, study_uid: str) -> Patient | None:
    """Of the first image of that study in the folder; None where there is none."""
    header = _header(folder, study_uid)
    if header is None:
        return None
    return Patient(
        name=person(str(header.get("PatientName") or "")),
        patient_id=inert(header.get("PatientID")),
        birth_date=_date(header.get("PatientBirthDate")),
        sex=inert(header.get("PatientSex"))[:1],
        accession=inert(header.get("AccessionNumber")),
        study_date=_date(header.get("StudyDate")),
        study=inert(header.get("StudyDescription")),
    )


def read_origin(folder: Path, study_uid: str) -> Origin:
    header = _header(folder, study_uid)
    if header is None:
        return Origin()
    maker = inert(header.get("Manufacturer"))
    model = inert(header.get("ManufacturerModelName"))
    scanner = model if model.casefold().startswith(maker.casefold()) else f"{maker} {model}"
    return Origin(scanner.strip()[:64], _subgroup(header))


def is_meant(patient: Patient, asked: str) -> bool:
    """Whether somebody looks for this one: by the number or accession number, or by words of the name, in
    whatever case and without accents."""
    wanted, name = _plain(asked), _plain(patient.name)
    if not wanted:
        return False
    numbers = [_plain(patient.patient_id), _plain(patient.accession)]
    words = re.split(r"[\s,^]+", wanted)
    return wanted in numbers or all(word in name for word in words)


def _plain(text: str) -> str:
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in apart if not unicodedata.combining(c)).strip()


def uid_in(content: bytes) -> str:
    """SOPInstanceUID of an image; empty where it is none."""
    with quiet_pydicom():
        try:
            return str(
                dcmread(io.BytesIO(content), specific_tags=["SOPInstanceUID"]).get("SOPInstanceUID") or ""
            )
        except (InvalidDicomError, OSError, *MALFORMED):
            return ""


def first_image(folder: Path, study_uid: str, series_uids: Collection[str] = ()) -> Path | None:
    """A file of that study, of these series if there is one, to lend a document its patient and the frame of
    reference of what it cites."""
    first = None
    for path, header in _images(folder, study_uid):
        if not series_uids or str(header.get("SeriesInstanceUID")) in series_uids:
            return path
        first = first or path
    return first


def inert(value: object) -> str:
    """A header's value as one line that can do nothing but be read."""
    text = unicodedata.normalize("NFC", str(value if value is not None else ""))
    kept = (c if unicodedata.category(c)[0] not in "CZ" else " " for c in text if not _is_unseen(c))
    return " ".join("".join(kept).split())[:LONGEST]


def person(name: str) -> str:
    """Family^Given=ideographic=phonetic (PS3.5 6.2.1) -> "Family, Given (ideographic)"."""
    groups = [inert(group.replace("^", "\x1f").replace("\x1f", "^")) for group in name.split("=")]
    family, _, rest = groups[0].partition("^")
    given = " ".join(rest.replace("^", " ").split())
    alphabetic = ", ".join(filter(None, (family.strip(), given)))
    ideographic = groups[1].replace("^", "") if len(groups) > 1 else ""
    return f"{alphabetic} ({ideographic})" if alphabetic and ideographic else alphabetic or ideographic


def _is_unseen(character: str) -> bool:
    # Cf: marks of direction and width, Cc: control, Co, Cs: nothing that a font has
    return unicodedata.category(character) in ("Cf", "Co", "Cs", "Cn") or character in "\u2028\u2029"


def _date(value: object) -> str:
    text = inert(value)
    if len(text) == 8 and text.isdecimal():
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    return text[:16]


def _subgroup(header: Dataset) -> str:
    sex = inert(header.get("PatientSex"))[:1].upper()
    years = _years(header)
    age = "" if years is None else "0-19" if years < 20 else "80+" if years >= 80 else _twenties(years)
    return f"{sex if sex in 'FMO' else ''} {age}".strip()


def _twenties(years: int) -> str:
    return f"{years // 20 * 20}-{years // 20 * 20 + 19}"


def _years(header: Dataset) -> int | None:
    age = inert(header.get("PatientAge"))
    if len(age) == 4 and age[:3].isdecimal():
        return int(age[:3]) if age[3] == "Y" else 0
    born, made = (inert(header.get(k)) for k in ("PatientBirthDate", "StudyDate"))
    try:
        first, second = (date(int(d[:4]), int(d[4:6]), int(d[6:8])) for d in (born, made))
    except ValueError:
        return None
    return max(0, (second - first).days * 400 // 146_097)


def _header(folder: Path, study_uid: str) -> Dataset | None:
    return next((header for _, header in _images(folder, study_uid)), None)


def _images(folder: Path, study_uid: str) -> Iterator[tuple[Path, Dataset]]:
    """Of the first files there, those that are of that study: a name must never be another's."""
    for number, path in enumerate(_files(folder)):
        if number == FILES_TRIED:
            return
        try:
            with quiet_pydicom(), open_file(path) as file:
                header = dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
                header.decode()
        except (OSError, InvalidDicomError, *MALFORMED):
            continue
        if str(header.get("StudyInstanceUID")) == study_uid:
            yield path, header


def _files(folder: Path) -> Iterator[Path]:
    """One of each folder below, then the others: a prior may lie beside the study, with hundreds of files."""
    folders: list[list[Path]] = []
    for at, below, names in os.walk(folder):
        below.sort()
        folders.append([Path(at, name) for name in sorted(names)])
    for some in (slice(1), slice(1, None)):
        for files in folders:
            yield from (path for path in files[some] if not path.is_symlink())
