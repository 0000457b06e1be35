"""Space -> heart, great vessels, oesophagus, and the envelope of the mediastinum. Knows no HU.

Places and calibres in reference mm after Hutchison et al., Radiology 1999 (arteries, veins), Agmon et
al., J Am Coll Cardiol 2003;42:1076 (aorta), Edwards et al., Chest 1998 (pulmonary arteries).
"""

from __future__ import annotations

import numpy as np

from mla_med.phantom.chest.frame import SPINE_Y, SPINE_Z
from mla_med.phantom.chest.space import Space, part_of
from mla_med.phantom.lattice import Field, Slices, ellipsoid, smooth_max, smooth_min

# Chambers: centre, radii, long axis (or None): x right, y front, z up.
CHAMBERS: dict[str, tuple] = {
    "left ventricle": ((-36.5, 15.0, -36.0), (41.0, 28.5, 29.0), (-0.72, 0.50, -0.48)),
    "right ventricle": ((-11.5, 38.5, -34.0), (43.0, 24.0, 27.5), (-0.78, 0.42, -0.46)),
    "right atrium": ((27.6, 8.0, -18.0), (21.4, 24.0, 33.0), None),
    "left atrium": ((-0.9, -24.9, 3.0), (30.5, 17.8, 22.0), None),
    "base": ((-3.6, -7.0, -34.0), (35.6, 28.0, 27.0), None),
    "outflow": ((-12.5, 31.0, 2.0), (19.0, 18.0, 26.0), None),
    "root": ((1.0, 8.0, 4.0), (17.5, 16.5, 20.0), None),
}
CAVITY_MM = {
    "left ventricle": 10.5,
    "right ventricle": 3.5,
    "right atrium": 2.0,
    "left atrium": 2.0,
    "outflow": 3.0,
    "root": 2.0,
}
"""Thickness of the wall of each chamber."""
HEART_ANCHOR = (0.0, -8.0, 0.0)
LOWERED = {"left ventricle": 1.0, "right ventricle": 1.0, "base": 1.0, "right atrium": 0.6}
"""How far each chamber follows the diaphragm."""
FAR_MM = 13.0
"""How far from the mediastinum its distance is known."""

