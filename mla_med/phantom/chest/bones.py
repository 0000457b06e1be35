"""Pen -> the bones of the chest: ribs and cartilages, sternum, scapulae, clavicles, humeri, spine."""

from __future__ import annotations

import numpy as np

from mla_med.phantom.chest import tissue as t
from mla_med.phantom.chest.pen import Pen
from mla_med.phantom.chest.spine import vertebrae
from mla_med.phantom.chest.wall import RIB_DEPTH_MM, RIB_HALF_MM, STERNUM_Z, on_maps, sternum_half_width
from mla_med.phantom.lattice import smooth_max
from mla_med.phantom.shapes import blend, soft


def draw_bones(pen: Pen) -> None:
    _draw_ribs(pen)
    _draw_sternum(pen)
    _draw_scapulae(pen)
    for points, radii in (*pen.chest.wall.clavicles.values(), *pen.chest.wall.scapular_spines.values()):
        _draw_bone(pen, points, radii, 1.4)
    for points, radii in pen.chest.wall.humeri.values():
        _draw_bone(pen, points, radii, 2.6)
    _draw_spine(pen)


def _draw_bone(pen: Pen, points, radii, cortex_mm: float) -> None:
    pen.line(points, radii, t.CORTEX)
    pen.line(points, np.maximum(radii - cortex_mm, 0.5), t.RIB_MARROW - 40)


def _draw_ribs(pen: Pen) -> None:
    chest = pen.chest
    thick = np.float32(RIB_HALF_MM[1] * chest.frame.size)
    reach = float(thick) + pen.edge / 2
    hit = np.flatnonzero(np.abs(pen.depth - np.float32(RIB_DEPTH_MM)) < reach)
    if hit.size == 0:
        return
    away, half, bone = on_maps(chest.wall.rib_maps, pen.angle.ravel()[hit], pen.height.ravel()[hit])
    keep = away < half + pen.edge
    hit, away, half, bone = hit[keep], away[keep], half[keep], bone[keep]
    d = pen.depth.ravel()[hit] - np.float32(RIB_DEPTH_MM)
    r = np.sqrt(np.square(away / np.maximum(half, 0.05)) + np.square(d / thick))
    sdf = np.where(half > 1.0, (r - 1) * thick, 9.0)
    inside = soft(sdf, pen.edge)
    # cartilage has no marrow, bone has a thin shell
    shell = t.RIB_CORTEX + soft(sdf + 1.2, pen.edge) * (t.RIB_MARROW - t.RIB_CORTEX)
    # it calcifies with age, in patches along its rim (Rejtarova et al., Biomed Pap 2004;148:241)
    index = np.unravel_index(hit, pen.hu.shape)
    share = np.clip((chest.patient.age_years - 30) / 50, 0, 1) * (0.3 + 1.2 * chest.body.dice[12])
    rim = soft(-sdf - 2.2, pen.edge) * np.clip(pen.coarse[index] + np.float32(1.6 * share - 1.2), 0, 1)
    cartilage = t.CARTILAGE + 330 * rim
    value = cartilage + bone * (shell - cartilage)
    values = pen.hu[index]
    pen.hu[index] = values + inside * (value - values)


def _draw_sternum(pen: Pen) -> None:
    chest = pen.chest
    window = pen.window_of((-30, 0, STERNUM_Z[1] - 4), (30, 105, STERNUM_Z[0] + 4), 14)
    if window is None:
        return
    at = pen.local(window)
    x, z, depth = chest.space.axes[0].on(pen.grid, window), pen.height[at], pen.depth[at]
    y = pen.grid.axes(window)[1]
    size = np.float32(chest.frame.size)
    flat = (
        np.maximum(np.abs(x) - sternum_half_width(z), np.maximum(z - STERNUM_Z[0], STERNUM_Z[1] - z)) * size
    )
    thick = np.abs(depth - 7.2) - np.where(z > 52, 6.2, 5.0).astype(np.float32)
    sdf = smooth_max(flat, thick, 4.0) + np.float32(0.3)
    sdf = np.where(y > -60, sdf, 99.0)
    # the joint between manubrium and body
    joint = np.abs(z - 53) - 1.2
    value = t.CORTEX - 250 + soft(sdf + 1.1, pen.edge) * (t.STERNAL_MARROW - t.CORTEX + 250)
    value = value + soft(joint, pen.edge) * (t.CARTILAGE - value)
    blend(pen.hu[pen.local(window)], soft(sdf, pen.edge), value)


def _draw_scapulae(pen: Pen) -> None:
    chest = pen.chest
    middle, half = chest.wall.scapula_maps
    depth = pen.depth
    hit = np.flatnonzero(
        (depth > 8) & (depth < float(middle.max()) + 8) & (pen.angle > 95) & (pen.angle < 152)
    )
    if hit.size == 0:
        return
    depth_of, half_of = on_maps((middle, half), pen.angle.ravel()[hit], pen.height.ravel()[hit])
    sdf = np.abs(depth.ravel()[hit] - depth_of) - half_of
    inside = soft(sdf, pen.edge)
    value = t.CORTEX - 100 + soft(sdf + 1.3, pen.edge) * (t.RIB_MARROW - t.CORTEX + 100)
    index = np.unravel_index(hit, pen.hu.shape)
    pen.hu[index] += inside * (value - pen.hu[index])


def _draw_spine(pen: Pen) -> None:
    chest = pen.chest
    window = pen.window_of((-40, -140, -240), (40, -20, 195))
    if window is None:
        return
    x, y = (axis.on(pen.grid, window) for axis in chest.space.axes[:2])
    parts = vertebrae(x, y, pen.height[pen.local(window)])
    size, edge = np.float32(chest.frame.size), pen.edge
    hu = pen.hu[pen.local(window)]
    fine = chest.body.textures["fine"].on(pen.grid, window)
    blend(hu, soft(parts.disc * size, edge), t.DISC)
    marrow = t.trabecular(chest.patient.age_years) + chest.marrow_offset_hu
    arch = parts.arch * size
    value = 620 + soft(arch + 1.3, edge) * (marrow + 60 - 620)
    blend(hu, soft(arch, edge), value)
    body = parts.body * size
    value = 560 + soft(body + 1.0, edge) * (marrow + 0.09 * marrow * fine - 560)
    blend(hu, soft(body, edge), value)
    blend(hu, soft(parts.canal * size, edge), pen.fat + 80)
    blend(hu, soft(parts.canal * size + 1.4, edge), t.DURAL_SAC)
    blend(hu, soft(parts.cord * size, edge), t.CORD)
