"""Slices at uneven steps, or sheared by a tilted gantry -> the same volume on an even, upright grid.

Linear interpolation, only where a caller asks for it: without it the affine says exactly where each
stored voxel lies, and no value is invented. Knows arrays and millimetres; knows nothing of DICOM.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def evenly(voxels: np.ndarray, distances_mm: np.ndarray, step_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Slices (I, J, K) at `distances_mm` along their normal -> slices `step_mm` apart from the first on,
    and the distances of those. Nothing is extrapolated."""
    count = int((distances_mm[-1] - distances_mm[0]) / step_mm + 1e-3) + 1
    wanted = distances_mm[0] + step_mm * np.arange(count)
    below = np.clip(np.searchsorted(distances_mm, wanted, side="right") - 1, 0, len(distances_mm) - 2)
    weight = (wanted - distances_mm[below]) / (distances_mm[below + 1] - distances_mm[below])
    out = np.empty((*voxels.shape[:2], count), np.float32, order="F")
    for k, (b, w) in enumerate(zip(below, np.clip(weight, 0, 1).astype(np.float32), strict=True)):
        np.multiply(voxels[:, :, b], 1 - w, out=out[:, :, k])
        out[:, :, k] += w * voxels[:, :, b + 1]
    return out, wanted


def upright(voxels: np.ndarray, affine: np.ndarray, outside: float) -> tuple[np.ndarray, np.ndarray]:
    """A sheared volume -> one whose slices stand above each other, wide enough to lose nothing, and its
    affine. Each slice is shifted in its plane; what no slice covers becomes `outside`."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    normal = np.cross(axes[:, 0], axes[:, 1])
    step = affine[:3, 2]
    rise = normal * (step @ normal)
    # how far each further slice lies beside the first, in voxels of the plane
    beside = np.linalg.solve(affine[:3, :3] @ np.diag([1, 1, 0]) + np.outer(normal, [0, 0, 1]), step - rise)[
        :2
    ]
    shifts = np.outer(np.arange(voxels.shape[2]), beside)
    low, high = np.floor(shifts.min(axis=0)).astype(int), np.ceil(shifts.max(axis=0)).astype(int)
    out = np.full(
        (*(np.array(voxels.shape[:2]) + high - low), voxels.shape[2]), outside, np.float32, order="F"
    )
    for k, shift in enumerate(shifts - low):
        padded = np.zeros(out.shape[:2], np.float32, order="F")
        padded[: voxels.shape[0], : voxels.shape[1]] = voxels[:, :, k]
        shifted = ndimage.shift(padded, shift, order=1, mode="nearest", prefilter=False)
        # only between stored voxels: a mean of tissue and outside would be neither
        first = np.ceil(shift - 1e-6).astype(int)
        last = np.floor(shift + np.array(voxels.shape[:2]) - 1 + 1e-6).astype(int)
        plane = np.s_[first[0] : last[0] + 1, first[1] : last[1] + 1]
        out[:, :, k][plane] = shifted[plane]
    straight = affine.copy()
    straight[:3, 2] = rise
    straight[:3, 3] = (affine @ [*low, 0, 1])[:3]
    return out, straight
