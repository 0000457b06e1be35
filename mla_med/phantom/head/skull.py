"""Head -> what surrounds the brain: skull, scalp, face, orbits and sinuses, as distances and as layers.

Reference coordinates as in head_brain.py; distances in patient mm. The vault is made of layers over the inner
surface of the skull; the face is a few soft bodies with holes. Knows no lesions and no sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mla_med.phantom.head import brain
from mla_med.phantom.lattice import Field, Lattice, chain, ellipsoid, smooth_max, smooth_min
from mla_med.phantom.shapes import soft

if TYPE_CHECKING:
    from mla_med.phantom.head.anatomy import Head


@dataclass(frozen=True, slots=True)
class Face:
    """What differs between faces (reference mm)."""

    maxillary: tuple[float, float]
    """Size of the right and the left maxillary sinus, 1 in most."""
    frontal: tuple[float, float]
    """Size of the right and the left frontal sinus."""
    septum_mm: float
    """Deviation of the nasal septum."""
    nose_mm: float


def choose_face(rng: np.random.Generator) -> Face:
    size = rng.normal(1, 0.10)
    frontal = rng.normal(1, 0.22)
    right, left = (float(v) for v in np.clip(size * rng.normal(1, 0.06, 2), 0.65, 1.25))
    upper_right, upper_left = (float(v) for v in np.clip(frontal * rng.normal(1, 0.18, 2), 0.45, 1.5))
    return Face(
        maxillary=(right, left),
        frontal=(upper_right, upper_left),
        septum_mm=float(rng.normal(0, 1.6)),
        nose_mm=float(rng.normal(0, 2.5)),
    )


def cranium_mm(head: Head, x, y, z) -> np.ndarray:
    """Signed distance to the inner surface of the skull at reference coordinates, in patient mm."""
    return brain.cranium(np.abs(x), y, z) * np.float32(head.size)


_LATTICE = Lattice.over((-102, -126, -131), (102, 126, 104), 3.0)


def maxillary(face: Face, side: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Centre and radii of the maxillary sinus; side 1 right, -1 left."""
    s = face.maxillary[0 if side > 0 else 1]
    return (side * 29.0, 46.0, -62.0), (12.5 * s, 16.0 * s, 15.0 * s)


