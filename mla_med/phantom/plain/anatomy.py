"""Seed -> Person: the chest of someone who does not exist, as shapes in mm; Person + Grid -> HU.

Shapes are implicit functions evaluated on any grid with a soft edge one voxel wide, so a coarse
grid shows partial volume as a scanner would. Coordinates are patient RAS mm (x to the right,
y to the front, z up), the origin in the middle of the chest. Knows nothing of lesions or DICOM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from mla_med.phantom.shapes import Grid, Tube, blend, draw_tube, point, soft
from mla_med.types import Sex, Side

# HU of tissues without contrast medium (ranges of Kalender, Computed Tomography, 3rd ed.).
AIR, LUNG, FAT, WATER, BLOOD, MUSCLE, LIVER = -1000.0, -850.0, -100.0, 5.0, 42.0, 55.0, 58.0
CANCELLOUS, CORTICAL = 180.0, 650.0


@dataclass(frozen=True, slots=True)
class Person:
    """Habitus and organs, all in mm."""

    seed: int
    sex: Sex
    age_years: int
    half_width: float
    """Half width of the body wall at the level of the heart."""
    half_depth: float
    fat: float
    """Thickness of the subcutaneous fat."""
    lung_top: float
    lung_base: float
    """z of the apex and of the lowest costophrenic angle."""
    dome: tuple[float, float]
    """z of the right and left diaphragm dome."""
    heart_centre: tuple[float, float, float]
    heart_radii: tuple[float, float, float]
    aorta_radius: float
    fissure: tuple[float, float]
    """Oblique fissure z = a - b * y."""
    horizontal_fissure: float
    lung_hu: float
    rib_spacing: float
    rib_phase: float
    vessels: tuple[Tube, ...] = field(repr=False)


def make_person(seed: int) -> Person:
    """A random adult: sex, age and habitus first, then organs that fit."""
    rng = np.random.default_rng([seed, 1])
    sex = Sex.MALE if rng.random() < 0.52 else Sex.FEMALE
    age = int(np.clip(rng.normal(61, 15), 20, 92))
    scale = (1.0 if sex is Sex.MALE else 0.92) * rng.normal(1.0, 0.045)
    fat = float(rng.uniform(8, 30) * (1.15 if sex is Sex.FEMALE else 1.0))
    lung_top, lung_base = 125 * scale + rng.normal(0, 5), -125 * scale + rng.normal(0, 6)
    dome_right = lung_base + rng.uniform(45, 65)
    heart = np.array([49, 40, 50]) * scale * rng.normal(1, 0.04)
    # cardiothoracic ratio below 0.5 in health: the heart is narrower than the half chest
    person = Person(
        seed=seed,
        sex=sex,
        age_years=age,
        half_width=float(132 * scale + fat + rng.normal(0, 4)),
        half_depth=float(88 * scale + fat + rng.normal(0, 4)),
        fat=fat,
        lung_top=float(lung_top),
        lung_base=float(lung_base),
        dome=(float(dome_right), float(dome_right - rng.uniform(8, 20))),
        heart_centre=(
            -18 * scale + rng.normal(0, 3),
            14 + rng.normal(0, 3),
            dome_right + 22 + rng.normal(0, 4),
        ),
        heart_radii=point(heart),
        aorta_radius=float(np.clip(rng.normal(15.5 + 0.03 * (age - 50), 1.2), 12, 18.5)),
        fissure=(float(-22 + rng.normal(0, 6)), float(0.95 + rng.normal(0, 0.1))),
        horizontal_fissure=float(2 + rng.normal(0, 6)),
        lung_hu=float(LUNG + rng.normal(0, 22)),
        rib_spacing=float(27 * scale),
        rib_phase=float(rng.uniform(0, 27)),
        vessels=(),
    )
    object.__setattr__(person, "vessels", tuple(_grow_vessels(person, np.random.default_rng([seed, 2]))))
    return person


def lung_sdf(person: Person, side: Side, x, y, z) -> np.ndarray:
    """Negative inside the lung of that side, about mm near its surface."""
    right = 1.0 if side is Side.RIGHT else -1.0
    thorax_x, thorax_y = _thorax(person)
    height = np.clip((z - person.lung_base) / (person.lung_top - person.lung_base), 0, 1)
    narrow = np.sqrt(np.clip(1 - np.clip((height - 0.45) / 0.55, 0, 1) ** 2.6, 0.0, 1))
    rx, ry = (thorax_x - 7) * narrow + 0.5, (thorax_y - 8) * narrow + 0.5
    chest = (np.sqrt((x / rx) ** 2 + ((y + 4) / ry) ** 2) - 1) * np.minimum(rx, ry)
    # the mediastinum: an oval around the midline, wider where the heart lies
    middle = (np.sqrt(((x + 2) / (27 + 0 * z)) ** 2 + ((y + 10) / (thorax_y + 5)) ** 2) - 1) * 27
    dome_z = person.dome[0 if right > 0 else 1]
    floor = dome_z - ((np.abs(x) - 0.5 * thorax_x) ** 2 + 0.8 * (y + 4) ** 2) * 0.0115
    below = (np.maximum(floor, person.lung_base) - z) * 0.8
    return np.maximum.reduce(np.broadcast_arrays(chest, -middle, below, 2 - right * x, z - person.lung_top))


def heart_sdf(person: Person, x, y, z, grow_mm: float = 0.0) -> np.ndarray:
    """Negative inside the heart; its long axis points to the left, to the front and down."""
    cx, cy, cz = person.heart_centre
    u, v, w = x - cx, y - cy, z - cz
    rx, ry, rz = (r + grow_mm for r in person.heart_radii)
    a = 0.80 * u - 0.45 * v + 0.35 * w
    b = 0.45 * u + 0.88 * v
    c = w - 0.35 * u
    return (np.sqrt((a / rx) ** 2 + (b / ry) ** 2 + (c / rz) ** 2) - 1) * min(rx, ry, rz)


def lobe_of(person: Person, point_mm) -> tuple[Side, str]:
    """Side and lobe (a key of report.schema.SITES) of a point inside a lung."""
    x, y, z = point_mm
    side = Side.RIGHT if x > 0 else Side.LEFT
    a, b = person.fissure
    if z < a - b * y:
        return side, "lower_lobe"
    if side is Side.RIGHT and z < person.horizontal_fissure:
        return side, "middle_lobe"
    return side, "upper_lobe"


def fissure_distance_mm(person: Person, point_mm) -> float:
    """Distance from a point to the nearest fissure of its lung."""
    x, y, z = point_mm
    a, b = person.fissure
    oblique = abs(z - (a - b * y)) / np.hypot(1, b)
    horizontal = abs(z - person.horizontal_fissure) if x > 0 and z > a - b * y else np.inf
    return float(min(oblique, horizontal))


def render_anatomy(person: Person, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """-> HU (I, J, K) float32 of the healthy chest, and how much of each voxel is lung (0 to 1)."""
    x, y, z = grid.axes()
    edge = grid.edge_mm
    hu = np.full(grid.shape, AIR, np.float32)
    _draw_body_wall(hu, person, x, y, z, edge)
    lung = np.zeros(grid.shape, np.float32)
    for side in (Side.RIGHT, Side.LEFT):
        np.maximum(lung, soft(lung_sdf(person, side, x, y, z), edge), out=lung)
    heart = soft(heart_sdf(person, x, y, z), edge)
    lung *= 1 - soft(heart_sdf(person, x, y, z, 3.0), edge)
    texture = _texture(grid, np.random.default_rng([person.seed, 3]))
    blend(hu, lung, person.lung_hu - 0.45 * np.minimum(y, 0) + 14 * texture)
    _draw_abdomen(hu, person, lung, x, y, z, edge)
    blend(hu, heart, BLOOD)
    for tube in _great_vessels(person):
        draw_tube(hu, grid, tube, BLOOD)
    for tube in person.vessels:
        draw_tube(hu, grid, tube, BLOOD, where=lung)
    _draw_fissures(hu, person, lung, x, y, z, edge)
    for tube in _airways(person):
        draw_tube(hu, grid, Tube(tube.start_mm, tube.end_mm, tube.radius_mm + 1.8), MUSCLE)
    for tube in _airways(person):
        draw_tube(hu, grid, tube, AIR)
    _draw_bones(hu, person, lung, x, y, z, edge)
    return hu, lung


def _thorax(person: Person) -> tuple[float, float]:
    """Half axes of the inner chest wall."""
    return person.half_width - person.fat - 8, person.half_depth - person.fat - 6


def _body_sdf(person: Person, x, y, z, inset_mm: float = 0.0) -> np.ndarray:
    shoulder = np.clip((z - person.lung_top + 45) / 75, 0, 1) ** 2
    rx = person.half_width * (1 - 0.30 * shoulder) - inset_mm
    ry = person.half_depth * (1 - 0.28 * shoulder) - inset_mm
    return (((np.abs(x) / rx) ** 2.3 + (np.abs(y) / ry) ** 2.3) ** (1 / 2.3) - 1) * np.minimum(rx, ry)


def _draw_body_wall(hu, person: Person, x, y, z, edge: float) -> None:
    blend(hu, soft(_body_sdf(person, x, y, z), edge), FAT)
    if person.sex is Sex.FEMALE:
        for cx in (-0.48, 0.48):
            d = np.sqrt(
                (x - cx * person.half_width) ** 2
                + ((y - person.half_depth + 22) * 1.35) ** 2
                + (0.9 * (z - person.heart_centre[2] - 20)) ** 2
            )
            breast = soft(d - 46 - 0.8 * person.fat, edge)
            hu[...] = np.maximum(hu, AIR + breast * (FAT - AIR))
    blend(hu, soft(_body_sdf(person, x, y, z, person.fat), edge), MUSCLE)
    tx, ty = _thorax(person)
    mediastinum = (np.sqrt((x / (0.42 * tx)) ** 2 + ((y - 10) / (0.8 * ty)) ** 2) - 1) * 0.42 * tx
    fat_part = soft(np.maximum(mediastinum, z - person.lung_top + 15), edge)
    blend(hu, fat_part * 0.75, FAT)


def _draw_abdomen(hu, person: Person, lung, x, y, z, edge: float) -> None:
    tx, ty = _thorax(person)
    inside = (np.sqrt((x / (tx - 5)) ** 2 + ((y + 4) / (ty - 5)) ** 2) - 1) * ty
    for side, level, value in ((1, person.dome[0], LIVER), (-1, person.dome[1], 48.0)):
        top = level - ((np.abs(x) - 0.5 * tx) ** 2 + 0.8 * (y + 4) ** 2) * 0.0115
        organ = soft(np.maximum.reduce(np.broadcast_arrays(inside, z - top + 3, -side * x - 12)), edge)
        blend(hu, organ * (1 - lung), value)
    # gas and fluid in the stomach, below the left dome
    gas = np.sqrt((x + 0.45 * tx) ** 2 + (y - 35) ** 2 + (z - person.dome[1] + 38) ** 2) - 20
    blend(hu, soft(gas, edge) * (1 - lung), AIR + 40)


def _draw_bones(hu, person: Person, lung, x, y, z, edge: float) -> None:
    ty = _thorax(person)[1]
    spine_y = -(ty - 12)
    wedge = np.sqrt(x**2 + ((y - spine_y) * 1.15) ** 2)
    disc = np.abs(np.mod(z + person.rib_phase, person.rib_spacing) - person.rib_spacing / 2)
    body = soft(wedge - 17, edge) * soft(disc - person.rib_spacing * 0.40, edge)
    blend(hu, body, CANCELLOUS)
    blend(hu, soft(np.abs(wedge - 16.5) - 1.2, edge) * soft(disc - person.rib_spacing * 0.42, edge), CORTICAL)
    process = np.maximum(np.abs(x) - 4, np.abs(y - spine_y + 32) - 14)
    blend(hu, soft(process, edge), CORTICAL * 0.6)
    blend(hu, soft(np.sqrt(x**2 + (y - spine_y + 20) ** 2) - 7, edge), 30.0)
    # ribs: hoops on the chest wall that slope down to the front, all at once by the modulus
    tx = _thorax(person)[0]
    height = np.clip((z - person.lung_base) / (person.lung_top - person.lung_base), 0, 1)
    narrow = np.sqrt(np.clip(1 - np.clip((height - 0.45) / 0.55, 0, 1) ** 2.6, 0.02, 1))
    radial = (np.sqrt((x / (tx * narrow)) ** 2 + ((y + 4) / (ty * narrow)) ** 2) - 1) * ty * narrow
    slope = z + 0.42 * (y + 4) + 0.05 * np.abs(x)
    along = np.mod(slope + person.rib_phase, person.rib_spacing) - person.rib_spacing / 2
    d = np.sqrt((radial * 1.25) ** 2 + (along * 0.85) ** 2)
    front = np.clip((0.72 * ty - y) / 10, 0, 1)
    rib = soft(d - 5.2, edge) * front * (z < person.lung_top - 4)
    blend(hu, rib * (1 - 0.9 * lung), CORTICAL * 0.62)
    blend(hu, soft(d - 2.6, edge) * front * (z < person.lung_top - 4) * (1 - 0.9 * lung), CANCELLOUS)
    sternum = np.maximum.reduce(
        np.broadcast_arrays(np.abs(x) - 17, np.abs(y - ty - 2) - 5.5, np.abs(z - 15) - 82)
    )
    blend(hu, soft(sternum, edge), CANCELLOUS + 40)


def _draw_fissures(hu, person: Person, lung, x, y, z, edge: float) -> None:
    a, b = person.fissure
    thin = min(1.0, 0.9 / edge)
    oblique = np.abs(z - (a - b * y)) / np.hypot(1, b)
    blend(hu, soft(oblique - 0.4, edge) * lung * thin * 0.5, -500.0)
    level = np.maximum(np.abs(z - person.horizontal_fissure), (a - b * y) - z)
    blend(hu, soft(np.maximum(level - 0.4, -x), edge) * lung * thin * 0.5, -500.0)


def _great_vessels(person: Person) -> Iterator[Tube]:
    cx, cy, cz = person.heart_centre
    top, r = cz + 78, person.aorta_radius
    root, arch = (cx + 20, cy + 8, cz + 30), (cx + 26, cy + 6, top - 6)
    yield Tube(root, arch, r)
    yield Tube(arch, (cx + 8, cy - 14, top + 6), r * 0.92)
    back = (cx + 0, -(_thorax(person)[1] - 42), top - 6)
    yield Tube((cx + 8, cy - 14, top + 6), back, r * 0.86)
    yield Tube(back, (cx + 4, back[1], person.lung_base - 40), r * 0.78)
    yield Tube((cx + 4, cy + 4, cz + 34), (cx - 6, cy - 8, cz + 58), 13)  # pulmonary trunk
    yield Tube((cx - 6, cy - 8, cz + 58), (46, cy - 22, cz + 44), 10)
    yield Tube((cx - 6, cy - 8, cz + 58), (-48, cy - 26, cz + 52), 10)
    yield Tube((cx + 46, cy + 2, cz + 10), (cx + 42, cy + 2, top + 20), 9)  # superior vena cava


def _airways(person: Person) -> Iterator[Tube]:
    carina = (2.0, -14.0, person.heart_centre[2] + 62)
    yield Tube((2, -8, person.lung_top + 30), carina, 8.5)
    right, left = (30.0, -20.0, carina[2] - 22), (-38.0, -22.0, carina[2] - 26)
    yield Tube(carina, right, 6.5)
    yield Tube(carina, left, 5.8)
    yield Tube(right, (46, -26, right[2] - 38), 4.0)
    yield Tube(right, (58, -6, right[2] + 20), 3.4)
    yield Tube(left, (-50, -30, left[2] - 34), 3.8)
    yield Tube(left, (-60, -6, left[2] + 18), 3.2)


def _grow_vessels(person: Person, rng: np.random.Generator) -> Iterator[Tube]:
    """Two branching trees from the hila, thinner at each fork, until they leave the lung."""
    for side, sign in ((Side.RIGHT, 1.0), (Side.LEFT, -1.0)):
        hilum = np.array([sign * 34.0, -14.0, person.heart_centre[2] + 40])
        todo = []
        for _ in range(9):
            direction = rng.normal(0, 1, 3) + np.array([sign * 0.9, 0.0, 0.0])
            todo.append((hilum, direction / np.linalg.norm(direction), 3.6, 0))
        while todo:
            start, direction, radius, depth = todo.pop()
            for shorten in (1.0, 0.7, 0.45):
                end = start + direction * rng.uniform(16, 30) * shorten
                if not depth or lung_sdf(person, side, *(np.float32(v) for v in end)) < -4:
                    break
            else:
                continue
            yield Tube(point(start), point(end), float(radius))
            if depth < 5:
                for _ in range(2):
                    turn = direction + rng.normal(0, 0.42, 3)
                    todo.append((end, turn / np.linalg.norm(turn), radius * 0.75, depth + 1))


def _texture(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Smooth unit noise with a length of about 12 mm: parenchyma is not flat."""
    coarse = tuple(int(np.ceil(n * s / 9)) + 3 for n, s in zip(grid.shape, grid.spacing_mm, strict=True))
    noise = rng.standard_normal(coarse).astype(np.float32)
    zoom = tuple(n / c for n, c in zip(grid.shape, coarse, strict=True))
    return ndimage.zoom(noise, zoom, order=1, mode="nearest", grid_mode=True)
