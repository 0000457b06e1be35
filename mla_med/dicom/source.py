"""Path -> the DICOM headers under it, and every file that is none, each with its reason.

A folder of any depth, a DICOMDIR, a ZIP archive, files packed with gzip, one file: whatever the names
and extensions. Knows nothing of series or studies, except which study a damaged file belongs to.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom

from mla_med.archive import ArchiveError, members, open_file
from mla_med.dicom.header import (
    MALFORMED,
    Header,
    NotDicomError,
    PixelsMissingError,
    ZipFoundError,
    quiet_pydicom,
    read_headers,
)
from mla_med.errors import StudyError
from mla_med.types import Reason

DAMAGE = frozenset(("TRUNCATED", "MALFORMED", "UNREADABLE", "NO_UID", "ARCHIVE_REFUSED", "MISSING_FILE"))
"""Reasons that mean that images are missing from what was found."""
# (0020,000D) StudyInstanceUID in explicit and implicit little endian
_STUDY_UID = re.compile(rb"\x20\x00\x0d\x00(?:UI..|..\x00\x00)([0-9][0-9.]{0,63})", re.DOTALL)
_HEAD_BYTES = 2**16
_IMAGE_RECORDS = frozenset(("IMAGE", "PRIVATE", ""))


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that gave no header, or images that are not there."""

    reason: Reason
    folder: Path
    study_uid: str = ""
    """Empty where the file does not tell."""


def find_headers(
    path: Path, progress: Callable[[int], None] = lambda files: None
) -> tuple[list[Header], list[Problem]]:
    """All headers under `path`, in the order of the file names, and what else is there.

    `progress` is called with the number of files that were looked at. StudyError with PATH_MISSING or
    NOT_A_REGULAR_FILE if there is nothing that could be looked at.
    """
    root = _root(Path(path))
    headers: list[Header] = []
    problems: list[Problem] = []
    directories: list[Path] = []
    for number, (file, problem) in enumerate(_walk(root)):
        progress(number)
        if problem is not None:
            problems.append(Problem(problem, file.parent))
            continue
        found, problems_of_file = _read(file, root)
        headers.extend(found)
        problems.extend(problems_of_file)
        if not found and not problems_of_file:
            directories.append(file)
    known = {header.sop_instance_uid for header in headers}
    studies = {header.study_uid for header in headers}
    for directory in directories:
        problems.extend(_missing(directory, root, known, studies))
    return headers, problems


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


def _walk(root: Path) -> Iterator[tuple[Path, Reason | None]]:
    """Every entry that is not a folder, in a fixed order; with a reason if it must not be opened."""
    if root.is_file():
        # a link that the user names is followed; one that lies in a folder is not
        yield root.resolve(), None
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


def _read(path: Path, root: Path) -> tuple[list[Header], list[Problem]]:
    """The headers of a file, or of all files in an archive."""
    try:
        return list(_identified(read_headers(path))), []
    except ZipFoundError:
        return _read_archive(path, root)
    except _Unidentified as error:
        reason = Reason("NO_UID", f"{_shown(path, root)} lacks a study, series or instance UID.")
        return [], [Problem(reason, path.parent, error.study_uid)]
    except (NotDicomError, OSError, *MALFORMED) as error:
        reason = _why_not(error, _shown(path, root))
        known = error.study_uid if isinstance(error, PixelsMissingError) else ""
        damaged = reason.code in DAMAGE
        return [], [Problem(reason, path.parent, known or (_study_of_damaged(path) if damaged else ""))]


