"""Seed -> a Draft of a phantom's truth about images that are written to a folder: no network, no voxels.

What a model would have said had it been right, in either language, of either examination; the images are
small, empty and sound, so that documents about them can be checked against real headers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from dicom_series import CT_CLASS, MR_CLASS, save
from pydicom.dataset import Dataset

from mla_med.documents.envelope import uid_of
from mla_med.phantom.examine import Examined, examine
from mla_med.phantom.sites import SITES
from mla_med.report.render import render_report
from mla_med.report.style import load_style
from mla_med.types import (
    Box,
    Certificate,
    Comparison,
    Draft,
    Evidence,
    Finding,
    Gate,
    HeatCell,
    Instance,
    Presence,
    Prior,
    Provenance,
    Reason,
    Series,
    SeriesVerdict,
)

SHAPE, SPACING_MM = (32, 32, 24), (14.0, 14.0, 16.0)
WEIGHTS = "8f3a" * 16
NAMES = {"en": "Phantom^Ada^^Dr", "zh": "Zhang^San=张^三", "both": "Müller^Jürgen=穆勒^于尔根"}
CLASSES = {"chest_ct": CT_CLASS, "brain_mr": MR_CLASS}


@cache
def truth(seed: int) -> Examined:
    """Even seeds are chests, odd ones heads; of four that follow each other two are in Chinese."""
    examination = ("chest_ct", "brain_mr")[seed % 2]
    site = SITES["ab"[seed // 2 % 2]]
    return examine(seed, examination, site, prior_share=0.4)


def phantom_draft(seed: int, folder: Path) -> Draft:
    """Every tenth is a refusal."""
    examined = truth(seed)
    series = write_images(seed, examined, folder)
    verdicts = (
        SeriesVerdict(series, certificate(), None, chosen=True, why="the only one"),
        SeriesVerdict(
            replace(series, series_uid=uid(seed, "scout"), description="Topogram", instances=()),
            None,
            Reason("LOCALIZER", "A localizer; it has no volume."),
        ),
    )
    provenance = Provenance(
        "mla-phantom",
        "0.1.0",
        WEIGHTS,
        uid(seed, "study"),
        (series.series_uid,),
        "2026-11-05T09:30:12+00:00",
        "20261105",
    )
    if seed % 10 == 9:
        reasons = (
            Reason("BODY_PART_UNKNOWN", "The images are of a foot; this model drafts other regions."),
            Reason("SLICE_GAP", "202.50 mm are missing after slice 1 of 24. Send the series again."),
        )
        unchosen = tuple(replace(v, chosen=False) for v in verdicts)
        return Draft(None, Gate(False, reasons), unchosen, {}, replace(provenance, series_uids=()))
    return Draft(
        report=report_of(examined, series),
        gate=Gate(True, scores={"histogram_distance": 0.07}),
        verdicts=verdicts,
        modal_weights={"image": 0.7, "clinical context": 0.3},
        provenance=provenance,
        prior=prior_of(seed, examined),
    )


def report_of(examined: Examined, series: Series):
    rng = np.random.default_rng([examined.patient.seed, 7])
    boxes = {lesion.finding.code: lesion.box_mm for lesion in examined.lesions}
    findings = [_seen(f, boxes.get(f.code), series, rng) for f in examined.findings]
    style = load_style(examined.site.style, examined.site.language)
    report = render_report(findings, style, examined.examination, examined.technique)
    answered = tuple(
        f if f.confidence is not None else replace(f, confidence=round(float(rng.uniform(0.7, 1)), 4))
        for f in report.findings
    )
    return replace(report, findings=answered)


def _seen(finding: Finding, box: Box | None, series: Series, rng: np.random.Generator) -> Finding:
    finding = replace(finding, confidence=round(float(rng.uniform(0.5, 1)), 4))
    if box is None or finding.presence is not Presence.PRESENT:
        return finding
    heights = np.arange(SHAPE[2]) * SPACING_MM[2] + affine()[2, 3]
    inside = [k for k, z in enumerate(heights) if box[0][2] - 8 <= z <= box[1][2] + 8]
    nearest = int(np.abs(heights - (box[0][2] + box[1][2]) / 2).argmin())
    cited = tuple(series.instances[k].sop_instance_uid for k in [nearest, *inside][:4])
    return replace(finding, evidence=Evidence(tuple(dict.fromkeys(cited)), box, 1.2, 0.9, heat_of(box)))


def heat_of(box: Box) -> tuple[HeatCell, ...]:
    """Two cells of 30 mm about the lesion's centre."""
    centre = np.mean(box, axis=0)
    low, high = centre - 30, centre + 30
    return (
        HeatCell((tuple(low.tolist()), tuple(centre.tolist())), 1.0),
        HeatCell((tuple(centre.tolist()), tuple(high.tolist())), 0.4),
    )