AORTA = (
    ((0, 6, 4), 15.5), ((8, 13, 18), 15.0), ((13, 15, 34), 15.0), ((12, 9, 54), 14.5),
    ((4, -1, 69), 13.8), ((-11, -13, 75), 13.0), ((-22, -29, 71), 12.6), ((-27, -43, 54), 12.2),
    ((-29, -53, 30), 11.8), ((-29, -56, 0), 11.4), ((-25, -54, -40), 11.0), ((-19, -45, -80), 10.6),
    ((-10, -37, -115), 10.2), ((-4, -28, -150), 9.8), ((-3, -19, -230), 9.2),
)  # fmt: skip
"""From the root over the arch to the abdomen; the first five points are the ascending aorta."""
ARCH_BRANCHES: dict[str, tuple] = {
    "brachiocephalic artery": (
        ((5, 1, 74), 6.6), ((11, 0, 92), 6.4), ((19, -6, 108), 6.0), ((25, -14, 122), 4.5),
        ((24, -20, 190), 3.6),
    ),
    "right subclavian artery": (
        ((19, -6, 108), 4.6), ((38, -14, 120), 4.4), ((68, -20, 112), 4.0), ((120, -30, 96), 3.6),
    ),
    "left carotid artery": (
        ((-6, -8, 80), 4.0), ((-13, -9, 100), 3.8), ((-22, -16, 125), 3.6), ((-24, -20, 190), 3.5),
    ),
    "left subclavian artery": (
        ((-17, -21, 80), 4.8), ((-23, -24, 100), 4.6), ((-36, -20, 120), 4.4), ((-70, -20, 112), 4.0),
        ((-120, -30, 96), 3.6),
    ),
}  # fmt: skip
VEINS: dict[str, tuple] = {
    "superior vena cava": (
        ((29, 2, 88), 8.6), ((34, 1, 62), 9.4), ((35, 0, 38), 9.8), ((33, 2, 12), 10.4), ((31, 4, 0), 11),
    ),
    "left brachiocephalic vein": (
        ((-36, -4, 112), 6.2), ((-22, 14, 98), 6.6), ((2, 18, 90), 6.8), ((22, 8, 86), 7.2),
    ),
    "right brachiocephalic vein": (((38, -6, 114), 6.4), ((32, 0, 100), 7.0), ((29, 2, 88), 7.8)),
    "inferior vena cava": (
        ((30, -4, -34), 12.5), ((26, -12, -56), 12.0), ((24, -20, -85), 12.0), ((22, -26, -120), 11.5),
        ((20, -28, -230), 11),
    ),
    "azygos vein": (
        ((6, -48, -140), 3.0), ((8, -50, -60), 3.4), ((8, -51, 10), 3.8), ((10, -50, 38), 4.2),
        ((18, -44, 52), 4.4), ((27, -28, 55), 4.6), ((31, -8, 54), 4.8),
    ),
    "right jugular vein": (((38, -8, 114), 5.5), ((33, -16, 140), 5.8), ((32, -18, 190), 5.5)),
    "left jugular vein": (((-36, -6, 112), 5.0), ((-33, -16, 140), 5.2), ((-32, -18, 190), 5.0)),
    "right subclavian vein": (((38, -6, 112), 6.0), ((66, -4, 106), 5.5), ((115, -22, 88), 5.0)),
    "left subclavian vein": (((-36, -4, 112), 6.0), ((-66, -4, 106), 5.5), ((-115, -22, 88), 5.0)),
}  # fmt: skip
PULMONARY: dict[str, tuple] = {
    "pulmonary trunk": (
        ((-16, 34, 6), 14.5), ((-21, 26, 24), 14.0), ((-22, 12, 39), 13.6), ((-20, -2, 44), 12.6),
    ),
    "right pulmonary artery": (
        ((-18, -2, 42), 11.4), ((0, -12, 36), 10.6), ((22, -17, 31), 9.8), ((40, -19, 24), 8.2),
    ),
    "left pulmonary artery": (((-20, -2, 44), 11.8), ((-31, -18, 48), 11.2), ((-42, -32, 40), 9.2)),
}  # fmt: skip
PULMONARY_VEINS: dict[str, tuple] = {
    "right superior pulmonary vein": (((10, -23, 6), 8.0), ((29, -22, 8), 6.4)),
    "right inferior pulmonary vein": (((10, -28, -6), 8.0), ((22, -32, -12), 6.2)),
    "left superior pulmonary vein": (((-12, -24, 8), 8.0), ((-30, -24, 12), 6.6)),
    "left inferior pulmonary vein": (((-12, -28, -2), 8.0), ((-30, -33, -6), 6.2)),
}
OESOPHAGUS = (
    ((-1, -36, 180), 6.5), ((-3, -39, 125), 6.5), ((-5, -42, 90), 7.0), ((-6, -45, 62), 7.0),
    ((-4, -47, 40), 7.2), ((-3, -51, 10), 7.2), ((-6, -47, -25), 7.5), ((-9, -37, -58), 8.0),
    ((-21, -25, -84), 8.5), ((-34, -18, -98), 9.0),
)  # fmt: skip
HIATUS = (-19.0, -29.0, -80.0)
CORONARIES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "left main": ((-8, 10, 8), (-15, 12, 9), (-20, 13, 8)),
    "left anterior descending": (
        (-20, 13, 8), (-30, 23, 2), (-39, 33, -9), (-49, 43, -24), (-59, 48, -40), (-69, 48, -58),
    ),
    "circumflex": (
        (-20, 13, 8), (-31, 5, 4), (-42, -5, -4), (-45, -16, -14), (-41, -25, -25), (-30, -28, -35),
    ),
    "right": (
        (9, 17, 8), (20, 24, 4), (30, 28, -8), (34, 24, -25), (28, 12, -43), (14, 0, -54), (0, -6, -56),
    ),
}  # fmt: skip


def lowered_mm(dome: tuple[float, float]) -> float:
    """How far the ventricles lie below their place in the reference man, reference mm: they rest on the
    diaphragm, and hang where it is low."""
    return float(np.clip(-0.75 * (dome[1] + 60) + 6, -6, 20))


def chambers(space: Space, scale: float, floor: np.ndarray) -> dict[str, Field]:
    """Each chamber, grown about the base of the heart, above the diaphragm."""
    anchor = np.array(HEART_ANCHOR)
    box = heart_box(space, scale)
    out = {}
    x, y, z = space.at(box)
    above = np.float32(3.0) - floor[box]
    lowered = lowered_mm(space.frame.habitus.dome_mm)
    for name, (centre, radii, axis) in CHAMBERS.items():
        # a low diaphragm draws the ventricles out; what leaves the heart grows less than its chambers
        down = lowered * LOWERED.get(name, 0.0)
        grown = 1 + 0.4 * (scale - 1) if name in ("outflow", "root") else scale
        at = anchor + (np.asarray(centre) - anchor) * grown - (0, 0, 0.55 * down)
        size = np.asarray(radii) * grown + (0, 0, 0.45 * down)
        frame = None if axis is None else _axes(axis)
        d = ellipsoid(x, y, z, at, size, frame) * space.size
        d = np.asarray(smooth_max(d, above, 8.0), np.float32)
        out[name] = Field(space.lattice, np.ascontiguousarray(d), tuple(s.start for s in box))
    return out


def heart_box(space: Space, scale: float) -> Slices:
    reach = max(1 + (scale - 1) * 1.3, 1.0)
    return space.box(np.array((-104.0, -62.0, -112.0)) * reach, np.array((66.0, 88.0, 44.0)) * reach)


def heart(parts: dict[str, Field]) -> Field:
    """All chambers as one shape with narrow grooves between them."""
    first = parts["base"]
    return Field(first.lattice, _joined(parts, 7.0), first.first)


