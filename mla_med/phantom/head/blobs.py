"""Shapes of brain lesions -> solid regions whose extent is measured before anything is drawn.

A blob is a signed distance on a fine lattice of its own. Its surface is where that lattice changes sign, so
that box and largest diameter are those of what is painted, cut by ventricles and skull where these are in
the way. Knows no tissue and no scanner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from mla_med.phantom.lattice import Field, Lattice, Slices, smooth_max
from mla_med.phantom.shapes import Grid, point, soft
from mla_med.types import Box

Sdf = Callable[[Grid], np.ndarray]
"""Signed distance in mm, negative inside, at the points of a grid."""
Shape = Callable[[float], Sdf]
"""Half of the largest extent it would have if nothing were in its way (mm) -> the shape."""


@dataclass(frozen=True, eq=False)
class Blob:
    """A solid region with an exact extent."""

    field: Field
    surface_mm: np.ndarray
    """(N, 3) points of its surface."""

    @cached_property
    def size_mm(self) -> float:
        """Largest distance between two of its points."""
        corners = self.surface_mm
        try:
            corners = corners[ConvexHull(corners).vertices]
        except QhullError:
            # too few points, or all in one plane: every point is a corner
            corners = corners[:: max(1, len(corners) // 500)]
        return float(pdist(corners).max())

    @cached_property
    def box_mm(self) -> Box:
        return point(self.surface_mm.min(0)), point(self.surface_mm.max(0))

    @property
    def centre_mm(self) -> np.ndarray:
        return np.mean(np.asarray(self.box_mm), axis=0)

    def points(self, n: int) -> np.ndarray:
        """About `n` points inside of it, evenly spread (N, 3)."""
        index = np.argwhere(self.field.values < 0)
        if len(index) == 0:
            return self.centre_mm[None]
        # steps that share no divisor with the rows, so that the points do not line up
        index = index[np.unique(np.arange(n) * 7919 % len(index))]
        grid = self.field.lattice.grid
        return np.asarray(grid.origin_mm) + (index + np.asarray(self.field.first)) * grid.spacing_mm

    def window(self, grid: Grid) -> Slices | None:
        """The voxels of `grid` that may hold some of it."""
        return self.field.window(grid, whole(grid))

    def distance(self, grid: Grid, box: Slices) -> np.ndarray:
        return self.field.on(grid, box)

    def inside(self, grid: Grid, box: Slices, blur_mm: float = 0.0) -> np.ndarray:
        """How much of each voxel lies in it; `blur_mm` widens the edge."""
        return soft(self.field.on(grid, box), grid.edge_mm + blur_mm)

    def scaled(self, factor: float) -> Blob:
        """The same shape `factor` times as large, about its middle."""
        middle = self.centre_mm
        old = self.field.lattice.grid
        origin = middle + (np.asarray(old.origin_mm) - middle) * factor
        a, b, c = (s * factor for s in old.spacing_mm)
        lattice = Lattice(Grid(old.shape, (a, b, c), point(origin)))
        values = self.field.values * np.float32(factor)
        field = Field(lattice, values, self.field.first, self.field.empty)
        return Blob(field, middle + (self.surface_mm - middle) * factor)


def grow(sdf: Sdf, low_mm, high_mm, step_mm: float = 1.5, all_parts: bool = False) -> Blob | None:
    """A shape within a box; of its parts only the largest stays. None where there is none of it."""
    pad = 2 * step_mm
    lattice = Lattice.over(np.asarray(low_mm) - pad, np.asarray(high_mm) + pad, step_mm)
    values = np.array(sdf(lattice.grid), np.float32)
    # a shape ends within its lattice, or its extent could not be measured
    for axis in range(3):
        ends = np.moveaxis(values, axis, 0)
        ends[0], ends[-1] = np.maximum(ends[0], step_mm), np.maximum(ends[-1], step_mm)
    labels, n = ndimage.label(values < 0)
    if n == 0:
        return None
    if n > 1 and not all_parts:
        largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
        values = np.where((values < 0) & (labels != largest), 2 * np.float32(step_mm) - values, values)
    return Blob(lattice.field(values, lattice.everywhere), crossings(lattice.grid, values))


def fit(shape: Shape, size_mm: float, around: Callable[[float], Box], step_mm: float = 2.4) -> Blob | None:
    """The shape grown until its largest extent is `size_mm`, a whole number of mm; as large as it gets where
    what surrounds it leaves less room. `around`: half size -> the box that holds it."""
    step = float(np.clip(size_mm / 14, 0.35, step_mm))
    half = best = size_mm / 2
    error = np.inf
    for _ in range(6):
        blob = grow(shape(half), *around(half), 1.6 * step)
        if blob is None:
            break
        if abs(blob.size_mm / size_mm - 1) < error:
            error, best = abs(blob.size_mm / size_mm - 1), half
        if error < 0.04 or half > 1.5 * size_mm:
            break
        half *= float(np.clip(size_mm / blob.size_mm, 0.6, 1.5))
    blob = grow(shape(best), *around(best), step)
    return None if blob is None else blob.scaled(max(1.0, round(blob.size_mm)) / blob.size_mm)


def ball(centre_mm, reach: float) -> Callable[[float], Box]:
    """Half size -> the box around a ball of `reach` half sizes."""
    c = np.asarray(centre_mm, float)
    return lambda half: (point(c - reach * half), point(c + reach * half))


def union(blobs: Sequence[Blob]) -> Box:
    """The box around several."""
    boxes = np.asarray([blob.box_mm for blob in blobs])
    return point(boxes[:, 0].min(0)), point(boxes[:, 1].max(0))


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random function of direction, about -1 to 1."""

    vectors: np.ndarray
    phases: np.ndarray
    gains: np.ndarray

    @classmethod
    def make(cls, rng: np.random.Generator, n: int = 7, rate: float = 2.6) -> Waves:
        vectors = rng.normal(0, rate, (n, 3))
        return cls(vectors, rng.uniform(0, 2 * np.pi, n), rng.uniform(0.4, 1, n) / np.sqrt(n / 2))

    def __call__(self, u, v, w):
        total = np.float32(0)
        for (a, b, c), phase, gain in zip(self.vectors, self.phases, self.gains, strict=True):
            wave = np.sin(np.float32(a) * u + np.float32(b) * v + np.float32(c) * w + np.float32(phase))
            total = total + np.float32(gain) * wave
        return total


