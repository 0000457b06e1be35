"""Pen: draws fields and tubes on a stack of slices, by the share of each voxel that they fill.

Knows the coordinates of the chest, and no organ by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mla_med.phantom.chest import tissue as t
from mla_med.phantom.chest.space import simplify
from mla_med.phantom.chest.tree import Tubes, cover
from mla_med.phantom.lattice import Field, Slices
from mla_med.phantom.shapes import Grid, blend, soft

if TYPE_CHECKING:
    from mla_med.phantom.chest.anatomy import Chest


@dataclass
class Pen:
    """Draws on one slab of the grid."""

    chest: Chest
    grid: Grid
    slab: Slices

    @cached_property
    def hu(self) -> np.ndarray:
        """What was drawn so far."""
        return np.full(tuple(s.stop - s.start for s in self.slab), t.AIR, np.float32)

    @property
    def edge(self) -> float:
        return self.grid.edge_mm

    @property
    def fat(self) -> float:
        """HU of this patient's fat."""
        return self.chest.tissue_hu["fat"]

    @property
    def muscle(self) -> float:
        return self.chest.tissue_hu["muscle"]

    @cached_property
    def depth(self) -> np.ndarray:
        return self.chest.depth.on(self.grid, self.slab)

    @cached_property
    def angle(self) -> np.ndarray:
        return self.chest.space.angle.on(self.grid, self.slab)

    @cached_property
    def height(self) -> np.ndarray:
        """Reference z."""
        return self.chest.space.axes[2].on(self.grid, self.slab)

    @cached_property
    def skin(self) -> np.ndarray:
        return self.chest.surface.on(self.grid, self.slab)

    @cached_property
    def grain(self) -> np.ndarray:
        return self.chest.body.textures["grain"].on(self.grid, self.slab)

    @cached_property
    def coarse(self) -> np.ndarray:
        return self.chest.body.textures["coarse"].on(self.grid, self.slab)

    def local(self, window: Slices) -> Slices:
        """Voxels of the grid -> of the slab."""
        i, j, k = (slice(w.start - s.start, w.stop - s.start) for w, s in zip(window, self.slab, strict=True))
        return i, j, k

    def fill(self, shape: Field, value: float, grow_mm: float = 0.0, grain_hu: float = 0.0) -> None:
        """Replaces what lies inside a field, by a value and as much texture."""
        window = shape.window(self.grid, self.slab)
        if window is None:
            return
        inside = soft(shape.on(self.grid, window) - np.float32(grow_mm), self.edge)
        at = self.local(window)
        blend(self.hu[at], inside, value + np.float32(grain_hu) * self.grain[at] if grain_hu else value)

    def tubes(
        self, tubes: Tubes, value: float, where: np.ndarray | None = None, within: Field | None = None
    ) -> None:
        """Draws tubes; `where` (slab) and `within`: by how much."""
        near = tubes.within(self.grid, self.slab)
        if len(near.a) == 0:
            return
        low, high = near.bounds
        low, high = low.min(0), high.max(0)
        window = self.clip(self.grid.window((low + high) / 2, (high - low) / 2))
        if window is None:
            return
        inside = cover(near, self.grid, window)
        at = self.local(window)
        if where is not None:
            inside *= where[at]
        if within is not None:
            inside *= soft(within.on(self.grid, window), self.edge)
        blend(self.hu[at], inside, value)

    def line(
        self,
        points: np.ndarray,
        radii: np.ndarray,
        value: float,
        grow_mm: float = 0.0,
        where: np.ndarray | None = None,
    ) -> None:
        """Draws one tube, in no finer pieces than the voxels show."""
        points, radii = simplify(points, radii + grow_mm, 0.12 * self.edge)
        self.tubes(Tubes.along(points, radii), value, where)

    def clip(self, window: Slices) -> Slices | None:
        """The part of a window of the grid that lies in the slab."""
        out = [
            slice(max(w.start, s.start), min(w.stop, s.stop)) for w, s in zip(window, self.slab, strict=True)
        ]
        if any(s.stop <= s.start for s in out):
            return None
        return out[0], out[1], out[2]

    def window_of(self, low_ref, high_ref, margin_mm: float = 8.0) -> Slices | None:
        """The voxels of the slab that hold a reference box."""
        scale = np.asarray(self.chest.habitus.scale)
        low, high = np.asarray(low_ref) * scale - margin_mm, np.asarray(high_ref) * scale + margin_mm
        return self.clip(self.grid.window((low + high) / 2, (high - low) / 2))
