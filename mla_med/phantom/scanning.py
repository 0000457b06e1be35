"""Examined -> images: an array on a coarse grid for training, or full DICOM series as the site's scanner
sends them, with those of the earlier study and its report.

    phantom-0007000001/study/SE0002/IM0001.dcm ...    the examination, a folder a series
    phantom-0007000001/study/PRIOR/SR0001.dcm         the report of the earlier one, where there is one
    phantom-0007000001/prior/SE0002/IM0001.dcm ...    and its images

Knows no cohort and decides nothing of what is true of the patient.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mla_med.errors import ConfigError, OutputError
from mla_med.phantom.chest import anatomy as chest
from mla_med.phantom.examine import Examined, before
from mla_med.phantom.head import anatomy as head
from mla_med.phantom.scanner import ct, mr
from mla_med.phantom.scanner.headers import Order, keyed
from mla_med.phantom.scanner.makers import CT, MR
from mla_med.phantom.scanner.series import MrImage, Written, mr_units, write_ct, write_mr, write_report
from mla_med.phantom.shapes import Grid

CHEST_MM, CHEST_EXTENT_MM = 3.0, (408.0, 336.0)
"""Of training arrays: voxels, where no others are wished, and size to the right and to the front."""
BELOW_MM, ABOVE_MM = (25.0, 50.0), (12.0, 30.0)
"""How far a chest is scanned below the lungs and above them."""
DESCRIPTIONS = {
    ("chest_ct", "en", False): "CT CHEST WITHOUT CONTRAST",
    ("chest_ct", "en", True): "CT CHEST WITH CONTRAST",
    ("chest_ct", "zh", False): "胸部CT平扫",
    ("chest_ct", "zh", True): "胸部CT增强",
    ("brain_mr", "en", False): "MR BRAIN WITHOUT CONTRAST",
    ("brain_mr", "en", True): "MR BRAIN WITH AND WITHOUT CONTRAST",
    ("brain_mr", "zh", False): "头颅MR平扫",
    ("brain_mr", "zh", True): "头颅MR平扫+增强",
}
_ALIKE = (("T2", "FLAIR"), ("T1", "T1 contrast"), ("DWI", "ADC"), ("SWI",))
"""Sequences of the same slices: the anatomy is drawn once for each row."""
BODY_PARTS = {"chest_ct": "CHEST", "brain_mr": "BRAIN"}
CHARACTERS = {"en": ("ISO_IR 100", "ISO_IR 192"), "zh": ("GB18030", "ISO_IR 192")}
"""Character sets that the consoles of a site write."""


@dataclass(frozen=True, slots=True)
class CtImage:
    """A CT as reconstructed."""

    hu: np.ndarray
    """int16 (I, J, K)."""
    grid: Grid
    scan: ct.Scan

    @property
    def affine(self) -> np.ndarray:
        return ct.scan_affine(self.grid, self.scan)


def to_array(
    examined: Examined, stage: int = 103, spacing_mm: float = 0.0
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """-> int16 on the training grid, its affine (4, 4) to patient RAS mm, and how it was scanned. Another
    `stage` is another scan of the same body. `spacing_mm`: of the voxels; 0: the usual ones.

    HU (I, J, K) of a chest CT; (S, I, J, K) of a brain MR, a channel for each of mr.SEQUENCES, in units of
    the scanner (0 to 4095). What was not taken is a channel of zeros, and no scan."""
    rng = np.random.default_rng([examined.patient.seed, stage])
    if examined.examination == "chest_ct":
        scan = replace(ct.random_scan(rng, examined.site.ct), tilt_deg=0.0)
        mm = spacing_mm or CHEST_MM
        flat = replace(scan, spacing_mm=(mm,) * 3, matrix=round(CHEST_EXTENT_MM[0] / mm))
        image = scanned(examined, _training_grid(examined, flat, rng), flat, rng)
        facts = replace(image.scan, spacing_mm=scan.spacing_mm, matrix=scan.matrix)
        return image.hu, image.grid.affine, _facts(facts)
    grid = head.training_grid(spacing_mm) if spacing_mm else head.training_grid()
    tissues = head.draw_head(examined.anatomy, examined.lesions, grid, examined.decoys)
    scans = mr_scans(examined, _taken(examined, mr.SEQUENCES), rng)
    channels = np.zeros((len(mr.SEQUENCES), *grid.shape), np.int16)
    for channel, name in zip(channels, mr.SEQUENCES, strict=True):
        if name in scans:
            channel[:] = mr_units(mr.acquire(tissues, grid, name, scans[name], rng))
    return channels, grid.affine, {name: _facts(scan) for name, scan in scans.items()}


def scan_ct(examined: Examined, matrix: int = 512, stage: int = 103) -> CtImage:
    """One CT at full resolution, by the habits of the site."""
    rng = np.random.default_rng([examined.patient.seed, stage])
    scan = ct.random_scan(rng, examined.site.ct, matrix=matrix)
    return scanned(examined, ct.scan_grid(scan, *_reach_mm(examined, rng)), scan, rng)


def scan_mr(examined: Examined, stage: int = 103) -> list[MrImage]:
    """Every sequence of one MR at full resolution, by the habits of the site; T1 after contrast medium where
    the request or a lesion asks for it."""
    rng = np.random.default_rng([examined.patient.seed, stage])
    kinds = _taken(examined, mr.KINDS)
    scans = mr_scans(examined, kinds, rng)
    images: dict[str, list[MrImage]] = {}
    for together in _ALIKE:
        wanted = [kind for kind in together if kind in scans]
        if not wanted:
            continue
        grid = mr.scan_grid(examined.anatomy, scans[wanted[0]])
        drawn = mr.drawn_grid(grid, scans[wanted[0]])
        tissues = head.draw_head(examined.anatomy, examined.lesions, drawn, examined.decoys)
        for kind in wanted:
            images[kind] = _measured(tissues, grid, kind, scans[kind], rng)
    return [image for kind in kinds for image in images[kind]]


def _taken(examined: Examined, kinds: Sequence[str]) -> list[str]:
    """Contrast medium is not given to everybody."""
    return [kind for kind in kinds if kind != "T1 contrast" or examined.contrast]


def write_dicom(
    examined: Examined, folder: Path, maker: str | None = None, matrix: int = 512
) -> dict[str, Any]:
    """Writes the study, and the earlier one where there is one, whole or not at all; -> what was written, as
    JSON values. `maker`: a key of makers.CT or makers.MR, instead of the site's."""
    if folder.exists():
        raise OutputError(
            f"{folder} is there already. Choose another folder, or delete it.", code="OUTPUT_IN_USE"
        )
    part = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
    try:
        written = _write_studies(examined, part, maker, matrix)
        part.replace(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OutputError(
            f"Cannot write {folder}: {error.strerror}. Free some space and run it again."
        ) from error
    return written


def _write_studies(examined: Examined, folder: Path, maker: str | None, matrix: int) -> dict[str, Any]:
    order, series, facts = _write_study(examined, folder / "study", maker, matrix, 103)
    written = {"study": order.study_uid, "series": [s.series_uid for s in series], "scan": facts}
    if examined.earlier is None:
        return written
    earlier = before(examined)
    order, series, facts = _write_study(earlier, folder / "prior", maker, matrix, 104)
    report = folder / "study" / "PRIOR" / "SR0001.dcm"
    read = max(series, key=lambda s: len(s.instances))
    write_report(replace(order, characters="ISO_IR 192"), examined.earlier.report, read, report)
    return written | {"prior_study": order.study_uid, "prior_scan": facts}


def _write_study(
    examined: Examined, folder: Path, maker: str | None, matrix: int, stage: int
) -> tuple[Order, tuple[Written, ...], dict[str, Any]]:
    folder.mkdir(parents=True)
    if examined.examination == "chest_ct":
        key = maker or examined.site.ct.maker
        scanner = _one_of(CT, key, "CT")
        image = scan_ct(examined, matrix, stage=stage)
        order = keyed(order_of(examined), key, [image.hu], image.scan)
        written = write_ct(
            order, image.hu, image.grid, image.affine, image.scan, scanner, folder, examined.contrast
        )
        return order, written, _facts(image.scan) | {"maker": key}
    key = maker or examined.site.mr.maker
    images = scan_mr(examined, stage)
    facts = {"maker": key, "sequences": [image.kind for image in images]}
    order = order_of(examined)
    order = keyed(order, key, [image.voxels for image in images], facts)
    return order, write_mr(order, images, _one_of(MR, key, "MR"), folder), facts


def order_of(examined: Examined) -> Order:
    """What the request and the console say of this examination."""
    patient, language = examined.patient, examined.site.language
    sets = CHARACTERS[language]
    return Order(
        patient_id=f"PHANTOM-{patient.seed}",
        sex=patient.sex,
        age_years=patient.age_years,
        height_cm=patient.height_cm,
        weight_kg=round(patient.bmi * (patient.height_cm / 100) ** 2, 1),
        indication=examined.context.indication,
        description=DESCRIPTIONS[examined.examination, language, examined.contrast],
        body_part=BODY_PARTS[examined.examination],
        language=language,
        characters=sets[patient.seed % len(sets)],
        taken=examined.taken,
    )


def _one_of(makers: Mapping[str, Any], key: str, modality: str) -> Any:
    if key not in makers:
        raise ConfigError(f"No {modality} of '{key}'; there are: {', '.join(makers)}.", code="MAKER_UNKNOWN")
    return makers[key]


def mr_scans(examined: Examined, kinds: Sequence[str], rng: np.random.Generator) -> dict[str, mr.MrScan]:
    """Sequences that a protocol plans together share slices; all of an examination share the coils."""
    scans: dict[str, mr.MrScan] = {}
    for together in _ALIKE:
        first: mr.MrScan | None = None
        for kind in together:
            own = mr.random_mr_scan(rng, examined.site.mr, kind)
            if first is None:
                first = own
            own = replace(
                own,
                pixel_mm=first.pixel_mm,
                thickness_mm=first.thickness_mm,
                distance_mm=first.distance_mm,
                slices=first.slices,
                centre_mm=first.centre_mm,
                distortion_mm=first.distortion_mm,
            )
            scans[kind] = own
    coils = scans["T2"].bias_seed
    return {kind: replace(scans[kind], bias_seed=coils) for kind in kinds}


def _measured(
    tissues: Any, grid: Grid, kind: str, scan: mr.MrScan, rng: np.random.Generator
) -> list[MrImage]:
    """One volume; of diffusion that without weighting too."""
    weightings: tuple[float | None, ...] = (0.0, scan.b_s_per_mm2) if kind == "DWI" else (None,)
    images = []
    for b_value in weightings:
        taken = scan if b_value is None else replace(scan, b_s_per_mm2=b_value)
        voxels = mr_units(mr.acquire(tissues, grid, kind, taken, rng))
        images.append(
            MrImage(kind, voxels, grid.affine, scan.plane, scan.thickness_mm, b_value, scan.tesla, scan.times)
        )
    return images


def _reach_mm(examined: Examined, rng: np.random.Generator) -> tuple[float, float]:
    """The lowest and the highest slice."""
    low, high = examined.anatomy.z_range_mm
    return low - float(rng.uniform(*BELOW_MM)), high + float(rng.uniform(*ABOVE_MM))


def _training_grid(examined: Examined, scan: ct.Scan, rng: np.random.Generator) -> Grid:
    """As scanned, without most of the air in front and behind."""
    square = ct.scan_grid(scan, *_reach_mm(examined, rng))
    x, y, z = square.origin_mm
    mm = square.spacing_mm[1]
    wanted = round(CHEST_EXTENT_MM[1] / mm)
    less = square.shape[1] - wanted
    return Grid((square.shape[0], wanted, square.shape[2]), square.spacing_mm, (x, y + less / 2 * mm, z))


def scanned(examined: Examined, grid: Grid, scan: ct.Scan, rng: np.random.Generator) -> CtImage:
    drawn = ct.drawn_grid(grid, scan)
    body = chest.draw_chest(examined.anatomy, examined.lesions, drawn, examined.decoys)
    scan = _exposed(scan, body, drawn)
    hu = ct.reconstruct(body, drawn, scan, rng, grid)
    return CtImage(hu, grid, scan)


def _exposed(scan: ct.Scan, body: np.ndarray, grid: Grid) -> ct.Scan:
    """The dose for this patient: by the diameter of water that weakens as much, in the middle of the scan
    (AAPM Report 220, equation 3)."""
    low, high = grid.shape[2] // 3, max(grid.shape[2] * 2 // 3, grid.shape[2] // 3 + 1)
    slices = body[::2, ::2, low:high:4]
    water = np.maximum(slices / 1000 + 1, 0).sum() / slices.shape[2]
    area = float(water) * 4 * grid.spacing_mm[0] * grid.spacing_mm[1]
    diameter = 2 * math.sqrt(area / math.pi)
    more = math.exp((diameter - scan.patient_mm) * 0.012)
    return replace(scan, patient_mm=round(diameter, 1), ctdi_mgy=round(scan.ctdi_mgy * more, 2))


def _facts(scan: ct.Scan | mr.MrScan) -> dict[str, Any]:
    """How it was scanned, as JSON values."""
    facts = asdict(scan)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in facts.items()}
