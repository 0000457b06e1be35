"""Seed -> Phantom: a person, what was planted, the request and the report; as arrays or as DICOM."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mla_med.errors import OutputError
from mla_med.phantom.plain.anatomy import Grid, Person, make_person
from mla_med.phantom.plain.lesions import PREVALENCE, Lesion, choose_codes, plant
from mla_med.phantom.plain.scanner import Scan, random_scan, scan_person, write_series
from mla_med.report.render import render_report
from mla_med.types import ClinicalContext, Report

_INDICATIONS = {
    "lung_nodule": "follow-up of a pulmonary nodule",
    "lung_mass": "weight loss and haemoptysis",
    "consolidation": "fever and cough",
    "ground_glass_opacity": "dry cough and dyspnoea",
    "emphysema": "chronic obstructive pulmonary disease, smoker",
    "pleural_effusion": "dyspnoea, dullness at the lung bases",
    "pneumothorax": "sudden chest pain",
    "cardiomegaly": "heart failure",
    "pericardial_effusion": "chest pain, low voltage in the ECG",
    "coronary_calcification": "cardiovascular risk assessment",
    "aortic_aneurysm": "dilated aorta on echocardiography",
    "hiatal_hernia": "reflux disease",
}
_GENERAL = ("routine check", "cough", "chest pain", "preoperative assessment", "staging")


@dataclass(frozen=True, slots=True)
class Phantom:
    """A patient who does not exist, with the truth about them."""

    person: Person
    lesions: tuple[Lesion, ...]
    context: ClinicalContext
    report: Report

    @property
    def id(self) -> str:
        return f"phantom-{self.person.seed:06d}"


def make_phantom(seed: int, codes: tuple[str, ...] | None = None) -> Phantom:
    """`codes`: what to plant, keys of lesions.PREVALENCE; None lets the seed choose."""
    person = make_person(seed)
    rng = np.random.default_rng([seed, 5])
    chosen = choose_codes(rng) if codes is None else codes
    lesions = plant(person, chosen, rng)
    words = random.Random(f"report-{seed}")
    report = render_report([lesion.finding for lesion in lesions], rng=words, codes=tuple(PREVALENCE))
    # half of the requests know something, the others are general, as in life
    hints = [_INDICATIONS[code] for code in chosen]
    indication = words.choice(hints) if hints and words.random() < 0.5 else words.choice(_GENERAL)
    context = ClinicalContext(float(person.age_years), person.sex, indication)
    return Phantom(person, lesions, context, report)


def scan_phantom(
    phantom: Phantom, spacing_mm=(1.5, 1.5, 3.0), matrix: int = 256, noise: float = 1.0
) -> tuple[np.ndarray, Grid, Scan]:
    """-> HU int16 (I, J, K), its grid, and how it was scanned; `noise` scales the scanner's noise."""
    rng = np.random.default_rng([phantom.person.seed, 6])
    scan = random_scan(rng, spacing_mm, matrix)
    scan = replace(scan, noise_hu=scan.noise_hu * noise)
    hu, grid = scan_person(phantom.person, phantom.lesions, scan, rng)
    return hu, grid, scan


def truth_of(phantom: Phantom) -> dict:
    """What was planted, as JSON values: code, side, site, size, and the box in patient RAS mm."""
    return {
        "id": phantom.id,
        "findings": [
            {
                "code": lesion.finding.code,
                "side": lesion.finding.side,
                "site": lesion.finding.site,
                "size_mm": lesion.finding.size_mm,
                "box_mm": lesion.box_mm,
            }
            for lesion in phantom.lesions
        ],
    }


def write_phantom(phantom: Phantom, out: Path, spacing_mm=(1.5, 1.5, 3.0), matrix: int = 256) -> Path:
    """Writes the phantom's DICOM series into the folder `out`, whole or not at all. An earlier
    phantom there is replaced; anything else there is left alone, with an OutputError."""
    _check_ours(out)
    hu, grid, _ = scan_phantom(phantom, spacing_mm, matrix)
    part = out.with_name(f".{out.name}.writing")
    shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
    try:
        write_series(hu, grid, phantom.person, part, phantom.context.indication)
        if out.exists():
            shutil.rmtree(out)
        return part.replace(out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OutputError(
            f"Cannot write the phantom to {out}: {error.strerror}. "
            "Free some space there or choose another folder."
        ) from error


def _check_ours(out: Path) -> None:
    """OutputError where `out` holds anything but slices of a phantom."""
    if not out.exists():
        return
    entries = list(out.iterdir()) if out.is_dir() else [out]
    for path in entries:
        if not (path.is_file() and path.suffix == ".dcm" and b"PHANTOM-" in path.open("rb").read(4096)):
            raise OutputError(
                f"{out} holds {path.name}, which is no phantom; nothing was touched. Choose another folder.",
                code="OUTPUT_IN_USE",
            )
