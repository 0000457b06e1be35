"""Shapes of disease: lumpy balls, clipped regions, strands, lobules, in patient mm, with their true extent.

A lesion is a function that is negative inside; its size is measured on a fine lattice when it is planted,
before any picture. Knows neither organs nor findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.spatial import cKDTree

from mla_med.phantom.chest.tree import Tubes
from mla_med.phantom.lattice import Field, Lattice, Slices, Texture
from mla_med.phantom.shapes import Grid, point
from mla_med.types import Box

Lines = list[tuple[np.ndarray, np.ndarray | float]]
"""Points (N, 3) in mm with radii (N,), or one radius for all."""
Shape = Callable[..., np.ndarray]
"""x, y, z in mm, broadcastable -> about the signed distance in mm, negative inside."""


@dataclass(frozen=True, eq=False)
class Blob:
    """An ellipsoid whose surface swells and shrinks smoothly."""

    centre_mm: np.ndarray
    radii_mm: np.ndarray
    axes: np.ndarray
    """(3, 3), the axes as rows."""
    waves: np.ndarray
    """(N, 3): how fast the surface changes with direction."""
    phases: np.ndarray
    gains: np.ndarray
    """Share of the radius."""

    @classmethod
    def make(
        cls,
        rng: np.random.Generator,
        centre_mm,
        radius_mm: float,
        rough: float = 0.06,
        stretch: float = 0.12,
        lumps: float = 2.2,
    ) -> Blob:
        """`rough`: share of the radius by which the surface varies; `lumps`: how many there are, about."""
        radii = radius_mm * np.exp(rng.normal(0, stretch, 3))
        waves = rng.normal(0, lumps, (7, 3))
        return cls(
            np.asarray(centre_mm, float),
            radii,
            rotation(rng),
            waves,
            rng.uniform(0, 2 * np.pi, 7),
            rng.normal(0, rough / 1.9, 7),
        )

    @property
    def reach_mm(self) -> float:
        """No part of it is farther from the centre."""
        return float(self.radii_mm.max() * (1 + np.abs(self.gains).sum()))

    def scaled(self, factor: float) -> Blob:
        return replace(self, radii_mm=self.radii_mm * factor)

    def __call__(self, x, y, z) -> np.ndarray:
        d = [
            np.asarray(v, np.float32) - np.float32(c) for v, c in zip((x, y, z), self.centre_mm, strict=True)
        ]
        m = (self.axes / self.radii_mm[:, None]).astype(np.float32)
        u, v, w = (m[r, 0] * d[0] + m[r, 1] * d[1] + m[r, 2] * d[2] for r in range(3))
        near = np.sqrt(u * u + v * v + w * w) + np.float32(1e-4)
        radius = np.ones_like(near)
        for (a, b, c), phase, gain in zip(self.waves, self.phases, self.gains, strict=True):
            radius += np.float32(gain) * np.sin(
                (np.float32(a) * u + np.float32(b) * v + np.float32(c) * w) / near + np.float32(phase)
            )
        return (near - radius) * np.float32(np.cbrt(np.prod(self.radii_mm)))


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random right-handed frame, axes as rows."""
    q, r = np.linalg.qr(rng.normal(0, 1, (3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[0] *= -1
    return q


def direction(rng: np.random.Generator) -> np.ndarray:
    v = rng.normal(0, 1, 3)
    return v / np.linalg.norm(v)


@dataclass(frozen=True, slots=True)
class Extent:
    """What can be measured on a shape."""

    box_mm: Box
    long_mm: float
    """Largest diameter in an axial plane."""
    short_mm: float
    """Largest diameter at right angles to it, in that plane."""


_TURNS = np.deg2rad(np.arange(0, 180, 6.0))
_RAYS = np.stack([np.cos(_TURNS), np.sin(_TURNS)])


def measure(shape: Shape, centre_mm, reach_mm: float, samples: int = 28) -> Extent | None:
    """The extent of a shape within `reach_mm` of a point; None if it is empty there."""
    steps = np.linspace(-reach_mm, reach_mm, samples)
    x, y, z = (float(c) + steps for c in centre_mm)
    f = np.broadcast_to(
        shape(
            x[:, None, None].astype(np.float32),
            y[None, :, None].astype(np.float32),
            z[None, None, :].astype(np.float32),
        ),
        (samples,) * 3,
    )
    step = steps[1] - steps[0]
    low, high = [], []
    for axis, at in enumerate((x, y, z)):
        profile = f.min(axis=tuple(a for a in range(3) if a != axis))
        inside = np.flatnonzero(profile < 0)
        if inside.size == 0:
            return None
        low.append(at[inside[0]] - step * crossing(profile, inside[0], -1))
        high.append(at[inside[-1]] + step * crossing(profile, inside[-1], 1))
    long_mm, short_mm = 0.0, 0.0
    for k in np.flatnonzero((f < 0).any(axis=(0, 1))):
        widths = _widths(f[:, :, k], step)
        turn = int(widths.argmax())
        if widths[turn] > long_mm:
            long_mm = float(widths[turn])
            short_mm = float(widths[(turn + len(_TURNS) // 2) % len(_TURNS)])
    return Extent((point(low), point(high)), long_mm, short_mm)


def crossing(profile: np.ndarray, index: int, step: int) -> float:
    """How far beyond `index`, in samples, a profile becomes positive; half a sample where it ends."""
    beyond = index + step
    if not 0 <= beyond < len(profile):
        return 0.5
    return float(profile[index] / (profile[index] - profile[beyond]))


def _widths(f: np.ndarray, step: float) -> np.ndarray:
    """Diameter of the part below zero, by direction: its outline crosses the lines of the lattice."""
    parts = []
    for g, swap in ((f, False), (f.T, True)):
        change = np.flatnonzero((g[:-1] < 0).ravel() != (g[1:] < 0).ravel())
        rows, columns = np.unravel_index(change, g[1:].shape)
        a, b = g[rows, columns], g[rows + 1, columns]
        at = (rows + a / (a - b)) * step
        other = columns * step
        parts.append(np.stack([other, at] if swap else [at, other]))
    points = np.concatenate(parts, axis=1)
    if points.shape[1] == 0:
        return np.full(len(_TURNS), 0.5 * step)
    along = _RAYS.T @ points
    return along.max(axis=1) - along.min(axis=1)


def fit(blob: Blob, size_mm: float, clip: Shape | None = None, short: bool = False) -> tuple[Blob, Extent]:
    """The blob scaled so that it measures `size_mm` where `clip` leaves it."""
    extent = None
    for _ in range(1 if clip is None else 4):
        shape = blob if clip is None else both(blob, clip)
        extent = measure(shape, blob.centre_mm, blob.reach_mm)
        assert extent is not None
        factor = size_mm / (extent.short_mm if short else extent.long_mm)
        blob = blob.scaled(float(np.clip(factor, 0.5, 1.6)) if clip is not None else factor)
        if abs(factor - 1) < 0.01:
            break
    shape = blob if clip is None else both(blob, clip)
    extent = measure(shape, blob.centre_mm, blob.reach_mm)
    assert extent is not None
    return blob, extent


def both(a: Shape, b: Shape) -> Shape:
    """What lies inside of both."""
    return lambda x, y, z: np.maximum(a(x, y, z), b(x, y, z))


@dataclass(frozen=True, eq=False)
class Region:
    """A shape known on a coarse lattice: drawn anywhere at little cost."""

    field: Field
    box_mm: Box

    @classmethod
    def make(cls, shape: Shape, low_mm, high_mm, step_mm: float = 3.0, rim_mm: float = 0.0) -> Region | None:
        """None if the shape is empty. `rim_mm`: how far beyond it something is drawn, for the box."""
        lattice = Lattice.over(low_mm, high_mm, step_mm)
        values = np.broadcast_to(shape(*lattice.grid.axes()), lattice.grid.shape).astype(np.float32)
        if not (values < 0).any():
            return None
        low, high = [], []
        for axis in range(3):
            profile = values.min(axis=tuple(a for a in range(3) if a != axis)) - rim_mm
            inside = np.flatnonzero(profile < 0)
            origin = lattice.grid.origin_mm[axis]
            low.append(origin + step_mm * (inside[0] - crossing(profile, inside[0], -1)))
            high.append(origin + step_mm * (inside[-1] + crossing(profile, inside[-1], 1)))
        return cls(lattice.field(values, lattice.everywhere, 9.0 + rim_mm), (point(low), point(high)))

    def on(self, grid: Grid) -> tuple[Slices, np.ndarray] | None:
        """The voxels it may touch, and the distance there."""
        everywhere = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
        box = self.field.window(grid, everywhere)
        return None if box is None else (box, self.field.on(grid, box))


def box_of(points_mm, margin_mm=0.0) -> Box:
    """The box around points (N, 3); the margin may differ by point."""
    p = np.atleast_2d(np.asarray(points_mm, float))
    m = np.broadcast_to(np.asarray(margin_mm, float), len(p))[:, None]
    return point((p - m).min(0)), point((p + m).max(0))


def join(boxes: list[Box]) -> Box:
    low = np.min([b[0] for b in boxes], axis=0)
    high = np.max([b[1] for b in boxes], axis=0)
    return point(low), point(high)


def window_of(grid: Grid, box_mm: Box) -> Slices | None:
    """The voxels of a box in mm, or None where the grid ends before."""
    low, high = np.asarray(box_mm[0]), np.asarray(box_mm[1])
    box = grid.window((low + high) / 2, (high - low) / 2)
    return None if any(s.stop <= s.start for s in box) else box


def slabs_of(grid: Grid, box_mm: Box, voxels: int = 3_000_000) -> Iterator[Slices]:
    """The voxels of a box in mm, a stack of slices at a time, so that a fine grid needs no more memory."""
    box = window_of(grid, box_mm)
    if box is None:
        return
    i, j, k = box
    thick = max(1, voxels // ((i.stop - i.start) * (j.stop - j.start)))
    for first in range(k.start, k.stop, thick):
        yield i, j, slice(first, min(first + thick, k.stop))


def tubes_of(lines: Sequence[tuple[np.ndarray, np.ndarray | float]]) -> Tubes:
    """Lines (N, 3) with radii (N,), or one for all points, as tubes."""
    return Tubes.join([Tubes.along(p, np.broadcast_to(np.asarray(r, float), len(p))) for p, r in lines])


def wander(rng: np.random.Generator, start, end, bend: float, parts: int = 6) -> np.ndarray:
    """A slightly crooked line from start to end; `bend` is a share of its length."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    t = np.linspace(0, 1, parts + 1)
    length = float(np.linalg.norm(b - a))
    arc = direction(rng) * np.sin(np.pi * t)[:, None] * length * bend
    shake = rng.normal(0, length * bend * 0.15, (parts + 1, 3))
    shake[[0, -1]] = 0
    return a + (b - a) * t[:, None] + arc + shake


@cache
def cloud(step_mm: float, kind: int = 0) -> Texture:
    """Smooth noise of that grain; the same for all, so shift it (`shifted`)."""
    return Texture.make(np.random.default_rng([7, kind]), step_mm)


@cache
def lobules(kind: int = 0) -> tuple[Texture, Texture]:
    """Secondary pulmonary lobules, 10 to 20 mm across (Webb, Radiology 2006;239:322), as two periodic
    maps of 1 mm: distance from the nearest septum in mm, and a number of 0 to 1 for each lobule."""
    rng = np.random.default_rng([8, kind])
    n, step = 64, 1.3
    seeds = rng.uniform(0, n * step, (150, 3))
    at = np.stack(np.meshgrid(*[np.arange(n) * step] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    near, owner = cKDTree(seeds, boxsize=n * step).query(at, k=2)
    septum = ((near[:, 1] - near[:, 0]) / 2).reshape(n, n, n).astype(np.float32)
    value = rng.random(len(seeds))[owner[:, 0]].reshape(n, n, n).astype(np.float32)
    return Texture(septum, step), Texture(value, step)


def shifted(grid: Grid, shift_mm) -> Grid:
    """The same voxels, `shift_mm` away: other noise from the same tile."""
    x, y, z = (float(o + s) for o, s in zip(grid.origin_mm, shift_mm, strict=True))
    return replace(grid, origin_mm=(x, y, z))


def noise(grid: Grid, at: Slices, shift_mm: np.ndarray, grain_mm: float, kind: int = 0) -> np.ndarray:
    return cloud(grain_mm, kind).on(shifted(grid, shift_mm), at)


def finer(grid: Grid, factor: float) -> Grid:
    """A grid that makes a periodic tile `factor` times smaller."""
    x, y, z = (float(v * factor) for v in grid.origin_mm)
    a, b, c = (float(v * factor) for v in grid.spacing_mm)
    return Grid(grid.shape, (a, b, c), (x, y, z))


def sample(texture: Texture, grid: Grid, box: Slices) -> np.ndarray:
    """The tile itself at the voxels of `box`, unlike `Texture.on` not scaled as noise."""
    values, n = texture.tile, texture.tile.shape[0]
    for axis in (2, 1, 0):
        mm = grid.origin_mm[axis] + grid.spacing_mm[axis] * np.arange(box[axis].start, box[axis].stop)
        index = np.mod(mm / texture.step_mm, n)
        low = index.astype(int) % n
        shape = [1, 1, 1]
        shape[axis] = -1
        first = np.take(values, low, axis=axis)
        second = np.take(values, (low + 1) % n, axis=axis)
        values = first + (second - first) * (index - np.floor(index)).astype(np.float32).reshape(shape)
    return values
