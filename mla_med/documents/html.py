"""Draft and Volume -> one HTML page that a radiologist opens beside the images.

The page asks nothing of any network and runs no script: links, :target and :has() do the
highlighting, pictures are data: URIs, and its own Content-Security-Policy forbids the rest.
Pictures follow the radiological convention: patient right at image left, anterior and head up. The page is in
the language of the report; letters of directions are those of DICOM in every language (PS3.3 C.7.6.1.1.1).
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import nibabel
import numpy as np
from jinja2 import Template
from PIL import Image

from mla_med.documents.parts import environment, numbers_of, speaking
from mla_med.documents.text import HASH_DIGITS, NOTICE, changed_words
from mla_med.documents.words import TAGS, page_language, say, side_of, site_of, term
from mla_med.report.reasons import value_in_language
from mla_med.report.schema import Schema, schema_of
from mla_med.types import (
    Box,
    Draft,
    Evidence,
    Finding,
    Modality,
    Presence,
    Report,
    Volume,
)

LARGEST_PAGE_BYTES = 2_500_000

PICTURE_EDGES_PX = (512, 384, 256, 160)
"""Longest edge of a key picture; the next one is tried where the page would grow too large."""

WINDOWS_HU = {"lung": (-600.0, 1500.0), "soft tissue": (40.0, 400.0)}
"""Level and width."""

LUNG_FINDINGS = {
    "lung_nodule",
    "lung_mass",
    "consolidation",
    "ground_glass_opacity",
    "emphysema",
    "pneumothorax",
}
"""Shown in the lung window; every other finding in the soft tissue window."""

AXES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""The patient axis (x right, y anterior, z superior) along which the slices of a view are stacked."""

LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))

EDGES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
"""What is at the left, right, top and bottom of a picture."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One slice as the page shows it; lengths in pixels of the PNG."""

    png_uri: str
    width: int
    height: int
    box: tuple[float, float, float, float]
    """Left, top, width, height of the evidence box."""
    edges: str
    view: str
    window: str
    place: str
    scale_bar: float
    """50 mm."""
    heat: tuple[tuple[float, float, float, float, float], ...] = ()
    """Left, top, width and height of each cell of the heat map that this slice crosses, and its weight."""


@dataclass(frozen=True, slots=True)
class Card:
    """One finding as the page shows it."""

    number: int
    title: str
    finding: Finding
    facts: tuple[tuple[str, str], ...]
    critical: bool
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence and the numbers of the cards that it links to."""

    text: str
    cards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Canonical:
    """A volume turned so that its axes run to the patient's right, front and head."""

    voxels: np.ndarray
    affine: np.ndarray
    slice_axis: int
    """The patient axis along which the images were acquired."""


def draft_to_html(
    draft: Draft, volume: Volume | Sequence[Volume] | None, changed_by: str = "", language: str = "en"
) -> str:
    """The page; with what was read, the largest pictures that keep it within LARGEST_PAGE_BYTES: each finding
    in the volume that its evidence cites. `changed_by`: the reviewer of a revision. `language`: of the page
    of a refusal; a report brings its own."""
    page = ""
    volumes = (volume,) if isinstance(volume, Volume) else tuple(volume or ())
    for edge_px in PICTURE_EDGES_PX if volumes and draft.report is not None else (0,):
        page = _page(draft, volumes, edge_px, changed_by, page_language(draft, language))
        if len(page.encode()) <= LARGEST_PAGE_BYTES:
            break
    return page


def _page(draft: Draft, volumes: Sequence[Volume], edge_px: int, changed_by: str, language: str) -> str:
    cards = _cards(draft, volumes, edge_px, language) if draft.report else ()
    findings, impression = _lines(draft.report) if draft.report else ((), ())
    return _template().render(
        lang=TAGS[language],
        notice=say(NOTICE, language),
        changed=changed_words(changed_by, language) if changed_by else "",
        draft=draft,
        cards=cards,
        # what is present first, then what cannot be said; sorted keeps the order of each
        shown=sorted(
            (c for c in cards if c.finding.presence is not Presence.ABSENT),
            key=lambda c: c.finding.presence is not Presence.PRESENT,
        ),
        absent=[c for c in cards if c.finding.presence is Presence.ABSENT],
        findings=findings,
        impression=impression,
        chosen=[v for v in draft.verdicts if v.chosen],
        others=[v for v in draft.verdicts if not v.chosen],
        hash=draft.provenance.weights_sha256[:HASH_DIGITS],
        has_images=bool(volumes),
        value=lambda text: value_in_language(text, language),
        **speaking(language),
    )


@cache
def _template() -> Template:
    return environment().get_template("draft.html.jinja")


