"""A received study -> whether it is whole, or why that cannot be said.

Nothing in DICOM says that a study is finished. What is asked: two equal counts of the PACS some time
apart, as many files here, each to its last pixel, no gap between slices, no fewer images than the
scanner says it acquired.
What this cannot know: a study whose last slices never reached the PACS, from a scanner that does not
state how many there were; when they come, they make a revision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from mla_med.archive import open_file
from mla_med.dicom.certificate import certify
from mla_med.dicom.header import MALFORMED, quiet_pydicom
from mla_med.dicom.study import read_studies
from mla_med.errors import SeriesError, StudyError

GAPS = frozenset(("MISSING_SLICE", "TRUNCATED_PIXELS"))
"""Of a series that lacks something: another try may bring it."""
BAD = frozenset(("MIXED_PATIENTS", "TRUNCATED", "MALFORMED", "ARCHIVE_REFUSED"))
"""Problems of the reader that no waiting mends."""


@dataclass(frozen=True, slots=True)
class Received:
    """What lies in a folder, in counts and codes."""

    study_uids: tuple[str, ...]
    instances: int
    """Different SOP Instance UIDs."""
    acquired: int
    """Images in Acquisition (0020,1002), the largest that a file states; 0 where none does."""
    unreadable: int
    problems: tuple[str, ...]
    gaps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    state: str
    """READY, WAITING or QUARANTINED."""
    reason: str = ""


def look(folder: Path) -> Received:
    """To be called in a child process with limits: it parses what a stranger sent."""
    studies: dict[str, None] = {}
    instances: set[str] = set()
    acquired = unreadable = 0
    tags = ["StudyInstanceUID", "SOPInstanceUID", "ImagesInAcquisition"]
    for path in sorted(folder.iterdir()):
        try:
            with quiet_pydicom(), open_file(path) as file:
                header = dcmread(file, specific_tags=tags, stop_before_pixels=True)
                studies[str(header.get("StudyInstanceUID", ""))] = None
                instances.add(str(header.get("SOPInstanceUID", "")))
                acquired = max(acquired, int(header.get("ImagesInAcquisition") or 0))
        except (InvalidDicomError, OSError, *MALFORMED):
            unreadable += 1
    problems, gaps = _problems(folder)
    return Received(tuple(studies), len(instances), acquired, unreadable, problems, gaps)


def _problems(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        studies = read_studies(folder)
    except StudyError as error:
        return (error.code,), ()
    gaps: dict[str, None] = {}
    for series in (series for study in studies for series in study.series):
        try:
            certify(series)
        except SeriesError as error:
            # a localizer or a screen capture is refused too, and lacks nothing
            gaps |= {error.code: None} if error.code in GAPS else {}
    codes = (problem.code for study in studies for problem in study.problems)
    return tuple(dict.fromkeys(codes)), tuple(gaps)


def judge(received: Received, study_uid: str, counted: int) -> Verdict:
    """`counted`: by the PACS, twice."""
    if received.study_uids and received.study_uids != (study_uid,):
        return Verdict("QUARANTINED", "OTHER_STUDY")
    for code in received.problems:
        if code in BAD:
            return Verdict("QUARANTINED", code)
    if received.unreadable:
        return Verdict("QUARANTINED", "UNREADABLE")
    if received.instances != counted:
        return Verdict("WAITING", "COUNT_DIFFERS")
    if received.gaps:
        return Verdict("WAITING", received.gaps[0])
    if received.acquired > received.instances:
        return Verdict("WAITING", "FEWER_THAN_ACQUIRED")
    return Verdict("READY")
