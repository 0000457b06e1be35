"""Smooth functions of space -> values on any grid, by way of a coarse lattice.

A signed distance is smooth: known every few millimetres it can be interpolated to any voxel, far
faster than it can be computed there. Fields are cropped to where they matter, so that a small organ
costs little on a large grid. Textures are periodic noise in patient mm: the same place has the same
texture on every grid. Knows no anatomy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from mla_med.phantom.shapes import Grid

Slices = tuple[slice, slice, slice]
FAR_MM = 1e3


@dataclass(frozen=True)
class Lattice:
    """A coarse grid over a box of the patient."""

    grid: Grid

    @classmethod
    def over(cls, low_mm, high_mm, spacing_mm: float) -> Lattice:
        lo, hi = np.asarray(low_mm, float), np.asarray(high_mm, float)
        i, j, k = (int(n) for n in np.ceil((hi - lo) / spacing_mm).astype(int) + 1)
        x, y, z = (float(v) for v in lo)
        return cls(Grid((i, j, k), (spacing_mm,) * 3, (x, y, z)))

    @cached_property
    def everywhere(self) -> Slices:
        return slice(0, self.grid.shape[0]), slice(0, self.grid.shape[1]), slice(0, self.grid.shape[2])

    def box(self, low_mm, high_mm) -> Slices:
        """The lattice points between two corners, and one more on each side."""
        lo, hi = np.asarray(low_mm, float), np.asarray(high_mm, float)
        return self.grid.window((lo + hi) / 2, (hi - lo) / 2)

    def field(self, values: np.ndarray, box: Slices, margin_mm: float = 8.0) -> Field:
        """A signed distance known on `box`, cropped to where it is below `margin_mm`."""
        near = values < margin_mm
        crop = []
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            hits = np.flatnonzero(near.any(axis=others))
            if hits.size == 0:
                return Field(self, np.full((2, 2, 2), FAR_MM, np.float32), (0, 0, 0), True)
            lo, hi = max(hits[0] - 1, 0), min(hits[-1] + 2, values.shape[axis])
            lo = min(lo, values.shape[axis] - 2)
            crop.append(slice(int(lo), int(max(hi, lo + 2))))
        i, j, k = crop
        first = (box[0].start + i.start, box[1].start + j.start, box[2].start + k.start)
        return Field(self, np.ascontiguousarray(values[i, j, k], np.float32), first)


@dataclass(frozen=True)
class Field:
    """Values at lattice points `first` onwards; beyond them the last value goes on."""

    lattice: Lattice
    values: np.ndarray
    first: tuple[int, int, int]
    empty: bool = False

    def window(self, grid: Grid, within: Slices) -> Slices | None:
        """The voxels of `grid` that the field covers, or None."""
        if self.empty:
            return None
        out = []
        for axis in range(3):
            step, origin = self.lattice.grid.spacing_mm[axis], self.lattice.grid.origin_mm[axis]
            low = origin + step * self.first[axis]
            high = low + step * (self.values.shape[axis] - 1)
            a = int(np.ceil((low - grid.origin_mm[axis]) / grid.spacing_mm[axis]))
            b = int(np.floor((high - grid.origin_mm[axis]) / grid.spacing_mm[axis])) + 1
            a, b = max(a, within[axis].start), min(b, within[axis].stop)
            if b <= a:
                return None
            out.append(slice(a, b))
        return out[0], out[1], out[2]

    def on(self, grid: Grid, box: Slices) -> np.ndarray:
        """Trilinear interpolation to the voxels of `box`; float32."""
        values = self.values
        for axis in (2, 1, 0):
            values = _along(values, axis, *self._places(grid, box, axis))
        return values

    def at(self, points_mm: np.ndarray) -> np.ndarray:
        """Trilinear interpolation at points (N, 3)."""
        origin = np.asarray(self.lattice.grid.origin_mm)
        step = np.asarray(self.lattice.grid.spacing_mm)
        index = (np.asarray(points_mm, float) - origin) / step - self.first
        return ndimage.map_coordinates(self.values, index.T, order=1, mode="nearest")

    def _places(self, grid: Grid, box: Slices, axis: int) -> tuple[np.ndarray, np.ndarray]:
        mm = grid.origin_mm[axis] + grid.spacing_mm[axis] * np.arange(box[axis].start, box[axis].stop)
        step, origin = self.lattice.grid.spacing_mm[axis], self.lattice.grid.origin_mm[axis]
        index = np.clip((mm - origin) / step - self.first[axis], 0, self.values.shape[axis] - 1)
        low = np.minimum(index.astype(int), self.values.shape[axis] - 2)
        return low, (index - low).astype(np.float32)


def _along(values: np.ndarray, axis: int, low: np.ndarray, weight: np.ndarray) -> np.ndarray:
    shape = [1, 1, 1]
    shape[axis] = len(low)
    out = np.take(values, low, axis=axis)
    above = np.take(values, low + 1, axis=axis)
    above -= out
    above *= weight.reshape(shape)
    out += above
    return out


@dataclass(frozen=True, eq=False)
class Texture:
    """Periodic noise of mean 0 and deviation 1 with a correlation length, fixed to the patient."""

    tile: np.ndarray
    step_mm: float

    @classmethod
    def make(cls, rng: np.random.Generator, step_mm: float, samples: int = 64, blur: float = 0.7) -> Texture:
        noise = rng.standard_normal((samples,) * 3).astype(np.float32)
        noise = ndimage.gaussian_filter(noise, blur, mode="wrap")
        noise -= noise.mean()
        return cls((noise / noise.std()).astype(np.float32), step_mm)

    def on(self, grid: Grid, box: Slices) -> np.ndarray:
        """Noise at the voxels of `box`, fainter where a voxel averages over many grains."""
        values, faint = self.tile, 1.0
        for axis in (2, 1, 0):
            mm = grid.origin_mm[axis] + grid.spacing_mm[axis] * np.arange(box[axis].start, box[axis].stop)
            index = np.mod(mm / self.step_mm, self.tile.shape[axis])
            low = index.astype(int) % self.tile.shape[axis]
            weight = (index - np.floor(index)).astype(np.float32)
            shape = [1, 1, 1]
            shape[axis] = len(low)
            first = np.take(values, low, axis=axis)
            second = np.take(values, (low + 1) % self.tile.shape[axis], axis=axis)
            second -= first
            second *= weight.reshape(shape)
            first += second
            values = first
            faint /= np.sqrt(1 + (grid.spacing_mm[axis] / (3 * self.step_mm)) ** 2)
        # linear interpolation between samples loses a third of the deviation
        values *= np.float32(1.25 * faint)
        return values


def smooth_min(a, b, width_mm: float):
    """The union of two shapes with a fillet (polynomial smooth minimum)."""
    h = np.maximum(width_mm - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * np.float32(0.25 / width_mm)


def smooth_max(a, b, width_mm: float):
    """The intersection of two shapes with a rounded edge."""
    return -smooth_min(-a, -b, width_mm)


def ellipsoid(x, y, z, centre, radii, axes: np.ndarray | None = None):
    """Signed distance to an ellipsoid, exact on its surface; `axes` (3, 3) holds its axes as rows."""
    u, v, w = x - np.float32(centre[0]), y - np.float32(centre[1]), z - np.float32(centre[2])
    if axes is not None:
        m = axes.astype(np.float32)
        u, v, w = (m[r, 0] * u + m[r, 1] * v + m[r, 2] * w for r in range(3))
    a, b, c = (np.float32(r) for r in radii)
    u, v, w = u / a, v / b, w / c
    near = np.sqrt(u * u + v * v + w * w)
    steep = np.sqrt((u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2)
    return near * (near - 1) / np.maximum(steep, np.float32(1e-4))


def chain(x, y, z, points_mm: np.ndarray, radii_mm: np.ndarray):
    """Signed distance to a tube along a polyline (N, 3) whose radius changes from point to point."""
    best = None
    for a, b, r0, r1 in zip(points_mm[:-1], points_mm[1:], radii_mm[:-1], radii_mm[1:], strict=True):
        d = _capsule(x, y, z, a, b, float(r0), float(r1))
        best = d if best is None else np.minimum(best, d, out=best)
    return best


def _capsule(x, y, z, a, b, r0: float, r1: float):
    axis = (b - a).astype(np.float32)
    u, v, w = x - np.float32(a[0]), y - np.float32(a[1]), z - np.float32(a[2])
    t = (u * axis[0] + v * axis[1] + w * axis[2]) / max(float(axis @ axis), 1e-6)
    t = np.clip(t, 0, 1)
    d = np.sqrt((u - t * axis[0]) ** 2 + (v - t * axis[1]) ** 2 + (w - t * axis[2]) ** 2)
    return d - (r0 + t * np.float32(r1 - r0))


def chain_field(
    lattice: Lattice, points_mm: np.ndarray, radii_mm: np.ndarray, reach_mm: float = 24.0
) -> Field:
    """The tube as a field; beyond `reach_mm` it says only "far"."""
    reach = float(np.max(radii_mm)) + reach_mm
    box = lattice.box(points_mm.min(0) - reach, points_mm.max(0) + reach)
    values = np.full(tuple(s.stop - s.start for s in box), reach_mm, np.float32)
    for a, b, r0, r1 in zip(points_mm[:-1], points_mm[1:], radii_mm[:-1], radii_mm[1:], strict=True):
        part = lattice.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
        d = _capsule(*lattice.grid.axes(part), a, b, float(r0), float(r1))
        at = tuple(slice(p.start - s.start, p.stop - s.start) for p, s in zip(part, box, strict=True))
        np.minimum(values[at], d, out=values[at])
    return lattice.field(values, box, reach_mm)


def curve(points: np.ndarray, radii: np.ndarray, step_mm: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth line through points (N, 3), resampled; radii are interpolated along it."""
    from scipy.interpolate import PchipInterpolator

    points, radii = np.asarray(points, float), np.asarray(radii, float)
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    t = np.linspace(0, s[-1], max(2, int(np.ceil(s[-1] / step_mm)) + 1))
    spline = _natural(s, points) if len(points) > 2 else PchipInterpolator(s, points)
    return spline(t), np.interp(t, s, radii)


def _natural(s: np.ndarray, points: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from scipy.interpolate import CubicSpline

    return CubicSpline(s, points, bc_type="natural")
