"""Path -> every study under it, with a verdict on every series, as tables and as JSON.

Reads pixels only to certify them. Knows no model, and no torch is imported for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mla_med.dicom.examinations import Examination
from mla_med.dicom.select import choose_series, load_examinations
from mla_med.dicom.study import read_studies
from mla_med.dicom.volume import certify_pixels, describe
from mla_med.errors import SeriesError, StudyError
from mla_med.imaging.nifti import is_nifti, read_nifti
from mla_med.types import Certificate, ClinicalContext, Modality, Reason, SeriesVerdict, Study

Call = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Inspection:
    """One study and what can be read of it. A study without UID holds the files that belong to none."""

    study: Study
    verdicts: tuple[SeriesVerdict, ...]


def inspect_path(
    path: Path,
    examination: str,
    *,
    rules: Mapping[str, Examination] | None = None,
    pixels: bool = True,
    resample: bool = False,
    call: Call = lambda read, *args: read(*args),
    progress: Callable[[str], None] = lambda step: None,
) -> Iterator[Inspection]:
    """Studies one after another, as they are ready. StudyError if there is none at all.

    `pixels`: read every accepted series, so that its values are certified too. `call` runs the readers,
    here or in a child process with limits.
    """
    if is_nifti(path):
        yield _inspect_nifti(path, examination, rules, call)
        return
    progress("reading the headers")
    studies = call(read_studies, path)
    for number, study in enumerate(studies, 1):
        of = f" of study {number} of {len(studies)}" if len(studies) > 1 else ""
        progress("choosing the series" + of)
        verdicts = list(call(choose_series, study, examination, rules, resample))
        for k, verdict in enumerate(verdicts):
            if pixels and verdict.certificate is not None:
                progress(f"reading series {k + 1} of {len(verdicts)}{of}")
                verdicts[k] = _certified(verdict, call, resample)
        yield Inspection(study, tuple(verdicts))


def inspection_to_json(inspection: Inspection) -> dict[str, Any]:
    """One study of `inspect --json`: plain values, units in the names."""
    study = inspection.study
    return {
        "study_uid": study.study_uid,
        "study_date": study.study_date,
        "description": study.description,
        "context": asdict(study.context),
        "series": [_series_to_json(verdict) for verdict in inspection.verdicts],
        "problems": [asdict(problem) for problem in study.problems],
    }


def words_of(verdict: SeriesVerdict) -> str:
    """What became of a series, and why."""
    if verdict.chosen:
        return f"chosen{' as ' + verdict.role if verdict.role else ''}: {verdict.why}".rstrip(": ")
    return f"{verdict.reason.code}: {verdict.reason.words}" if verdict.reason else "accepted"


def facts_of(certificate: Certificate) -> str:
    """A certificate in a line: what a person looks at first."""
    shown = {True: "contrast medium", False: "no contrast medium", None: ""}
    facts = [
        certificate.orientation,
        f"tilt {certificate.tilt_deg:.1f}°" if certificate.tilt_deg else "",
        f"uneven by {100 * certificate.largest_spacing_error:.2g} %"
        if certificate.largest_spacing_error > 1e-3
        else "",
        f"{certificate.duplicates_dropped} duplicates dropped" if certificate.duplicates_dropped else "",
        "lossy" if certificate.lossy else "",
        f"air {certificate.air_hu:.0f} HU" if certificate.air_hu is not None else "",
        certificate.body_part_pixels or certificate.body_part_header,
        shown[
            certificate.contrast_header
            if certificate.contrast_pixels is None
            else certificate.contrast_pixels
        ],
    ]
    return ", ".join(fact for fact in facts if fact)


def _certified(verdict: SeriesVerdict, call: Call, resample: bool) -> SeriesVerdict:
    """With the certificate of its pixels, or refused for what they are."""
    try:
        return replace(verdict, certificate=call(certify_pixels, verdict.series, resample))
    except (SeriesError, StudyError) as error:
        reason = Reason(error.code, str(error))
        return replace(verdict, certificate=None, reason=reason, chosen=False, role="", why="")


def _inspect_nifti(path: Path, examination: str, rules, call: Call) -> Inspection:
    known = rules or load_examinations()
    modality = known[examination].modality if examination in known else Modality.CT
    try:
        volume = describe(call(read_nifti, path, modality))
    except SeriesError as error:
        raise StudyError(str(error), code=error.code) from error
    study = Study(volume.series.series_uid, "", "", ClinicalContext(), (volume.series,))
    why = f"the one volume of a NIfTI file, taken for {modality}"
    return Inspection(study, (SeriesVerdict(volume.series, volume.certificate, None, chosen=True, why=why),))


def _series_to_json(verdict: SeriesVerdict) -> dict[str, Any]:
    series = verdict.series
    return {
        "series_uid": series.series_uid,
        "part": series.part,
        "modality": series.modality,
        "description": series.description,
        "instances": len(series.instances),
        "accepted": verdict.accepted,
        "chosen": verdict.chosen,
        "role": verdict.role,
        "why": verdict.why,
        "reason": None if verdict.reason is None else asdict(verdict.reason),
        "certificate": None if verdict.certificate is None else asdict(verdict.certificate),
    }
