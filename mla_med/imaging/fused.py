"""Volume -> the model's input in one pass: orient, average slabs, resample, crop to the body, pad, window.

What `transforms.py` does as a chain of MONAI transforms, each with a copy of the whole image; that chain
stays as the reference, and this is tested equal to it. Along each axis, flipping, the mean over a slab and
linear interpolation are one sparse matrix, so a volume is read once, a slab at a time, while it is in the
cache. A sheared one (tilted gantry) cannot be taken axis by axis: it is interpolated after the means were
taken.

Knows arrays and affines; knows neither torch nor MONAI (`transforms.FusedImage` is for whoever has both).
"""

# C channels, I J K voxel axes as stored, A B C the same from the slowest to the fastest in memory, N M
# lengths

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation
from scipy import ndimage, sparse

from mla_med.imaging.grid import AIR_HU, Preprocessing, body_box
from mla_med.imaging.lungs import centred, first_seen
from mla_med.types import Modality, Volume

SAME = 1e-3
"""Affines that differ by less are the same to MONAI (AFFINE_TOL), and nothing is interpolated."""
DIAGONAL = 1e-9
"""A matrix without larger entries beside its diagonal takes each axis by itself."""
PLANES = 16
"""So many are written in another order of memory at a time: a line of the cache."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis from stored voxels to the grid."""

    voxels: int
    """Stored."""
    flipped: bool
    slab: int
    """So many voxels become their mean first; what is left over at the end is dropped."""
    cells: int
    """After the mean."""


