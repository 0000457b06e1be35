"""CT voxels -> Content: which body part they show, and whether vessels hold contrast medium.

Knows air, fat, soft tissue and bone by their HU and a patient by millimetres. Knows nothing of
organs' names, of disease, or of MR, where values mean nothing by themselves. Adults first: a small
child's abdomen is not told from other tissue, and a head is never judged for contrast medium.
Says '' or None where it cannot tell; a wrong word is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
from scipy import ndimage

from mla_med.dicom.terms import in_words

COARSE_MM = 4.0
"""Voxels are looked at on a grid of about this spacing."""
AIR_HU, PADDING_HU = -1000.0, -1100.0
TISSUE_HU = -500.0
"""Between lung and fat; what is brighter is body, table or clothes."""
LUNG_ABOVE_AIR_HU = 30.0
"""Darker than lung is free gas: the air around the patient, and in bowel."""
BONE_HU = 250.0
MIN_FIELD_MM = 120.0
"""A narrower field of view shows too little to name it."""

MIN_BODY_CM2 = 20.0
MIN_ABDOMEN_CM2, MIN_ABDOMEN_WIDTH_MM = 250.0, 180.0
"""Larger than heads, necks and single limbs, smaller than adults' abdomens."""
LUNG_SHARE, NO_LUNG_SHARE = 0.07, 0.05
"""Share of the cross-section that is lung: from the first on a chest, below the second none. The
share is small in the obese, beside a large heart and above an effusion."""
SOLID_HU, SOLID_SHARE = -200.0, 0.15
"""Around lungs there is this much fat, muscle and bone; in a block of foam there is none."""
SKULL_SHARE, SKULL_SECTORS = 0.13, 14
"""A head is bone by this share, with bone in so many of 16 directions from its middle."""
SKULL_RADIUS_MM, SKULL_WIDTH_MM, SKULL_DEPTH_MM = (40.0, 120.0), (80.0, 190.0), (90.0, 240.0)
ABDOMEN_BONE_SHARE = 0.035
"""Without lungs above it, an abdomen is told from shoulders and hips by having little bone."""
SHOWN_MM = {"head": 40.0, "chest": 110.0, "abdomen": 120.0}
"""A part is shown if so much of it lies in the scan, or if it fills half of the slices. Abdominal
scans begin in the lung bases, chest scans end in the liver; that much does not count."""

# Blood without contrast medium measures 30 to 65 HU; with it usually more than 100, in arterial phases
# more than 200 (on how enhancement runs in time: Bae, Radiology 2010;256:32-61).
BLOOD_HU, BRIGHT_HU = 65.0, 100.0
MIN_MEDIASTINUM_CM3 = 20.0
MEDIASTINUM_BRIGHT, MEDIASTINUM_PLAIN = 0.25, 0.05
"""Share of the mediastinum above BRIGHT_HU: from the first on enhanced, up to the second not. The
right heart and the pulmonary arteries alone exceed the first; an aorta full of calcium may lie between."""
VESSEL_HU, VESSEL_SPREAD_HU = (100.0, 600.0), 40.0
VESSEL_STEP_HU, VESSEL_RING_MM, VESSEL_RING_SHARE = 40.0, 17.0, 0.7
"""A vessel is even inside and brighter than most of a ring around it; a vertebra's rim is as bright."""
AORTA_MM, AORTA_ASIDE_MM, AORTA_HEIGHT = 60.0, 60.0, (0.3, 0.75)
"""The aorta runs so far along the body, so near to its midline, at such a share of its depth."""
ORGANS_HU, ORGANS_BRIGHT, ORGANS_PLAIN = 90.0, 0.03, 0.015
"""Share of soft tissue above ORGANS_HU: kidneys and spleen alone exceed the first."""
VERTEBRA_MM = 20.0
"""From the rim to the middle of a vertebra."""
MIN_PLAIN_ABDOMEN_MM, MIN_ORGANS_CM3 = 100.0, 300.0
"""From a smaller piece of an abdomen nobody can say that nothing in it is enhanced."""

IN_PLANE = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)[:, :, None]