def frontal(face: Face, side: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Centre and radii of the frontal sinus."""
    s = face.frontal[0 if side > 0 else 1]
    return (side * 11.0, 75.5, -13.0 + 5 * (s - 1)), (10.5 * s, 5.0 * min(s, 1.1), 12.5 * s)


def landmarks(face: Face) -> dict[str, tuple[np.ndarray, bool]]:
    """Centres of the sinuses and the eyes; the skull does not move with the brain."""
    out = {}
    for word, side in (("right", 1), ("left", -1)):
        out[f"maxillary_sinus_{word}"] = (np.array([maxillary(face, side)[0]]), False)
        out[f"frontal_sinus_{word}"] = (np.array([frontal(face, side)[0]]), False)
        out[f"eye_{word}"] = (np.array([(side * 32.0, 60.0, -36.0)]), False)
    return out


Points = tuple[np.ndarray, np.ndarray, np.ndarray]
_NOSE = np.array([(0, 80, -26), (0, 96, -56), (0, 88, -62)], float)
_OPTIC = np.array([(31, 48, -36), (24, 30, -32), (14, 14, -24), (4, 3, -18), (0, 0, -17)], float)
_TURBINATES = (
    (np.array([(8, 68, -70), (8, 30, -68)], float), np.array([4.5, 4.0])),
    (np.array([(7, 62, -56), (7, 32, -56)], float), np.array([3.2, 3.0])),
)
_THROAT = np.array([(0, 16, -62), (0, 2, -80), (0, 2, -110)], float)


def fields(head: Head) -> dict[str, Field]:
    """Name -> signed distance in patient mm: skin, planes (fat between muscles), and, each where it is near,
    temporalis, skull_base, clivus, dens, mass (of the atlas), maxillary_right ..., frontal_right ...,
    ethmoid, septa (between its cells), sphenoid, nasal, turbinate, airway, oral, orbit, globe, lens, optic,
    eye_muscles, pituitary, cavernous."""
    mm, face = np.float32(head.size), head.face
    points = head.reference(*_LATTICE.grid.axes())
    x, y, z = points
    a = np.abs(x)
    vault = brain.cranium(a, y, z) * mm
    skin = vault - np.float32(head.skull_mm + head.fat_mm + 3.0)
    nose = chain(a, y, z, np.add(_NOSE, (0, face.nose_mm, 0)), np.array([8.0, 9.0, 10.0]))
    cheeks = ellipsoid(a, y, z, (0, 30, -62), (64, 56, 60))
    neck = ellipsoid(a, y, z, (0, -32, -110), (62, 68, 75))
    chin = ellipsoid(a, y, z, (0, 50, -108), (46, 36, 30))
    body = smooth_min(smooth_min(smooth_min(cheeks, chin, 14), neck, 20), nose, 10) * mm
    temporal = ellipsoid(a, y, z, *_TEMPORALIS) * mm
    skin = smooth_min(skin, temporal - np.float32(head.fat_mm + 1), 10)
    skin = smooth_min(skin, body, 12)
    tile = brain.fold_noise(np.random.default_rng([head.patient.seed, 303]))
    low = (slice(None), slice(None), slice(0, int(np.searchsorted(_LATTICE.grid.axes()[2].ravel(), -25))))
    planes = np.abs(brain.sample(tile, x[low], y[low], z[low], 3.6)) * np.float32(5) - np.float32(0.9)
    planes = np.maximum(planes, np.maximum(z[low] + 42, 0)) * mm
    everywhere = _LATTICE.everywhere
    out = {
        "skin": _LATTICE.field(skin, everywhere, 14.0),
        "planes": _LATTICE.field(planes, (everywhere[0], everywhere[1], low[2]), 8.0),
    }
    for name, (distance, low_mm, high_mm) in _parts(face).items():
        out[name] = _local(head, points, distance, low_mm, high_mm)
    # walls between the ethmoidal cells
    cells = out["ethmoid"]
    i, j, k = (slice(f, f + n) for f, n in zip(cells.first, cells.values.shape, strict=True))
    box = (i, j, k)
    walls = np.abs(brain.sample(tile, x[box], y[box], z[box], 1.4)) * np.float32(2.4) - np.float32(0.5)
    out["septa"] = _LATTICE.field(np.maximum(walls * mm, cells.values), box, 8.0)
    return out


def _local(head: Head, points: Points, distance, low_mm, high_mm) -> Field:
    """A distance where the structure is: between two corners, in reference mm."""
    corners = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    at = head.roughly(np.where(corners, high_mm, low_mm))
    box = _LATTICE.box(at.min(0) - 11, at.max(0) + 11)
    x, y, z = (c[box] for c in points)
    return _LATTICE.field(distance(x, y, z) * np.float32(head.size), box, 8.0)


_TEMPORALIS = ((62, 18, -18), (9, 34, 36))


def _parts(face: Face) -> dict[str, tuple[Any, Any, Any]]:
    """Name -> function of reference x, y, z, and the corners of the box that holds it."""

    def ball(centre, radii):
        low = np.subtract(centre, radii)
        high = np.add(centre, radii)
        if centre[0] > 0:
            low[0] = -high[0]
        return lambda x, y, z: ellipsoid(np.abs(x), y, z, centre, radii), low, high

    def one_side(centre, radii):
        return (
            lambda x, y, z: ellipsoid(x, y, z, centre, radii),
            np.subtract(centre, radii),
            np.add(centre, radii),
        )

    def tube(points, radii):
        low, high = points.min(0) - np.max(radii), points.max(0) + np.max(radii)
        low[0] = -high[0]
        return lambda x, y, z: chain(np.abs(x), y, z, points, np.asarray(radii, float)), low, high

    def eye_muscles(x, y, z):
        out = np.float32(1e3)
        for dx, dz in ((10, 0), (-9, 0), (0, 10), (0, -10)):
            line = [(32 + dx, 58, -37 + dz), (28 + 0.6 * dx, 44, -36 + 0.7 * dz), (19, 25, -31)]
            out = np.minimum(out, chain(np.abs(x), y, z, np.array(line, float), np.array([1.6, 2.3, 1.4])))
        return out

    def turbinates(x, y, z):
        return np.minimum(*(chain(np.abs(x), y, z, points, radii) for points, radii in _TURBINATES))

    def ethmoid(x, y, z):
        return smooth_max(ellipsoid(np.abs(x), y, z, (7, 50, -38), (9, 20, 13)), 1.0 - np.abs(x), 1)

    return {
        "temporalis": ball(*_TEMPORALIS),
        "skull_base": ball((0, -6, -46), (40, 40, 18)),
        "clivus": ball((0, 0, -48), (13, 14, 14)),
        "dens": ball((0, -24, -86), (8, 6.5, 15)),
        "mass": ball((19, -30, -80), (8, 10, 8)),
        "maxillary_right": one_side(*maxillary(face, 1)),
        "maxillary_left": one_side(*maxillary(face, -1)),
        "frontal_right": one_side(*frontal(face, 1)),
        "frontal_left": one_side(*frontal(face, -1)),
        "ethmoid": (ethmoid, (-16, 30, -51), (16, 70, -25)),
        "sphenoid": ball((7, 16, -41), (8, 12, 9)),
        "nasal": ball((0, 50, -62), (15, 36, 18)),
        "turbinate": (turbinates, (-13, 26, -75), (13, 73, -52)),
        "airway": tube(_THROAT, (8, 7, 7)),
        "oral": ball((0, 30, -98), (27, 36, 18)),
        "orbit": tube(np.array([(32, 61, -37), (20, 26, -31)], float), (16, 6)),
        "globe": ball((32, 60, -37), (12.2, 12.2, 12.2)),
        "lens": ball((32, 68.5, -37), (4.6, 2.2, 4.6)),
        "optic": tube(_OPTIC, (2.0, 2.0, 1.9, 2.2, 2.4)),
        "eye_muscles": (eye_muscles, (-45, 24, -50), (45, 60, -24)),
        "cavernous": ball((14, -2, -31), (6.5, 15, 8)),
        "pituitary": ball((0, 6, -33), (6.5, 5, 3.6)),
    }


def take_layers(head: Head, layers: Any, whole, cranium: np.ndarray) -> None:
    """What lies outside the brain, from the front layer to the back."""
    grid, edge = layers.grid, layers.grid.edge_mm

    def part(name: str, grow_mm: float = 0.0):
        field = head.skull_fields[name]
        box = field.window(grid, whole)
        return (None, None) if box is None else (soft(field.on(grid, box) - grow_mm, edge), box)

    def take(tissue: str, name: str, grow_mm: float = 0.0) -> None:
        inside, box = part(name, grow_mm)
        if inside is not None:
            layers.take(tissue, inside, box)

    outside = soft(-cranium, edge)
    take("pituitary", "pituitary")
    for tissue, name in (("lens", "lens"), ("csf", "globe"), ("nerve", "optic"), ("muscle", "eye_muscles")):
        take(tissue, name)
    for name in ("maxillary_right", "maxillary_left", "frontal_right", "frontal_left"):
        take("air", name)
        take("mucosa", name, 0.9)
        take("cortical_bone", name, 2.2)
    take("air", "sphenoid")
    take("cortical_bone", "sphenoid", 1.2)
    take("cavernous", "cavernous")
    take("mucosa", "septa")
    take("air", "ethmoid")
    take("cortical_bone", "ethmoid", 0.8)
    take("fat", "orbit")
    take("cortical_bone", "orbit", 1.5)
    take("mucosa", "turbinate")
    take("air", "nasal")
    take("mucosa", "nasal", 1.5)
    take("air", "airway")
    take("mucosa", "airway", 2.0)
    take("muscle", "oral")
    take("marrow", "clivus")
    # the vault: dura, inner table, diploe, outer table
    x, y, z = grid.axes()
    thick = np.float32(head.skull_mm) * _relative_thickness(x, y, z)
    layers.take("dura", soft(cranium - 0.7, edge) * outside)
    table = np.float32(1.6)
    layers.take("marrow", soft(np.maximum(cranium - (thick - table), table - cranium + 0.7), edge))
    layers.take("cortical_bone", soft(cranium - thick, edge))
    take("muscle", "temporalis")
    for name in ("dens", "mass"):
        take("marrow", name)
        take("cortical_bone", name, 1.3)
    take("base_bone", "skull_base")
    skin = head.skull_fields["skin"].on(grid, whole)
    planes, box = part("planes")
    if planes is not None:
        layers.take("fat", planes * soft(skin[box] + 6, edge), box)
    layers.take("muscle", soft(skin + np.float32(1.8 + head.fat_mm), edge))
    layers.take("fat", soft(skin + 1.8, edge))
    layers.take("skin", soft(skin, edge))


def _relative_thickness(x, y, z):
    """The vault is thin at the temples and thick at the back of the head and in front."""
    temple = np.exp(-np.square((z + 12) / np.float32(26)) - np.square((y - 10) / np.float32(45)))
    side = np.clip((np.abs(x) - 35) / 25, 0, 1).astype(np.float32)
    ends = np.float32(0.12) * np.sin(z / np.float32(17)) * np.sin(y / np.float32(21))
    return 1 - np.float32(0.42) * temple * side + ends * np.cos(x / np.float32(23))
