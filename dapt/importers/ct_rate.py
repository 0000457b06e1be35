"""CT-RATE as it is published -> Pairs: volumes in NIfTI, reports, 18 labels, the table of DICOM attributes.

    valid/valid_1/valid_1_a/valid_1_a_1.nii.gz    patient, study, reconstruction; anywhere under the source
    *.csv                                         told apart by their columns:
      VolumeName, ClinicalInformation_EN, Technique_EN, Findings_EN, Impressions_EN
      VolumeName, Medical material, Arterial wall calcification, ...
      VolumeName, RescaleSlope, RescaleIntercept, XYSpacing, ZSpacing, PatientAge, PatientSex, ...
      AccessionNo, report_text, and the labels      (texts of the text classifier, without volumes)
    no_chest_*.txt                                names of volumes that show no chest

Version 2 of the volumes is in HU while its table still lists the slope and intercept of the DICOM files; a
script that applies them again makes air -2024 HU (CT-CLIP, issue 50). So the table decides nothing:
`placing.py` looks at the values. CT-RATE: Hamamci et al., 2024 (arXiv 2403.17834). Knows no pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dapt.importers.pair import Hide, ImageSource, Imported, Pair, Refused, Rescale, lay_out
from dapt.importers.tables import age_years, patient_context, read_rows
from mla_med.errors import ReportError, StudyError
from mla_med.report.schema import CHEST_CT
from mla_med.types import Finding

_VOLUME = re.compile(r"((train|valid)_\d+)(?:_([a-z]+)(?:_(\d+))?)?(?:\.nii(?:\.gz)?)?")
LABELS = {kind.label: code for code, kind in CHEST_CT.items() if kind.label}
SPLIT = {"train": "train", "valid": "validation"}
"""CT-RATE has no third part; what the field reports is measured on the second."""

Row = Mapping[str, Any]


@dataclass
class _Tables:
    """Rows by the name of their volume, without its suffix."""

    reports: dict[str, Row] = field(default_factory=dict)
    labels: dict[str, Row] = field(default_factory=dict)
    attributes: dict[str, Row] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    not_chest: set[str] = field(default_factory=set)


def read_ct_rate(source: Path, hide: Hide, values: str = "detect") -> Imported:
    """A pair for each volume, and for each report without one. `values`: what files hold, hu or stored."""
    tables, volumes = _read_tables(source), _find_volumes(source)
    names = dict.fromkeys(sorted({*volumes, *tables.reports}, key=_order))
    if not names:
        raise StudyError(
            f"No CT-RATE at {source}: neither volumes like valid_1_a_1.nii.gz nor a CSV with VolumeName and "
            "Findings_EN.",
            code="SOURCE_DIFFERS",
        )
    for name in names:
        yield _to_pair(name, volumes.get(name), tables, hide, values)


def _to_pair(name: str, path: Path | None, tables: _Tables, hide: Hide, values: str) -> Pair | Refused:
    match = _VOLUME.fullmatch(name)
    key, place = hide("e", "ct-rate", name), tables.places.get(name, "volume without a row")
    files = () if path is None else (path,)
    if match is None:
        return Refused(key, "NAME_UNKNOWN", f"{place}: not named as a volume of CT-RATE.", place, files)
    if name in tables.not_chest:
        return Refused(key, "NOT_CHEST", "CT-RATE lists it as not of the chest.", place, files)
    row, attributes = tables.reports.get(name, {}), tables.attributes.get(name, {})
    report = _report(row)
    if path is None and not report:
        return Refused(key, "PAIR_EMPTY", f"{place}: neither a volume nor a report.", place)
    try:
        image = (
            None
            if path is None
            else ImageSource(
                {"": path}, rescale=_rescale(attributes, values), spacing_mm=_spacing_mm(attributes)
            )
        )
        age = age_years(str(attributes.get("PatientAge") or ""), place)
    except ReportError as error:
        return Refused(key, error.code, str(error), place, files)
    labels = tables.labels.get(name)
    return Pair(
        key=key,
        patient=hide.person("ct-rate", match[1]),
        study=hide("s", "ct-rate", f"{match[1]}_{match[3] or ''}"),
        image=image,
        context=patient_context(
            age, str(attributes.get("PatientSex") or ""), str(row.get("ClinicalInformation_EN") or "")
        ),
        report=report or None,
        findings=None if labels is None else _findings(labels),
        known=None if labels is None else tuple(c for label, c in LABELS.items() if label in labels),
        split=SPLIT[match[2]],
        place=place,
    )


def _report(row: Row) -> str:
    if "report_text" in row:
        # the findings, two quotation marks, the impression
        findings, _, impression = str(row["report_text"]).strip().strip('"').partition('"')
        return lay_out(findings, impression.strip(' "'), "en")
    return lay_out(str(row.get("Findings_EN") or ""), str(row.get("Impressions_EN") or ""), "en")


def _findings(labels: Row) -> tuple[Finding, ...]:
    stated = {code: str(labels[label]).strip() for label, code in LABELS.items() if label in labels}
    return tuple(Finding(code) for code, value in stated.items() if value in ("1", "1.0"))


def _rescale(attributes: Row, values: str) -> Rescale | None:
    if not attributes and values == "detect":
        return None
    slope, intercept = (_number(attributes.get(f"Rescale{name}")) for name in ("Slope", "Intercept"))
    if slope is None or intercept is None:
        if values == "stored":
            raise ReportError(
                "No RescaleSlope and RescaleIntercept for this volume: stored values cannot become HU. "
                "Add the table of metadata.",
                code="RESCALE_UNKNOWN",
            )
        slope, intercept = 1.0, 0.0
    return Rescale(slope, intercept, values)


def _spacing_mm(attributes: Row) -> tuple[float, float, float] | None:
    """XYSpacing is written [0.7, 0.7]."""
    plane = [_number(text) for text in re.findall(r"[\d.]+", str(attributes.get("XYSpacing") or ""))]
    along = _number(attributes.get("ZSpacing"))
    if len(plane) != 2 or plane[0] is None or plane[1] is None or along is None:
        return None
    return plane[0], plane[1], along


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _read_tables(source: Path) -> _Tables:
    tables = _Tables()
    paths = [source] if source.is_file() else sorted(source.rglob("*.csv"))
    for path in paths:
        for row, place in read_rows(path):
            name = _stem(str(row.get("VolumeName") or row.get("AccessionNo") or ""))
            if not name:
                break  # a table of something else
            if "Findings_EN" in row or "report_text" in row:
                tables.reports[name] = row
                tables.places[name] = place
            if any(label in row for label in LABELS):
                tables.labels[name] = row
            if "RescaleSlope" in row or "ZSpacing" in row:
                tables.attributes[name] = row
    for path in sorted(source.rglob("no_chest*.txt")) if source.is_dir() else ():
        tables.not_chest |= {_stem(Path(line).name) for line in path.read_text(encoding="utf-8").split()}
    return tables


def _find_volumes(source: Path) -> dict[str, Path]:
    if not source.is_dir():
        return {}
    found = (path for pattern in ("*.nii.gz", "*.nii") for path in sorted(source.rglob(pattern)))
    return {_stem(path.name): path for path in found if _VOLUME.fullmatch(path.name)}


def _stem(name: str) -> str:
    return name.strip().removesuffix(".gz").removesuffix(".nii")


def _order(name: str) -> tuple[str | int, ...]:
    """valid_2 stands before valid_10."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
