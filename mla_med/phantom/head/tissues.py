"""What a voxel of the head is made of: maps of relaxation, diffusion, flow and contrast uptake.

A voxel holds three things side by side, and their signals add: tissue (with the relaxation times of the
maps), free water (`water`: cerebrospinal fluid, vitreous) and flowing blood (`blood`); what is left is
bone cortex or air, without signal. That free water stands apart is why a voxel half of cortex and half of
fluid looks on FLAIR as half of cortex, and not as an average of relaxation times would. Times are those
at 3 T; mr.py turns them into those of the scanner. Knows no anatomy and no sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mla_med.phantom.lattice import Slices
from mla_med.phantom.shapes import Grid


@dataclass(frozen=True, slots=True)
class Tissue:
    """One kind of tissue, at 3 T."""

    pd: float = 0.0
    """Protons of tissue that give signal, 1 as much as pure water."""
    t1_ms: float = 1000.0
    t2_ms: float = 80.0
    t2star_ms: float = 50.0
    adc: float = 0.8
    """Apparent diffusion coefficient, in um^2/ms (1e-3 mm^2/s)."""
    uptake: float = 0.0
    """How much gadolinium it takes up; 1 as much as blood."""
    chi: float = 0.0
    """Paramagnetic load, 1 for clotted blood: what blooms on susceptibility-weighted images."""
    fat: float = 0.0
    """Share that fat suppression removes."""
    water: float = 0.0
    """Share of free water."""
    blood: float = 0.0
    """Share of flowing blood: a void on spin echoes, bright after gadolinium."""


# Brain at 3 T: T1 near Wansapura et al., J Magn Reson Imaging 1999;9:531 (white matter 832 ms and T2 80 ms,
# grey 1331 and 110), T2 between those and Stanisz et al., Magn Reson Med 2005;54:507 (69 and 99 ms), both
# within the ranges of Bojorquez et al., Magn Reson Imaging 2017;35:69. T2*: Peters et al., Magn Reson Imaging
# 2007;25:748. ADC: Helenius et al., AJNR 2002;23:194. Of the other tissues, times that give the contrast seen
# on images.
TISSUES: dict[str, Tissue] = {
    "air": Tissue(),
    "cortical_bone": Tissue(pd=0.04, t1_ms=400, t2_ms=12, t2star_ms=2, adc=0.2),
    "marrow": Tissue(pd=0.72, t1_ms=450, t2_ms=75, t2star_ms=15, adc=0.4, fat=0.75, uptake=0.05),
    "base_bone": Tissue(pd=0.30, t1_ms=500, t2_ms=45, t2star_ms=6, adc=0.4, fat=0.5),
    "fat": Tissue(pd=0.95, t1_ms=370, t2_ms=95, t2star_ms=35, adc=0.1, fat=0.95),
    "skin": Tissue(pd=0.75, t1_ms=900, t2_ms=40, t2star_ms=20, adc=0.8, uptake=0.1),
    "muscle": Tissue(pd=0.78, t1_ms=1400, t2_ms=36, t2star_ms=25, adc=1.4, uptake=0.04),
    "mucosa": Tissue(pd=0.85, t1_ms=1500, t2_ms=110, t2star_ms=30, adc=1.4, uptake=0.5),
    "dura": Tissue(pd=0.35, t1_ms=900, t2_ms=30, t2star_ms=20, adc=0.7, uptake=0.35),
    "csf": Tissue(water=1.0),
    "grey": Tissue(pd=0.82, t1_ms=1350, t2_ms=92, t2star_ms=60, adc=0.86),
    "white": Tissue(pd=0.70, t1_ms=850, t2_ms=76, t2star_ms=53, adc=0.72),
    "deep_grey": Tissue(pd=0.79, t1_ms=1190, t2_ms=84, t2star_ms=44, adc=0.76),
    "thalamus": Tissue(pd=0.78, t1_ms=1120, t2_ms=84, t2star_ms=50, adc=0.76),
    "pallidum": Tissue(pd=0.75, t1_ms=1000, t2_ms=66, t2star_ms=30, adc=0.76, chi=0.04),
    "nigra": Tissue(pd=0.75, t1_ms=1050, t2_ms=62, t2star_ms=30, adc=0.75, chi=0.04),
    "stem": Tissue(pd=0.74, t1_ms=960, t2_ms=80, t2star_ms=53, adc=0.78),
    "cavernous": Tissue(pd=0.70, t1_ms=1300, t2_ms=55, t2star_ms=30, adc=0.8, uptake=0.8),
    "pituitary": Tissue(pd=0.80, t1_ms=1100, t2_ms=80, t2star_ms=40, adc=1.0, uptake=1.0),
    "choroid": Tissue(pd=0.50, t1_ms=1500, t2_ms=150, t2star_ms=50, adc=1.8, uptake=0.9, water=0.4),
    "lens": Tissue(pd=0.70, t1_ms=1100, t2_ms=30, t2star_ms=20, adc=0.8),
    "nerve": Tissue(pd=0.72, t1_ms=950, t2_ms=80, t2star_ms=50, adc=0.8),
    "artery": Tissue(blood=1.0),
    "vein": Tissue(blood=1.0, chi=0.12),
}
"""By name; lesions bring tissues of their own."""

_SOLID = ("t1_ms", "t2_ms", "t2star_ms", "adc", "uptake", "fat")
"""What belongs to the tissue in a voxel, not to the voxel."""


@dataclass(frozen=True, eq=False)
class Tissues:
    """Maps on a grid, float32 (I, J, K). Names and units as in Tissue; t1_ms, t2_ms, t2star_ms, adc, uptake
    and fat are those of the tissue in the voxel, whatever its share; pd, water, blood and chi are amounts per
    voxel."""

    grid: Grid
    pd: np.ndarray
    t1_ms: np.ndarray
    t2_ms: np.ndarray
    t2star_ms: np.ndarray
    adc: np.ndarray
    uptake: np.ndarray
    chi: np.ndarray
    fat: np.ndarray
    water: np.ndarray
    blood: np.ndarray
    grey: np.ndarray
    """Share of the voxel that is cortex or a deep nucleus; not changed by lesions."""
    white: np.ndarray
    """Share that is white matter or brainstem; not changed by lesions."""
    brain: np.ndarray
    """Share that is brain of any kind: cerebrum, cerebellum, brainstem; not changed by lesions."""

    @classmethod
    def empty(cls, grid: Grid) -> Tissues:
        """Nothing anywhere."""
        maps = {f.name: np.zeros(grid.shape, np.float32) for f in fields(cls) if f.name != "grid"}
        for name in ("t1_ms", "t2_ms", "t2star_ms"):
            maps[name] += 1
        return cls(grid, **maps)

    def maps(self) -> dict[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "grid"}


@dataclass(frozen=True, eq=False)
class Canvas:
    """What lesions are painted on: the maps of a head on one grid, changed in place."""

    head: Any
    """The head.Head that was drawn, after every `change`."""
    grid: Grid
    maps: Tissues

    def box(self, centre_mm, radius_mm) -> Slices:
        """The voxels that hold a ball, or a box (radius_mm of three values), in patient mm."""
        return self.grid.window(centre_mm, radius_mm)

    def axes(self, box: Slices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y, z in patient mm of the voxels of a box, shaped to broadcast."""
        return self.grid.axes(box)

    def paint(self, box: Slices, inside: np.ndarray, tissue: Tissue) -> None:
        """Replaces the inside part (0 to 1) of each voxel of the box by a tissue."""
        m = self.maps
        pd = m.pd[box]
        new = inside * np.float32(tissue.pd)
        old = pd * (1 - inside)
        share = new / np.maximum(old + new, np.float32(1e-6))
        for name in _SOLID:
            values = getattr(m, name)[box]
            values += share * (np.float32(getattr(tissue, name)) - values)
        pd[...] = old + new
        for name in ("water", "blood", "chi"):
            values, value = getattr(m, name)[box], getattr(tissue, name)
            values += inside * (np.float32(value) - values)

    def alter(self, box: Slices, weight: np.ndarray, **values: float) -> None:
        """Moves maps of the tissue (t1_ms, t2_ms, t2star_ms, adc, uptake, chi; also pd) towards values, by a
        weight of 0 to 1 in each voxel of the box; water and blood stay. For what seeps into tissue:
        `canvas.alter(box, weight, t2_ms=160, t1_ms=1700, adc=1.4)` is oedema."""
        for name, value in values.items():
            now = getattr(self.maps, name)[box]
            now += weight * (np.float32(value) - now)