def sac(space: Space, parts: dict[str, Field], fluid_mm: float, visceral: float, floor: np.ndarray) -> Field:
    """The pericardium: heart, fat and fluid. Fat fills the grooves and lies before the heart."""
    first = parts["base"]
    box = part_of(first)
    _, y, z = space.at(box)
    fat = 0.8 + visceral * (0.4 + 3.2 * np.clip((y - 5) / 60, 0, 1))
    values = _joined(parts, 15.0) - fat.astype(np.float32)
    if fluid_mm:
        # fluid gathers behind and below
        lower = np.clip(0.9 - (y - 10) / 120 - (z + 20) / 160, 0.45, 1.4)
        values = values - np.float32(fluid_mm) * lower.astype(np.float32)
    values = np.maximum(values, np.float32(1.5) - floor[box])
    values = np.maximum(values, space.wall[0][box] + np.float32(1.5))
    return Field(first.lattice, values.astype(np.float32), first.first)


def _joined(parts: dict[str, Field], width_mm: float) -> np.ndarray:
    values = [field.values for field in parts.values()]
    out = values[0]
    for other in values[1:]:
        out = smooth_min(out, other, width_mm)
    return out


def _axes(long) -> np.ndarray:
    a = np.asarray(long, float) / np.linalg.norm(long)
    b = np.cross((0, 0, 1.0), a)
    b /= np.linalg.norm(b)
    return np.stack([a, b, np.cross(a, b)])


def mediastinum(
    space: Space, pericardium: Field, tubes: list[tuple[np.ndarray, np.ndarray]], fat: float
) -> np.ndarray:
    """Signed distance to everything between the lungs, on the whole lattice, mm (known up to FAR_MM)."""
    x, y, z = space.ref
    size = float(space.size)
    out = np.full(x.shape, 1e3, np.float32)

    def add(box, values, width) -> None:
        # what is far must stay far, however many shapes are joined
        values = np.where(values < FAR_MM - 0.01, values, np.float32(1e3))
        out[box] = smooth_min(out[box], values, width)

    add(part_of(pericardium), pericardium.values - np.float32(1.5 + 1.0 * fat), 8.0)
    for points, radii in tubes:
        field = space.tube(points, radii + 1.8 + 0.6 * fat, FAR_MM)
        if not field.empty:
            add(part_of(field), field.values, 9.0)
    # thymus and fat before the vessels, fat beside the trachea and below the arch
    for middle, half in (
        ((2.0, 36.0, 52.0), (17.0 + 5 * fat, 26.0, 40.0)),
        ((0.0, 8.0, 100.0), (30.0, 34.0, 34.0)),
        ((15.0, -16.0, 64.0), (17.0, 22.0, 26.0)),
        ((-24.0, -6.0, 56.0), (15.0, 19.0, 17.0)),
    ):
        part = space.box(np.subtract(middle, half) - 14, np.add(middle, half) + 14)
        add(part, ellipsoid(*space.at(part), middle, half) * np.float32(size), 10.0)
    # the line where the lungs meet before the heart
    i = space.box((-12, 0, 0), (16, 0, 0))[0]
    seam = np.abs(x[i] - (2 + 3 * np.sin(z[i] * np.float32(0.03)))) * np.float32(size)
    seam = np.where(y[i] > -20, seam - np.float32(1.2 + 0.8 * fat), np.float32(1e3))
    np.minimum(out[i], seam, out=out[i])
    return out


def spine_tubes(space: Space) -> list[tuple[np.ndarray, np.ndarray]]:
    """What of the spine the lungs lie against: the bodies, and the arches right and left, as tubes."""
    out = []
    for x, back, low, high in ((0.0, 4.0, 15.0, 24.0), (13.0, 25.0, 11.0, 15.0), (-13.0, 25.0, 11.0, 15.0)):
        points = np.stack([np.full(len(SPINE_Z), x), np.asarray(SPINE_Y) - back, SPINE_Z], axis=1)
        out.append(space.line(points, np.linspace(low, high, len(SPINE_Z)), step_mm=12.0))
    return out


NODES: tuple[tuple[float, float, float], ...] = (
    (16, -18, 66), (14, -22, 58), (-28, -8, 58), (-24, 2, 62), (6, -40, 28), (-6, -42, 24), (18, -20, 74),
    (2, 22, 74), (-12, 20, 70), (20, -44, 34), (-42, -34, 14), (40, -30, 14), (-22, -24, 60),
)  # fmt: skip
"""Where normal mediastinal nodes of 3 to 8 mm lie (Rusch et al., J Thorac Oncol 2009;4:568: the stations)."""
THYMUS = (
    ((5, 30, 84), 5.0), ((8, 36, 62), 7.5), ((12, 44, 40), 5.0),
), (
    ((-4, 28, 86), 5.0), ((-7, 36, 62), 8.5), ((-14, 44, 36), 5.0),
)  # fmt: skip
"""The two lobes."""