def prior_of(seed: int, examined: Examined) -> Prior | None:
    if not any(f.change for f in examined.findings):
        return None
    instances = tuple(
        Instance(uid(seed, f"prior {k}"), CLASSES[examined.examination], Path("gone")) for k in range(3)
    )
    series = Series(uid(seed, "prior series"), "CT", "", "", ("ORIGINAL", "PRIMARY"), instances)
    compared = tuple(
        Comparison(f.code, f.change, "measured in both") for f in examined.findings if f.change is not None
    )
    return Prior(uid(seed, "prior study"), "20251105", (series,), compared)


def affine() -> np.ndarray:
    matrix = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    matrix[:3, 3] = [s * (n - 1) / 2 for s, n in zip(SPACING_MM, SHAPE, strict=True)]
    matrix[2, 3] *= -1
    return matrix


def certificate() -> Certificate:
    return Certificate(
        SHAPE,
        SPACING_MM,
        tuple(tuple(row) for row in affine().tolist()),
        "axial",
        0.0,
        0.0,
        0,
        "slope 1, intercept -1024",
        "1.2.840.10008.1.2.1",
        False,
    )


def write_images(seed: int, examined: Examined, folder: Path) -> Series:
    modality = "CT" if examined.examination == "chest_ct" else "MR"
    language = ("both", examined.site.language)[seed % 3 > 0]
    instances = []
    for k in range(SHAPE[2]):
        dataset = image(seed, k, modality, NAMES[language])
        path = folder / f"{seed}-{k:03d}.dcm"
        save(dataset, path)
        instances.append(Instance(dataset.SOPInstanceUID, dataset.SOPClassUID, path))
    return Series(
        uid(seed, "series"), modality, "Axial", "", ("ORIGINAL", "PRIMARY", "AXIAL"), tuple(instances)
    )


def image(seed: int, k: int, modality: str, name: str) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = {"CT": CT_CLASS, "MR": MR_CLASS}[modality]
    dataset.SOPInstanceUID = uid(seed, f"image {k}")
    dataset.StudyInstanceUID = uid(seed, "study")
    dataset.SeriesInstanceUID = uid(seed, "series")
    dataset.FrameOfReferenceUID = uid(seed, "frame")
    dataset.PositionReferenceIndicator = ""
    dataset.Modality = modality
    dataset.PatientName, dataset.PatientID = name, f"P-{seed:05d}"
    dataset.IssuerOfPatientID = "HOSPITAL" if seed % 2 else None
    dataset.PatientBirthDate, dataset.PatientSex = "19580317", "FM"[seed % 2]
    dataset.StudyDate = dataset.SeriesDate = "20261105"
    dataset.StudyTime = dataset.SeriesTime = "081500"
    dataset.StudyID, dataset.AccessionNumber = f"S{seed}", f"A{seed:06d}"
    dataset.StudyDescription = "Chest ± contrast" if modality == "CT" else "颅脑MR"
    dataset.ReferringPhysicianName = "Referrer^Rita"
    dataset.InstitutionName = "Phantom hospital"
    dataset.TimezoneOffsetFromUTC = "+0800"
    dataset.SeriesNumber, dataset.InstanceNumber = 2, k + 1
    dataset.ImagePositionPatient = [-affine()[0, 3], -affine()[1, 3], affine()[2, 3] + k * SPACING_MM[2]]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], SPACING_MM[2]
    dataset.Columns, dataset.Rows = SHAPE[:2]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = bytes(2 * SHAPE[0] * SHAPE[1])
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = f"R{seed}", "1"
    request.RequestedProcedureDescription = "Staging"
    dataset.RequestAttributesSequence = [request]
    return dataset


def uid(seed: int, what: str) -> str:
    return uid_of(b"phantom", str(seed).encode(), what.encode())
