"""A body on the model's voxels -> where its lungs lie, and which part of it a smaller grid shows.

A scan from the neck to the pelvis is twice as long as the grid of a chest: around its middle, apices would
be cut off without a word, and called normal. Plain arrays, no torch.
"""

# I J K voxels to the right, to the front, up

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from mla_med.errors import SeriesError
from mla_med.imaging.grid import BODY_HU, ends_of, inside_body

LUNG_HU = (-990.0, -600.0)
MIN_LUNG_SHARE = 0.005
"""Of the voxels of an image; with less there are no lungs in it."""
MARGIN_MM = 24.0
"""So far around the lungs is looked at too, where the grid has room: pleura, diaphragm, thyroid."""
WALL_MM = 10.0
"""So much at either side of a body is skin and fat."""
THIN_MM = 3.0
"""The lungs are looked for among voxels that are so far apart."""
MIN_PIECE = 0.1
"""Of the largest piece of lung, a smaller one is gas in the bowel."""
SLACK_MM = 6.0
"""So much of the box around the lungs may lie outside: it is known no better."""
AXES = ("from right to left", "from back to front", "from bottom to top")


def lung_mask(hu_IJK: np.ndarray) -> np.ndarray:
    """Voxels of lung: as dark as lung, inside the body, and not alone."""
    return ndimage.binary_opening(inside_body(hu_IJK) & (hu_IJK > LUNG_HU[0]) & (hu_IJK < LUNG_HU[1]))


def centred(have: Sequence[int], want: Sequence[int]) -> list[int]:
    """The first voxel along each axis of a grid around the middle, as MONAI's ResizeWithPadOrCrop."""
    return [a // 2 - b // 2 if a > b else -((b - a) // 2) for a, b in zip(have, want, strict=True)]


def first_seen(hu_IJK: np.ndarray, shape: Sequence[int], spacing_mm: float) -> list[int]:
    """Of a body that a grid of `shape` shows a part of: the first voxel along each axis, negative where the
    body is smaller. The middle of the body, moved no further than the lungs want.

    SeriesError LUNGS_OUTSIDE where the lungs are larger than the grid."""
    have, want, first = np.array(hu_IJK.shape), np.array(shape), centred(hu_IJK.shape, shape)
    spare_mm = np.array([2 * WALL_MM, 2 * WALL_MM, 0.0])
    if not ((have - want) * spacing_mm > spare_mm).any():
        return first
    lungs_32 = lung_ends(hu_IJK, spacing_mm)
    if lungs_32 is None:
        return first
    for n in np.flatnonzero(have > want):
        low, high = lungs_32[n]
        if (outside := (high - low - want[n]) * spacing_mm) > SLACK_MM:
            raise SeriesError(
                f"The lungs measure {(high - low) * spacing_mm:.0f} mm {AXES[n]}, {outside:.0f} mm more than "
                "this model looks at. What it cannot see it must not call normal.",
                code="LUNGS_OUTSIDE",
            )
        margin = min(MARGIN_MM / spacing_mm, max(0, (want[n] - (high - low)) // 2))
        low, high = max(0, int(low - margin)), min(int(high + margin), have[n])
        first[n] = int(np.clip(min(max(first[n], high - want[n]), low), 0, have[n] - want[n]))
    return first


def cut_off_cm2(hu_IJK: np.ndarray, spacing_mm: float) -> float:
    """So much lung lies on the last slices of a scan, at the end where it is more."""
    slices = np.flatnonzero((hu_IJK > BODY_HU).any((0, 1)))
    if len(slices) < 2:
        return 0.0
    areas = []
    for pair in (slices[:2], slices[-2:]):
        planes = hu_IJK[:, :, pair]
        lung = inside_body(planes) & (planes > LUNG_HU[0]) & (planes < LUNG_HU[1])
        areas.append(float(lung.sum((0, 1)).min()) * spacing_mm**2 / 100)
    return max(areas)


def lung_ends(hu_IJK: np.ndarray, spacing_mm: float) -> np.ndarray | None:
    """First voxel of the lungs and the one behind their last along each axis (3, 2); None without lungs."""
    step = max(1, int(THIN_MM / spacing_mm + 1e-3))
    pieces, count = ndimage.label(lung_mask(hu_IJK[::step, ::step, ::step]))
    if count == 0:
        return None
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    lungs = (sizes >= MIN_PIECE * sizes.max())[pieces] & (pieces > 0)
    if lungs.mean() < MIN_LUNG_SHARE:
        return None
    ends = [ends_of(lungs.any(others)) for others in ((1, 2), (0, 2), (0, 1))]
    return np.array([(end.start, end.stop) for end in ends]) * step
