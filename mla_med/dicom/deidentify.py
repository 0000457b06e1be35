"""Folder of CT or MR files -> a folder of the same images with nobody in them, for research.

Follows the Basic Application Level Confidentiality Profile of DICOM PS3.15 Annex E by the table that
dicom-anonymizer keeps, and is stricter where that table trusts the sender: an output file is built
anew from what is known to be safe, never by deleting from a copy. Knows nothing of what pixels
show: files whose kind often has names burned into the image are refused, not cleaned, and faces
that a head scan can be rendered into are left as they are.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import re
import secrets
import stat
from base64 import b32encode
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import (
    dictionary_has_tag,
    dictionary_is_retired,
    dictionary_keyword,
    dictionary_VR,
)
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    UID_dictionary,
)

from mla_med.archive import is_zip, members, open_file
from mla_med.dicom.header import IMAGE_CLASSES, MALFORMED, Header, NotDicomError, quiet_pydicom, read_headers
from mla_med.errors import ConfigError, OutputError, StudyError
from mla_med.types import Reason

TABLE = "dicomfields_2026c"
"""Edition of PS3.15 Table E.1-1; the library's default is of 2023 and lets through a dozen attributes."""
MIN_KEY_BYTES = 16
MAX_SHIFT_DAYS = 3650
OLDEST_AGE_YEARS = 90
"""This and above is one age (45 CFR 164.514(b)(2)(i)(C))."""
IMPLEMENTATION_UID = "2.25.133423476745809390108493066694162077529"
IMPLEMENTATION_NAME = "MLA_MED"

ALLOWABLE = frozenset(("BURNED_IN_RISK", "DERIVED_SECONDARY", "RECOGNIZABLE_FEATURES"))
"""Reasons that a caller may set aside, having looked at every such image."""
SCREEN_WORDS = re.compile(
    r"screen[ _-]?(save|capture|shot|dump)|snap[ _-]?shot|secondary capture|dose[ _-]?(report|summary|info|"
    r"record|page|sr\b)|patient protocol|exam(ination)? (summary|report)|summary page|requisition|worksheet|"
    r"consent|scanned|\bprints?\b|\breport\b|\bdocument\b|\bphoto\b",
    re.IGNORECASE,
)
"""What pages of text call themselves in the descriptions of CT and MR studies."""
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "DerivationDescription", "ImageComments")

