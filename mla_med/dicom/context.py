"""DICOM header -> what the request said: age, sex, indication, protocol, and the report of a prior.

In whatever characters the hospital writes. Reads names, patient IDs and birth dates, to take them out
of free text, and lets none of them through. Knows nothing of images.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from mla_med.archive import open_file
from mla_med.dicom.header import MALFORMED, guess_characters, quiet_pydicom
from mla_med.dicom.scan import printable
from mla_med.types import ClinicalContext, Sex

REQUEST_TEXTS = (
    "ReasonForTheRequestedProcedure",
    "ReasonForStudy",
    "ReasonForVisit",
    "AdmittingDiagnosesDescription",
    "AdditionalPatientHistory",
)
REQUEST_CODES = ("ReasonForRequestedProcedureCodeSequence", "AdmittingDiagnosesCodeSequence")
PROTOCOL_TEXTS = (
    "RequestedProcedureDescription",
    "ScheduledProcedureStepDescription",
    "PerformedProcedureStepDescription",
    "ProtocolName",
)
PROTOCOL_CODES = ("RequestedProcedureCodeSequence", "ProcedureCodeSequence", "ScheduledProtocolCodeSequence")
IDENTITY = (
    *("PatientName", "PatientID", "OtherPatientNames", "OtherPatientIDs", "PatientBirthName"),
    *("PatientMotherBirthName", "ResponsiblePerson", "AccessionNumber"),
)
_TAGS: list[str] = [
    *(
        "SpecificCharacterSet",
        "StudyDate",
        "StudyDescription",
        "PatientAge",
        "PatientBirthDate",
        "PatientSex",
    ),
    *("RequestAttributesSequence", *IDENTITY, *REQUEST_TEXTS, *REQUEST_CODES),
    *(*PROTOCOL_TEXTS, *PROTOCOL_CODES),
]
MAX_PRIOR_CHARACTERS = 20_000
MAX_DEPTH = 12


@dataclass(frozen=True, slots=True)
class Request:
    """What one image says of its study."""

    study_date: str
    description: str
    context: ClinicalContext
    identity: Dataset
    """Kept for `without_identity` only; never leaves this package."""


@dataclass(frozen=True, slots=True)
class PriorReport:
    study_date: str
    text: str


def read_request(path: Path) -> Request:
    """From any image of the study. Empty where the header cannot be read: the images are what they are."""
    try:
        with quiet_pydicom(), open_file(path) as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            guess_characters(dataset)
            return _request(dataset)
    except (OSError, *MALFORMED):
        return Request("", "", ClinicalContext(), Dataset())


def read_prior(path: Path) -> PriorReport | None:
    """The text of a structured report (PS3.3 A.35); None if it is empty, damaged, or only preliminary:
    a draft must never become the history of the next one."""
    try:
        with quiet_pydicom(), open_file(path) as file:
            dataset = pydicom.dcmread(file, force=True)
            guess_characters(dataset)
            if _value(dataset, "PreliminaryFlag") == "PRELIMINARY":
                return None
            text = without_identity("\n".join(_content(dataset, 0)), dataset)
            return PriorReport(_value(dataset, "StudyDate"), text[:MAX_PRIOR_CHARACTERS]) if text else None
    except (OSError, *MALFORMED):
        return None


def without_identity(text: str, dataset: Dataset) -> str:
    """Free text that repeats the patient's name, an ID or the date of birth loses it."""
    for expression in _identity(dataset):
        text = expression.sub("[removed]", text)
    return _REPEATED.sub("[removed]", text)


def _identity(dataset: Dataset) -> Iterator[re.Pattern[str]]:
    """Whole names and IDs first, however their parts are joined, then each part."""
    parts: list[str] = []
    for keyword in IDENTITY:
        # three representations of a name: alphabetic, ideographic, phonetic (PS3.5 6.2.1.1)
        for written in re.split(r"[=\\]", _value(dataset, keyword)):
            words = re.findall(r"[^\W_]+", written)
            for turned in (words, words[::-1]):
                if _tells(whole := "".join(turned)) and len(words) > 1:
                    yield _bounded(_JOINT.join(map(_spelt, turned)), whole)
            parts += words
    for word in sorted(filter(_tells, set(parts)), key=len, reverse=True):
        yield _as_name(word) if word.lower() in _ORDINARY.split() else _bounded(_spelt(word), word)
    for word in {word for word in parts if len(word) == 2 and word.isascii() and word.isalpha()}:
        yield re.compile(rf"{_TITLES}\s+{word}(?![^\W_])", re.IGNORECASE)
    if born := _date(_value(dataset, "PatientBirthDate")):
        year, month, day = f"{born:%Y}", f"0?{born.month}", f"0?{born.day}"
        for order in ((year, month, day), (day, month, year), (month, day, year)):
            yield re.compile(rf"(?<!\d){_DATE_JOINT.join(order)}(?!\d)")


_JOINT, _DATE_JOINT = r"[\s^_,.\-/]*", r"[\s./\-年月]*"
_REPEATED = re.compile(rf"\[removed\](?:{_JOINT}\[removed\])+")


def _tells(word: str) -> bool:
    """One letter, or two Latin ones, would tear holes into ordinary words."""
    return len(word) >= 3 or (len(word) == 2 and not word.isascii())