def _cards(draft: Draft, volumes: Sequence[Volume], edge_px: int, language: str) -> tuple[Card, ...]:
    report = draft.report
    assert report is not None
    turned: dict[int, Canonical] = {}
    comparisons = draft.prior.comparisons if draft.prior else ()
    schema = schema_of(report.examination)
    return tuple(
        Card(
            number=n,
            title=term(report.examination, finding.code, language),
            finding=finding,
            facts=_facts(finding, any(c.is_of(finding) for c in comparisons), language),
            critical=_is_critical(finding, schema),
            pictures=_pictures_of(finding, volumes, turned, edge_px, language),
        )
        for n, finding in enumerate(report.findings, start=1)
    )


def _is_critical(finding: Finding, schema: Schema) -> bool:
    kind = schema.get(finding.code)
    return kind is not None and kind.critical and finding.presence is Presence.PRESENT


def _facts(finding: Finding, is_compared: bool, language: str) -> tuple[tuple[str, str], ...]:
    change = is_compared and say(finding.change or "cannot be told", language)
    facts = {
        say("Side", language): side_of(finding, language),
        say("Site", language): site_of(finding, language),
        say("Size", language): finding.size_mm is not None and f"{finding.size_mm:.4g} mm",
        say("Change since the prior", language): change,
        say("Centre", language): finding.evidence and _place(_centre(finding.evidence.box_mm)),
    }
    return tuple((name, str(value)) for name, value in facts.items() if value)


def _centre(box_mm: Box) -> np.ndarray:
    return np.mean(box_mm, axis=0)


def _place(point_mm: np.ndarray) -> str:
    """Letters instead of signs: DICOM and NIfTI disagree on the signs."""
    return " · ".join(_coordinate(axis, value) for axis, value in enumerate(point_mm)) + " mm"


def _coordinate(axis: int, value_mm: float) -> str:
    return f"{LETTERS[axis][int(value_mm >= 0)]} {abs(value_mm):.1f}"


def _lines(report: Report) -> tuple[list[Line], list[Line]]:
    """Of the findings section and of the impression."""
    numbers, count = numbers_of(report), len(report.sentences)
    lines = [Line(s.text, n) for s, n in zip((*report.sentences, *report.impression), numbers, strict=True)]
    return lines[:count], lines[count:]


def _pictures_of(
    finding: Finding, volumes: Sequence[Volume], turned: dict[int, Canonical], edge_px: int, language: str
) -> tuple[Picture, ...]:
    """In the volume that holds what is cited first. `turned`: by volume, what was turned already."""
    if finding.evidence is None or not volumes:
        return ()
    of_series = (v for v in volumes if any(map(finding.evidence.is_first, v.series.instances)))
    volume = next(of_series, volumes[0])
    key = id(volume)  # one series may be several volumes
    if key not in turned:
        turned[key] = _canonical(volume)
    return _pictures(finding, volume, turned[key], edge_px, language)


def _canonical(volume: Volume) -> Canonical:
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.voxels, volume.affine))
    turned = nibabel.orientations.io_orientation(volume.affine)
    return Canonical(np.asanyarray(image.dataobj), image.affine, int(turned[2, 0]))


