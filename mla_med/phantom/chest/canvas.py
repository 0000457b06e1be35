"""Canvas: what a lesion paints on, after the anatomy was drawn. Knows no lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mla_med.phantom.chest.body import Line
from mla_med.phantom.chest.tree import Branch, Tubes, cover
from mla_med.phantom.lattice import Field, Slices
from mla_med.phantom.shapes import Grid, soft
from mla_med.types import Box, Side

if TYPE_CHECKING:
    from mla_med.phantom.chest.anatomy import Chest


@dataclass(frozen=True, eq=False)
class Canvas:
    """What a lesion paints on: the voxels, where they lie, and whose they are."""

    hu: np.ndarray
    """float32 (I, J, K), changed in place."""
    grid: Grid
    chest: Chest

    def box(self, box_mm: Box) -> Slices:
        """The voxels that hold a box in mm and a margin of two; empty where it misses the grid."""
        low, high = np.asarray(box_mm[0], float), np.asarray(box_mm[1], float)
        return self.grid.window((low + high) / 2, np.maximum(high - low, 0) / 2)

    def misses(self, box: Slices) -> bool:
        return any(s.stop <= s.start for s in box)

    def axes(self, box: Slices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y, z in mm of the voxels of `box`, to broadcast."""
        return self.grid.axes(box)

    def fraction(self, shape: Field, box: Slices, grow_mm: float = 0.0) -> np.ndarray:
        """How much of each voxel of `box` lies inside a field of the chest."""
        out = np.zeros(tuple(s.stop - s.start for s in box), np.float32)
        window = shape.window(self.grid, box)
        if window is not None:
            at = tuple(slice(w.start - b.start, w.stop - b.start) for w, b in zip(window, box, strict=True))
            out[at] = soft(shape.on(self.grid, window) - np.float32(grow_mm), self.grid.edge_mm)
        return out

    def lung_fraction(self, box: Slices, side: Side | None = None) -> np.ndarray:
        """How much of each voxel of `box` is aerated lung, its vessels and airways included."""
        sides = (Side.RIGHT, Side.LEFT) if side is None or side is Side.BILATERAL else (side,)
        out = self.fraction(self.chest.lungs[sides[0]], box)
        for other in sides[1:]:
            np.maximum(out, self.fraction(self.chest.lungs[other], box), out=out)
        return out

    def cavity_fraction(self, box: Slices, side: Side | None = None) -> np.ndarray:
        """How much of each voxel of `box` lies in the pleural cavity: lung, air and fluid."""
        sides = (Side.RIGHT, Side.LEFT) if side is None or side is Side.BILATERAL else (side,)
        out = self.fraction(self.chest.pleura[sides[0]], box)
        for other in sides[1:]:
            np.maximum(out, self.fraction(self.chest.pleura[other], box), out=out)
        return out

    def lobe_index(self, box: Slices) -> np.ndarray:
        """Index into chest_lungs.LOBES of each voxel of `box`, whether it lies in the lung or not."""
        return self.chest.fissures.lobe(*self.reference(box))

    def reference(self, box: Slices) -> list[np.ndarray]:
        """Reference x, y, z of the voxels of `box`."""
        return [axis.on(self.grid, box) for axis in self.chest.space.axes]

    def tubes(self, branches: Sequence[Branch], box: Slices, grow_mm: float = 0.0) -> np.ndarray:
        """How much of each voxel of `box` lies inside these branches."""
        return cover(Tubes.of(branches, grow_mm), self.grid, box)

    def line(self, line: Line, box: Slices, grow_mm: float = 0.0) -> np.ndarray:
        """How much of each voxel of `box` lies inside a tube (points, radii)."""
        return cover(Tubes.along(*line).grown(grow_mm), self.grid, box)

    def texture(self, name: str, box: Slices) -> np.ndarray:
        """Noise of mean 0 and deviation 1, fixed to the patient: "fine" 1 mm, "grain" 3 mm, "coarse" 9 mm."""
        return self.chest.body.textures[name].on(self.grid, box)
