"""Chest -> where in it there is room for a lesion: points of the lungs, their lobe and how deep they lie.

Lesions keep apart from each other and clear of fissures, so that their lobe can be told. Knows no lesions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mla_med.phantom.chest.blobs import Shape, crossing
from mla_med.phantom.chest.lungs import LOBES
from mla_med.phantom.chest.lungs import Place as Lobe
from mla_med.phantom.lattice import Field, Lattice
from mla_med.phantom.shapes import point
from mla_med.types import Box, Side

CANDIDATES = 5000


@dataclass(eq=False)
class Room:
    """Points that lie in the lungs of a chest, and what of them is taken."""

    chest: Any
    points_mm: np.ndarray
    """(N, 3), in random order."""
    depth_mm: np.ndarray
    """Below the pleura."""
    fissure_mm: np.ndarray
    lobes: np.ndarray
    """Index into LOBES."""
    height: np.ndarray
    """0 at the base of the lungs to 1 at the apex."""
    behind: np.ndarray
    """0 at the front of the lungs to 1 at the back."""
    taken: list[tuple[np.ndarray, float]] = field(default_factory=list)
    used: dict[str, list[Lobe]] = field(default_factory=dict)
    """Lobes that a code was planted in."""

    @classmethod
    def empty(cls, chest: Any) -> Room:
        """Without points yet: lesions that change the lungs come before those that lie in them."""
        none = np.zeros(0)
        return cls(chest, np.zeros((0, 3)), none, none, none, none, none)

    @classmethod
    def of(cls, chest: Any, rng: np.random.Generator, used: dict[str, list[Lobe]] | None = None) -> Room:
        low, high = lungs_box(chest)
        points = rng.uniform(low, high, (CANDIDATES * 2, 3))
        depth = -np.minimum(*(chest.lungs[side].at(points) for side in (Side.RIGHT, Side.LEFT)))
        inside = depth > 0.5
        points, depth = points[inside], depth[inside]
        height = (points[:, 2] - low[2]) / (high[2] - low[2])
        behind = (high[1] - points[:, 1]) / (high[1] - low[1])
        fissure = np.asarray(chest.fissure_distance_mm(points))
        return cls(chest, points, depth, fissure, lobe_index(chest, points), height, behind, used=used or {})

    def spot(
        self,
        rng: np.random.Generator,
        radius_mm: float,
        clear_mm: float,
        deep_mm: tuple[float, float],
        lobes: Sequence[Lobe] = LOBES,
        odds: np.ndarray | None = None,
        take: bool = True,
    ) -> np.ndarray | None:
        """A point at least `clear_mm` from fissures, between two depths, away from other lesions; None if
        there is none. `odds` by point, between 0 and 1."""
        wanted = np.isin(self.lobes, [LOBES.index(lobe) for lobe in lobes])
        good = wanted & (self.fissure_mm >= clear_mm)
        good &= (self.depth_mm >= deep_mm[0]) & (self.depth_mm <= deep_mm[1])
        if odds is not None:
            good &= rng.random(len(odds)) < odds
        for centre, radius in self.taken:
            good &= np.linalg.norm(self.points_mm - centre, axis=1) > radius + radius_mm + 4
        found = np.flatnonzero(good)
        if found.size == 0:
            return None
        # a lobe first, by its volume softened: the middle lobe is small, yet not free of disease
        which, number = np.unique(self.lobes[found], return_counts=True)
        share = np.sqrt(number) / np.sqrt(number).sum()
        lobe = rng.choice(which, p=share)
        at = self.points_mm[rng.choice(found[self.lobes[found] == lobe])]
        if take:
            self.taken.append((at, radius_mm))
        return at

    def must_spot(self, rng, radius_mm, clear_mm, deep_mm, lobes=LOBES, odds=None) -> np.ndarray:
        """The same with less and less asked, until there is a point."""
        for ease in (1.0, 0.8, 0.6, 0.4, 0.2, 0.0):
            deep = (deep_mm[0] * ease, deep_mm[1] + (1 - ease) * 60)
            at = self.spot(rng, radius_mm * ease, clear_mm * ease, deep, lobes, odds if ease > 0.7 else None)
            if at is not None:
                return at
        # a full lung, or a lobe that fluid and air have left nothing of
        taken, self.taken = self.taken, []
        at = self.spot(rng, 0.0, 0.0, (0.0, 1e3), lobes)
        at = at if at is not None else self.spot(rng, 0.0, 0.0, (0.0, 1e3))
        self.taken = [*taken, *self.taken]
        assert at is not None, "lungs without a point"
        return at

    def roomy(self, lobe: Lobe) -> bool:
        """Whether there is more than a rest of that lobe."""
        return int((self.lobes == LOBES.index(lobe)).sum()) >= 40

    def lobe(self, point_mm) -> Lobe:
        return LOBES[int(lobe_index(self.chest, np.atleast_2d(point_mm))[0])]

    def clip(self, lobe: Lobe, low_mm, high_mm, step_mm: float = 4.0, inset_mm: float = 0.0) -> Shape:
        """Negative inside the lobe, about mm, known between two corners."""
        lattice = Lattice.over(np.asarray(low_mm) - step_mm, np.asarray(high_mm) + step_mm, step_mm)
        points = _grid_points(lattice)
        values = self.chest.lungs[lobe[0]].at(points) + inset_mm
        near = values < 8.0
        fissure = np.asarray(self.chest.fissure_distance_mm(points[near]))
        other = lobe_index(self.chest, points[near]) != LOBES.index(lobe)
        values[near] = np.maximum(values[near], np.where(other, fissure, -fissure))
        values = values.reshape(lattice.grid.shape).astype(np.float32)
        return FieldShape(Field(lattice, values, (0, 0, 0)))


@dataclass(frozen=True, eq=False)
class FieldShape:
    """A field as a shape: values at broadcast coordinates that form a grid."""

    field: Field

    def __call__(self, x, y, z) -> np.ndarray:
        values = self.field.values
        origin = self.field.lattice.grid.origin_mm
        step = self.field.lattice.grid.spacing_mm
        for axis, at in ((2, z), (1, y), (0, x)):
            index = np.clip((np.ravel(at) - origin[axis]) / step[axis], 0, values.shape[axis] - 1)
            low = np.minimum(index.astype(int), values.shape[axis] - 2)
            weight = (index - low).astype(np.float32)
            shape = [1, 1, 1]
            shape[axis] = -1
            first = np.take(values, low, axis=axis)
            second = np.take(values, low + 1, axis=axis)
            values = first + (second - first) * weight.reshape(shape)
        return values


def lungs_box(chest: Any, sides: Sequence[Side] = (Side.RIGHT, Side.LEFT)) -> tuple[np.ndarray, np.ndarray]:
    """The corners of what the lungs fill."""
    low, high = [], []
    for side in sides:
        f = chest.lungs[side]
        inside = np.argwhere(f.values < 0)
        origin, step = np.asarray(f.lattice.grid.origin_mm), np.asarray(f.lattice.grid.spacing_mm)
        low.append(origin + step * (inside.min(0) - 1 + f.first))
        high.append(origin + step * (inside.max(0) + 1 + f.first))
    return np.min(low, axis=0), np.max(high, axis=0)


def field_box(shape: Field) -> Box:
    """The box of what a field of the chest holds."""
    step, origin = np.asarray(shape.lattice.grid.spacing_mm), np.asarray(shape.lattice.grid.origin_mm)
    return sdf_box(shape.values, origin + step * np.asarray(shape.first), step)


def sdf_box(values: np.ndarray, origin: np.ndarray, step: np.ndarray) -> Box:
    """The box of what lies below zero; edges are where the distance crosses it."""
    low, high = [], []
    for axis in range(3):
        profile = values.min(axis=tuple(a for a in range(3) if a != axis))
        inside = np.flatnonzero(profile < 0)
        assert inside.size, "nothing there"
        low.append(origin[axis] + step[axis] * (inside[0] - crossing(profile, inside[0], -1)))
        high.append(origin[axis] + step[axis] * (inside[-1] + crossing(profile, inside[-1], 1)))
    return point(low), point(high)


def lobe_index(chest: Any, points_mm: np.ndarray) -> np.ndarray:
    """Index into LOBES of points (N, 3)."""
    return np.asarray(chest.lobe_of(points_mm))


def _grid_points(lattice: Lattice) -> np.ndarray:
    x, y, z = (np.ravel(v) for v in lattice.grid.axes())
    return np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)