def to_array(volume: Volume, settings: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """-> image_CIJK float32, and its affine (4, 4) float32: as `transforms.to_tensor`."""
    placed, affine = place(volume.voxels, volume.affine, settings)
    return channels_of(placed, settings), affine.astype(np.float32)


def channels_of(placed_IJK: np.ndarray, settings: Preprocessing) -> np.ndarray:
    """Intensities on the grid -> channels (C, I, J, K): the windows of a CT; an MR with mean 0 and deviation
    1 where it is not 0."""
    if settings.modality == Modality.MR:
        inside = placed_IJK != 0
        values = placed_IJK[inside]
        scaled = np.where(inside, (placed_IJK - values.mean()) / (values.std() or 1.0), placed_IJK)
        return scaled[None].astype(np.float32)
    image_CIJK = np.empty((len(settings.windows_hu), *placed_IJK.shape), np.float32)
    for channel, (low, high) in zip(image_CIJK, settings.windows_hu, strict=True):
        np.subtract(placed_IJK, np.float32(low), out=channel)
        channel /= np.float32(high - low)
        np.clip(channel, 0, 1, out=channel)
    return image_CIJK


def place(
    voxels_IJK: np.ndarray, affine: np.ndarray, settings: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Stored voxels -> float32 on the model's grid, intensities kept, and its affine (4, 4): as
    `transforms.place_transform`."""
    resampled, affine = resample(voxels_IJK, affine, settings.spacing_mm)
    if settings.modality == Modality.MR:
        return fit(resampled, affine, settings.shape, 0.0, centred(resampled.shape, settings.shape))
    body = body_box(resampled)
    if body is not None:
        resampled, affine = resampled[body], moved(affine, [s.start for s in body])
    first = first_seen(resampled, settings.shape, settings.spacing_mm)
    return fit(resampled, affine, settings.shape, AIR_HU, first)


def resample(voxels_IJK: np.ndarray, affine: np.ndarray, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """-> RAS voxels of one spacing and their affine. Nothing is extrapolated."""
    affine = np.asarray(affine, float)
    turns = io_orientation(affine)
    # axis n of the result is the stored axis that points that way
    stored = np.argsort(turns[:, 0])
    affine = affine @ inv_ornt_aff(turns, voxels_IJK.shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = []
    for n in range(3):
        length = voxels_IJK.shape[stored[n]]
        slab = min(max(1, int(spacing_mm / spacing[n] + 1e-3)), length)
        axes.append(Axis(length, bool(turns[stored[n], 1] < 0), slab, length // slab))
    pooled = _pooled(affine, axes)
    shape = tuple(axis.cells for axis in axes)
    wanted, cells = _even(pooled, shape, spacing_mm)
    step = np.linalg.solve(pooled, wanted)
    turned = voxels_IJK.transpose(stored)
    if cells == shape and np.allclose(step, np.eye(4), atol=SAME):
        return _by_axis(turned, [_slabs(axis) for axis in axes], axes), wanted
    if np.abs(step[:3, :3] - np.diag(np.diag(step[:3, :3]))).max() < DIAGONAL:
        matrices = [
            _between(axis.cells, step[n, n], step[n, 3], cells[n]) @ sparse.csr_array(_slabs(axis))
            for n, axis in enumerate(axes)
        ]
        return _by_axis(turned, matrices, axes), wanted
    means = _by_axis(turned, [_slabs(axis) for axis in axes], axes)
    sheared = ndimage.affine_transform(
        means, step[:3, :3], step[:3, 3], cells, np.float32, order=1, mode="nearest"
    )
    return sheared, wanted


def mean_of_slabs(
    voxels_IJK: np.ndarray, affine: np.ndarray, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whole voxels averaged until the spacing is within a factor of two of the wanted one, along the stored
    axes, and the affine of what comes out; float32."""
    affine = np.asarray(affine, float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = [
        Axis(n, False, slab := min(max(1, int(spacing_mm / s + 1e-3)), n), n // slab)
        for n, s in zip(voxels_IJK.shape, spacing, strict=True)
    ]
    if all(axis.slab == 1 for axis in axes):
        return np.asarray(voxels_IJK, np.float32), affine
    means = _by_axis(np.asarray(voxels_IJK, np.float32), [_slabs(axis) for axis in axes], axes)
    return means, _pooled(affine, axes)


def fit(
    image_IJK: np.ndarray, affine: np.ndarray, shape: Sequence[int], outside: float, first: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cut or filled to a shape that begins at the voxel `first` of the image, which may lie before it."""
    out = np.full(shape, outside, np.float32)
    source, target = [], []
    for have, want, begin in zip(image_IJK.shape, shape, first, strict=True):
        cut, fill = max(begin, 0), max(-begin, 0)
        length = min(have - cut, want - fill)
        source.append(slice(cut, cut + length))
        target.append(slice(fill, fill + length))
    _write(out[tuple(target)], image_IJK[tuple(source)])
    return out, moved(affine, first)


def _write(out: np.ndarray, image: np.ndarray) -> None:
    """A few planes at a time: in another order of memory, a whole image leaves the cache at every step."""
    slow = int(np.argmax(image.strides))
    out, image = np.moveaxis(out, slow, 0), np.moveaxis(image, slow, 0)
    for first in range(0, len(image), PLANES):
        out[first : first + PLANES] = image[first : first + PLANES]


def moved(affine: np.ndarray, first: Sequence[int]) -> np.ndarray:
    """The affine of what begins at voxel `first`."""
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(first, float)
    return affine


def _even(
    affine: np.ndarray, shape: tuple[int, ...], spacing_mm: float
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and shape of the grid of one spacing that begins in the same corner: the axes of MONAI's
    Spacing, upright where the voxels are sheared (`zoom_affine`, `compute_shape_offset`)."""
    linear = affine[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    # MONAI keeps a spacing that is the wanted one already
    wanted = np.where(np.abs(spacing - spacing_mm) <= SAME, spacing, spacing_mm)
    scale = np.linalg.cholesky(linear.T @ linear).T
    grid = np.eye(4)
    grid[:3, :3] = linear @ np.linalg.inv(scale) @ np.diag(np.sign(np.diag(scale)) * wanted)
    corners = np.array(np.meshgrid(*((0.0, n - 1.0) for n in shape), indexing="ij")).reshape(3, -1)
    corners_mm = linear @ corners + affine[:3, 3:]
    seen = np.linalg.solve(grid[:3, :3], corners_mm)
    cells = np.round(np.ptp(seen, axis=1) + 1.0).astype(int)
    offset = None
    for n in range(seen.shape[1]):
        if np.allclose((seen - seen[:, n : n + 1]).min(1), 0.0, rtol=SAME):
            offset = corners_mm[:, n]
            break
    if offset is None:
        half, half_cells = np.array(shape) / 2, cells / 2
        offset = linear @ half + affine[:3, 3] - grid[:3, :3] @ half_cells
    grid[:3, 3] = offset
    return grid, tuple(int(n) for n in cells)


def _pooled(affine: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """The affine of the means of slabs: each stands in the middle of its slab."""
    slabs = np.array([axis.slab for axis in axes], float)
    pooled = affine.copy()
    pooled[:3, 3] += affine[:3, :3] @ ((slabs - 1) / 2)
    pooled[:3, :3] *= slabs
    return pooled


def _slabs(axis: Axis) -> np.ndarray:
    """(cells, voxels): each cell the mean of its slab, counted from the end where the axis is flipped."""
    matrix = np.zeros((axis.cells, axis.voxels), np.float32)
    for cell in range(axis.cells):
        matrix[cell, cell * axis.slab : (cell + 1) * axis.slab] = 1 / axis.slab
    return matrix[:, ::-1] if axis.flipped else matrix


def _between(length: int, step: float, first: float, count: int) -> np.ndarray:
    """(count, length): linear interpolation at first + step * n; the ends stand for what lies beyond."""
    place_M = np.clip(first + step * np.arange(count), 0, length - 1)
    below_M = np.minimum(place_M.astype(int), max(length - 2, 0))
    above_M = np.minimum(below_M + 1, length - 1)
    matrix = np.zeros((count, length), np.float32)
    rows = np.arange(count)
    np.add.at(matrix, (rows, below_M), 1 - (place_M - below_M))
    np.add.at(matrix, (rows, above_M), place_M - below_M)
    return matrix


def _by_axis(turned: np.ndarray, matrices: Sequence[np.ndarray], axes: Sequence[Axis]) -> np.ndarray:
    """Every axis through its matrix, in the order of memory, which stays that of the result. The slowest axis
    is read slab by slab; slabs are added before anything else, along every axis: they are the most voxels."""
    order = sorted(range(3), key=lambda n: -turned.strides[n])
    stored = turned.transpose(order)
    if any(stride < 0 for stride in stored.strides):
        stored = np.ascontiguousarray(stored)
    slow, *planes = (axes[n] for n in order)
    # a slab is averaged by reading it; what is left of a matrix interpolates
    a, b, c = (sparse.csr_array(_on_sums(matrices[n], axes[n])) for n in order)
    onto = a.tocsc()
    out_ACB = np.zeros((a.shape[0], c.shape[0], b.shape[0]), np.float32)
    first = _first_of(slow)
    for cell in range(slow.cells):
        begin = first + cell * slow.slab
        plane = stored[begin : begin + slow.slab]
        plane = plane[0] if slow.slab == 1 else np.add.reduce(plane, axis=0)
        plane = c @ _sums((b @ _sums(plane, planes[0])).T, planes[1])
        for at in range(onto.indptr[cell], onto.indptr[cell + 1]):
            out_ACB[onto.indices[at]] += onto.data[at] * plane
    return out_ACB.transpose(np.argsort([order[0], order[2], order[1]]))


def _first_of(axis: Axis) -> int:
    """Where the slabs begin in stored order: counted from the end, what is left over stands in front."""
    return axis.voxels - axis.cells * axis.slab if axis.flipped else 0


def _on_sums(matrix: np.ndarray, axis: Axis) -> np.ndarray:
    """A matrix on the sums of slabs instead of single voxels: within a slab its columns are equal."""
    first = _first_of(axis)
    return np.ascontiguousarray(matrix[:, first : first + axis.cells * axis.slab : axis.slab])


def _sums(plane: np.ndarray, axis: Axis) -> np.ndarray:
    """(cells, ...): the sums of the slabs along the first axis of a plane."""
    first = _first_of(axis)
    within = plane[first : first + axis.cells * axis.slab]
    total = within[:: axis.slab]
    for n in range(1, axis.slab):
        total = np.add(total, within[n :: axis.slab], dtype=np.float32)
    return total