def _pictures(
    finding: Finding, volume: Volume, canonical: Canonical, edge_px: int, language: str
) -> tuple[Picture, ...]:
    """The key slice as acquired, and a second plane across the box to show at what height it lies."""
    if finding.evidence is None:
        return ()
    lower, upper = _box_voxels(finding.evidence.box_mm, canonical)
    point = np.clip(np.rint((lower + upper - 1) / 2), 0, np.array(canonical.voxels.shape) - 1).astype(int)
    key_view, other_view = _views(canonical.slice_axis)
    key_point = point.copy()
    key_point[canonical.slice_axis], number = _key_slice(finding.evidence, volume, canonical, point)
    window, low, high = _window(finding.code, volume, language)
    slice_ = say("Slice {n} of {slices}, ", language).format(n=number, slices=volume.voxels.shape[2])
    drawn = [(key_view, key_point, edge_px, slice_)]
    drawn.append((other_view, point, edge_px * 5 // 8, ""))
    return tuple(
        Picture(
            *_drawing(view, canonical, at, (lower, upper), (low, high), edge),
            edges=EDGES[view],
            view=view,
            window=window,
            place=words + _slice_place(AXES[view], at, canonical),
            scale_bar=_scale(view, canonical, edge) * 50,
            heat=_heat(finding.evidence, view, canonical, at, edge),
        )
        for view, at, edge, words in drawn
    )


def _box_voxels(box_mm: Box, canonical: Canonical) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge in voxels of `canonical`; voxel n reaches from n to n + 1."""
    corners = np.array(list(itertools.product(*zip(*box_mm, strict=True))))
    voxels = nibabel.affines.apply_affine(np.linalg.inv(canonical.affine), corners) + 0.5
    shape = np.array(canonical.voxels.shape)
    return np.clip(voxels.min(axis=0), 0, shape), np.clip(voxels.max(axis=0), 0, shape)


def _views(slice_axis: int) -> tuple[str, str]:
    key = next(view for view, axis in AXES.items() if axis == slice_axis)
    return key, "axial" if key == "coronal" else "coronal"


def _key_slice(
    evidence: Evidence, volume: Volume, canonical: Canonical, point: np.ndarray
) -> tuple[int, int]:
    """Index in `canonical` and number, from 1, in the series, of the slice that is cited first."""
    slices = canonical.voxels.shape[canonical.slice_axis]
    runs_up = nibabel.orientations.io_orientation(volume.affine)[2, 1] > 0
    middle = int(point[canonical.slice_axis])
    near = middle if runs_up else slices - 1 - middle
    cited = [k for k, instance in enumerate(volume.series.instances) if evidence.is_first(instance)]
    # the slices of a mosaic share one UID: of those the one in the middle of the box
    k = min(cited, key=lambda k: abs(k - near), default=near)
    return (k if runs_up else slices - 1 - k), k + 1


def _window(code: str, volume: Volume, language: str) -> tuple[str, float, float]:
    if volume.series.modality != Modality.CT:
        low, high = np.percentile(volume.voxels[::2, ::2], (1, 99))
        return say("Window: 1st to 99th percentile", language), float(low), float(high)
    if code in LUNG_FINDINGS:
        key, words = "lung", say("Lung window, L {level} W {width}", language)
    else:
        key, words = "soft tissue", say("Soft tissue window, L {level} W {width}", language)
    level, width = WINDOWS_HU[key]
    named = words.format(level=f"{level:.0f}".replace("-", "−"), width=f"{width:.0f}")
    return named, level - width / 2, level + width / 2


def _slice_place(axis: int, point: np.ndarray, canonical: Canonical) -> str:
    return _coordinate(axis, float(nibabel.affines.apply_affine(canonical.affine, point)[axis])) + " mm"


def _drawing(
    view: str,
    canonical: Canonical,
    point: np.ndarray,
    box: tuple[np.ndarray, np.ndarray],
    range_: tuple[float, float],
    edge_px: int,
) -> tuple[str, int, int, tuple[float, float, float, float]]:
    """PNG, its width and height, and the box in it."""
    # a view: numpy's take would first copy the whole volume, two seconds of it for 300 slices
    plane = np.moveaxis(canonical.voxels, AXES[view], 0)[int(point[AXES[view]])][::-1, ::-1].T
    low, high = range_
    grey = np.clip((np.nan_to_num(plane, nan=low) - low) / max(high - low, 1e-6), 0, 1)
    width, height = _size_px(view, canonical, edge_px)
    picture = Image.fromarray((grey * 255).astype(np.uint8))
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return _png_uri(resized), width, height, _box_px(canonical, box, _axes(view), (width, height))


def _box_px(
    canonical: Canonical, box: tuple[np.ndarray, np.ndarray], axes: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Both axes of every view run against the picture's, so the upper edge is the one at left and top."""
    lower, upper = box
    px = np.array(size) / np.array(canonical.voxels.shape)[list(axes)]
    start = (np.array(canonical.voxels.shape) - upper)[list(axes)] * px
    extent = (upper - lower)[list(axes)] * px
    left, top, width, height = (round(float(v), 1) for v in (*start, *extent))
    return left, top, width, height


def _heat(
    evidence: Evidence, view: str, canonical: Canonical, point: np.ndarray, edge_px: int
) -> tuple[tuple[float, float, float, float, float], ...]:
    """The cells that the slice crosses. Cells are shown as the squares they are: nothing finer is known."""
    axis, size = _axes(view), _size_px(view, canonical, edge_px)
    cells = []
    for cell in evidence.heat:
        lower, upper = _box_voxels(cell.box_mm, canonical)
        if lower[AXES[view]] <= point[AXES[view]] + 0.5 <= upper[AXES[view]]:
            cells.append((*_box_px(canonical, (lower, upper), axis, size), cell.weight))
    return tuple(cells)


def _axes(view: str) -> tuple[int, int]:
    across, up = (axis for axis in range(3) if axis != AXES[view])
    return across, up


def _size_px(view: str, canonical: Canonical, edge_px: int) -> tuple[int, int]:
    size_mm = _spacing_mm(canonical) * canonical.voxels.shape
    scale = _scale(view, canonical, edge_px)
    width, height = (max(1, round(size_mm[axis] * scale)) for axis in _axes(view))
    return width, height


def _spacing_mm(canonical: Canonical) -> np.ndarray:
    return nibabel.affines.voxel_sizes(canonical.affine)


def _scale(view: str, canonical: Canonical, edge_px: int) -> float:
    """Pixels per mm."""
    size_mm = _spacing_mm(canonical) * canonical.voxels.shape
    return edge_px / float(max(size_mm[axis] for axis in range(3) if axis != AXES[view]))


def _png_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
