"""Head -> fields of its brain: signed distances in patient mm on a lattice of LATTICE_MM.

Here the shapes of head_brain.py meet the head: its size, the fluid around and inside its brain, what
displaces it. Knows no voxels of a scan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mla_med.phantom.head import brain
from mla_med.phantom.lattice import Field, Lattice

if TYPE_CHECKING:
    from mla_med.phantom.head.anatomy import Head

LATTICE_MM = 2.5
LATTICE = Lattice.over((-84, -104, -92), (84, 104, 90), LATTICE_MM)
"""Where every brain lies, in patient mm."""


def everywhere(values: np.ndarray) -> Field:
    """A field on the whole lattice."""
    return Field(LATTICE, np.ascontiguousarray(values, np.float32), (0, 0, 0))


def hull_fields(head: Head) -> dict[str, Field]:
    """Known everywhere: cerebrum (its hull, fissures filled), fold and fold_depth (distance to the nearest
    sulcal sheet, signed, and how far a point lies below its floor), middle (distance from the middle plane,
    signed) and core (what the interhemispheric fissure ends on), sylvian, beyond, insula, rim
    (head_brain.sylvian), cingulate (distance to its sheet, signed); behind: cerebellum, folium, tent (height
    above the tentorium)."""
    x, y, z = head.brain_points
    mm, gap = np.float32(head.size), np.float32(head.gap_mm)
    cranium = head.cranium.values
    rng = np.random.default_rng([head.patient.seed, 302])
    tile = brain.fold_noise(rng)
    hull = np.maximum(brain.cerebrum(np.abs(x), y, z) * mm + 0.5 * gap, cranium + gap)
    for dent in head.dents:
        hull = np.maximum(hull, np.float32(0.6) - dent.on(LATTICE.grid, LATTICE.everywhere))
    p = brain.wander(rng, x, y, z, 2.3)
    sx, sy, sz = (LATTICE_MM / s for s in head.scale)
    fold, depth = brain.folds(tile, p[0], p[1], p[2], hull / mm, (sx, sy, sz))
    # great fissures wander more than sulci
    u, v, w = (c + 1.3 * (c - r) for c, r in zip(p, (x, y, z), strict=True))
    sylvian, beyond, insula, rim = brain.sylvian(np.abs(u), v, w)
    middle = x + np.float32(0.15) * (p[0] - x)
    values = {"fold": fold, "fold_depth": depth, "middle": middle, "core": brain.core(y, z)}
    values |= {"sylvian": sylvian, "beyond": beyond, "insula": insula, "rim": rim}
    values["cingulate"] = brain.cingulate(v, w)
    out = {name: everywhere(v * mm) for name, v in values.items()}
    behind = (slice(None), slice(0, int(np.searchsorted(LATTICE.grid.axes()[1].ravel(), 5))))
    out["cerebrum"] = everywhere(hull)
    xb, yb, zb = x[behind], y[behind], z[behind]
    a = np.abs(xb)
    cerebellum = brain.cerebellum(a, yb, zb) * mm
    far = cranium[behind] + np.float32(head.cisterna_mm) * brain.step(-yb, 70, 8)
    cerebellum = np.maximum(cerebellum + gap * 0.5 - 0.7, far + 1.0)
    box = (LATTICE.everywhere[0], slice(0, a.shape[1]), LATTICE.everywhere[2])
    out["cerebellum"] = LATTICE.field(cerebellum, box)
    out["tent"] = LATTICE.field((zb - brain.tent(a, yb)) * mm, box, 1e3)
    out["folium"] = LATTICE.field(brain.folia(tile, xb, yb, zb) * mm, box, 1e3)
    return out


_REACH: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "caudate": ((0, -44, -12), (36, 30, 28)),
    "putamen": ((12, -24, -16), (38, 26, 18)),
    "pallidum": ((8, -22, -14), (30, 12, 12)),
    "thalamus": ((-2, -40, -8), (28, 2, 22)),
    "nigra": ((0, -30, -22), (14, -10, -4)),
    "choroid": ((8, -46, -16), (38, -24, 22)),
    "hippocampus": ((12, -48, -32), (38, 2, 10)),
    "peduncle": ((0, -70, -52), (36, -12, -16)),
    "stem": ((0, -70, -115), (30, 0, 12)),
    "ventricle": ((0, -78, -30), (44, 42, 34)),
    "fourth": ((0, -58, -56), (14, -18, 4)),
    "third": ((0, -40, -20), (8, 14, 16)),
}
"""Name -> where a structure can be (|x|, y, z of the reference)."""


def deep_fields(head: Head) -> dict[str, Field]:
    """Known where they are near: caudate, putamen, pallidum, thalamus, hippocampus, nigra, choroid, peduncle
    (of the cerebellum), stem, ventricle (both), third (in the middle plane), fourth (with the aqueduct)."""
    mm = np.float32(head.size)
    wide = head.ventricle_width
    far = 6 + abs(head.shift_mm) + sum(p.push_mm for p in head.pushes) + 8 * max(wide - 1, 0)
    out = {}
    for name, (low, high) in _REACH.items():
        corners = np.array(
            [(x, y, z) for x in (-high[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
        )
        at = head.roughly(corners)
        box = LATTICE.box(at.min(0) - far, at.max(0) + far)
        x, y, z = (c[box] for c in head.brain_points)
        a = np.abs(x)
        if name == "ventricle":
            values = brain.ventricle(x, y, z, wide, head.asymmetry) * mm
        elif name == "third":
            values = brain.third_ventricle(y, z) * mm
        elif name == "stem":
            values = np.maximum(brain.brainstem(a, y, z) * mm, head.cranium.values[box] + 1.5)
        elif name == "fourth":
            values = (brain.fourth_ventricle(a, y, z) - np.float32(0.8 * (wide - 1))) * mm
        else:
            aside = (
                a if name in ("hippocampus", "peduncle", "nigra", "choroid") else brain.pushed_out(a, wide)
            )
            values = _DEEP[name](aside, y, z) * mm
        out[name] = LATTICE.field(values, box)
    return out


_DEEP = {
    "caudate": brain.caudate,
    "putamen": brain.putamen,
    "pallidum": brain.pallidum,
    "thalamus": brain.thalamus,
    "hippocampus": brain.hippocampus,
    "nigra": brain.nigra,
    "choroid": brain.choroid,
    "peduncle": brain.peduncle,
}


def sheet(signed, beyond):
    """Distance to a sheet that has an edge."""
    return np.hypot(signed, np.maximum(beyond, 0))


def pial_depth(head: Head, f: dict[str, np.ndarray]) -> np.ndarray:
    """Depth below the surface of the cerebrum (mm), fissures and sulci included."""
    cleft = np.float32(head.cleft_mm)
    depth = np.minimum(-f["cerebrum"], sheet(f["fold"], f["fold_depth"]) - cleft)
    depth = np.minimum(depth, sheet(f["middle"], -f["core"]) - cleft - np.float32(0.4))
    depth = np.minimum(depth, sheet(f["sylvian"], f["beyond"]) - cleft - np.float32(0.3))
    depth = np.minimum(depth, sheet(f["insula"], f["rim"]) - cleft - np.float32(0.3))
    return np.minimum(depth, sheet(f["cingulate"], np.abs(f["middle"]) - 12) - cleft)
