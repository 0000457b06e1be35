"""Chest + Grid -> HU of the healthy body, layer by layer, a stack of slices at a time.

Organs lie over each other as they were described: later layers replace earlier ones by the share of each
voxel that they fill. Knows no lesions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from mla_med.phantom.chest import tissue as t
from mla_med.phantom.chest.bones import draw_bones
from mla_med.phantom.chest.frame import HEIGHTS
from mla_med.phantom.chest.heart import CAVITY_MM
from mla_med.phantom.chest.pen import Pen
from mla_med.phantom.chest.tree import Tubes
from mla_med.phantom.lattice import Field, Slices
from mla_med.phantom.shapes import Grid, blend, soft
from mla_med.types import Side

if TYPE_CHECKING:
    from mla_med.phantom.chest.anatomy import Chest

SLAB_VOXELS = 6_000_000


def draw_anatomy(chest: Chest, grid: Grid) -> np.ndarray:
    """-> HU float32 (I, J, K)."""
    hu = np.empty(grid.shape, np.float32)
    plane = grid.shape[0] * grid.shape[1]
    thick = max(1, min(grid.shape[2], SLAB_VOXELS // plane))
    for first in range(0, grid.shape[2], thick):
        slab = (
            slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(first, min(first + thick, grid.shape[2])),
        )  # fmt: skip
        pen = Pen(chest, grid, slab)
        _draw_slab(pen)
        hu[slab] = pen.hu
    return hu


def _draw_slab(pen: Pen) -> None:
    _draw_wall(pen)
    _draw_abdomen(pen)
    _draw_mediastinum(pen)
    lung, hidden = _draw_lungs(pen)
    draw_bones(pen)
    _draw_trees(pen, lung, hidden)


def _draw_wall(pen: Pen) -> None:
    chest, wall = pen.chest, pen.chest.wall
    blend(pen.hu, soft(pen.skin, pen.edge), t.SKIN)
    blend(pen.hu, soft(pen.skin + 1.6, pen.edge), pen.fat + 4 * pen.grain)
    for side, gland in wall.glands.items():
        _draw_gland(pen, gland)
        nipple = chest.landmarks[f"nipple_{side.value}"]
        pen.line(np.array([nipple, nipple + np.array((0, 2, 0))]), np.array([4.0, 4.0]), t.GLAND)
    outside = np.clip(pen.depth - np.float32(11), 0, 1)
    for sign in (1.0, -1.0):
        for line in wall.muscles_of_arm(sign):
            pen.line(*line, pen.muscle, where=outside)
    table, step = wall.muscle_table(fine=pen.edge < 1.3)
    hit = np.flatnonzero((pen.depth > 0) & (pen.depth < table.shape[2]) & (pen.skin < 0))
    if hit.size:
        places = np.stack(
            [
                pen.angle.ravel()[hit] * np.float32(2 / step),
                (pen.height.ravel()[hit] - np.float32(HEIGHTS[0])) * 0.25,
                pen.depth.ravel()[hit],
            ]
        )
        muscle = ndimage.map_coordinates(table, places, np.float32, order=1, mode="nearest")
        muscle *= soft(pen.skin.ravel()[hit] + 2.0, pen.edge)
        index = np.unravel_index(hit, pen.hu.shape)
        values = pen.hu[index]
        pen.hu[index] = values + muscle * (pen.muscle + 3 * pen.grain.ravel()[hit] - values)
    for line in wall.neck_muscles:
        pen.line(*line, pen.muscle)
    for line in wall.mammary_vessels:
        pen.line(*line, chest.blood_hu["arteries"])


def _draw_gland(pen: Pen, gland: Field) -> None:
    """Strands of gland in the fat of the breast, more of it in the young."""
    window = gland.window(pen.grid, pen.slab)
    if window is None:
        return
    at = pen.local(window)
    # lobules of fat between sheets of gland, which are thickest behind the nipple
    away = gland.on(pen.grid, window)
    core = np.clip(-away / 22, 0, 1) - 0.5
    strands = 0.75 * pen.coarse[at] + 0.45 * pen.grain[at] + core + 2.2 * (pen.chest.habitus.glandular - 0.55)
    inside = soft(away + 3, 7.0) * np.clip(0.5 + 0.7 * strands, 0, 1)
    inside *= soft(pen.skin[at] + 4, pen.edge)
    blend(pen.hu[at], inside * 0.9, t.GLAND)


def _draw_abdomen(pen: Pen) -> None:
    chest, organs = pen.chest, pen.chest.organs
    lowest = float(pen.grid.axes(pen.slab)[2].min())
    if lowest > (max(chest.habitus.dome_mm) + 25) * chest.habitus.scale[2]:
        return
    dice = chest.body.dice
    bright = 1.0 if chest.enhanced else 0.0
    floor = chest.diaphragm.on(pen.grid, pen.slab)
    muscle = soft(np.abs(floor + 1.2) - 1.3, pen.edge) * soft(pen.depth, pen.edge)
    muscle = np.maximum(muscle, soft(np.maximum(np.abs(pen.depth) - 1.8, floor), pen.edge))
    blend(pen.hu, muscle, pen.muscle - 4)
    pen.fill(organs["pancreas"], t.PANCREAS + 50 * bright, 0, 14)
    for name in ("right kidney", "left kidney"):
        pen.fill(organs[name], t.KIDNEY + 130 * bright)
    pen.fill(organs["colon"], t.STOMACH_WALL)
    pen.fill(organs["colon"], t.GAS, -2.5)
    pen.fill(organs["stomach"], t.STOMACH_WALL + 35 * bright)
    pen.fill(organs["stomach"], t.CHYME, -4.0, 4)
    window = organs["stomach"].window(pen.grid, pen.slab)
    if window is not None:
        y = pen.grid.axes(window)[1]
        level = (14 + 24 * dice[5]) * chest.habitus.scale[1]
        gas = soft(organs["stomach"].on(pen.grid, window) + 4, pen.edge) * soft(level - y, pen.edge)
        blend(pen.hu[pen.local(window)], gas, t.GAS)
    pen.fill(organs["spleen"], chest.tissue_hu["spleen"], 0, 2)
    pen.fill(organs["liver"], chest.tissue_hu["liver"], 0, 2)
    vein = chest.blood_hu["veins"] + (25 * bright)
    for line in chest.body.liver_veins:
        pen.tubes(Tubes.along(*line), vein, within=organs["liver"])
    pen.fill(organs["gallbladder"], t.GALL)
    for line in chest.body.crura:
        pen.line(*line, pen.muscle)
    for lines in chest.adrenals.values():
        pen.tubes(Tubes.join([Tubes.along(*line) for line in lines]), t.ADRENAL + 40 * bright)


_ARCH = ("brachiocephalic artery", "right subclavian artery", "left carotid artery", "left subclavian artery")
_CAVA = (
    "right subclavian vein", "left subclavian vein",
    "left brachiocephalic vein", "right brachiocephalic vein",
)  # fmt: skip
_OTHER_VEINS = ("azygos vein", "inferior vena cava", "right jugular vein", "left jugular vein")
_FROM_LUNGS = (
    "right superior pulmonary vein", "right inferior pulmonary vein",
    "left superior pulmonary vein", "left inferior pulmonary vein",
)  # fmt: skip
_TO_LUNGS = ("pulmonary trunk", "right pulmonary artery", "left pulmonary artery")


def _draw_mediastinum(pen: Pen) -> None:
    chest, blood = pen.chest, pen.chest.blood_hu
    vessels = chest.vessels

    def named(names, value: float) -> None:
        for name in names:
            pen.line(*vessels[name], value)

    for points, radii in chest.body.nodes:
        pen.line(points, radii, t.NODE)
    if chest.patient.age_years < 50:
        for line in chest.body.thymus:
            pen.line(*line, t.NODE - 2.2 * max(chest.patient.age_years - 22, 0))
    _draw_oesophagus(pen)
    named(_OTHER_VEINS, blood["veins"])
    named(_CAVA, blood["cava"] * 0.8 if chest.enhanced else blood["cava"])
    named(_ARCH, blood["arteries"])
    for thyroid in chest.thyroid.values():
        pen.line(*thyroid, t.THYROID + (60 if chest.enhanced else 0))
    _draw_heart(pen)
    named(_FROM_LUNGS, blood["left"])
    named(_TO_LUNGS, blood["pulmonary"])
    named(("superior vena cava",), blood["cava"])
    points, radii = chest.aorta_line
    pen.line(points, radii, t.MUSCLE)
    pen.line(points, radii, blood["arteries"], -1.4)
    for points in chest.coronaries.values():
        pen.line(points, np.linspace(1.9, 1.1, len(points)), blood["arteries"])
    _draw_hernia(pen)


def _draw_oesophagus(pen: Pen) -> None:
    points, radii = pen.chest.oesophagus
    pen.line(points, radii, t.OESOPHAGUS)
    for n in range(2, len(points) - 3):
        if pen.chest.body.dice[20 + n % 40] < 0.3:
            middle = points[n] + (1.0, 1.5, 0)
            pen.line(np.array([middle, middle + np.array((0, 0, 5.0))]), np.array([2.0, 1.6]), t.GAS)


def _draw_heart(pen: Pen) -> None:
    chest, blood = pen.chest, pen.chest.blood_hu
    # the sac, its fat or fluid, the heart in it
    pen.fill(chest.pericardium, t.MYOCARDIUM - 18, 0.7)
    pen.fill(chest.pericardium, t.FLUID if chest.pericardial_mm else pen.fat, -0.2, 3)
    if chest.pericardial_mm:
        pen.fill(chest.heart, pen.fat, 0.8 + 1.5 * chest.habitus.visceral)
    pen.fill(chest.heart, t.MYOCARDIUM + (45 if chest.enhanced else 0), 0, 2)
    for name, wall_mm in CAVITY_MM.items():
        pen.fill(chest.chambers[name], blood["left"] if name in _LEFT else blood["pulmonary"], -wall_mm)


_LEFT = ("left ventricle", "left atrium", "root")


def _draw_hernia(pen: Pen) -> None:
    """A sac of stomach with folds, fluid, and gas above a flat level."""
    chest = pen.chest
    if chest.hernia is None:
        return
    points, radii = chest.hernia
    pen.line(points, radii, t.STOMACH_WALL + (35 if chest.enhanced else 0))
    shape = chest.space.tube(points, radii, 12.0)
    window = shape.window(pen.grid, pen.slab)
    if window is None:
        return
    at = pen.local(window)
    lumen = soft(shape.on(pen.grid, window) + 4.5 + 1.1 * pen.coarse[at], pen.edge)
    blend(pen.hu[at], lumen, t.CHYME)
    level = float(points[-1, 1]) + 0.1 * float(radii[-1])
    blend(pen.hu[at], lumen * soft(level - pen.grid.axes(window)[1], pen.edge), t.GAS)


def _draw_lungs(pen: Pen) -> tuple[np.ndarray, np.ndarray | None]:
    """-> how much of each voxel of the slab is aerated lung, and how much is not the air or fluid beside it
    (None where there is neither)."""
    chest = pen.chest
    lung = np.zeros(pen.hu.shape, np.float32)
    shown: np.ndarray | None = None
    for n, side in enumerate((Side.RIGHT, Side.LEFT)):
        pleura = chest.pleura[side]
        window = pleura.window(pen.grid, pen.slab)
        if window is None:
            continue
        at = pen.local(window)
        cavity = soft(pleura.on(pen.grid, window), pen.edge)
        tissue = _parenchyma(pen, window)
        if chest.effusion_mm[n] > 0 or chest.pneumothorax_mm[n] > 0:
            inside = _beside_the_lung(pen, n, window, cavity, tissue)
            shown = np.ones(pen.hu.shape, np.float32) if shown is None else shown
            shown[at] *= 1 - cavity + inside
        else:
            inside = cavity
        blend(pen.hu[at], inside, tissue)
        _draw_fissures(pen, window, inside)
        np.maximum(lung[at], inside, out=lung[at])
    return lung, shown


def _parenchyma(pen: Pen, window: Slices) -> np.ndarray:
    """HU of aerated lung: denser towards the back, never even."""
    chest, at = pen.chest, pen.local(window)
    y = pen.grid.axes(window)[1]
    tissue = 12 * pen.grain[at]
    tissue += 8 * pen.coarse[at]
    tissue += chest.lung_hu - np.float32(t.LUNG_PER_MM) * (y + np.float32(10))
    return tissue


def _beside_the_lung(pen: Pen, n: int, window: Slices, cavity, tissue) -> np.ndarray:
    """Fills the cavity with air and fluid, compresses the lung along them; -> the share of lung."""
    chest = pen.chest
    side = (Side.RIGHT, Side.LEFT)[n]
    at = pen.local(window)
    edge_of_lung = np.full(cavity.shape, 8.0, np.float32)
    part = chest.lungs[side].window(pen.grid, window)
    if part is not None:
        i, j, k = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, window, strict=True))
        edge_of_lung[i, j, k] = chest.lungs[side].on(pen.grid, part)
    inside = soft(edge_of_lung, pen.edge) * cavity
    air = chest.pneumothorax_mm[n] > 0
    blend(pen.hu[at], cavity, t.AIR if air else t.FLUID)
    if chest.effusion_mm[n] > 0:
        level = chest.fluid[side].on(pen.grid, window)
        if air:
            blend(pen.hu[at], cavity * soft(level, pen.edge), t.FLUID)
        # airless lung along the fluid
        near = np.exp(-np.square(np.clip(level, 0, None) / 7.0))
        tissue += np.float32(0.55) * near * (30 - tissue)
    if air:
        # the visceral pleura, a line of 1 mm
        line = np.clip((1 + pen.edge) / 2 - np.abs(edge_of_lung), 0, min(1, pen.edge)) / pen.edge
        blend(pen.hu[at], line * cavity, -20.0)
        tissue += np.float32(min(4.0 * chest.pneumothorax_mm[n], 160.0))
    return inside


def _draw_fissures(pen: Pen, window: Slices, inside: np.ndarray) -> None:
    chest = pen.chest
    at = pen.local(window)
    x, y = (axis.on(pen.grid, window) for axis in chest.space.axes[:2])
    size = np.float32(chest.frame.size)
    near = chest.fissures.distance(x, y, pen.height[at])
    near *= size
    # a sheet of 0.8 mm: thinner than a voxel it is faint
    thick = 0.8
    share = np.clip(np.float32((thick + pen.edge) / 2) - near, 0, min(thick, pen.edge)) / pen.edge
    blend(pen.hu[at], (share * inside).astype(np.float32), t.FISSURE)


def _draw_trees(pen: Pen, lung: np.ndarray, shown: np.ndarray | None) -> None:
    chest = pen.chest
    tubes = chest.trees.tubes
    arteries = chest.blood_hu["pulmonary"] if chest.enhanced else t.LUNG_VESSEL
    veins = chest.blood_hu["left"] if chest.enhanced else t.LUNG_VESSEL
    for name, value in (("veins", veins), ("arteries", arteries)):
        pen.tubes(tubes[f"{name} stems"], value, shown)
        pen.tubes(tubes[f"{name} twigs"], value, lung)
    pen.tubes(tubes["walls stems"], t.AIRWAY_WALL + 15, shown)
    pen.tubes(tubes["walls twigs"], t.AIRWAY_WALL - 60, lung)
    pen.tubes(tubes["airways stems"], t.TRACHEA, shown)
    pen.tubes(tubes["airways twigs"], -960.0, lung)
