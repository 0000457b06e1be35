"""Shapes in patient mm -> how much of each voxel they fill: what every phantom is drawn with.

A shape is a signed distance, negative inside; its edge is one voxel wide, so that a coarse grid
shows partial volume as a scanner would. Coordinates are patient RAS mm (x to the right, y to the
front, z up). Knows no anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Grid:
    """A right-angled sampling grid: voxel (i, j, k) lies at origin_mm + index * spacing_mm (RAS)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    @classmethod
    def centred(cls, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Grid:
        x, y, z = (-(n - 1) * s / 2 for n, s in zip(shape, spacing_mm, strict=True))
        return cls(shape, spacing_mm, (x, y, z))

    @property
    def affine(self) -> np.ndarray:
        a = np.diag([*self.spacing_mm, 1.0])
        a[:3, 3] = self.origin_mm
        return a

    @property
    def edge_mm(self) -> float:
        """Width of a soft edge: the mean voxel edge."""
        return float(np.mean(self.spacing_mm))

    @property
    def everywhere(self) -> tuple[slice, slice, slice]:
        """All voxels, as an index."""
        return slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2])

    def axes(
        self, box: tuple[slice, slice, slice] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y, z in mm, shaped to broadcast over (I, J, K), or over the voxels of `box`."""
        x, y, z = (
            (o + s * np.arange(n)).astype(np.float32)
            for n, s, o in zip(self.shape, self.spacing_mm, self.origin_mm, strict=True)
        )
        i, j, k = box or (slice(None),) * 3
        return x[i, None, None], y[None, j, None], z[None, None, k]

    def window(self, centre_mm, radius_mm) -> tuple[slice, slice, slice]:
        """The index range that holds a ball (or a box, radius_mm of three values)."""
        radius = np.broadcast_to(np.asarray(radius_mm, float), 3) + 2 * np.asarray(self.spacing_mm)
        lo = np.floor((np.asarray(centre_mm) - radius - self.origin_mm) / self.spacing_mm).astype(int)
        hi = np.ceil((np.asarray(centre_mm) + radius - self.origin_mm) / self.spacing_mm).astype(int) + 1
        i, j, k = (slice(max(a, 0), max(min(b, n), 0)) for a, b, n in zip(lo, hi, self.shape, strict=True))
        return i, j, k


@dataclass(frozen=True, slots=True)
class Tube:
    """A straight piece of vessel or airway."""

    start_mm: tuple[float, float, float]
    end_mm: tuple[float, float, float]
    radius_mm: float


def point(values) -> tuple[float, float, float]:
    """Three numbers of any kind as a point in mm."""
    x, y, z = (float(v) for v in values)
    return x, y, z


def soft(sdf: np.ndarray, edge_mm: float) -> np.ndarray:
    """Signed distance -> how much of each voxel lies inside (0 to 1)."""
    return np.clip(0.5 - sdf / edge_mm, 0.0, 1.0, dtype=np.float32)


def blend(hu: np.ndarray, inside: np.ndarray, value) -> None:
    """Replaces the inside part of each voxel by a tissue of that HU, in place."""
    hu += inside * (value - hu)


def draw_tube(hu, grid: Grid, tube: Tube, value: float, where: np.ndarray | None = None) -> None:
    """A capsule; thinner than a voxel it fades by its share of the voxel's area."""
    a, b = np.asarray(tube.start_mm), np.asarray(tube.end_mm)
    box = grid.window((a + b) / 2, np.abs(b - a) / 2 + tube.radius_mm)
    if any(s.stop <= s.start for s in box):
        return
    x, y, z = grid.axes(box)
    axis = (b - a).astype(np.float32)
    t = ((x - a[0]) * axis[0] + (y - a[1]) * axis[1] + (z - a[2]) * axis[2]) / max(float(axis @ axis), 1e-6)
    t = np.clip(t, 0, 1)
    d = np.sqrt((x - a[0] - t * axis[0]) ** 2 + (y - a[1] - t * axis[1]) ** 2 + (z - a[2] - t * axis[2]) ** 2)
    inside = soft(d.astype(np.float32) - tube.radius_mm, grid.edge_mm)
    inside *= min(1.0, (2 * tube.radius_mm / grid.edge_mm) ** 2)
    blend(hu[box], inside if where is None else inside * where[box], value)
