"""Frame -> Space: the reference coordinates of every point of a coarse lattice, and shapes on it.

Organs are signed distances in reference mm; here they become Fields in patient mm. Tubes are laid
along warped lines and stay round. Knows no organ by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mla_med.phantom.chest.frame import ANGLES, HEIGHTS, Frame
from mla_med.phantom.lattice import Field, Lattice, Slices, chain_field, curve

STEP_MM = 4.0
LOW_REF, HIGH_REF = -195.0, 170.0
"""Lowest and highest z of the lattice, reference mm: from the upper kidney to the neck."""


@dataclass(frozen=True, eq=False)
class Space:
    frame: Frame
    lattice: Lattice

    @classmethod
    def over(cls, frame: Frame) -> Space:
        """The whole body, skin and raised arms included."""
        habitus = frame.habitus
        sx, sy, sz = habitus.scale
        beyond = 46 + 1.5 * habitus.fat_mm
        side = max(138 * sx + beyond, 198 * sx)
        front = 92 * sy + beyond + habitus.breast_mm
        return cls(
            frame,
            Lattice.over((-side, -108 * sy - beyond, LOW_REF * sz), (side, front, HIGH_REF * sz), STEP_MM),
        )

    @cached_property
    def ref(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reference x, y, z of the lattice points."""
        axes = self.lattice.grid.axes()
        moved = self.frame.warp_grid(*axes)
        x, y, z = (
            ((a - u) / np.float32(s)).astype(np.float32)
            for a, u, s in zip(axes, moved, self.frame.habitus.scale, strict=True)
        )
        return x, y, z

    @cached_property
    def wall(self) -> tuple[np.ndarray, np.ndarray]:
        """Depth from the pleura (patient mm) and the flat index into the maps of the wall."""
        return self.frame.wall(*self.ref)

    @cached_property
    def depth(self) -> Field:
        """Depth from the inside of the chest wall, patient mm, positive outwards."""
        return Field(self.lattice, self.wall[0], (0, 0, 0))

    @cached_property
    def angle(self) -> Field:
        """Degrees around the chest: 0 front, 90 side, 180 back."""
        step = float(ANGLES[1] - ANGLES[0])
        degrees = (self.wall[1] // len(HEIGHTS)).astype(np.float32) * np.float32(step)
        return Field(self.lattice, degrees, (0, 0, 0))

    @cached_property
    def axes(self) -> tuple[Field, Field, Field]:
        """Reference x, y and z as fields."""
        x, y, z = (Field(self.lattice, v, (0, 0, 0)) for v in self.ref)
        return x, y, z

    @property
    def size(self) -> np.float32:
        return np.float32(self.frame.size)

    def on_map(self, name: str) -> np.ndarray:
        """A map of the wall (Frame.maps) at every lattice point."""
        return np.take(self.frame.maps[name], self.wall[1])

    def box(self, low_ref, high_ref) -> Slices:
        """The lattice points that hold a reference box."""
        scale = np.asarray(self.frame.habitus.scale)
        return self.lattice.box(np.asarray(low_ref) * scale - 7, np.asarray(high_ref) * scale + 7)

    def at(self, box: Slices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reference x, y, z on a part of the lattice."""
        x, y, z = self.ref
        return x[box], y[box], z[box]

    def shape(self, sdf: Callable[..., np.ndarray], low_ref, high_ref, margin_mm: float = 8.0) -> Field:
        """A signed distance in reference mm, as a field in patient mm."""
        box = self.box(low_ref, high_ref)
        return self.lattice.field(sdf(*self.at(box)) * self.size, box, margin_mm)

    def line(self, points_ref, radii_ref, step_mm: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
        """A smooth tube through reference points -> patient points (N, 3) and radii (N,), mm."""
        points = self.frame.to_patient(points_ref)
        return curve(points, np.asarray(radii_ref, float) * self.frame.size, step_mm)

    def tube(self, points_mm: np.ndarray, radii_mm: np.ndarray, reach_mm: float = 12.0) -> Field:
        """The tube as a field; the lattice needs no finer pieces than its own step bends."""
        return chain_field(self.lattice, *simplify(points_mm, radii_mm, 0.6), reach_mm)


def part_of(field: Field) -> Slices:
    """The part of the lattice that a field lies on."""
    i, j, k = (slice(f, f + n) for f, n in zip(field.first, field.values.shape, strict=True))
    return i, j, k


def simplify(points: np.ndarray, radii: np.ndarray, within_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Fewer points of a tube, as long as no left-out one lies further off than `within_mm`."""
    for stride in (6, 4, 3, 2):
        keep = np.unique(np.append(np.arange(0, len(points), stride), len(points) - 1))
        at = np.arange(len(points))
        line = np.stack([np.interp(at, keep, points[keep, a]) for a in range(3)], axis=1)
        off = np.linalg.norm(line - points, axis=1) + np.abs(np.interp(at, keep, radii[keep]) - radii)
        if off.max() <= within_mm:
            return points[keep], radii[keep]
    return points, radii
