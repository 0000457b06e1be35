"""Patients -> one picture: each in three planes through a lesion, with what was planted written below.

Patient's right at the left, front and head up. Lung findings are shown in the lung window, others of the
chest in that of soft tissue; those of the brain in the sequence that shows them best. Knows no DICOM.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mla_med.errors import OutputError
from mla_med.phantom.examine import Examined, examine
from mla_med.phantom.head import anatomy as head
from mla_med.phantom.lesion import Lesion
from mla_med.phantom.scanner import ct, mr
from mla_med.phantom.scanning import mr_scans, scanned
from mla_med.phantom.shapes import Grid
from mla_med.phantom.sites import Site
from mla_med.report.style import load_style
from mla_med.types import Finding

COLUMNS, GAP_PX, LINE_PX, LINES = 3, 6, 15, 3
SPACING_MM = {"chest_ct": 1.5, "brain_mr": 1.2}
CHEST_SHAPE = (268, 214)
HEAD_SHAPE = (150, 178, 150)
LUNG, SOFT = (-1350.0, 150.0), (-160.0, 240.0)
LUNG_FINDINGS = frozenset(
    (
        *("lung_nodule", "lung_mass", "consolidation", "ground_glass_opacity", "emphysema", "pneumothorax"),
        *("atelectasis", "fibrotic_sequela", "mosaic_attenuation", "peribronchial_thickening"),
        *("bronchiectasis", "septal_thickening"),
    )
)
SHOWN_ON = {
    **{"acute_infarct": "DWI", "haemorrhage": "SWI", "microbleeds": "SWI", "aneurysm": "T2"},
    **{"abnormal_enhancement": "T1 contrast", "brain_mass": "T1 contrast", "sinus_disease": "T2"},
}
"""Other findings of the brain: FLAIR."""
SPREAD = frozenset(
    ("emphysema", "mosaic_attenuation", "atrophy", "white_matter_hyperintensity", "mass_effect")
)
"""Findings without a place that a slice could be laid through."""


def draw_sheet(
    seeds: Iterable[int],
    examination: str,
    site: Site,
    path: Path,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Writes the picture of these patients as a PNG."""
    tiles = []
    for seed in seeds:
        tiles.append(draw_patient(examine(seed, examination, site)))
        progress()
    width, height = (max(tile.size[axis] for tile in tiles) + GAP_PX for axis in (0, 1))
    columns = min(COLUMNS, len(tiles))
    sheet = Image.new("L", (width * columns + GAP_PX, height * -(-len(tiles) // columns) + GAP_PX), 255)
    for n, tile in enumerate(tiles):
        sheet.paste(tile, (GAP_PX + n % columns * width, GAP_PX + n // columns * height))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, "PNG", optimize=True)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}. Choose another file.") from error


def draw_patient(examined: Examined) -> Image.Image:
    """Axial, coronal and sagittal through the lesion that is shown best, and the findings in words."""
    shown = chosen(examined.lesions)
    if examined.examination == "chest_ct":
        volume, grid, window = _chest(examined, shown)
    else:
        volume, grid, window = _head(examined, shown)
    point = np.array(grid.shape) * 0.5 if shown is None else _index(np.mean(shown.box_mm, axis=0), grid)
    i, j, k = np.clip(point, 0, np.array(grid.shape) - 1).astype(int)
    low, high = window
    planes = (volume[:, :, k], volume[:, j, :], volume[i])
    grey = [np.clip((plane - low) / (high - low), 0, 1) * 255 for plane in planes]
    pictures = [Image.fromarray(np.ascontiguousarray(g[::-1, ::-1].T).astype(np.uint8)) for g in grey]
    words = textwrap.wrap(caption(examined), round(sum(p.width for p in pictures) / 6.6))[:LINES]
    height = max(p.height for p in pictures)
    width = sum(p.width for p in pictures) + 2 * (len(pictures) - 1)
    tile = Image.new("L", (width, height + LINES * LINE_PX + 4), 255)
    left = 0
    for picture in pictures:
        tile.paste(picture, (left, height - picture.height))
        left += picture.width + 2
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(12)
    for n, line in enumerate(words):
        draw.text((2, height + 2 + n * LINE_PX), line, fill=0, font=font)
    return tile


def caption(examined: Examined) -> str:
    """ "61 years, F: nodule, right upper lobe, 8 mm; cardiomegaly"."""
    patient = examined.patient
    found = "; ".join(_words(f, examined.examination) for f in examined.findings) or "no finding"
    return f"{patient.age_years} years, {patient.sex}: {found}"


def chosen(lesions: Iterable[Lesion]) -> Lesion | None:
    """The smallest that has a place of its own; else any."""
    placed = sorted((one for one in lesions if one.finding.code not in SPREAD), key=_volume)
    return placed[0] if placed else next(iter(lesions), None)


def _volume(lesion: Lesion) -> float:
    return float(np.prod(np.subtract(lesion.box_mm[1], lesion.box_mm[0])))


def _words(finding: Finding, examination: str) -> str:
    style = load_style("prose", "en")
    place = style.place_words((finding.side, finding.site))
    size = f"{finding.size_mm:g} mm" if finding.size_mm is not None else ""
    number = f"{finding.count} x" if finding.count else ""
    term = f"{number} {style.wording(examination).terms[finding.code]}".strip()
    return ", ".join(part for part in (term, place, size) if part)


def _chest(examined: Examined, shown: Lesion | None) -> tuple[np.ndarray, Grid, tuple[float, float]]:
    rng = np.random.default_rng([examined.patient.seed, 105])
    spacing = SPACING_MM["chest_ct"]
    scan = replace(
        ct.random_scan(rng, examined.site.ct),
        tilt_deg=0.0,
        centre_mm=(0.0, 0.0),
        circular=False,
        spacing_mm=(spacing,) * 3,
        matrix=CHEST_SHAPE[0],
    )
    low, high = examined.anatomy.z_range_mm
    slices = round((high - low + 60) / spacing)
    flat = Grid.centred((*CHEST_SHAPE, slices), (spacing,) * 3)
    image = scanned(examined, Grid(flat.shape, flat.spacing_mm, (*flat.origin_mm[:2], low - 40)), scan, rng)
    lung = shown is None or shown.finding.code in LUNG_FINDINGS
    return image.hu.astype(np.float32), image.grid, LUNG if lung else SOFT


def _head(examined: Examined, shown: Lesion | None) -> tuple[np.ndarray, Grid, tuple[float, float]]:
    rng = np.random.default_rng([examined.patient.seed, 105])
    kind = "FLAIR" if shown is None else SHOWN_ON.get(shown.finding.code, "FLAIR")
    grid = Grid.centred(HEAD_SHAPE, (SPACING_MM["brain_mr"],) * 3)
    tissues = head.draw_head(examined.anatomy, examined.lesions, grid, examined.decoys)
    scan = mr_scans(examined, [kind], rng)[kind]
    signal = mr.acquire(tissues, grid, kind, scan, rng)
    return signal, grid, (0.0, float(np.percentile(signal, 99.7)))


def _index(point_mm: np.ndarray, grid: Grid) -> np.ndarray:
    return np.rint((point_mm - grid.origin_mm) / grid.spacing_mm)
