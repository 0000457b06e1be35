"""Person -> findings planted in it: what a radiologist should say of this chest, and its pixels.

Each lesion knows its code, side, site, size and box in patient mm before it is drawn, so the
truth is exact. Site is drawn clear of the fissures, so that it can be told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from mla_med.phantom.plain.anatomy import (
    AIR,
    MUSCLE,
    WATER,
    Grid,
    Person,
    blend,
    fissure_distance_mm,
    heart_sdf,
    lobe_of,
    lung_sdf,
    point,
    render_anatomy,
    soft,
)
from mla_med.types import Box, Finding, Presence, Side

PREVALENCE: dict[str, float] = {
    "lung_nodule": 0.30,
    "lung_mass": 0.14,
    "consolidation": 0.20,
    "ground_glass_opacity": 0.20,
    "emphysema": 0.20,
    "pleural_effusion": 0.24,
    "pneumothorax": 0.14,
    "cardiomegaly": 0.20,
    "pericardial_effusion": 0.16,
    "coronary_calcification": 0.26,
    "aortic_aneurysm": 0.14,
    "hiatal_hernia": 0.16,
}
"""How often each finding is planted. Far above a screening population: the bench needs cases."""

NORMAL_SHARE = 0.12
"""Share of patients with no finding at all."""


@dataclass(frozen=True, slots=True)
class Lesion:
    """A planted finding. `box_mm` is its true box; `change` alters an organ before anything is
    drawn, `paint` draws on the voxels."""

    finding: Finding
    box_mm: Box
    paint: Callable[[np.ndarray, np.ndarray, Person, Grid], None] = lambda hu, lung, person, grid: None
    change: Callable[[Person], Person] = lambda person: person


def choose_codes(rng: np.random.Generator) -> tuple[str, ...]:
    """A random set of finding codes; heart failure brings effusions, smoking brings emphysema and mass."""
    if rng.random() < NORMAL_SHARE:
        return ()
    odds = dict(PREVALENCE)
    if rng.random() < 0.2:
        odds["cardiomegaly"], odds["pleural_effusion"] = 0.6, 0.6
    if rng.random() < 0.2:
        odds["emphysema"], odds["lung_mass"] = 0.6, 0.35
    return tuple(code for code in PREVALENCE if rng.random() < odds[code])


def plant(person: Person, codes: tuple[str, ...], rng: np.random.Generator) -> tuple[Lesion, ...]:
    """One lesion for each code, at a random legal place. Lesions of the lung keep apart."""
    taken: list[tuple[np.ndarray, float]] = []
    lesions: dict[str, Lesion] = {}
    for code in sorted(codes, key=_ORDER.index):
        lesions[code] = _MAKERS[code](person, rng, taken)
        person = lesions[code].change(person)
    return tuple(lesions[code] for code in codes)


def render_person(person: Person, lesions: tuple[Lesion, ...], grid: Grid) -> np.ndarray:
    """-> HU (I, J, K) float32 of the chest with its lesions, without noise."""
    lesions = tuple(sorted(lesions, key=lambda lesion: _ORDER.index(lesion.finding.code)))
    for lesion in lesions:
        person = lesion.change(person)
    hu, lung = render_anatomy(person, grid)
    for lesion in lesions:
        lesion.paint(hu, lung, person, grid)
    return hu


# Changed organs and diffuse changes first, then fluid and air, then what lies on top of them.
_ORDER = (
    "cardiomegaly", "emphysema", "pericardial_effusion", "aortic_aneurysm", "hiatal_hernia",
    "coronary_calcification", "ground_glass_opacity", "consolidation", "lung_mass", "lung_nodule",
    "pleural_effusion", "pneumothorax",
)  # fmt: skip


def _spot(person: Person, rng, taken, radius: float, clear_mm: float, depth_mm: float) -> np.ndarray:
    """A point in a lung, `clear_mm` from fissures, `depth_mm` below the surface, away from others."""
    for attempt in range(4000):
        ease = max(0.0, 1 - attempt / 3000)
        p = np.array(
            [
                rng.choice([-1.0, 1.0]) * rng.uniform(30, person.half_width),
                rng.uniform(-person.half_depth, person.half_depth),
                rng.uniform(person.lung_base, person.lung_top),
            ]
        )
        side = Side.RIGHT if p[0] > 0 else Side.LEFT
        at = [np.float32(v) for v in p]
        if lung_sdf(person, side, *at) > -depth_mm or heart_sdf(person, at[0], at[1], at[2]) < depth_mm + 3:
            continue
        if fissure_distance_mm(person, p) < clear_mm * ease:
            continue
        if any(np.linalg.norm(p - q) < (radius + r + 8) * ease for q, r in taken):
            continue
        taken.append((p, radius))
        return p
    raise AssertionError(f"no room for a lesion of {radius} mm in person {person.seed}")


def _ball_box(centre, radius) -> Box:
    c, r = np.asarray(centre, float), np.broadcast_to(np.asarray(radius, float), 3)
    return point(c - r), point(c + r)


def _lumpy(person: Person, centre, radius: float, rng, rough: float) -> Callable:
    """-> sdf(grid, box): a ball whose surface swells and shrinks smoothly."""
    waves = rng.normal(0, 1, (5, 3)) / radius * 1.6
    phases, gains = rng.uniform(0, 6.3, 5), rng.normal(0, rough * radius / 2, 5)

    def sdf(grid: Grid, box):
        x, y, z = grid.axes(box)
        u, v, w = x - centre[0], y - centre[1], z - centre[2]
        d = np.sqrt(u**2 + v**2 + w**2) - radius
        for (a, b, c), phase, gain in zip(waves, phases, gains, strict=True):
            d = d + gain * np.sin(a * u + b * v + c * w + phase)
        return d

    return sdf


def _lobe_mask(person: Person, centre, grid: Grid, box) -> np.ndarray:
    """1 where a voxel lies in the lobe of `centre`; lesions of the air space respect fissures."""
    x, y, z = grid.axes(box)
    a, b = person.fissure
    lower = z < a - b * y
    side, lobe = lobe_of(person, centre)
    same_side = (x > 0) == (side is Side.RIGHT)
    if lobe == "lower_lobe":
        return same_side & lower
    if side is Side.LEFT:
        return same_side & ~lower
    middle = z < person.horizontal_fissure
    return same_side & ~lower & (middle if lobe == "middle_lobe" else ~middle)


def _round_lesion(code: str, low: int, high: int):
    def make(person: Person, rng, taken) -> Lesion:
        diameter = float(rng.integers(low, high + 1))
        radius = diameter / 2
        centre = _spot(person, rng, taken, radius, min(radius, 14) + 3, min(radius, 9) + 2)
        side, lobe = lobe_of(person, centre)
        sdf = _lumpy(person, centre, radius, rng, 0.05 if low < 20 else 0.08)
        value = float(rng.normal(40, 15))

        def paint(hu, lung, person, grid):
            box = grid.window(centre, radius * 1.3)
            blend(hu[box], soft(sdf(grid, box), grid.edge_mm), value)

        finding = Finding(code, Presence.PRESENT, lobe, side, diameter)
        return Lesion(finding, _ball_box(centre, radius), paint)

    return make


def _air_space(code: str, value_range: tuple[float, float], rough: float):
    """A cloudy opacity inside one lobe: ground glass or consolidation."""

    def make(person: Person, rng, taken) -> Lesion:
        radius = float(rng.uniform(18, 32))
        centre = _spot(person, rng, taken, radius, 12, 8)
        side, lobe = lobe_of(person, centre)
        sdf = _lumpy(person, centre, radius, rng, rough)
        value = float(rng.uniform(*value_range))
        seed = int(rng.integers(2**31))

        def paint(hu, lung, person, grid):
            box = grid.window(centre, radius * 1.5)
            edge = grid.edge_mm + (6 if code == "ground_glass_opacity" else 1.5)
            inside = soft(sdf(grid, box), edge) * _lobe_mask(person, centre, grid, box) * (lung[box] > 0.3)
            if inside.size == 0:
                return
            cloud = _cloud(inside.shape, grid, seed)
            blend(
                hu[box],
                inside * np.clip(0.88 + 0.12 * cloud, 0.55, 1) * lung[box],
                np.maximum(hu[box], value),
            )
            if code == "consolidation":
                blend(hu[box], inside * np.clip(cloud - 1.6, 0, 1), -700.0)  # air bronchograms

        return Lesion(Finding(code, Presence.PRESENT, lobe, side), _ball_box(centre, radius), paint)

    return make


def _cloud(shape, grid: Grid, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = tuple(int(np.ceil(n * s / 8)) + 2 for n, s in zip(shape, grid.spacing_mm, strict=True))
    noise = rng.standard_normal(coarse).astype(np.float32)
    zoom = tuple(n / c for n, c in zip(shape, coarse, strict=True))
    return ndimage.zoom(noise, zoom, order=1, mode="nearest", grid_mode=True)


def _emphysema(person: Person, rng, taken) -> Lesion:
    seed, depth = int(rng.integers(2**31)), float(rng.uniform(70, 110))
    holes = rng.uniform(0.5, 1.0)

    def paint(hu, lung, person, grid):
        _, _, z = grid.axes()
        upper = np.clip((z - person.lung_base) / (person.lung_top - person.lung_base), 0.25, 1)
        blend(hu, lung * upper * 0.9 * (hu < -700), person.lung_hu - depth * 0.75)
        spots = np.clip((_cloud(hu.shape, grid, seed) - 1.1 + 0.4 * holes) * 2, 0, 1)
        blend(hu, lung * spots * upper * (hu < -700), -985.0)

    box = (
        (-person.half_width + person.fat, -person.half_depth + person.fat, 0.0),
        (person.half_width - person.fat, person.half_depth - person.fat, person.lung_top),
    )
    return Lesion(Finding("emphysema"), box, paint)


def _pleural_effusion(person: Person, rng, taken) -> Lesion:
    side = rng.choice([Side.RIGHT, Side.LEFT, Side.BILATERAL], p=[0.38, 0.32, 0.30])
    sides = (Side.RIGHT, Side.LEFT) if side == Side.BILATERAL else (Side(side),)
    depths = {s: float(rng.uniform(14, 42)) for s in sides}
    back = -(person.half_depth - person.fat - 6)

    def paint(hu, lung, person, grid):
        x, y, z = grid.axes()
        for s, depth in depths.items():
            sign = 1 if s is Side.RIGHT else -1
            # a supine patient: fluid at the back, deeper at the base, with a meniscus at the wall
            level = back + depth * np.clip(1.1 - (z - person.lung_base) / 190, 0.1, 1.1)
            fluid = soft(y - level - 0.0006 * (np.abs(x) - 60) ** 2, grid.edge_mm) * (sign * x > 0)
            blend(hu, fluid * soft(lung_sdf(person, s, x, y, z) - grid.edge_mm, grid.edge_mm), WATER)

    lo_x = 20.0 if side != Side.BILATERAL and side == Side.RIGHT else -person.half_width + person.fat
    hi_x = -20.0 if side == Side.LEFT else person.half_width - person.fat
    box = ((lo_x, back, person.lung_base), (hi_x, back + max(depths.values()), person.lung_base + 150))
    return Lesion(Finding("pleural_effusion", side=Side(side)), box, paint)


def _pneumothorax(person: Person, rng, taken) -> Lesion:
    side = Side.RIGHT if rng.random() < 0.55 else Side.LEFT
    depth = float(rng.uniform(20, 45))
    front = person.half_depth - person.fat - 10

    def paint(hu, lung, person, grid):
        x, y, z = grid.axes()
        sign = 1 if side is Side.RIGHT else -1
        # air rises to the front of a supine patient; the lung's edge is a thin line
        edge_y = (
            front
            - depth * (0.55 + 0.45 * np.cos(np.clip((z - 20) / 110, -1.4, 1.4)))
            + 0.002 * (np.abs(x) - 50) ** 2
        )
        inside = (lung_sdf(person, side, x, y, z) < 0) & (sign * x > 0) & (heart_sdf(person, x, y, z) > 3)
        blend(hu, soft(edge_y - y, grid.edge_mm) * inside, AIR)
        blend(
            hu, soft(np.abs(y - edge_y) - 0.8, grid.edge_mm) * inside * min(1.0, 1.6 / grid.edge_mm), -350.0
        )

    x = (
        (5.0, person.half_width - person.fat)
        if side is Side.RIGHT
        else (-person.half_width + person.fat, -5.0)
    )
    return Lesion(
        Finding("pneumothorax", side=side),
        ((x[0], front - depth, -90.0), (x[1], front + 4, person.lung_top)),
        paint,
    )


def _cardiomegaly(person: Person, rng, taken) -> Lesion:
    grow = float(rng.uniform(11, 20))
    radii = point(r + grow for r in person.heart_radii)
    return Lesion(
        Finding("cardiomegaly"),
        _ball_box(person.heart_centre, radii),
        change=lambda person: replace(person, heart_radii=radii),
    )


def _pericardial_effusion(person: Person, rng, taken) -> Lesion:
    thick = float(rng.uniform(9, 18))

    def paint(hu, lung, person, grid):
        x, y, z = grid.axes()
        outer = heart_sdf(person, x, y, z, thick)
        above = z > person.dome[1] - 20
        ring = soft(np.maximum(outer, -heart_sdf(person, x, y, z)), grid.edge_mm) * above
        blend(hu, ring, 8.0)
        sac = soft(np.abs(outer) - 0.8, grid.edge_mm) * min(1.0, 1.6 / grid.edge_mm)
        blend(hu, sac * (lung > 0.2), MUSCLE)
        lung *= 1 - soft(outer, grid.edge_mm)

    radii = np.asarray(person.heart_radii) + thick
    return Lesion(Finding("pericardial_effusion"), _ball_box(person.heart_centre, radii), paint)


def _coronary_calcification(person: Person, rng, taken) -> Lesion:
    spots = []
    for _ in range(int(rng.integers(4, 9))):
        # the anterior interventricular groove (left, front) or the right atrioventricular groove
        t = rng.uniform(0, 1)
        ray = np.array([-0.35, 0.9, 0.9 - 1.1 * t] if rng.random() < 0.7 else [0.8, 0.6, 0.5 - 0.7 * t])
        spots.append(
            (_heart_surface(person, ray), float(rng.uniform(2.4, 4.2)), float(rng.uniform(500, 1100)))
        )

    def paint(hu, lung, person, grid):
        for p, radius, value in spots:
            box = grid.window(p, radius * 2)
            x, y, z = grid.axes(box)
            d = np.sqrt((x - p[0]) ** 2 + (y - p[1]) ** 2 + (0.6 * (z - p[2])) ** 2) - radius
            blend(hu[box], soft(d, grid.edge_mm), value)

    points = np.array([p for p, _, _ in spots])
    box = (point(points.min(0) - 4), point(points.max(0) + 4))
    return Lesion(Finding("coronary_calcification"), box, paint)


def _heart_surface(person: Person, ray: np.ndarray) -> np.ndarray:
    """Where a ray from the centre of the heart leaves it, 2 mm inside."""
    steps = np.arange(10, 120, 1.0, dtype=np.float32)
    ray = ray / np.linalg.norm(ray)
    points = np.asarray(person.heart_centre) + steps[:, None] * ray
    sdf = heart_sdf(person, *points.T)
    return points[int(np.argmax(sdf > -2))]


def _aortic_aneurysm(person: Person, rng, taken) -> Lesion:
    diameter = float(rng.integers(48, 66))
    cx, cy, cz = person.heart_centre
    centre = np.array([cx + 23.0, cy + 8.0, cz + 50.0])

    def paint(hu, lung, person, grid):
        box = grid.window(centre, (diameter / 2 + 3, diameter / 2 + 3, 46))
        x, y, z = grid.axes(box)
        r = diameter / 2 * np.sqrt(np.clip(1 - ((z - centre[2]) / 42) ** 2, 0, 1))
        d = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2) - r
        inside = soft(d, grid.edge_mm)
        airway = hu[box] < -930
        blend(hu[box], inside * ~airway, 42.0)
        lung[box] *= 1 - inside

    return Lesion(
        Finding("aortic_aneurysm", size_mm=diameter),
        _ball_box(centre, (diameter / 2, diameter / 2, 38)),
        paint,
    )


def _hiatal_hernia(person: Person, rng, taken) -> Lesion:
    radius = float(rng.uniform(18, 30))
    back = -(person.half_depth - person.fat - 6)
    centre = np.array(
        [-16.0 + rng.normal(0, 4), back + 46 + 0.3 * radius, person.dome[1] + 8 + rng.normal(0, 4)]
    )
    gas = float(rng.uniform(0.25, 0.6))

    def paint(hu, lung, person, grid):
        box = grid.window(centre, radius * 1.2)
        x, y, z = grid.axes(box)
        d = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (0.85 * (z - centre[2])) ** 2) - radius
        blend(hu[box], soft(d, grid.edge_mm), 45.0)
        content = soft(d + 4, grid.edge_mm)
        blend(hu[box], content, 18.0)
        blend(hu[box], content * soft(centre[1] + radius * (1 - 2 * gas) - y, grid.edge_mm), AIR + 30)
        lung[box] *= 1 - soft(d, grid.edge_mm)

    return Lesion(Finding("hiatal_hernia"), _ball_box(centre, radius), paint)


_MAKERS = {
    "lung_nodule": _round_lesion("lung_nodule", 8, 28),
    "lung_mass": _round_lesion("lung_mass", 34, 64),
    "consolidation": _air_space("consolidation", (5, 45), 0.14),
    "ground_glass_opacity": _air_space("ground_glass_opacity", (-640, -520), 0.16),
    "emphysema": _emphysema,
    "pleural_effusion": _pleural_effusion,
    "pneumothorax": _pneumothorax,
    "cardiomegaly": _cardiomegaly,
    "pericardial_effusion": _pericardial_effusion,
    "coronary_calcification": _coronary_calcification,
    "aortic_aneurysm": _aortic_aneurysm,
    "hiatal_hernia": _hiatal_hernia,
}