# The table trusts free text outside its list, but anything can be typed there. These are written by
# the scanner, and what they say is needed to read the images.
KEPT_TEXTS = frozenset(
    (
        *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "ConvolutionKernel", "FilterType"),
        *("SequenceName", "PulseSequenceName", "ImagedNucleus", "ReceiveCoilName", "TransmitCoilName"),
        "MultiCoilElementName",
        *("StackID", "ContrastBolusRoute", "RescaleType", "CodeValue", "CodeMeaning"),
        *("CodingSchemeDesignator", "CodingSchemeVersion"),
    )
)
EMPTIED_TEXTS = frozenset(
    ("PositionReferenceIndicator", "ReceiveCoilManufacturerName", "TransmitCoilManufacturerName")
)
"""Not kept, but a sound CT or MR object has them, if only empty."""
DUMMIES = {"DA": "19000101", "DT": "19000101000000", "TM": "000000"}
"""Where a date must be given. The library's year 1 is refused by validators and some readers."""
KEPT_BULK = frozenset(
    (
        *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
        *("LUTData", "PixelData"),
    )
)
PUBLIC_CODES = frozenset(
    ("DCM", "SCT", "SRT", "SNM3", "99SDM", "UCUM", "LN", "FMA", "RADLEX", "UMLS", "NCIt", "MSH", "UNS", "ACR")
)
"""Codes of other schemes are a site's own, and their meanings whatever the site wrote."""
KEPT_DATES = frozenset(
    (
        *(
            f"{what}{part}"
            for what in ("Study", "Series", "Acquisition", "Content")
            for part in ("Date", "Time")
        ),
        *("AcquisitionDateTime", "FrameAcquisitionDateTime", "FrameReferenceDateTime"),
        *("ContrastBolusStartTime", "ContrastBolusStopTime"),
    )
)
"""What keep_dates shifts; all other dates and times go in any case."""
ESSENTIAL = (
    *("Modality", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
"""A file that loses one of these is refused: its voxels would change their meaning."""

_NUMBER_VRS = frozenset(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"))
_TEXT_VRS = frozenset(("LO", "SH", "ST", "LT", "UT", "UC"))
_TIME_VRS = frozenset(("DA", "DT", "TM"))
_CODE_STRING = re.compile(r"[A-Z0-9_ ]{0,16}")
_MAX_LENGTHS = {"SH": 16, "LO": 64}
IDENTIFIERS = frozenset(
    (
        *("PatientID", "OtherPatientIDs", "AccessionNumber", "PatientBirthDate", "StudyID", "AdmissionID"),
        *("DeviceSerialNumber", "StationName"),
    )
)
"""With every name in a file, what none of the texts that are kept may repeat."""
_NATIVE = frozenset(
    (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
)
_JPEG = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81))
_JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
_PROFILE = ("113100", "Basic Application Confidentiality Profile")
_MODIFIED_DATES = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
_CHARACTERISTICS = ("113108", "Retain Patient Characteristics Option")


@dataclass(frozen=True, slots=True)
class Refusal:
    """One input file that was not written. The words never hold its path: paths hold names."""

    path: Path = field(repr=False)
    reason: Reason


@dataclass(frozen=True, slots=True)
class DeidentificationResult:
    written: int
    studies: int
    """How many different studies the written files belong to."""
    refused: tuple[Refusal, ...]


class _RefusedError(Exception):
    def __init__(self, code: str, words: str):
        super().__init__(words)
        self.code, self.words = code, words


def deidentify_study(
    source: Path,
    out: Path,
    *,
    key: bytes,
    keep_dates: bool = False,
    allow: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DeidentificationResult:
    """Write the images below `source` to `out` as 000001.dcm and so on, without identity.

    The same key gives the same patients, UIDs and date shift in every run; it is random
    (`secrets.token_bytes(32)`) and the caller's to keep, or to throw away so that nobody finds the
    way back. `keep_dates` keeps the dates of study, series, acquisition and content, earlier by one
    number of days a patient, and their times of day; without it there are none. `allow` holds codes
    of ALLOWABLE.

    A file that cannot be cleaned is a Refusal and the others go on. Raises StudyError if there is no
    source, OutputError if `out` is not empty, lies in the source or cannot be written, ConfigError
    for a short key or a reason that cannot be set aside.
    """
    source, out = Path(source), Path(out)
    secret = _secret(key, keep_dates)
    _check_allowed(allow)
    files = list(_files(source))
    refused: list[Refusal] = []
    studies: set[str] = set()
    written = 0
    with _own_folder(out, source):
        for number, (path, problem) in enumerate(files, 1):
            try:
                if problem is not None:
                    raise problem
                dataset = _deidentify_file(path, secret, frozenset(allow))
                _write(dataset, out / f"{written + 1:06d}.dcm")
            except _RefusedError as error:
                words = f"File {number} of {len(files)}, in the order of their paths, {error.words}"
                refused.append(Refusal(path, Reason(error.code, words)))
            else:
                written += 1
                studies.add(dataset.StudyInstanceUID)
            progress(number, len(files))
    return DeidentificationResult(written, len(studies), tuple(refused))


def deidentify_dataset(dataset: Dataset, key: bytes, *, keep_dates: bool = False) -> Dataset:
    """A new data set with preamble and file meta, ready to be saved; the given one is not changed.

    Judges no burned-in text: `deidentify_study` does. Raises ConfigError for a short key, ValueError
    or another of header.MALFORMED if pixels or geometry cannot be kept as they are.
    """
    with quiet_pydicom():
        return _deidentify(dataset, _secret(key, keep_dates))


def _secret(key: bytes, keep_dates: bool) -> _Secret:
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(
            f"The key has {len(key)} bytes; names could be found by trying. "
            "Make one of 32 with secrets.token_bytes(32).",
            code="KEY_TOO_SHORT",
        )
    return _Secret(bytes(key), keep_dates)


def _check_allowed(allow: Collection[str]) -> None:
    if unknown := sorted(set(allow) - ALLOWABLE):
        raise ConfigError(
            f"{', '.join(unknown)} cannot be set aside; only {', '.join(sorted(ALLOWABLE))} can.",
            code="REASON_NOT_ALLOWABLE",
        )


@dataclass(frozen=True)
class _Secret:
    """The key, and what is drawn from it: HMAC-SHA256, one purpose apart from the other."""

    key: bytes = field(repr=False)
    keep_dates: bool

    def uid(self, uid: str) -> str:
        """PS3.5 B.2: 2.25 and a number of 128 bits."""
        return f"2.25.{int.from_bytes(self._draw('uid', uid)[:16])}"

    def pseudonym(self, patient: str) -> str:
        return "P" + b32encode(self._draw("patient", patient)[:10]).decode()

    def shift(self, patient: str) -> timedelta:
        return timedelta(days=1 + int.from_bytes(self._draw("days", patient)[:8]) % MAX_SHIFT_DAYS)

    def _draw(self, purpose: str, value: str) -> bytes:
        message = f"{purpose}\0{value}".encode("utf-8", "surrogatepass")
        return hmac.new(self.key, message, hashlib.sha256).digest()


def _files(source: Path) -> Iterator[tuple[Path, _RefusedError | None]]:
    """Every file in a fixed order; with the reason if it must not be opened."""
    if not os.path.lexists(source):
        raise StudyError(
            "There is nothing at the given source. Give the folder with the study's DICOM files.",
            code="PATH_MISSING",
        )
    if not source.is_dir():
        yield from _file(source)
        return
    unlisted: list[OSError] = []
    for folder, folders, names in os.walk(source, onerror=unlisted.append):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(names + links):
            yield from _file(Path(folder, name))
    for error in unlisted:
        words = f"is a folder that cannot be listed: {error.strerror}."
        yield Path(os.fsdecode(error.filename)), _RefusedError("UNREADABLE", words)


def _file(path: Path) -> Iterator[tuple[Path, _RefusedError | None]]:
    """The file, or what an archive holds."""
    try:
        # Opening a FIFO waits for ever, and a link may lead to another patient.
        if not stat.S_ISREG(path.lstat().st_mode):
            yield path, _RefusedError("NOT_A_REGULAR_FILE", "is a link, pipe, socket or device; skipped.")
        elif not is_zip(path):
            yield path, None
        else:
            for member in members(path):
                problem = f"cannot be read: it {member.problem}." if member.problem else ""
                yield member.path, _RefusedError("UNREADABLE", problem) if problem else None
    except OSError as error:
        yield path, _RefusedError("UNREADABLE", f"cannot be read: {error.strerror}.")


@contextmanager
def _own_folder(out: Path, source: Path) -> Iterator[None]:
    """New or empty, and nobody else's before this ends: two that write there at once would write over each
    other's images."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise OutputError(
            "The output folder lies inside the source. Give one elsewhere, or named and nameless files mix.",
            code="OUTPUT_IN_SOURCE",
        )
    mark = out / f".deidentifying-{secrets.token_hex(4)}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        mark.touch()
        taken = any(path != mark for path in out.iterdir())
    except OSError as error:
        raise OutputError(f"Cannot make the output folder: {error.strerror}. Give another one.") from error
    try:
        if taken:
            raise OutputError("The output folder is not empty. Give a new one.", code="OUTPUT_NOT_EMPTY")
        yield
    finally:
        mark.unlink(missing_ok=True)


def _write(dataset: Dataset, path: Path) -> None:
    """Whole or not at all; what cannot be encoded is refused before a byte is written."""
    buffer = io.BytesIO()
    try:
        with quiet_pydicom():
            dataset.save_as(buffer, enforce_file_format=True)
    except MALFORMED as error:
        raise _RefusedError("MALFORMED", f"cannot be written again ({type(error).__name__}).") from error
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(buffer.getbuffer())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"Cannot write {path.name}: {error.strerror}. Free some space, empty the folder and run it again."
        ) from error


def _deidentify_file(path: Path, secret: _Secret, allow: frozenset[str]) -> Dataset:
    try:
        headers = read_headers(path)
        if not headers:
            raise _RefusedError("KIND_NOT_COVERED", "is a DICOMDIR, a list of names. Make a new one.")
        with quiet_pydicom():
            with open_file(path) as file:
                dataset = pydicom.dcmread(file, force=True)
            _check_kind(dataset, headers, allow)
            _move_b_value(dataset, headers[0])
            return _deidentify(dataset, secret)
    except NotDicomError as error:
        raise _RefusedError("NOT_DICOM", f"{error}.") from error
    except EOFError as error:
        raise _RefusedError("TRUNCATED", "ends too early. Was it copied completely?") from error
    except OSError as error:
        raise _RefusedError("UNREADABLE", f"cannot be read: {error.strerror or 'input error'}.") from error
    except (RuntimeError, *MALFORMED) as error:
        # Of the error only its type: pydicom's messages quote values.
        words = f"is damaged or cannot be kept as it is ({type(error).__name__}). Export it again?"
        raise _RefusedError("MALFORMED", words) from error


def _check_kind(dataset: Dataset, headers: Sequence[Header], allow: frozenset[str]) -> None:
    first = headers[0]
    if not (first.study_uid and first.series_uid and first.sop_instance_uid):
        raise _RefusedError("NO_UID", "lacks a study, series or instance UID.")
    if not first.pixels_complete:
        raise EOFError
    if _says_yes(dataset, "BurnedInAnnotation"):
        raise _RefusedError("BURNED_IN", "has text burned into its image, as its header says.")
    for code, words in _risks(dataset, headers):
        if code not in allow:
            raise _RefusedError(code, words)


def _risks(dataset: Dataset, headers: Sequence[Header]) -> Iterator[tuple[str, str]]:
    first = headers[0]
    name = UID(first.sop_class_uid).name if first.sop_class_uid in UID_dictionary else ""
    if "Image Storage" not in name:
        yield "KIND_NOT_COVERED", "is no image, or of a private kind: text that cannot be cleaned."
    elif first.sop_class_uid not in IMAGE_CLASSES or first.modality not in ("CT", "MR"):
        yield "BURNED_IN_RISK", "is not a CT or MR image, but of a kind that often shows names."
    if first.samples != 1 or not first.photometric.startswith("MONOCHROME"):
        yield "BURNED_IN_RISK", "is in colour, as captured screens and dose reports are."
    if _text(dataset, "ConversionType") or _text(dataset, "BurnedInAnnotation") not in ("", "NO"):
        yield "BURNED_IN_RISK", "was captured, or does not say clearly that nothing is burned in."
    # Text drawn into the unused high bits of the pixels stays when the overlay's description goes.
    if any(_is_embedded_overlay(dataset, tag) for tag in sorted(dataset.keys())):
        yield "BURNED_IN_RISK", "has an overlay inside its pixel data."
    frame_types = " ".join(word for header in headers for word in header.image_type).upper()
    types = f"{_text(dataset, 'ImageType')} {frame_types}"
    texts = " ".join(_text(dataset, keyword) for keyword in _DESCRIPTIONS)
    if SCREEN_WORDS.search(types) or SCREEN_WORDS.search(texts):
        yield "BURNED_IN_RISK", "calls itself a captured screen, a report or a document."
    if "SECONDARY" in types:
        yield "DERIVED_SECONDARY", "is derived from other images; software may have drawn text into it."
    if _says_yes(dataset, "RecognizableVisualFeatures"):
        yield "RECOGNIZABLE_FEATURES", "shows a face or another mark to know a person by, as its header says."


def _says_yes(dataset: Dataset, keyword: str) -> bool:
    return _text(dataset, keyword).startswith("Y")


def _is_embedded_overlay(dataset: Dataset, tag: Any) -> bool:
    """Group 60xx: Overlay Bits Allocated (0100) above 1, or an Overlay Bit Position (0102)."""
    if tag.group & 0xFF00 != 0x6000 or tag.elem not in (0x0100, 0x0102):
        return False
    return _text(dataset, tag) not in ("0", "1") if tag.elem == 0x0100 else _text(dataset, tag) != "0"


def _text(dataset: Dataset, key: Any) -> str:
    try:
        value = dataset[key].value if key in dataset else None
    except MALFORMED:
        return "UNREADABLE"
    return "" if value is None else str(value).upper().strip()


def _move_b_value(dataset: Dataset, header: Header) -> None:
    """Scanners before 2010 keep the b-value in a private attribute, which will be gone."""
    if header.frame is None and header.b_value is not None and "DiffusionBValue" not in dataset:
        dataset.DiffusionBValue = header.b_value


def _deidentify(source: Dataset, secret: _Secret) -> Dataset:
    cleaner = _Cleaner(source, secret)
    clean = cleaner.clean(source)
    _copy_pixels(source, clean)
    _check_essentials(source, clean)
    clean.PatientName = clean.PatientID = secret.pseudonym(cleaner.patient)
    _sign(clean, secret.keep_dates)
    _add_file_meta(source, clean, secret)
    if clean.file_meta.TransferSyntaxUID == RLELossless and "PixelData" in clean:
        _decompress_rle(clean)
    return clean


class _Cleaner:
    """What becomes of the attributes of one file, at any depth; None of what is not known to be safe."""

    def __init__(self, source: Dataset, secret: _Secret):
        self.secret = secret
        self.source = source
        # As the reader tells patients apart; a study's UID where it does not say.
        identity = [_exact(source, keyword) for keyword in ("PatientID", "IssuerOfPatientID")]
        self.patient = "\0".join(identity) if identity[0] else _exact(source, "StudyInstanceUID")

    @cached_property
    def words(self) -> frozenset[str]:
        """Of the names and numbers of the people in this file, what is long enough to be looked for."""
        known = [tag for tag in sorted(self.source.keys()) if dictionary_has_tag(tag)]
        people = [
            tag for tag in known if dictionary_VR(tag) == "PN" or dictionary_keyword(tag) in IDENTIFIERS
        ]
        words = (word for tag in people for word in re.split(r"[\W_]+", _exact(self.source, tag)))
        return frozenset(word for word in words if len(word) >= (4 if word.isascii() else 1))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        # Mary is in PRIMARY; East Asian names are not divided from the text around them.
        words = [
            rf"(?<![^\W_]){re.escape(word)}(?![^\W_])" if word.isascii() else re.escape(word)
            for word in self.words
        ]
        return re.compile("|".join(words) or r"(?!)", re.IGNORECASE)

    def clean(self, source: Dataset) -> Dataset:
        clean = Dataset()
        for tag in list(source.keys()):
            element = self._readable(source, tag)
            kept = None if element is None else self._element(element)
            if kept is not None:
                clean.add(kept)
        return clean

    def _readable(self, source: Dataset, tag: Any) -> DataElement | None:
        """The element if the dictionary knows it, as the kind of value that the dictionary says."""
        if tag.group < 0x0008 or not dictionary_has_tag(tag) or dictionary_is_retired(tag):
            return None
        try:
            element = source[tag]
        except MALFORMED:
            return None
        known = dictionary_VR(tag).split(" or ")
        return element if set(element.VR.split(" or ")) <= set(known) else None

    def _element(self, element: DataElement) -> DataElement | None:
        keyword, rule = element.keyword, _rules().get(int(element.tag), "")
        if keyword in ("PatientAge", "PatientSex"):
            return self._characteristic(element)
        if element.VR == "SQ":
            return self._sequence(element, rule)
        if element.VR in _TIME_VRS:
            return self._moment(element, rule)
        if element.VR == "UI" and not rule.startswith("delete"):
            return _with(element, [self._uid(uid) for uid in _values(element)])
        if rule:
            return _by_library(element, rule)
        return self._unlisted(element)

    def _characteristic(self, element: DataElement) -> DataElement | None:
        text = _exact_value(element)
        if element.keyword == "PatientSex":
            return _with(element, [text if text in ("F", "M", "O") else ""])
        if not re.fullmatch(r"\d{3}[DWMY]", text):
            return None
        # Months end at 999, which is 83 years.
        too_old = text[3] == "Y" and int(text[:3]) >= OLDEST_AGE_YEARS
        return _with(element, [f"{OLDEST_AGE_YEARS:03d}Y" if too_old else text])

    def _sequence(self, element: DataElement, rule: str) -> DataElement | None:
        """A listed sequence goes, or is emptied where it must be there; of images referred to, the
        UIDs are replaced; in all others each item is cleaned."""
        if rule and rule != "delete_or_empty_or_replace_UID":
            return _with(element, []) if rule in ("empty", "delete_or_empty") else None
        items = [item for item in element.value or () if not _is_local_code(item)]
        return DataElement(element.tag, "SQ", [self.clean(item) for item in items])

    def _moment(self, element: DataElement, rule: str) -> DataElement | None:
        if self.secret.keep_dates and element.keyword in KEPT_DATES:
            shift = self.secret.shift(self.patient)
            return _with(element, [_shifted(text, element.VR, shift) for text in _values(element)])
        if rule == "empty":
            return _with(element, [])
        # CT and MR objects are sound without what the table lets one delete; the others need a date.
        if rule in ("", "delete", "delete_or_empty", "delete_or_replace") or not _values(element):
            return None
        return _with(element, [DUMMIES[element.VR]])

    def _uid(self, uid: str) -> str:
        # What the standard defines names a kind of thing; anything else may name an instance.
        return uid if uid in UID_dictionary or not uid else self.secret.uid(uid)

    def _unlisted(self, element: DataElement) -> DataElement | None:
        if element.keyword in EMPTIED_TEXTS:
            return _with(element, [])
        if element.VR in _NUMBER_VRS or (element.keyword in KEPT_BULK and element.keyword != "PixelData"):
            return deepcopy(element)
        return deepcopy(element) if all(self._is_safe(text, element) for text in _values(element)) else None

    def _is_safe(self, text: str, element: DataElement) -> bool:
        if element.VR in ("DS", "IS"):
            return len(text) < 6 or text not in self.words
        if element.VR == "CS":
            formed = bool(_CODE_STRING.fullmatch(text)) and element.keyword != "SpecificCharacterSet"
        else:
            formed = element.keyword in KEPT_TEXTS and text.isprintable()
            formed = formed and len(text) <= _MAX_LENGTHS.get(element.VR, 0)
        return formed and (element.keyword in ESSENTIAL or not self.pattern.search(text))


def _exact(dataset: Dataset, key: Any) -> str:
    try:
        return _exact_value(dataset[key]) if key in dataset else ""
    except MALFORMED:
        return ""


def _exact_value(element: DataElement) -> str:
    return "\\".join(_values(element))


def _values(element: DataElement) -> list[str]:
    value = element.value
    if value is None or value == "":
        return []
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return [str(one).strip(" \0") for one in (value if several else [value])]


def _with(element: DataElement, values: list[Any]) -> DataElement:
    if element.VR == "SQ":
        return DataElement(element.tag, "SQ", values)
    return DataElement(element.tag, element.VR, values if len(values) > 1 else "".join(values))


@cache
def _rules() -> dict[int, str]:
    """Tag -> what the table says, by the name of the library's function. Curves and overlays, which
    the table lists by mask, are in no dictionary and go with all that is unknown."""
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    actions = initialize_actions(TABLE)
    return {tag[0] << 16 | tag[1]: action.__name__ for tag, action in actions.items() if len(tag) == 2}


def _by_library(element: DataElement, rule: str) -> DataElement | None:
    """The library's dummy or empty value, or nothing where it has none for such a value."""
    from dicomanonymizer import simpledicomanonymizer as library

    if rule == "delete":
        return None
    # "Given: nothing" would become "given: something".
    if not _values(element):
        return _with(element, []) if element.VR in (*_TEXT_VRS, "CS", "AE", "PN") else None
    alone = Dataset()
    alone.add(DataElement(element.tag, element.VR, element.value))
    try:
        getattr(library, rule)(alone, element.tag)
    except NotImplementedError:
        return None
    return alone.get(element.tag)


def _is_local_code(item: Dataset) -> bool:
    scheme = _exact(item, "CodingSchemeDesignator")
    return bool(scheme) and scheme not in PUBLIC_CODES


def _shifted(text: str, vr: str, shift: timedelta) -> str:
    """Earlier by whole days; a time of day stays; a time zone, which tells where, goes. Empty if it
    cannot be read."""
    if vr == "TM":
        return text if re.fullmatch(r"[0-9:]{2,8}(\.\d{1,6})?", text) else ""
    parts = re.fullmatch(r"(\d{4})\.?(\d\d)\.?(\d\d)([0-9.]*)([+-]\d{4})?", text)
    if parts is None or (vr == "DA" and parts[4]):
        return ""
    try:
        moved = datetime(int(parts[1]), int(parts[2]), int(parts[3])) - shift
    except (ValueError, OverflowError):
        return ""
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}{parts[4]}"


def _copy_pixels(source: Dataset, clean: Dataset) -> None:
    """The pixel data without what lies before, between and behind the frames."""
    if "PixelData" not in source:
        return
    syntax = _transfer_syntax(source)
    if not syntax.is_encapsulated:
        clean.add(DataElement("PixelData", source["PixelData"].VR, _native(source)))
        return
    frames = [_codestream(frame, syntax) for frame in _encapsulated(source)]
    clean.add(DataElement("PixelData", "OB", encapsulate(frames, has_bot=False)))
    clean["PixelData"].is_undefined_length = True


def _transfer_syntax(dataset: Dataset) -> UID:
    stated = getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID")
    if stated is None:
        implicit = dataset.original_encoding[0]
        return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    if stated not in _NATIVE | _JPEG | _JPEG_2000 | {RLELossless}:
        raise ValueError("transfer syntax that is not covered")
    return UID(stated)


def _native(source: Dataset) -> bytes:
    expected = get_expected_length(source, unit="bytes")
    stored = bytes(source.PixelData)
    if len(stored) < expected:
        raise EOFError("pixel data shorter than the header promises")
    # The byte of padding stays: in big endian words it comes before the last pixel.
    even = expected + expected % 2
    return stored[:even].ljust(even, b"\0")


def _encapsulated(source: Dataset) -> list[bytes]:
    number = max(1, int(source.get("NumberOfFrames") or 1))
    frames = list(generate_frames(source.PixelData, number_of_frames=number))
    if len(frames) != number:
        raise ValueError("another number of frames than the header promises")
    return frames


def _codestream(frame: bytes, syntax: UID) -> bytes:
    """The image of one frame, comments and application data blanked in place, all behind it cut off."""
    if syntax == RLELossless:
        return frame
    cleaned = bytearray(frame)
    end = _blank_jpeg_2000(cleaned) if syntax in _JPEG_2000 else _blank_jpeg(cleaned)
    return bytes(cleaned[:end])


_JPEG_TEXT = frozenset((0xFE, *range(0xE1, 0xE8), *range(0xE9, 0xEE), 0xEF))
"""COM, and APPn but for JFIF (0), JPEG-LS colour (8) and Adobe colour (14), which change the image."""
_MARKER = re.compile(rb"\xff+[\x80-\xcf\xd8-\xfe]")


def _blank_jpeg(stream: bytearray) -> int:
    """ITU-T T.81 Annex B, T.87 Annex C. Returns where the image ends."""
    if stream[:2] != b"\xff\xd8":
        raise ValueError("no JPEG")
    position, in_scan = 2, False
    while match := _MARKER.search(stream, position):
        if match.start() != position and not in_scan:
            raise ValueError("bytes that belong to no JPEG segment")
        marker, position = stream[match.end() - 1], match.end()
        if marker == 0xD9:
            return position
        in_scan = marker == 0xDA
        length = _length(stream, position)
        if marker in _JPEG_TEXT:
            stream[position + 2 : position + length] = bytes(length - 2)
        position += length
    return len(stream)


def _blank_jpeg_2000(stream: bytearray) -> int:
    """ITU-T T.800 Annex A: main header, then tile-parts whose headers say how long they are."""
    if stream[:2] != b"\xff\x4f":
        raise ValueError("no JPEG 2000 codestream")
    position, tile_end = 2, 0
    while position + 4 <= len(stream):
        marker = stream[position : position + 2]
        if marker == b"\xff\xd9":
            return position + 2
        if marker[0] != 0xFF or (marker == b"\xff\x93" and tile_end <= position):
            raise ValueError("damaged JPEG 2000 codestream")
        if marker == b"\xff\x93":
            position = tile_end
            continue
        length = _length(stream, position + 2)
        if marker == b"\xff\x90":
            size = int.from_bytes(stream[position + 6 : position + 10])
            tile_end = position + size if size else _end_of_last_tile(stream, position)
            if tile_end <= position + 2 + length:
                raise ValueError("damaged JPEG 2000 codestream")
        if marker == b"\xff\x64":
            stream[position + 6 : position + 2 + length] = bytes(max(0, length - 4))
        position += 2 + length
    return min(len(stream), position + 2) if stream[position : position + 2] == b"\xff\xd9" else len(stream)


def _end_of_last_tile(stream: bytearray, start: int) -> int:
    # No byte pair above FF8F occurs in coded data, so the first end marker is the end.
    body = stream.find(b"\xff\x93", start)
    end = stream.find(b"\xff\xd9", body)
    return end if body >= 0 and end >= 0 else len(stream)


def _length(stream: bytearray, position: int) -> int:
    length = int.from_bytes(stream[position : position + 2])
    if length < 2 or position + length > len(stream):
        raise ValueError("damaged JPEG")
    return length


def _check_essentials(source: Dataset, clean: Dataset) -> None:
    _compare(source, clean)
    if "PixelData" not in clean and any(k in source for k in ("FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError("pixels of a kind that is not covered")


def _compare(source: Dataset, clean: Dataset) -> None:
    for keyword in ESSENTIAL:
        if keyword in source and (keyword not in clean or _differs(source[keyword], clean[keyword])):
            raise ValueError(f"{keyword} cannot be kept")
    for after in clean:
        if after.VR == "SQ" and len(after.value) == len(source[after.tag].value):
            for item, cleaned in zip(source[after.tag].value, after.value, strict=True):
                _compare(item, cleaned)


def _differs(before: DataElement, after: DataElement) -> bool:
    return len(before.value) != len(after.value) if before.VR == "SQ" else before.value != after.value


def _sign(clean: Dataset, keep_dates: bool) -> None:
    """Say what was done, as PS3.15 E.1.1 and PS3.3 C.12.1.1.6 ask; what a sender said before goes."""
    codes = [_PROFILE, _CHARACTERISTICS] + ([_MODIFIED_DATES] if keep_dates else [])
    clean.SpecificCharacterSet = "ISO_IR 192"
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = [
        f"mla_med, PS3.15 Table E.1-1 of {TABLE.removeprefix('dicomfields_')}, Basic Profile",
        f"Kept: sex, age ({OLDEST_AGE_YEARS} and over as {OLDEST_AGE_YEARS})",
        "Dates of the study shifted, the same days a patient" if keep_dates else "Dates and times removed",
    ]
    clean.DeidentificationMethodCodeSequence = [_code(*code) for code in codes]
    clean.LongitudinalTemporalInformationModified = "MODIFIED" if keep_dates else "REMOVED"


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _add_file_meta(source: Dataset, clean: Dataset, secret: _Secret) -> None:
    """Of the source's only the transfer syntax: the rest names the machines it passed through."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = clean.SOPClassUID
    meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    meta.TransferSyntaxUID = _transfer_syntax(source)
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = IMPLEMENTATION_NAME
    clean.file_meta = meta
    clean.preamble = bytes(128)


def _decompress_rle(clean: Dataset) -> None:
    """Stored as they are: what lies between RLE segments cannot be told from the image."""
    # A run of two bytes makes 128 at most; a header that promises more is a bomb.
    if get_expected_length(clean, unit="bytes") > 64 * len(clean.PixelData):
        raise ValueError("RLE data too short for its header")
    # The Rust decoder panics on damaged data, past every `except`.
    clean.decompress(decoding_plugin="pydicom", generate_instance_uid=False)