@dataclass(frozen=True, slots=True)
class Content:
    """What the voxels of one CT volume show."""

    body_parts: tuple[str, ...] = ()
    """Of head, chest and abdomen all that are shown, from the head down; empty: they do not tell."""
    contrast: bool | None = None
    """Intravenous contrast medium in the vessels; None: they do not tell, or are not in view."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """What was decided on: lengths in mm, HU, shares from 0 to 1."""

    @property
    def body_part(self) -> str:
        """In words: "chest", "chest and abdomen", or empty."""
        return in_words(self.body_parts)


@dataclass(frozen=True, slots=True)
class _Grid:
    """The volume at about COARSE_MM: x to the right, y to the front, z up."""

    hu: np.ndarray
    peak: np.ndarray
    """The brightest of the samples that `hu` is the mean of, so that thin bone stays bone."""
    spacing_mm: np.ndarray

    @property
    def pixel_cm2(self) -> float:
        return float(self.spacing_mm[0] * self.spacing_mm[1] / 100)

    @property
    def voxel_cm3(self) -> float:
        return float(self.spacing_mm.prod() / 1000)


def look(voxels: np.ndarray, affine: np.ndarray) -> Content:
    """Body part and contrast medium of a CT volume.

    `voxels` (I, J, K) in HU, `affine` (4, 4) voxel index -> patient RAS mm, in any axis order.
    Several parts are named if several are shown (SHOWN_MM); the pelvis counts as abdomen where it
    follows one. Never for MR.
    """
    grid = _coarse(voxels, affine)
    if grid is None:
        return Content()
    body = _body(grid)
    if not body.any():
        return Content()
    lung = _lung(grid, body)
    kinds = _kinds(grid, body, lung)
    step_mm, used = float(grid.spacing_mm[2]), int(np.count_nonzero(kinds != "empty"))
    counts = {part: int(np.count_nonzero(kinds == part)) for part in SHOWN_MM}
    parts = tuple(
        part
        for part, count in counts.items()
        if count and (count * step_mm >= SHOWN_MM[part] or 2 * count >= used)
    )
    measured = {"scanned_mm": used * step_mm} | {f"{part}_mm": n * step_mm for part, n in counts.items()}
    by_part = {}
    if "chest" in parts:
        by_part["chest"], found = _chest_contrast(grid, lung, kinds == "chest")
        measured |= found
    if "abdomen" in parts:
        by_part["abdomen"], found = _abdomen_contrast(grid, body, kinds == "abdomen")
        measured |= found
    return Content(parts, _one_answer(by_part), measured)


def _coarse(voxels: np.ndarray, affine: np.ndarray) -> _Grid | None:
    """Every n-th sample, four of them averaged; None where the affine or the field is no use."""
    matrix = np.asarray(affine, float)[:3, :3]
    spacing_mm = np.sqrt((matrix**2).sum(axis=0))
    if (
        not np.isfinite(matrix).all()
        or abs(np.linalg.det(matrix)) <= 1e-3 * spacing_mm.prod()
        or not voxels.size
    ):
        return None
    cosines = matrix / spacing_mm
    # The tilt of a gantry, some 20 degrees, is let be: each index axis goes to the nearest patient axis.
    axes = max(permutations(range(3)), key=lambda order: np.prod(np.abs(cosines[range(3), order])))
    spacing_mm, volume = spacing_mm[list(axes)], voxels.transpose(axes)
    if (np.array(volume.shape) * spacing_mm)[:2].min() < MIN_FIELD_MM:
        return None
    steps = [min(max(1, round(COARSE_MM / mm)), n) for mm, n in zip(spacing_mm, volume.shape, strict=True)]
    samples = [
        _sampled(volume, steps, (x, y, steps[2] // 2))
        for x in sorted({steps[0] // 4, 3 * steps[0] // 4})
        for y in sorted({steps[1] // 4, 3 * steps[1] // 4})
    ]
    flips = tuple(slice(None, None, -1 if cosines[r, axes[r]] < 0 else 1) for r in range(3))
    hu, peak = np.mean(samples, axis=0)[flips], np.maximum.reduce(samples)[flips]
    return _Grid(np.ascontiguousarray(hu), np.ascontiguousarray(peak), spacing_mm * np.array(steps))


def _sampled(volume: np.ndarray, steps: list[int], first: tuple[int, int, int]) -> np.ndarray:
    """Every n-th voxel along each axis, padding made air."""
    picked = tuple(
        slice(f, f + (n // step - 1) * step + 1, step)
        for f, n, step in zip(first, volume.shape, steps, strict=True)
    )
    sample = np.array(volume[picked], np.float32)
    sample[~(sample >= PADDING_HU)] = AIR_HU
    return np.minimum(sample, 3000.0, out=sample)


def _body(grid: _Grid) -> np.ndarray:
    """Per slice the largest piece of tissue with all that it encloses: not the table, not the arms."""
    frame = _frame(grid)
    tissue = _largest((grid.peak > TISSUE_HU) | frame)
    return _filled(tissue) & ~frame


def _frame(grid: _Grid) -> np.ndarray:
    """Where the field of view cuts the patient: the lungs end there as at a chest wall."""
    x, y = (np.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in grid.hu.shape[:2])
    radius = np.hypot(x[:, None], y[None])
    border = np.zeros(radius.shape, bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    if np.ptp(grid.hu[radius > 1.08]) < 1:
        # The corners were never measured: the field of view is the circle in the image.
        border = (radius > 0.88) & (radius < 0.95)
    near = ndimage.uniform_filter(grid.hu, (3, 3, 1))
    return border[:, :, None] & (near > AIR_HU + 50)


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = _label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    slices = sizes[labels].reshape(-1, mask.shape[2])
    winners = labels.reshape(slices.shape)[slices.argmax(axis=0), np.arange(mask.shape[2])]
    return mask & (labels == winners)


def _filled(mask: np.ndarray) -> np.ndarray:
    labels, count = _label(~mask)
    open_ = np.zeros(count + 1, bool)
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        open_[side] = True
    open_[0] = False
    return ~open_[labels]


def _label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected pieces within each slice."""
    structure = np.zeros((3, 3, 3), bool)
    structure[:, :, 1:2] = IN_PLANE
    labels, count = ndimage.label(mask, structure)
    return labels, count


