"""Space + diaphragm -> what lies below it: liver, stomach, spleen, kidneys, adrenals. Knows no HU.

Places in reference mm; sizes after Kratzer et al., J Ultrasound Med 2003 (liver), Emamian et al., AJR
1993;160:83 (kidneys), Vincent et al., Clin Radiol 1994;49:453 (adrenals).
"""

from __future__ import annotations

import numpy as np

from mla_med.phantom.chest.space import Space
from mla_med.phantom.lattice import Field, ellipsoid, smooth_max, smooth_min


def organs(space: Space, floor: np.ndarray, dome: tuple[float, float]) -> dict[str, Field]:
    """Signed distances, mm. `floor` as lungs.diaphragm gives it; `dome`: z of the domes."""
    box = space.box((-150, -110, -205), (150, 105, max(dome) + 12))
    x, y, z = space.at(box)
    depth = space.wall[0][box]
    under = floor[box] + np.float32(1.6)
    inside = np.maximum(depth + np.float32(1.4), under)
    size = space.size
    out: dict[str, np.ndarray] = {}
    right, left = dome

    def ball(centre, radii, axes=None):
        return ellipsoid(x, y, z, centre, radii, axes) * size

    stomach = smooth_min(
        ball((-62, 2, left - 34), (42, 46, 44)), ball((-42, 38, left - 66), (40, 28, 40)), 18.0
    )
    out["stomach"] = smooth_max(stomach, inside, 6.0)
    spleen = ball((-97, -44, left - 38), (28, 50, 46), _turned(-25))
    spleen = smooth_max(spleen, inside, 4.0)
    out["spleen"] = smooth_max(spleen, -(out["stomach"] - 3), 8.0)
    out["stomach"] = np.maximum(out["stomach"], -out["spleen"] + 2)
    # the cut surface of the liver looks to the left, back and down; its edge to the front is sharp
    wavy = 7 * np.sin((0.6 * x - 0.8 * y) * np.float32(0.045) + 0.6)
    cut = (-0.80 * x - 0.60 * y - 15 + 0.42 * (right - 40 - z) + wavy) * size
    fossa = -ball((40, -64, right - 96), (40, 36, 62))
    hilum = -ball((2, -4, right - 100), (34, 30, 34))
    bottom = (right - 135 - 0.25 * (x - 60) - z) * (0.9 * size)
    liver = smooth_max(inside, cut, 14.0)
    for face in (fossa, hilum, bottom):
        liver = smooth_max(liver, face, 12.0)
    out["liver"] = liver
    out["stomach"] = smooth_max(out["stomach"], -(liver - 2), 4.0)
    out["gallbladder"] = np.maximum(ball((44, 34, right - 92), (15, 20, 28), _turned(20)), inside + 6)
    out["right kidney"] = ball((55, -52, -186), (29, 26, 56))
    out["left kidney"] = np.maximum(ball((-56, -54, -176), (29, 27, 56)), -(out["spleen"] - 2))
    out["colon"] = np.maximum.reduce(
        [ball((-92, 14, left - 86), (24, 26, 26)), inside + 2, -(out["spleen"] - 2), -(out["stomach"] - 2)]
    )
    out["pancreas"] = np.maximum(ball((-28, -14, -142), (44, 12, 15)), -(out["stomach"] - 2))
    return {
        name: space.lattice.field(np.asarray(values, np.float32), box, 8.0) for name, values in out.items()
    }


def _turned(degrees: float) -> np.ndarray:
    """Axes turned about z."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])


ADRENALS: dict[str, tuple[float, float, float]] = {
    "adrenal_right": (27.0, -44.0, -124.0),
    "adrenal_left": (-29.0, -40.0, -128.0),
}
"""Where the limbs of each adrenal meet."""


def adrenal_lines(space: Space) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Body and two limbs of each adrenal as thin tubes in a stack, patient mm."""
    out: dict[str, list] = {}
    for name, (x, y, z) in ADRENALS.items():
        sign = 1.0 if x > 0 else -1.0
        lines = []
        for up in np.arange(-10.0, 10.1, 2.5):
            spread = 1 - up / 26
            apex = (x, y + 3, z + up)
            for side, back in ((0.5, -17), (1.0, -13)) if sign > 0 else ((0.15, -17), (1.0, -14)):
                tip = (x + sign * 13 * (side - 0.35) * spread, y + back * spread, z + up - 1)
                middle = tuple((a + b) / 2 for a, b in zip(apex, tip, strict=True))
                lines.append(space.line([apex, middle, tip], [2.6, 2.3, 1.8], 4.0))
        out[name] = lines
    return out


def crura(space: Space) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two slips of the diaphragm beside the aorta."""
    out = []
    for sign in (1.0, -1.0):
        ref = [
            (sign * 5 - 16, -22, -84),
            (sign * 15 - 10, -30, -108),
            (sign * 17 - 4, -38, -140),
            (sign * 15 - 2, -42, -205),
        ]
        out.append(space.line(ref, [3.5, 5.5, 6.5, 5.5], 8.0))
    return out


def liver_veins(space: Space, dome: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hepatic and portal veins, patient mm."""
    root = (24.0, -17.0, dome - 22)
    tips = ((98, -18, dome - 60), (60, 40, dome - 52), (-4, 48, dome - 44), (88, 10, dome - 34))
    gate = (22.0, 4.0, dome - 78)
    ends = ((72, 6, dome - 82), (52, -28, dome - 66), (64, 34, dome - 98), (-8, 40, dome - 76))
    out = []
    for start, stops, wide in ((root, tips, 5.2), (gate, ends, 5.6)):
        for n, stop in enumerate(stops):
            middle = 0.5 * (np.array(start) + stop) + (0, 6 - 3 * n, -5)
            fork = np.array(stop) * 0.7 + middle * 0.3
            out.append(space.line([start, middle, stop], [wide, 0.7 * wide, 1.5], 6.0))
            away = np.add(stop, (-16 + 9 * n, 18 - 8 * n, 15))
            out.append(space.line([fork, away], [0.5 * wide, 1.2], 6.0))
    return out
