"""Findings of two examinations of one patient -> what has changed, by measurement.

The two lie in different frames of reference, so places are compared relative to the box around the lungs.
A change is stated only where it is larger than what two measurements of the same lesion differ by; without
a prior nothing here is called, and no finding states a change. Knows nothing of networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from mla_med.archive import is_file, open_file
from mla_med.dicom.header import quiet_pydicom
from mla_med.dicom.study import read_study
from mla_med.documents.json import draft_from_json
from mla_med.errors import StudyError
from mla_med.imaging.grid import inside_body
from mla_med.imaging.lungs import MIN_LUNG_SHARE, lung_mask
from mla_med.report.schema import Schema, schema_of
from mla_med.types import Box, Change, Comparison, Draft, Finding, Presence, Prior, Side, Study

LEAST_MM = 2.0
"""A smaller difference of diameters is no change: below it, manual and automatic measurements of nodules
cannot be told from their own error (Bankier et al., Radiology 2017;285:584, recommendations of the
Fleischner Society on measuring nodules, for the guideline of MacMahon et al., Radiology 2017;284:228)."""
LEAST_VOLUME = 0.25
"""Nor is a smaller share of the volume, here that of a ball of this diameter: the limit of growth in the
NELSON trial (van Klaveren et al., N Engl J Med 2009;361:2221) and of the British Thoracic Society (Callister
et al., Thorax 2015;70 Suppl 2:ii1)."""
MATCH_MM = 40.0
"""Further apart, in lungs of the size of the current ones, are two lesions: evidence is known to a cell of
24 mm, and another breath moves what lies above the diaphragm by a few centimetres."""
GROWS_INTO = ("lung_nodule", "lung_mass")
"""One lesion, by its size: over 30 mm it is a mass (Hansell et al., Radiology 2008;246:697)."""
REGION_MM = 3.0


@dataclass(frozen=True, slots=True)
class Examined:
    """One examination as far as it is compared."""

    findings: tuple[Finding, ...]
    region_mm: Box
    """The box around the lungs in patient RAS mm."""


def compare_findings(
    current: Examined,
    prior: Examined,
    repeat_mm: Mapping[str, float] | None = None,
    examination: str = "chest_ct",
    every_lesion: bool = False,
) -> tuple[tuple[Finding, ...], tuple[Comparison, ...]]:
    """The current findings, each with its change where one can be told, and how each was told; behind them
    what was there then and is not found now.

    `repeat_mm`: what two measurements of one lesion differ by, by code; of the size of a code that is not
    there no change is stated. None: sizes are true, as those of a phantom. `every_lesion`: the findings name
    every lesion of a code; otherwise only the foremost, and another place may be another lesion rather than
    a new one, of which nothing is said."""
    schema = schema_of(examination)
    pairs = dict(_pairs(current, prior, schema))
    # what goes by another name now has not gone
    renamed = {m for n, m in pairs.items() if current.findings[n].code != prior.findings[m].code}
    findings, comparisons = [], []
    for n, finding in enumerate(current.findings):
        assert finding.change is None
        before = [f for m, f in enumerate(prior.findings) if f.code == finding.code and m not in renamed]
        partner = prior.findings[pairs[n]] if n in pairs else None
        compared = _compare(finding, partner, before, repeat_mm, every_lesion, schema)
        findings.append(finding if compared is None else replace(finding, change=compared.change))
        comparisons += [] if compared is None else [_told_of(compared, finding)]
    comparisons += _left_behind(current, prior, pairs)
    return tuple(findings), tuple(comparisons)


def change_of_size(
    size_mm: float, before_mm: float, repeat_mm: float | None = LEAST_MM
) -> tuple[Change | None, str]:
    """Whether a diameter has changed, and why, in words. `repeat_mm` None: nobody knows how well such sizes
    are repeated, and nothing is said of them."""
    difference, volume = size_mm - before_mm, (size_mm / before_mm) ** 3 - 1
    words = (
        f"{before_mm:.4g} mm then, {size_mm:.4g} mm now ({difference:+.4g} mm, {100 * volume:+.0f} % volume)"
    )
    if repeat_mm is None:
        return None, f"{words}; by how much two measurements of one lesion differ is not known"
    apart = f"two measurements of one lesion differ by up to {repeat_mm:.1f} mm"
    if _is_small(difference, before_mm):
        # a growth that measurements would hide is not ruled out by them
        if repeat_mm > LEAST_MM and not _is_small(repeat_mm, before_mm):
            return None, f"{words}; {apart}"
        return Change.STABLE, f"{words}; under {LEAST_MM:g} mm or {100 * LEAST_VOLUME:.0f} % is no change"
    if abs(difference) <= max(repeat_mm, LEAST_MM):
        return None, f"{words}; {apart}"
    grown = Change.INCREASED if difference > 0 else Change.DECREASED
    return grown, f"{words}; more than the {max(repeat_mm, LEAST_MM):.1f} mm that measurements differ by"


def _is_small(difference_mm: float, before_mm: float) -> bool:
    volume = ((before_mm + difference_mm) / before_mm) ** 3 - 1
    return abs(difference_mm) < LEAST_MM or abs(volume) <= LEAST_VOLUME


def _compare(
    finding: Finding,
    partner: Finding | None,
    before: Sequence[Finding],
    repeat_mm: Mapping[str, float] | None,
    every_lesion: bool,
    schema: Schema,
) -> Comparison | None:
    """None where there is nothing to compare: absent then and now, or not looked for then."""
    code, was_present = finding.code, any(f.presence is Presence.PRESENT for f in before)
    match finding.presence:
        case Presence.ABSENT:
            return Comparison(code, Change.RESOLVED, "present then, absent now") if was_present else None
        case Presence.CANNOT_SAY:
            return Comparison(code, None, "present then; now it cannot be said") if was_present else None
    if partner is not None:
        if finding.size_mm and partner.size_mm:
            repeat = _repeat_of(finding, partner, repeat_mm)
            return Comparison(code, *change_of_size(finding.size_mm, partner.size_mm, repeat))
        return Comparison(code, None, "present then and now; its extent is not measured")
    if not before:
        return None
    if was_present and Side.BILATERAL in (finding.side, *(f.side for f in before)):
        return Comparison(code, None, "present then and now, but not on the same side")
    if was_present and not every_lesion:
        return Comparison(code, None, "present then at another place; which lesion is which cannot be told")
    if not was_present and any(f.presence is Presence.CANNOT_SAY for f in before):
        return Comparison(code, None, "present now; then it could not be said")
    words = "present now, elsewhere then" if was_present else "present now, absent then"
    return Comparison(code, Change.NEW, words)


def _told_of(compared: Comparison, finding: Finding) -> Comparison:
    return replace(compared, side=finding.side, site=finding.site, size_mm=finding.size_mm)


def _repeat_of(finding: Finding, partner: Finding, repeat_mm: Mapping[str, float] | None) -> float | None:
    """The larger of both, where a lesion goes by another name now."""
    if repeat_mm is None:
        return LEAST_MM
    each = [repeat_mm.get(code) for code in {finding.code, partner.code}]
    known = [repeat for repeat in each if repeat is not None]
    return max(known) if len(known) == len(each) else None


def _left_behind(current: Examined, prior: Examined, pairs: Mapping[int, int]) -> Iterator[Comparison]:
    """Lesions of then that no finding of now accounts for."""
    for code in dict.fromkeys(finding.code for finding in prior.findings):
        now = [n for n, f in enumerate(current.findings) if f.code == code]
        if any(current.findings[n].presence is not Presence.PRESENT for n in now):
            continue  # that finding speaks of all of them
        lost = [
            f
            for m, f in enumerate(prior.findings)
            if f.code == code and f.presence is Presence.PRESENT and m not in pairs.values()
        ]
        unpaired = sum(n not in pairs for n in now)
        for finding in lost if len(lost) > unpaired else ():
            size = f"{finding.size_mm:.4g} mm" if finding.size_mm else ""
            place = ", ".join(filter(None, (finding.side, (finding.site or "").replace("_", " "), size)))
            words = f"present then{place and f' ({place})'}; not stated there now"
            yield _told_of(Comparison(code, None, words), finding)


def _pairs(current: Examined, prior: Examined, schema: Schema) -> Iterator[tuple[int, int]]:
    """Present findings of one code, or of one that grows into the other, the nearest first, each once."""
    near = sorted(
        (distance, n, m)
        for n, now in enumerate(current.findings)
        for m, then in enumerate(prior.findings)
        if _is_one_kind(now.code, then.code)
        and now.presence is then.presence is Presence.PRESENT
        and (distance := _distance_mm(now, then, current, prior, schema)) <= MATCH_MM
    )
    taken_now: set[int] = set()
    taken_then: set[int] = set()
    for _, n, m in near:
        if n not in taken_now and m not in taken_then:
            taken_now.add(n)
            taken_then.add(m)
            yield n, m


def _is_one_kind(one: str, other: str) -> bool:
    return one == other or {one, other} == set(GROWS_INTO)


def _distance_mm(now: Finding, then: Finding, current: Examined, prior: Examined, schema: Schema) -> float:
    """Between two findings, in lungs of the size of the current ones. What there can be one of is always
    itself; of others the side decides, and without evidence the site."""
    if not schema[now.code].repeats:
        return 0.0
    if now.side is not then.side:
        return float("inf")
    if now.side is Side.BILATERAL:
        return 0.0  # its evidence is the stronger side, which may be another
    if now.evidence is None or then.evidence is None:
        return 0.0 if now.site == then.site else float("inf")
    low, high = np.array(current.region_mm)
    places = [
        relative_place(f.evidence.box_mm, examined.region_mm)
        for f, examined in ((now, current), (then, prior))
        if f.evidence
    ]
    return float(np.linalg.norm((places[0] - places[1]) * (high - low)))


def relative_place(box_mm: Box, region_mm: Box) -> np.ndarray:
    """The middle of a box, 0 at the lower and 1 at the upper end of the region along each axis."""
    low, high = np.array(region_mm)
    return (np.mean(box_mm, axis=0) - low) / np.maximum(high - low, 1.0)


def thinned(image_CIJK: Any, affine: np.ndarray) -> tuple[Any, np.ndarray]:
    """Every so many voxels of an image and their affine, at most REGION_MM apart: enough for the box around
    an organ."""
    steps = [max(1, int(REGION_MM / s + 1e-3)) for s in np.linalg.norm(affine[:3, :3], axis=0)]
    i, j, k = (slice(None, None, step) for step in steps)
    return image_CIJK[:, i, j, k], affine @ np.diag([*steps, 1])


def lung_region(hu_IJK: np.ndarray, affine: np.ndarray) -> Box:
    """The box around the lungs, or around the whole body where there are none, in patient RAS mm. Half a
    per cent of the voxels is left out at each end: gas in the bowel, and noise."""
    inside = lung_mask(hu_IJK)
    if inside.mean() < MIN_LUNG_SHARE:
        inside = inside_body(hu_IJK)
    if not inside.any():
        inside = np.ones_like(inside)
    places = np.argwhere(inside) @ np.asarray(affine, float)[:3, :3].T + np.asarray(affine, float)[:3, 3]
    low, high = np.quantile(places, (0.005, 0.995), axis=0).round(1)
    return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))


def head_region(head_IJK: np.ndarray, affine: np.ndarray) -> Box:
    """The box around the head in patient RAS mm, as far down as the grid reaches."""
    places = np.argwhere(head_IJK) @ np.asarray(affine, float)[:3, :3].T + np.asarray(affine, float)[:3, 3]
    low, high = np.quantile(places, (0.005, 0.995), axis=0).round(1)
    return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))


# The earlier examination


def compare_drafts(
    findings: tuple[Finding, ...], region_mm: Box, prior: Draft, repeat_mm: Mapping[str, float]
) -> tuple[tuple[Finding, ...], Prior]:
    """The current findings with their changes, and what they were compared with."""
    assert prior.report is not None
    assert prior.region_mm is not None
    before = tuple(replace(f, change=None) for f in prior.report.findings)
    changed, comparisons = compare_findings(
        Examined(findings, region_mm), Examined(before, prior.region_mm), repeat_mm, prior.report.examination
    )
    series = tuple(v.series for v in prior.verdicts if v.chosen)
    provenance = prior.provenance
    return changed, Prior(provenance.study_uid, provenance.study_date, series, comparisons)


def why_not(prior: Draft, weights_sha256: str) -> str:
    """In words, why nothing can be compared with this draft; empty where it can."""
    if prior.report is None:
        reasons = ", ".join(r.code for r in prior.gate.reasons)
        return f"The prior examination was not compared: this model does not draft it ({reasons})."
    if prior.provenance.weights_sha256 != weights_sha256:
        return (
            "The prior examination was not compared: its draft was made by another model, whose "
            "measurements differ. Give its images instead."
        )
    if prior.region_mm is None:
        return "The prior examination was not compared: its draft does not say where its lungs lie."
    return ""


def read_prior(path: Path, study: Study, read: Callable[[Path], Study] = read_study) -> Study | Draft:
    """A study, or the draft.json of one (or the folder that it lies in), of the same patient as `study`.
    `read` reads a study, here or in a child process.

    StudyError where it is another patient's, or where nothing says whose it is: a draft.json names
    nobody, the draft.dcm beside it does."""
    file = path / "draft.json" if (path / "draft.json").is_file() else path
    if file.suffix != ".json":
        earlier = read(path)
        check_prior(study, earlier.study_uid, earlier.study_date, _image_of(earlier))
        return earlier
    try:
        draft = draft_from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StudyError(
            f"The prior draft {file} cannot be read: {error}.", code="PRIOR_UNREADABLE"
        ) from error
    provenance, report = draft.provenance, file.with_name("draft.dcm")
    if (uid := _study_of(report)) and uid != provenance.study_uid:
        raise StudyError(
            "The draft.json and the draft.dcm beside it are of two studies. Keep those of one together.",
            code="PRIOR_OF_UNKNOWN",
        )
    check_prior(study, provenance.study_uid, provenance.study_date, report)
    return draft


def check_prior(study: Study, study_uid: str, study_date: str, image: Path | None) -> None:
    """StudyError unless this is an earlier examination of the same patient. `image`: a DICOM object of it."""
    if study_uid == study.study_uid:
        raise StudyError("The prior is the study itself. Give an earlier one.", code="PRIOR_IS_SAME")
    if study_date and study.study_date and study_date > study.study_date:
        raise StudyError(
            f"The prior is of {study_date}, the study of {study.study_date}. Exchange them.",
            code="PRIOR_IS_LATER",
        )
    now, then = _patient(_image_of(study)), _patient(image)
    if now is None or then is None:
        raise StudyError(
            "Nothing says that the prior is of the same patient: a patient ID is missing, or the draft.dcm "
            "that belongs to a draft.json. Give the study as it came from the archive.",
            code="PRIOR_OF_UNKNOWN",
        )
    if now != then:
        raise StudyError(
            "The prior is of another patient: the patient IDs differ. Give an examination of the same one.",
            code="PRIOR_OF_OTHER_PATIENT",
        )


def _image_of(study: Study) -> Path | None:
    return next((i.path for s in study.series for i in s.instances), None)


def _study_of(path: Path) -> str:
    header = _header(path, "StudyInstanceUID")
    return "" if header is None else str(header.get("StudyInstanceUID") or "")


def _patient(path: Path | None) -> tuple[str, str] | None:
    """Patient ID and its issuer, read at this moment and kept nowhere; None where there is none."""
    header = None if path is None else _header(path, "PatientID", "IssuerOfPatientID")
    if header is None:
        return None
    patient = str(header.get("PatientID") or "").strip()
    return (patient, str(header.get("IssuerOfPatientID") or "").strip()) if patient else None


def _header(path: Path, *keywords: str) -> pydicom.Dataset | None:
    if not is_file(path):
        return None
    try:
        with quiet_pydicom(), open_file(path) as file:
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(keywords), force=True)
    except (OSError, InvalidDicomError):
        return None