def _lung(grid: _Grid, body: np.ndarray) -> np.ndarray:
    smooth = ndimage.uniform_filter(grid.hu, (3, 3, 1))
    # Noise cut off at -1024 HU makes air look denser; in a narrow field of view there may be no air.
    dark = smooth[smooth < AIR_HU + 100]
    air = np.clip(np.median(dark), AIR_HU, AIR_HU + 40) if dark.size else AIR_HU
    lung = body & (smooth > air + LUNG_ABOVE_AIR_HU) & (smooth < TISSUE_HU)
    # The rims of bowel gas have lung's HU too, but are thin.
    return ndimage.binary_opening(lung, np.ones((3, 3, 1), bool))


def _kinds(grid: _Grid, body: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """Per slice: head, chest, abdomen, empty, or other."""
    pixels = np.maximum(np.count_nonzero(body, axis=(0, 1)), 1)
    area_cm2 = pixels * grid.pixel_cm2
    lung_share = np.count_nonzero(lung, axis=(0, 1)) / pixels
    kinds = np.full(len(pixels), "other", dtype="<U7")
    solid_share = np.count_nonzero(body & (grid.hu > SOLID_HU), axis=(0, 1)) / pixels
    kinds[(lung_share >= LUNG_SHARE) & (solid_share >= SOLID_SHARE)] = "chest"
    # Around the air of sinuses there is a skull.
    kinds[(lung_share < 2 * LUNG_SHARE) & _has_skull(grid, body & (grid.peak > BONE_HU), pixels)] = "head"
    wide = (area_cm2 >= MIN_ABDOMEN_CM2) & (_width_mm(grid, body) >= MIN_ABDOMEN_WIDTH_MM)
    trunk = (kinds == "other") & (lung_share < NO_LUNG_SHARE) & wide
    chest = np.flatnonzero(kinds == "chest")
    below = np.arange(len(kinds)) < (chest.mean() if chest.size else 0)
    if chest.size * grid.spacing_mm[2] < SHOWN_MM["chest"] / 2:
        bone = body & (grid.hu > BONE_HU)
        little = np.count_nonzero(bone, axis=(0, 1)) / pixels < ABDOMEN_BONE_SHARE
        below |= little & _has_spine(grid, body, bone)
    kinds[trunk & below] = "abdomen"
    kinds[area_cm2 < MIN_BODY_CM2] = "empty"
    return kinds


def _has_skull(grid: _Grid, bone: np.ndarray, body_pixels: np.ndarray) -> np.ndarray:
    """Where bone surrounds a middle at the distance of a skull, and is much of the slice."""
    found = np.zeros(bone.shape[2], bool)
    for k in np.flatnonzero(np.count_nonzero(bone, axis=(0, 1)) / body_pixels >= SKULL_SHARE):
        x, y = np.argwhere(bone[:, :, k]).T * grid.spacing_mm[:2, None]
        width, depth = np.ptp(x), np.ptp(y)
        dx, dy = x - x.min() - width / 2, y - y.min() - depth / 2
        radius = np.hypot(dx, dy)
        around = (radius > SKULL_RADIUS_MM[0]) & (radius < SKULL_RADIUS_MM[1])
        sectors = np.floor(np.arctan2(dy, dx)[around] / (np.pi / 8))
        found[k] = (
            np.unique(sectors % 16).size >= SKULL_SECTORS
            and SKULL_WIDTH_MM[0] <= width <= SKULL_WIDTH_MM[1]
            and SKULL_DEPTH_MM[0] <= depth <= SKULL_DEPTH_MM[1]
        )
    return found


def _width_mm(grid: _Grid, body: np.ndarray) -> np.ndarray:
    return np.count_nonzero(body.any(axis=1), axis=0) * grid.spacing_mm[0]


def _has_spine(grid: _Grid, body: np.ndarray, bone: np.ndarray) -> np.ndarray:
    """Bone near the midline in the back half: thighs and feet have none there."""
    middle_x, middle_y = _middle(body)
    near = np.abs(np.arange(bone.shape[0]) - middle_x) * grid.spacing_mm[0] < 30
    spine = bone[near][:, : int(middle_y) + 1]
    return np.count_nonzero(spine, axis=(0, 1)) * grid.pixel_cm2 >= 1.0


def _middle(body: np.ndarray) -> tuple[float, float]:
    x, y = np.flatnonzero(body.any(axis=(1, 2))), np.flatnonzero(body.any(axis=(0, 2)))
    return float(x.mean()), float(y.mean())


def _chest_contrast(
    grid: _Grid, lung: np.ndarray, slices: np.ndarray
) -> tuple[bool | None, dict[str, float]]:
    """From the soft tissue between the lungs, in front of the spine: mostly heart and great vessels."""
    hu, lung = grid.hu[:, :, slices], lung[:, :, slices]
    between = np.maximum.accumulate(lung, axis=0) & np.maximum.accumulate(lung[::-1], axis=0)[::-1]
    y = np.arange(lung.shape[1])[:, None]
    rows = lung.any(axis=0)
    back = np.where(rows, y, lung.shape[1]).min(axis=0)
    front = np.where(rows, y, -1).max(axis=0)
    # The vertebrae lie between the back thirds of the lungs.
    between &= (y > back + 0.35 * (front - back))[None]
    soft = (ndimage.uniform_filter(hu, (3, 3, 1)) > -20) & (grid.peak[:, :, slices] < VESSEL_HU[1])
    core = ndimage.binary_erosion(between & soft, IN_PLANE)
    values = ndimage.uniform_filter(hu, 3)[core]
    volume_cm3 = values.size * grid.voxel_cm3
    if volume_cm3 < MIN_MEDIASTINUM_CM3:
        return None, {"mediastinum_cm3": volume_cm3}
    median, bright = float(np.median(values)), float((values > BRIGHT_HU).mean())
    found = {"mediastinum_cm3": volume_cm3, "mediastinum_hu": median, "mediastinum_bright": bright}
    if bright >= MEDIASTINUM_BRIGHT:
        return True, found
    return (False if bright <= MEDIASTINUM_PLAIN and median < BLOOD_HU else None), found


def _abdomen_contrast(
    grid: _Grid, body: np.ndarray, slices: np.ndarray
) -> tuple[bool | None, dict[str, float]]:
    """From a long bright vessel before the spine together with bright organs; either alone may be
    contrast medium that was drunk, or a liver full of iron."""
    hu, peak, body = grid.hu[:, :, slices], grid.peak[:, :, slices], body[:, :, slices]
    middle_x, _ = _middle(body)
    depth = np.flatnonzero(body.any(axis=(0, 2)))
    height = (np.arange(body.shape[1]) - depth[0]) / max(float(np.ptp(depth)), 1.0)
    aside_mm = np.abs(np.arange(body.shape[0]) - middle_x) * grid.spacing_mm[0]
    place = (aside_mm < AORTA_ASIDE_MM)[:, None] & ((height > AORTA_HEIGHT[0]) & (height < AORTA_HEIGHT[1]))
    length_mm, aorta_hu = _longest_vessel(hu, body & place[:, :, None], grid.spacing_mm)
    organs = _organs(hu, peak, body & (height < 0.7)[None, :, None], grid.spacing_mm)
    bright = float((organs > ORGANS_HU).mean()) if organs.size else 0.0
    found = {"vessel_mm": length_mm, "organs_cm3": organs.size * grid.voxel_cm3, "organs_bright": bright}
    if length_mm >= AORTA_MM and bright >= ORGANS_BRIGHT:
        return True, found | {"vessel_hu": aorta_hu}
    plain = length_mm < AORTA_MM / 2 and bright <= ORGANS_PLAIN
    enough = (
        hu.shape[2] * grid.spacing_mm[2] >= MIN_PLAIN_ABDOMEN_MM and found["organs_cm3"] >= MIN_ORGANS_CM3
    )
    return (False if plain and enough else None), found


def _longest_vessel(hu: np.ndarray, where: np.ndarray, spacing_mm: np.ndarray) -> tuple[float, float]:
    """Length along z in mm, and HU, of the longest bright tube; 0, 0 without any."""
    mean = ndimage.uniform_filter(hu, (3, 3, 1))
    variance = ndimage.uniform_filter(hu * hu, (3, 3, 1)) - mean * mean
    even = where & (mean > VESSEL_HU[0]) & (mean < VESSEL_HU[1]) & (variance < VESSEL_SPREAD_HU**2)
    i, j, k = np.nonzero(even)
    angles = np.arange(16) * np.pi / 8
    ring_i = i[:, None] + np.rint(VESSEL_RING_MM * np.cos(angles) / spacing_mm[0]).astype(int)
    ring_j = j[:, None] + np.rint(VESSEL_RING_MM * np.sin(angles) / spacing_mm[1]).astype(int)
    ring = hu[ring_i.clip(0, hu.shape[0] - 1), ring_j.clip(0, hu.shape[1] - 1), k[:, None]]
    even[i, j, k] = (ring < mean[i, j, k][:, None] - VESSEL_STEP_HU).mean(axis=1) >= VESSEL_RING_SHARE
    labels, _ = ndimage.label(even, np.ones((3, 3, 3), bool))
    lengths = [box[2].stop - box[2].start for box in ndimage.find_objects(labels)]
    if not lengths:
        return 0.0, 0.0
    longest = int(np.argmax(lengths))
    return lengths[longest] * float(spacing_mm[2]), float(np.median(mean[labels == longest + 1]))


def _organs(hu: np.ndarray, peak: np.ndarray, where: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """HU inside soft tissue, away from its edges and from bone with its marrow."""
    smooth = ndimage.uniform_filter(hu, 3)
    cortex = where & (peak > 300)
    inwards = max(1, round(VERTEBRA_MM / float(spacing_mm[:2].mean())))
    bone = ndimage.binary_dilation(cortex, IN_PLANE, inwards, mask=smooth > ORGANS_HU) | cortex
    soft = where & (smooth > 0) & (smooth < VESSEL_HU[1]) & ~bone
    return smooth[ndimage.binary_erosion(soft, ndimage.generate_binary_structure(3, 1))]


def _one_answer(by_part: Mapping[str, bool | None]) -> bool | None:
    """The heart is the better witness, as a bolus reaches it first; but what it has not seen and the
    aorta has, nobody knows."""
    chest, abdomen = by_part.get("chest"), by_part.get("abdomen")
    if chest is None:
        return abdomen
    return None if abdomen and not chest else chest
