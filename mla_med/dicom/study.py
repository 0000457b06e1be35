"""Folder -> Study: which series are there, and what the request said. Headers only.

A series of the study is what shares a SeriesInstanceUID, a geometry and an acquisition, so that
two echoes or two b-values under one UID are two series. Files that are no part of it are named,
each with its reason. Knows nothing of pixels, and keeps no name, patient ID or birth date.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from mla_med.dicom.header import MALFORMED, Header, NotDicomError, quiet_pydicom, read_headers
from mla_med.errors import StudyError
from mla_med.types import ClinicalContext, Instance, Reason, Series, Sex, Study

MIN_SLICES = 3
"""Two slices define a step but cannot show that it is even."""
SAME_DIRECTION = 1e-3
"""Two orientations are the same if no cosine differs by more."""
SAME_SPACING = 1e-3
"""Two pixel spacings are the same if they differ by no more than this fraction."""

# Tried in this order, and only where two images lie at one position: within a sound series these
# may change from slice to slice.
SPLITTERS: tuple[Callable[[Header], object], ...] = (
    lambda h: h.acquisition_number,
    lambda h: h.gradient,
    lambda h: h.cardiac_phase,
    lambda h: h.trigger_ms,
    lambda h: h.kvp,
)
REQUEST_TEXTS = (
    "ReasonForTheRequestedProcedure",
    "ReasonForStudy",
    "ReasonForVisit",
    "AdmittingDiagnosesDescription",
    "AdditionalPatientHistory",
)


def read_study(path: Path) -> Study:
    """The study in a folder of any depth, or in one DICOM file."""
    path = Path(path)
    root = _root(path)
    headers, problems = _scan(root)
    if not headers:
        raise _no_dicom(path, problems)
    _check_one_study(headers, path)
    first = next((h for h in headers if h.modality in ("CT", "MR")), headers[0])
    with quiet_pydicom():
        request = _request(first.path)
        study_date = _value(request, "StudyDate")
        description = _without_identity(_value(request, "StudyDescription"), request)
        series = tuple(
            replace(s, description=_without_identity(s.description, request)) for s in group_series(headers)
        )
        context = _context(request)
    return Study(
        study_uid=first.study_uid,
        study_date=study_date,
        description=description,
        context=context,
        series=series,
        problems=tuple(problems),
    )


def group_series(headers: Sequence[Header]) -> tuple[Series, ...]:
    """One Series for each SeriesInstanceUID, geometry and acquisition, by series number."""
    by_uid: dict[str, list[Header]] = {}
    for header in headers:
        by_uid.setdefault(header.series_uid, []).append(header)
    ordered = sorted(by_uid.values(), key=lambda group: (group[0].series_number, group[0].series_uid))
    return tuple(_to_series(part) for group in ordered for part in _parts(group))


def _root(path: Path) -> Path:
    if not os.path.lexists(path):
        raise StudyError(
            f"Nothing at {path}. Give the folder that holds the study's DICOM files.", code="PATH_MISSING"
        )
    if not (path.is_dir() or path.is_file()):
        raise StudyError(
            f"{path} is neither a folder nor a file. Give the folder with the study's DICOM files.",
            code="NOT_A_REGULAR_FILE",
        )
    return path.parent if path.name.upper() == "DICOMDIR" else path


def _scan(root: Path) -> tuple[list[Header], list[Reason]]:
    headers: list[Header] = []
    problems: list[Reason] = []
    for path, problem in _walk(root):
        name = _shown(path, root)
        if problem is None:
            found, problem = _read(path, name)
            headers.extend(found)
        if problem is not None:
            problems.append(problem)
    return headers, problems


def _walk(root: Path) -> Iterator[tuple[Path, Reason | None]]:
    """Every entry that is not a folder, in a fixed order; with a reason if it must not be opened."""
    if root.is_file():
        yield root, None
        return
    unreadable: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=unreadable.append):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(names + links):
            path = Path(folder, name)
            yield path, _not_regular(path, root)
    for error in unreadable:
        place = Path(os.fsdecode(error.filename))
        yield place, Reason("UNREADABLE", f"{_shown(place, root)} cannot be listed: {error.strerror}.")


def _not_regular(path: Path, root: Path) -> Reason | None:
    # Opening a FIFO waits for ever, and a link may lead out of the study.
    try:
        regular = stat.S_ISREG(path.lstat().st_mode)
    except OSError as error:
        return Reason("UNREADABLE", f"{_shown(path, root)} cannot be read: {error.strerror}.")
    if regular:
        return None
    return Reason("NOT_A_REGULAR_FILE", f"{_shown(path, root)} is a link, pipe, socket or device; skipped.")


def _read(path: Path, name: str) -> tuple[tuple[Header, ...], Reason | None]:
    try:
        headers = read_headers(path)
    except NotDicomError as error:
        return (), Reason("NOT_DICOM", f"{name} {error}.")
    except EOFError:
        return (), Reason("TRUNCATED", f"{name} ends inside its header. Was it copied completely?")
    except OSError as error:
        return (), Reason("UNREADABLE", f"{name} cannot be read: {error.strerror or 'input error'}.")
    except MALFORMED as error:
        return (), Reason("MALFORMED", f"{name} is damaged DICOM ({type(error).__name__}). Send it again?")
    if headers and not _is_identified(headers[0]):
        return (), Reason("NO_UID", f"{name} lacks a study, series or instance UID.")
    return headers, None


def _is_identified(header: Header) -> bool:
    return bool(header.study_uid and header.series_uid and header.sop_instance_uid)


def _shown(path: Path, root: Path) -> str:
    """The path below the root, on one line whatever a file name contains."""
    relative = path.name if path == root else os.path.relpath(path, root)
    text = os.fsencode(relative).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _no_dicom(path: Path, problems: Sequence[Reason]) -> StudyError:
    if path.suffix.lower() == ".zip" and path.is_file():
        advice = "Unpack it and give the folder."
    else:
        advice = "Give the folder that holds the study's DICOM files."
    counts = Counter(problem.code for problem in problems)
    seen = ", ".join(f"{number} x {code}" for code, number in sorted(counts.items())) or "it is empty"
    what = "is no DICOM file" if path.is_file() else f"holds no readable DICOM file ({seen})"
    return StudyError(f"{path} {what}. {advice}", code="NO_DICOM")


def _check_one_study(headers: Sequence[Header], path: Path) -> None:
    uids = sorted({header.study_uid for header in headers})
    if len(uids) > 1:
        shown = ", ".join(uids[:5]) + (", ..." if len(uids) > 5 else "")
        raise StudyError(
            f"{path} holds {len(uids)} studies ({shown}). Give the folder of one of them.",
            code="SEVERAL_STUDIES",
        )
    patients = {header.patient_hash for header in headers} - {None}
    if len(patients) > 1:
        raise StudyError(
            f"Study {uids[0]} in {path} carries {len(patients)} different patient IDs. "
            "Was another patient's series filed with it? Correct it in the PACS and export it again.",
            code="MIXED_PATIENTS",
        )


def _parts(headers: list[Header]) -> list[list[Header]]:
    """The volumes under one UID; what is too little for a volume stays together, as one refusal."""
    groups: dict[tuple, list[Header]] = {}
    orientations: list[Sequence[float]] = []
    spacings: list[Sequence[float]] = []
    for header in headers:
        geometry = (
            header.rows,
            header.columns,
            header.samples,
            _nearest(header.orientation, orientations, SAME_DIRECTION),
            # log: a relative tolerance
            _nearest(_logs(header.row_column_spacing_mm), spacings, SAME_SPACING),
        )
        groups.setdefault((geometry, _acquisition(header)), []).append(header)
    large = [group for group in groups.values() if _number_of_images(group) >= MIN_SLICES]
    small = [h for group in groups.values() if _number_of_images(group) < MIN_SLICES for h in group]
    parts = [part for group in large for part in _without_repeats(group)]
    return parts + ([small] if small else [])


def _acquisition(header: Header) -> tuple:
    return (header.image_type, header.echo, header.b_value, header.temporal_position, header.kernel)


def _nearest(value: Sequence[float] | None, known: list[Sequence[float]], tolerance: float) -> int | None:
    """The number of the first known value that equals this one; rounding would split at its edges."""
    if value is None:
        return None
    for number, other in enumerate(known):
        if max(abs(a - b) for a, b in zip(value, other, strict=True)) <= tolerance:
            return number
    known.append(value)
    return len(known) - 1


def _logs(spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if spacing is None or min(spacing) <= 0 else tuple(math.log(s) for s in spacing)


def _number_of_images(headers: Iterable[Header]) -> int:
    return len({(h.sop_instance_uid, h.frame) for h in headers})


def _without_repeats(headers: list[Header]) -> list[list[Header]]:
    """Split by the first attribute that leaves whole stacks with one image at each position."""
    if not _repeats(headers):
        return [headers]
    for attribute in SPLITTERS:
        parts: dict[object, list[Header]] = {}
        for header in headers:
            parts.setdefault(attribute(header), []).append(header)
        stacks = list(parts.values())
        if len(stacks) > 1 and not any(_repeats(s) or _number_of_images(s) < MIN_SLICES for s in stacks):
            return stacks
    return [headers]


def _repeats(headers: Iterable[Header]) -> bool:
    images = {(h.sop_instance_uid, h.frame): h.position_mm for h in headers}
    positions = [tuple(round(x, 2) for x in p) for p in images.values() if p is not None]
    return len(set(positions)) < len(positions)


def _to_series(headers: Sequence[Header]) -> Series:
    first = headers[0]
    instances = (Instance(h.sop_instance_uid, h.sop_class_uid, h.path, h.frame) for h in headers)
    return Series(
        series_uid=first.series_uid,
        modality=first.modality,
        description=first.description,
        body_part=first.body_part,
        image_type=first.image_type,
        instances=tuple(instances),
    )


def _request(path: Path) -> Dataset:
    """The part of a header that says who was examined and why; read once for a study."""
    tags = ["StudyDate", "StudyDescription", "PatientAge", "PatientBirthDate", "PatientSex", "PatientName"]
    tags += ["PatientID", "RequestAttributesSequence", "ReasonForRequestedProcedureCodeSequence"]
    try:
        return pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=[*tags, *REQUEST_TEXTS], force=True
        )
    except (OSError, *MALFORMED):
        # Its geometry was readable; without the request the images still are what they are.
        return Dataset()


def _context(dataset: Dataset) -> ClinicalContext:
    sex = _value(dataset, "PatientSex").upper()[:1]
    return ClinicalContext(
        age_years=_age_years(dataset),
        sex=Sex(sex) if sex in tuple(Sex) else None,
        indication=_without_identity(_indication(dataset), dataset),
    )


def _age_years(dataset: Dataset) -> float | None:
    match = re.fullmatch(r"(\d{1,3})([DWMY])", _value(dataset, "PatientAge").upper())
    if match:
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


def _indication(dataset: Dataset) -> str:
    """What the request gives as reason and history, each statement once."""
    items = [dataset, *_items(dataset, "RequestAttributesSequence")]
    texts = [_value(item, keyword) for item in items for keyword in REQUEST_TEXTS]
    for item in items:
        codes = _items(item, "ReasonForRequestedProcedureCodeSequence")
        texts += [_value(code, "CodeMeaning") for code in codes]
    cleaned = (" ".join(text.split()) for text in texts)
    return "; ".join(dict.fromkeys(text for text in cleaned if text))


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    try:
        items = dataset.get(keyword)
    except MALFORMED:
        return ()
    return tuple(items) if items and not isinstance(items, str | bytes) else ()


def _without_identity(text: str, dataset: Dataset) -> str:
    """Free text that repeats the patient's name or ID loses it."""
    name = re.split(r"[\^=\s,]+", _value(dataset, "PatientName"))
    for word in [*name, _value(dataset, "PatientID")]:
        # One letter, or two Latin ones, would tear holes into ordinary words.
        if len(word) >= 3 or (len(word) == 2 and not word.isascii()):
            edges = (r"(?<!\w)", r"(?!\w)") if word.isascii() else ("", "")
            text = re.sub(edges[0] + re.escape(word) + edges[1], "[removed]", text, flags=re.IGNORECASE)
    return text


def _value(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except MALFORMED:
        return ""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text).strip()