def _read_archive(path: Path, root: Path) -> tuple[list[Header], list[Problem]]:
    if not path.is_file():
        words = f"{_shown(path, root)} is an archive in an archive. Unpack the outer one."
        return [], [Problem(Reason("ARCHIVE_REFUSED", words), path.parent)]
    try:
        found = members(path)
    except OSError as error:
        words = f"{_shown(path, root)} {error.strerror or 'cannot be read'}."
        return [], [Problem(Reason("ARCHIVE_REFUSED", words), path.parent)]
    headers: list[Header] = []
    problems: list[Problem] = []
    for member in found:
        if member.problem:
            reason = Reason("ARCHIVE_REFUSED", f"{_shown(member.path, root)} {member.problem}.")
            problems.append(Problem(reason, member.path.parent))
            continue
        headers_of_member, problems_of_member = _read(member.path, root)
        headers.extend(headers_of_member)
        problems.extend(problems_of_member)
    return headers, problems


class _Unidentified(Exception):
    def __init__(self, study_uid: str):
        self.study_uid = study_uid


def _identified(headers: Sequence[Header]) -> Sequence[Header]:
    if headers and not (headers[0].study_uid and headers[0].series_uid and headers[0].sop_instance_uid):
        raise _Unidentified(headers[0].study_uid)
    return headers


def _why_not(error: Exception, name: str) -> Reason:
    if isinstance(error, NotDicomError):
        return Reason("NOT_DICOM", f"{name} {error}.")
    if isinstance(error, ArchiveError):
        return Reason("ARCHIVE_REFUSED", f"{name} {error.strerror}.")
    if isinstance(error, EOFError):
        return Reason("TRUNCATED", f"{name} ends inside its header. Was it copied completely?")
    if isinstance(error, OSError):
        return Reason("UNREADABLE", f"{name} cannot be read: {error.strerror or 'input error'}.")
    return Reason("MALFORMED", f"{name} is damaged DICOM ({type(error).__name__}). Send it again?")


def _study_of_damaged(path: Path) -> str:
    """The study UID that stands in the first bytes, whatever came after them."""
    try:
        with open_file(path) as file:
            match = _STUDY_UID.search(file.read(_HEAD_BYTES))
    except OSError:
        return ""
    return match[1].decode("ascii") if match else ""


def _missing(directory: Path, root: Path, known: set[str], studies: set[str]) -> Iterator[Problem]:
    """One problem for each study of a DICOMDIR of which images are not there (PS3.3 F.3.2.2).

    Adds them to `known`: a second DICOMDIR beside it need not say it again."""
    absent: dict[str, list[str]] = {}
    try:
        for study_uid, sop_instance_uid, name in _referenced(directory):
            if sop_instance_uid not in known:
                known.add(sop_instance_uid)
                absent.setdefault(study_uid, []).append(name)
    except (OSError, *MALFORMED) as error:
        yield Problem(_why_not(error, _shown(directory, root)), directory.parent)
    for study_uid, names in absent.items():
        code = "MISSING_FILE" if study_uid in studies else "MISSING_STUDY"
        words = (
            f"{_shown(directory, root)} names {len(names)} images of "
            f"{'the study' if study_uid in studies else 'another study'} that are not there, the first is "
            f"{names[0]}. Was the medium copied completely?"
        )
        yield Problem(Reason(code, words), directory.parent, study_uid)


def _referenced(directory: Path) -> Iterator[tuple[str, str, str]]:
    """(study UID, SOP instance UID, file ID) of each image that a DICOMDIR names."""
    with quiet_pydicom(), open_file(directory) as file:
        records = pydicom.dcmread(file).get("DirectoryRecordSequence") or ()
        study_uid = ""
        for record in records:
            kind = str(record.get("DirectoryRecordType", ""))
            if kind == "STUDY":
                study_uid = str(record.get("StudyInstanceUID", ""))
            uid = str(record.get("ReferencedSOPInstanceUIDInFile", ""))
            if kind in _IMAGE_RECORDS and uid:
                file_id = record.get("ReferencedFileID") or ()
                parts = [file_id] if isinstance(file_id, str) else file_id
                yield study_uid, uid, _printable("/".join(map(str, parts)))


def _shown(path: Path, root: Path) -> str:
    """The path below the root, on one line whatever a file name contains."""
    relative = path.name if path == root else os.path.relpath(path, root)
    return _printable(os.fsencode(relative).decode("utf-8", "backslashreplace"))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