def _as_name(word: str) -> re.Pattern[str]:
    """An ordinary word that is somebody's name too: only as names are written, or a "not" would be lost."""
    return re.compile(rf"(?<![^\W_])(?:{word.capitalize()}|{word.upper()})(?![^\W_])")


def _spelt(word: str) -> str:
    """A name in any of its spellings: Müller, Mueller, Muller, MULLER."""
    found, rest = "", word.lower()
    while rest:
        umlaut = next((two for two in _UMLAUTS if rest.startswith((two, _UMLAUTS[two]))), None)
        if umlaut:
            plain = "" if umlaut == "ss" else f"|{_letter(umlaut[0])}"
            found += f"(?:{umlaut}|{_UMLAUTS[umlaut]}{plain})"
            rest = rest[2 if rest.startswith(umlaut) else 1 :]
        else:
            found += _letter(rest[0])
            rest = rest[1:]
    return found


def _letter(letter: str) -> str:
    """With any accent."""
    same = _ACCENTED.get(_plain(letter))
    return f"[{same}]" if same else re.escape(letter)


def _plain(letter: str) -> str:
    return _STROKED.get(letter) or unicodedata.normalize("NFKD", letter)[0].lower()


_UMLAUTS = {"ae": "ä", "oe": "ö", "ue": "ü", "ss": "ß"}
_STROKED = {"đ": "d", "ł": "l", "ø": "o", "ı": "i", "ð": "d", "ħ": "h"}
_ACCENTED: dict[str, str] = {letter: letter for letter in "abcdefghijklmnopqrstuvwxyz"}
for _letter_with in map(chr, (*range(0xE0, 0x250), *range(0x1E00, 0x1F00))):
    if _letter_with.islower() and _plain(_letter_with) in _ACCENTED:
        _ACCENTED[_plain(_letter_with)] += _letter_with
_ORDINARY = (
    "all and any are both can did for had has her his its may new nor not now old one out own per she the "
    "two was who why with yes left right upper lower none known young long short white black brown gray grey "
    "green will best hard strong rich early day week cross stone wood hill field small large"
)
"""Words of a request that are names as well."""
_TITLES = r"(?:Mr|Mrs|Ms|Miss|Mme|Herr|Frau|Sr|Sra|Dr)\.?"


def _bounded(expression: str, word: str) -> re.Pattern[str]:
    """A Latin word at its edges, where an underscore is one; Chinese has none."""
    latin = all(_plain(letter) in _ACCENTED or letter.isascii() for letter in word)
    edges = (r"(?<![^\W_])", r"(?![^\W_])") if latin else ("", "")
    return re.compile(edges[0] + expression + edges[1], re.IGNORECASE)


def _request(dataset: Dataset) -> Request:
    sex = _value(dataset, "PatientSex").upper()[:1]
    context = ClinicalContext(
        age_years=_age_years(dataset),
        sex=Sex(sex) if sex in tuple(Sex) else None,
        indication=without_identity(_statements(dataset, REQUEST_TEXTS, REQUEST_CODES), dataset),
        protocol=without_identity(_statements(dataset, PROTOCOL_TEXTS, PROTOCOL_CODES), dataset),
    )
    description = without_identity(_value(dataset, "StudyDescription"), dataset)
    return Request(_value(dataset, "StudyDate"), description, context, dataset)


def _content(item: Dataset, depth: int) -> Iterator[str]:
    """Every text of a content tree in reading order, behind the heading or name that it stands under."""
    if depth > MAX_DEPTH:
        return
    for child in _items(item, "ContentSequence"):
        name = next((_value(code, "CodeMeaning") for code in _items(child, "ConceptNameCodeSequence")), "")
        kind = _value(child, "ValueType")
        if kind == "TEXT" and (text := " ".join(_value(child, "TextValue").split())):
            yield text if name.lower() in text.lower() or not name else f"{name}: {text}"
        yield from _content(child, depth + 1)


def _statements(dataset: Dataset, texts: Sequence[str], codes: Sequence[str]) -> str:
    """What is stated, each statement once."""
    items = [dataset, *_items(dataset, "RequestAttributesSequence")]
    found = [_value(item, keyword) for item in items for keyword in texts]
    found += [_value(c, "CodeMeaning") for item in items for keyword in codes for c in _items(item, keyword)]
    cleaned = (" ".join(text.split()) for text in found)
    return "; ".join(dict.fromkeys(text for text in cleaned if text))


def _age_years(dataset: Dataset) -> float | None:
    match = re.fullmatch(r"(\d{1,3})([DWMY])", _value(dataset, "PatientAge").upper())
    # an age of 0 years is an anonymiser's: a newborn's is in days
    if match and (int(match[1]) or match[2] != "Y"):
        days = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}[match[2]]
        return round(int(match[1]) * days / 365.25, 2)
    born, examined = _date(_value(dataset, "PatientBirthDate")), _date(_value(dataset, "StudyDate"))
    # A birth date equal to the study date is an anonymiser's, not a newborn's.
    if born is None or examined is None or examined <= born:
        return None
    return float(examined.year - born.year - ((examined.month, examined.day) < (born.month, born.day)))


def _date(text: str) -> date | None:
    try:
        return datetime.strptime(text.replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    try:
        items = dataset.get(keyword)
    except MALFORMED:
        return ()
    return tuple(items) if items and not isinstance(items, str | bytes) else ()


def _value(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except MALFORMED:
        return ""
    return "" if value is None else printable(str(value))
