"""Path -> Study: which series are there, and what the request said. Headers only.

Several studies in one tree become several nouns; what is wrong with one of them is said of that one
alone. Knows nothing of pixels, and keeps no name, patient ID or birth date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mla_med.dicom.context import PriorReport, read_prior, read_request, without_identity
from mla_med.dicom.group import group_series
from mla_med.dicom.header import Header
from mla_med.dicom.source import DAMAGE, Problem, find_headers
from mla_med.errors import StudyError
from mla_med.types import ClinicalContext, Reason, Study

DOCUMENTS = frozenset(("SR", "KO", "PR", "DOC"))
Progress = Callable[[int], None]


def read_study(path: Path, progress: Progress = lambda files: None) -> Study:
    """The one study under `path`: a folder of any depth, a DICOMDIR, a ZIP archive or a file.

    StudyError if there is none (NO_DICOM, PATH_MISSING), more than one (SEVERAL_STUDIES), or if it
    holds two patients (MIXED_PATIENTS)."""
    path = Path(path)
    studies = read_studies(path, progress)
    known = [study for study in studies if study.study_uid]
    if len(known) > 1:
        uids = [study.study_uid for study in known]
        shown = ", ".join(uids[:5]) + (", ..." if len(uids) > 5 else "")
        raise StudyError(
            f"{path} holds {len(uids)} studies ({shown}). Give the folder of one of them.",
            code="SEVERAL_STUDIES",
        )
    study = only_study(studies)
    mixed = next((p for p in study.problems if p.code == "MIXED_PATIENTS"), None)
    if mixed:
        raise StudyError(mixed.words, code=mixed.code)
    return study


def only_study(studies: Sequence[Study]) -> Study:
    """The one with a UID, together with the problems of files that belong to none: with one study there
    is no doubt to whom they belong."""
    (study,) = (study for study in studies if study.study_uid)
    rest = tuple(problem for other in studies if not other.study_uid for problem in other.problems)
    return replace(study, problems=(*study.problems, *rest))


def read_studies(path: Path, progress: Progress = lambda files: None) -> tuple[Study, ...]:
    """Every study under `path`, by UID. StudyError with NO_DICOM if there is none.

    What could not be read and belongs to none of them comes last, as a Study without UID and series. A
    study that must not be used has no series and a problem."""
    headers, problems = find_headers(Path(path), progress)
    by_uid: dict[str, list[Header]] = {}
    for header in headers:
        by_uid.setdefault(header.study_uid, []).append(header)
    priors = {uid: group for uid, group in by_uid.items() if _is_prior(group, headers)}
    documents = [header for group in priors.values() for header in group]
    owned, rest = _owned(problems, {uid: group for uid, group in by_uid.items() if uid not in priors})
    studies = [
        _to_study(uid, group, documents, owned.get(uid, []))
        for uid, group in sorted(by_uid.items())
        if uid not in priors
    ]
    if not studies:
        raise _no_dicom(Path(path), rest)
    return tuple(studies) + ((_leftover(rest),) if rest else ())


def check_whole(study: Study) -> None:
    """StudyError if it must not be used, or if what cannot be read may be a slice of it: a stack without
    its last slice looks whole."""
    mixed = next((p for p in study.problems if p.code == "MIXED_PATIENTS"), None)
    if mixed:
        raise StudyError(mixed.words, code=mixed.code)
    damaged = [problem for problem in study.problems if problem.code in DAMAGE]
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise StudyError(
            f"A file of this study is damaged{more}: {damaged[0].words} Send or copy the study again.",
            code="DAMAGED_FILE",
        )


def _is_prior(group: Sequence[Header], headers: Sequence[Header]) -> bool:
    """Reports alone, of a patient of whom there are images from another study."""
    if any(header.modality not in DOCUMENTS for header in group):
        return False
    patient, uid = group[0].patient_hash, group[0].study_uid
    return patient is not None and any(
        h.patient_hash == patient and h.study_uid != uid and h.modality not in DOCUMENTS for h in headers
    )


def _owned(
    problems: Sequence[Problem], by_uid: dict[str, list[Header]]
) -> tuple[dict[str, list[Reason]], list[Reason]]:
    """Problems by study: of the one that the file names, else of those with images in its folder."""
    owned: dict[str, list[Reason]] = {}
    rest: list[Reason] = []
    folders = {uid: {header.path.parent for header in group} for uid, group in by_uid.items()}
    for problem in problems:
        if problem.study_uid in by_uid:
            owners = [problem.study_uid]
        elif problem.study_uid:
            owners = []
        else:
            owners = [uid for uid, places in folders.items() if problem.folder in places]
        for uid in owners:
            owned.setdefault(uid, []).append(problem.reason)
        if not owners:
            rest.append(problem.reason)
    return owned, rest


def _to_study(
    uid: str, headers: Sequence[Header], documents: Sequence[Header], problems: Sequence[Reason]
) -> Study:
    first = next((h for h in headers if h.modality in ("CT", "MR")), headers[0])
    request = read_request(first.path)
    if differ := _who_differ(headers):
        words = (
            f"Study {uid} carries {differ}. Was another patient's series filed with it? Correct it in the "
            "PACS and export it again."
        )
        return Study(uid, request.study_date, "", ClinicalContext(), (), (Reason("MIXED_PATIENTS", words),))
    prior, found = _prior(request.study_date, [h for h in documents if h.patient_hash == first.patient_hash])
    return Study(
        study_uid=uid,
        study_date=request.study_date,
        description=request.description,
        context=replace(request.context, prior=prior),
        series=tuple(
            replace(s, description=without_identity(s.description, request.identity))
            for s in group_series(headers)
        ),
        problems=(*problems, *found),
    )


def _who_differ(headers: Sequence[Header]) -> str:
    """In words, what says that these are of more than one patient; empty where nothing does."""
    stated = {header.patient_hash for header in headers} - {None}
    if len(stated) > 1:
        return f"{len(stated)} different patient IDs"
    images = [header for header in headers if header.modality in ("CT", "MR")]
    if len({header.person_hash for header in images} - {None}) > 1:
        return "different birth dates or sexes"
    # without an ID a file is nobody's, unless birth date and sex are those of the others
    known = {header.person_hash for header in images if header.patient_hash is not None} - {None}
    if stated and any(h.patient_hash is None and h.person_hash not in known for h in images):
        return "images with a patient ID beside images without one"
    return ""


def _prior(study_date: str, documents: Sequence[Header]) -> tuple[str, list[Reason]]:
    """The text of the newest report from before this study, and that it was taken."""
    reports = [report for h in documents if h.modality == "SR" and (report := read_prior(h.path))]
    earlier: list[PriorReport] = [r for r in reports if study_date and r.study_date < study_date]
    if not earlier:
        return "", []
    newest = max(earlier, key=lambda report: report.study_date)
    words = f"The report of {newest.study_date} that lies with the study was taken as its prior."
    return newest.text, [Reason("PRIOR_REPORT", words)]


def _leftover(problems: Sequence[Reason]) -> Study:
    return Study("", "", "", ClinicalContext(), (), tuple(problems))


def _no_dicom(path: Path, problems: Sequence[Reason]) -> StudyError:
    counts = Counter(problem.code for problem in problems)
    seen = ", ".join(f"{number} x {code}" for code, number in sorted(counts.items())) or "it is empty"
    refused = next((p for p in problems if p.code in DAMAGE), None)
    what = "is no DICOM file" if path.is_file() else f"holds no readable DICOM file ({seen})"
    if path.is_file() and refused:
        what = f"holds no readable DICOM file: {refused.words}"
        return StudyError(f"{path} {what}", code=refused.code)
    return StudyError(f"{path} {what}. Give the folder that holds the study's DICOM files.", code="NO_DICOM")