def turned(rng: np.random.Generator, along=None) -> np.ndarray:
    """A random rotation (3, 3), rows its axes; the first near `along` where that is given."""
    first = rng.normal(0, 1, 3) if along is None else np.asarray(along, float) + rng.normal(0, 0.15, 3)
    first = first / np.linalg.norm(first)
    second = np.cross(first, rng.normal(0, 1, 3))
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)])


def lumpy(centre_mm, slim: tuple[float, float], axes: np.ndarray, waves: Waves, rough: float) -> Shape:
    """An ellipsoid with a bumpy surface; `slim`: its second and third axis against the first."""
    c = np.asarray(centre_mm, np.float32)
    m = axes.astype(np.float32)

    def shape(half_mm: float) -> Sdf:
        radii = np.float32(half_mm) * np.array([1.0, *slim], np.float32)

        def sdf(grid: Grid):
            x, y, z = grid.axes()
            p = (x - c[0], y - c[1], z - c[2])
            u, v, w = (sum(m[r, a] * p[a] for a in range(3)) / radii[r] for r in range(3))
            near = np.sqrt(u * u + v * v + w * w) + np.float32(1e-5)
            steep = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2)
            edge = 1 + np.float32(rough) * waves(u / near, v / near, w / near)
            return near * (near - edge) / np.maximum(steep, np.float32(1e-4))

        return sdf

    return shape


@dataclass(frozen=True, eq=False)
class Wedge:
    """A rounded cone like the territory of an artery: its base on the surface of the brain, its tip deep."""

    base_mm: np.ndarray
    axis: np.ndarray
    """From the tip to the base, of length 1."""
    slope: float
    """Half width of the base against its height."""
    waves: Waves
    rough: float
    flat: float
    """< 1 narrows it in one direction across its axis."""
    beyond_mm: float = 5.0
    """How far it goes on beyond the base, where the surface cuts it."""

    def around(self, half_mm: float) -> Box:
        tip, base = self.base_mm - 2 * half_mm * self.axis, self.base_mm + self.beyond_mm * self.axis
        wide = (2 * half_mm * self.slope + 3) * max(1.0, self.flat) * np.sqrt(
            np.maximum(1 - self.axis**2, 0)
        ) + 3
        return point(np.minimum(tip, base - wide)), point(np.maximum(tip, base + wide))

    def __call__(self, half_mm: float) -> Sdf:
        across = np.cross(self.axis, [0.2, 0.3, 1.0])
        across /= np.linalg.norm(across)
        m = np.stack([self.axis, across, np.cross(self.axis, across)]).astype(np.float32)
        tip = (self.base_mm - 2 * half_mm * self.axis).astype(np.float32)
        long, slope = np.float32(2 * half_mm + self.beyond_mm), np.float32(self.slope)

        def sdf(grid: Grid):
            x, y, z = grid.axes()
            p = (x - tip[0], y - tip[1], z - tip[2])
            u, v, w = (sum(m[r, a] * p[a] for a in range(3)) for r in range(3))
            w = w / np.float32(self.flat)
            side = np.sqrt(v * v + w * w)
            far = np.sqrt(u * u + side * side) + np.float32(1e-5)
            bump = np.float32(self.rough) * long * self.waves(u / far, v / far, w / far)
            # the tip is blunt: no infarct ends in a point
            cone = (side - slope * np.maximum(u, 0) - 2) / np.sqrt(1 + slope * slope)
            return np.maximum(np.maximum(cone, far - long), -u - 2) + bump

        return sdf


def cut(shape: Shape, walls: Sequence[Sdf], fillet_mm: float = 2.0) -> Shape:
    """The shape where it lies inside of every wall."""

    def shaped(half_mm: float) -> Sdf:
        inner = shape(half_mm)

        def sdf(grid: Grid):
            values = inner(grid)
            for wall in walls:
                values = smooth_max(values, wall(grid), fillet_mm)
            return values

        return sdf

    return shaped


def whole(grid: Grid) -> Slices:
    """Every voxel of a grid."""
    i, j, k = (slice(0, n) for n in grid.shape)
    return i, j, k


def wall(field: Field, margin_mm: float = 0.0, outside: bool = False) -> Sdf:
    """A field as a wall: what lies deeper than `margin_mm` in it, or farther than that outside of it."""
    sign, margin = np.float32(-1 if outside else 1), np.float32(margin_mm)
    return lambda grid: sign * field.on(grid, whole(grid)) + margin


def crossings(grid: Grid, values: np.ndarray) -> np.ndarray:
    """Where the lattice edges cut the surface, by linear interpolation."""
    out = []
    step, origin = np.asarray(grid.spacing_mm), np.asarray(grid.origin_mm)
    for axis in range(3):
        a, b = [slice(None)] * 3, [slice(None)] * 3
        a[axis], b[axis] = slice(None, -1), slice(1, None)
        first, second = values[tuple(a)], values[tuple(b)]
        where = np.argwhere((first < 0) != (second < 0))
        v0, v1 = first[tuple(where.T)], second[tuple(where.T)]
        index = where.astype(float)
        index[:, axis] += v0 / (v0 - v1)
        out.append(origin + index * step)
    return np.concatenate(out)
