"""Room in a chest -> lesions of the lung's air space: nodules, masses, consolidation, ground glass, plates
and collapse.

Densities and shapes after Hansell et al., Fleischner Society: Glossary of terms for thoracic imaging,
Radiology 2008;246:697, sizes as in MacMahon et al., Radiology 2017;284:228 (a nodule measures up to 30 mm,
a mass more). Knows no diffuse disease.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from mla_med.phantom.chest.blobs import (
    Blob,
    Region,
    Shape,
    box_of,
    direction,
    finer,
    fit,
    join,
    lobules,
    noise,
    sample,
    shifted,
    tubes_of,
    wander,
    window_of,
)
from mla_med.phantom.chest.room import LOBES, Lobe, Room
from mla_med.phantom.chest.tree import Tubes, cover
from mla_med.phantom.lesion import Lesion, parts_of
from mla_med.phantom.shapes import blend, soft
from mla_med.types import Finding, Presence, Side

NODULE_MM, MASS_MM = (3.0, 30.0), (31.0, 90.0)
AIR_HU = -990.0


def finding_of(code: str, lobe: Lobe, size_mm: float | None = None) -> Finding:
    return Finding(code, Presence.PRESENT, lobe[1], lobe[0], size_mm)


def regrower(
    grow: Callable[[float], Lesion], size_mm: float, limits_mm: tuple[float, float]
) -> Callable[[float], Lesion]:
    """`factor` -> the lesion at that multiple of its size, in whole mm and within what the word allows."""
    return lambda factor: grow(float(np.clip(round(size_mm * factor), *limits_mm)))


# --- nodules and masses


def nodule(room: Room, rng: np.random.Generator) -> Lesion:
    size = float(round(np.exp(rng.uniform(np.log(4), np.log(30)))))
    radius = size / 2
    lobes = _near(room, rng, "lung_nodule", 0.3)
    odds = None
    deep = (radius + 1.0, 1e3)
    place = rng.random()
    if place < 0.3:
        deep = (radius + 0.4, radius + 4.0)
    elif place < 0.65:
        odds = _beside_vessels(room, radius)
    centre = room.must_spot(rng, radius, min(radius, 12) + 3, deep, lobes, odds)
    # metastases are round and solid
    spread = "cancer" in room.chest.patient.history
    odds_of_kind = [0.9, 0.04, 0.06] if spread else [0.7, 0.16, 0.14]
    kind = str(rng.choice(["solid", "part-solid", "calcified"], p=odds_of_kind))
    if kind == "part-solid" and size < 7:
        kind = "solid"
    spiked = kind != "calcified" and size >= 8 and rng.random() < (0.1 if spread else 0.4)
    return _round(room, rng, "lung_nodule", centre, size, kind, spiked, NODULE_MM)


def mass(room: Room, rng: np.random.Generator) -> Lesion:
    size = float(round(np.exp(rng.uniform(np.log(33), np.log(70)))))
    centre = None
    while centre is None and size > 34:
        radius = size / 2
        centre = room.spot(rng, radius, 0.75 * radius, (0.55 * radius, 1e3))
        size = size if centre is not None else float(round(0.9 * size))
    if centre is None:
        centre = room.must_spot(rng, size / 2, 12.0, (10.0, 1e3))
    kind = str(rng.choice(["mass", "necrotic", "cavity"], p=[0.5, 0.38, 0.12]))
    return _round(room, rng, "lung_mass", centre, max(size, 33.0), kind, bool(rng.random() < 0.65), MASS_MM)


def _near(room: Room, rng: np.random.Generator, code: str, share: float) -> tuple[Lobe, ...]:
    """Some of what comes several times comes in one lobe."""
    before = room.used.get(code)
    return (before[0],) if before and rng.random() < share else LOBES


def _beside_vessels(room: Room, radius_mm: float) -> np.ndarray:
    """1 for the points where a ball would touch a vessel, more or less."""
    vessels = [b for b in (*room.chest.arteries, *room.chest.veins) if b.generation >= 2]
    distance, index = cKDTree(np.concatenate([b.points for b in vessels])).query(room.points_mm)
    gap = distance - np.concatenate([b.radii for b in vessels])[index] - radius_mm
    return (np.abs(gap) < 1.5).astype(float)


def _round(
    room: Room,
    rng: np.random.Generator,
    code: str,
    centre: np.ndarray,
    size: float,
    kind: str,
    spiked: bool,
    limits_mm: tuple[float, float],
) -> Lesion:
    lobe = room.lobe(centre)
    room.used.setdefault(code, []).append(lobe)
    large = code == "lung_mass"
    rough = rng.uniform(0.05, 0.13) if large or spiked else rng.uniform(0.01, 0.08)
    first = Blob.make(rng, centre, size / 2, rough, 0.13, rng.uniform(1.6, 3.4))
    # beyond the pleura and the fissures there is none of it
    reach = 1.7 * first.reach_mm
    tight = large or _clearance(room, centre) < 1.7 * size / 2
    clip = room.clip(lobe, centre - reach, centre + reach, 3.0 if size < 40 else 5.0, 0.4) if tight else None
    number = int(rng.integers(30, 90)) if spiked else 0
    spikes = [(direction(rng), rng.uniform(0.25, 1.0) * rng.uniform(0.4, 1.0)) for _ in range(number)]
    value = float(rng.normal(35, 14))
    core, core_shift = float(rng.uniform(0.35, 0.7)), rng.normal(0, 0.12, 3)
    core_value = {
        **{"calcified": float(rng.uniform(220, 900)), "cavity": AIR_HU},
        **{"necrotic": float(rng.uniform(8, 22)), "part-solid": float(rng.normal(15, 25))},
    }.get(kind, value)
    if kind == "calcified":
        core = float(rng.choice([rng.uniform(0.4, 0.8), 1.2]))
    if kind == "part-solid":
        value = float(rng.normal(-560, 60))
    blur = float(rng.uniform(0.0, 0.12) * min(size, 16))
    shift = rng.uniform(0, 200, 3)
    enhances = float(rng.uniform(10, 45)) if kind != "calcified" else 0.0

    def grow(size_mm: float) -> Lesion:
        blob, extent = fit(first.scaled(size_mm / size), size_mm, clip)
        inner = Blob(
            blob.centre_mm + core_shift * size_mm / 2 * (1 - core),
            blob.radii_mm * core, blob.axes, blob.waves * 1.2, blob.phases + 1.0, blob.gains * 1.5,
        )  # fmt: skip
        lines = [_spike(blob, way, long, size_mm) for way, long in spikes]
        thick = (0.75 + 0.012 * size_mm) * np.array([1.2, 1.0, 0.3])
        tubes = tubes_of([(line, thick) for line in lines]) if lines else None
        box = join([extent.box_mm, *(box_of(line) for line in lines)])

        def paint(canvas: Any) -> None:
            grid = canvas.grid
            at = window_of(grid, box)
            if at is None:
                return
            hu, axes = canvas.hu[at], grid.axes(at)
            f = blob(*axes) if clip is None else np.maximum(blob(*axes), clip(*axes))
            if tubes is not None:
                blend(hu, 0.49 * cover(tubes, grid, at) * canvas.lung_fraction(at), value)
            inside = soft(f, float(np.hypot(grid.edge_mm, blur)))
            tissue: Any = value + (enhances if canvas.chest.enhanced and kind != "part-solid" else 0.0)
            if kind == "part-solid":
                tissue = np.maximum(hu, tissue + 45 * noise(grid, at, shift, 2.5))
            elif size_mm > 12:
                tissue = tissue + 7 * noise(grid, at, shift, 2.5)
            blend(hu, inside, tissue)
            if kind not in ("solid", "mass"):
                middle = soft(inner(*axes), float(np.hypot(grid.edge_mm, 0.3 + 0.04 * size_mm)))
                blend(hu, middle * inside, core_value)

        return Lesion(finding_of(code, lobe, size_mm), box, paint, regrown=regrower(grow, size_mm, limits_mm))

    return grow(size)


def _clearance(room: Room, centre: np.ndarray) -> float:
    """How far the pleura and the fissures are."""
    at = np.atleast_2d(centre)
    depth = -min(float(room.chest.lungs[side].at(at)[0]) for side in (Side.RIGHT, Side.LEFT))
    return min(depth, float(np.asarray(room.chest.fissure_distance_mm(at))[0]))


def _spike(blob: Blob, way: np.ndarray, long: float, size_mm: float) -> np.ndarray:
    """A straight strand out of the surface."""
    steps = np.linspace(0, 1.2 * blob.reach_mm, 40)
    along = blob.centre_mm + way * steps[:, None]
    surface = steps[int(np.argmax(blob(*along.T.astype(np.float32)) > 0))]
    ends = np.array([surface - 1.0, surface, surface + long * (3.0 + 0.24 * min(size_mm, 40))])
    return blob.centre_mm + way * ends[:, None]


# --- air space filled, wholly or in part


def consolidation(room: Room, rng: np.random.Generator) -> Lesion:
    radius = float(rng.uniform(20, 38))
    lobes = _near(room, rng, "consolidation", 0.2)
    centre = room.must_spot(rng, radius, 9.0, (7.0, 30.0), lobes, 0.35 + 0.65 * (room.height < 0.6))
    lobe = room.lobe(centre)
    room.used.setdefault("consolidation", []).append(lobe)
    region = _air_space(room, rng, lobe, centre, radius, rng.random() < 0.6, 5.0)
    bronchi = _bronchi_in(room, rng, region, lobe, centre)
    value, patchy = float(rng.normal(32, 10)), float(rng.uniform(0.04, 0.2))
    shift = rng.uniform(0, 200, 3)

    def paint(canvas: Any) -> None:
        found = region.on(canvas.grid)
        if found is None:
            return
        at, f = found
        grid, hu = canvas.grid, canvas.hu[at]
        lung = canvas.lung_fraction(at, lobe[0])
        rim = noise(grid, at, shift, 4.0)
        full = soft(f + 2.2 * rim, float(np.hypot(grid.edge_mm, 2.5))) * lung
        # a rim of ground glass, where filling is not complete
        blend(hu, 0.45 * soft(f - 3 + 2.2 * rim, 7.0) * lung * (1 - full), np.maximum(hu, -450.0))
        tissue = value + (25 if canvas.chest.enhanced else 0) + 9 * rim
        blend(hu, full * np.clip(1 - patchy - patchy * rim, 0.5, 1), np.maximum(hu, tissue))
        blend(hu, cover(bronchi, grid, at) * full, AIR_HU)

    return Lesion(finding_of("consolidation", lobe), region.box_mm, paint)


def ground_glass(room: Room, rng: np.random.Generator) -> Lesion:
    radius = float(rng.uniform(16, 36))
    lobes = _near(room, rng, "ground_glass_opacity", 0.2)
    centre = room.must_spot(rng, radius, 7.0, (5.0, 1e3), lobes)
    lobe = room.lobe(centre)
    room.used.setdefault("ground_glass_opacity", []).append(lobe)
    peripheral = bool(rng.random() < 0.35)
    region = _air_space(
        room, rng, lobe, centre, radius, rng.random() < 0.25, 1.0, 16.0 if peripheral else None
    )
    value, paving = float(rng.normal(-560, 55)), bool(rng.random() < 0.22)
    shift = rng.uniform(0, 200, 3)

    def paint(canvas: Any) -> None:
        found = region.on(canvas.grid)
        if found is None:
            return
        at, f = found
        grid, hu = canvas.grid, canvas.hu[at]
        rim = noise(grid, at, shift, 4.0)
        inside = soft(f + 1.5 + 2.0 * rim, float(np.hypot(grid.edge_mm, 4.5)))
        inside *= canvas.lung_fraction(at, lobe[0])
        # vessels and airways stay visible in it
        tissue = value + 32 * rim + 22 * noise(grid, at, shift, 1.6, 1)
        blend(hu, inside * (hu > -955), np.maximum(hu, tissue))
        if paving:
            septum = sample(lobules()[0], finer(shifted(grid, shift), 2.2), at) / 2.2
            lines = soft(septum - 0.6, grid.edge_mm) * min(1.0, 1.2 / grid.edge_mm)
            blend(hu, 0.5 * inside * lines, np.maximum(hu, -150.0))

    return Lesion(finding_of("ground_glass_opacity", lobe), region.box_mm, paint)


def _air_space(
    room: Room,
    rng: np.random.Generator,
    lobe: Lobe,
    centre: np.ndarray,
    radius: float,
    wedge: bool,
    rim_mm: float,
    rind_mm: float | None = None,
) -> Region:
    """Part of a lobe: a wedge from the hilum to the pleura, or round; fissures and pleura bound it."""
    hilum = np.asarray(room.chest.landmarks[f"hilum_{lobe[0].value}"], float)
    low, high = centre - 1.45 * radius, centre + 1.45 * radius
    clip = room.clip(lobe, low - rim_mm, high + rim_mm, 5.0)
    waves = rng.normal(0, 1, (7, 3)) * 2.3 / radius
    phases, gains = rng.uniform(0, 6.3, 7), rng.normal(0, 0.09 * radius, 7)
    way = (centre - hilum) / np.linalg.norm(centre - hilum)
    tip = centre - way * min(1.1 * radius, float(np.linalg.norm(centre - hilum)) - 8)
    slope = np.tan(np.deg2rad(rng.uniform(30, 42)))
    squeeze = np.exp(rng.normal(0, 0.22, 3))

    def shape(x, y, z):
        d = [np.float32(1) * (v - c) for v, c in zip((x, y, z), centre, strict=True)]
        u, v, w = (a * np.float32(s) for a, s in zip(d, squeeze, strict=True))
        f = np.sqrt(u * u + v * v + w * w) - np.float32(radius if not wedge else 1.25 * radius)
        if wedge:
            p = [a + np.float32(c - t) for a, c, t in zip(d, centre, tip, strict=True)]
            along = sum(a * np.float32(b) for a, b in zip(p, way, strict=True))
            off = np.sqrt(np.maximum(sum(a * a for a in p) - along * along, 0))
            f = np.maximum(f, (off - slope * along) * np.float32(np.cos(np.arctan(slope))))
        for (a, b, c), phase, gain in zip(waves, phases, gains, strict=True):
            f = f + np.float32(gain) * np.sin(
                np.float32(a) * d[0] + np.float32(b) * d[1] + np.float32(c) * d[2] + np.float32(phase)
            )
        edge = clip(x, y, z)
        # no rim beyond a fissure
        f = np.maximum(f, np.where(edge > 0, 4 * edge, edge))
        return f if rind_mm is None else np.maximum(f, -edge - np.float32(rind_mm))

    region = Region.make(shape, low - rim_mm, high + rim_mm, 4.0, rim_mm)
    if region is None:
        # the waves ate it: without them the centre always lies inside
        gains[:] = 0
        region = Region.make(shape, low - rim_mm, high + rim_mm, 4.0, rim_mm)
    assert region is not None
    return region


def _bronchi_in(
    room: Room, rng: np.random.Generator, region: Region, lobe: Lobe, centre: np.ndarray
) -> Tubes:
    """The airways that stay open in it: those of the chest, and smaller ones beyond them."""
    mine = [b for b in room.chest.airways if (b.side, b.site) == lobe]
    tips = region.field.at(np.array([b.points[-1] for b in mine])) < 2
    lines: list[tuple[np.ndarray, Any]] = [
        (b.points, np.maximum(b.radii, 0.8)) for b, inside in zip(mine, tips, strict=True) if inside
    ]
    hilum = np.asarray(room.chest.landmarks[f"hilum_{lobe[0].value}"], float)
    way = centre - hilum
    long = float(np.linalg.norm(way))
    start = hilum + way * max(0.35, 1 - 30 / long)
    for _ in range(int(rng.integers(3, 7))):
        turn = way / long + 0.5 * direction(rng)
        end = start + turn / np.linalg.norm(turn) * rng.uniform(25, 48)
        line = wander(rng, start, end, 0.06)
        lines.append((line, np.linspace(1.5, 0.6, len(line))))
    return tubes_of(lines)


# --- volume lost


def atelectasis(room: Room, rng: np.random.Generator) -> Lesion:
    sides = [side for side in (Side.RIGHT, Side.LEFT) if room.roomy((side, "lower_lobe"))]
    if sides and rng.random() < 0.38:
        return _collapse(room, rng, sides[int(rng.integers(len(sides)))])
    low = 0.15 + 0.85 * (room.height < 0.5)
    centre = room.must_spot(rng, 14.0, 10.0, (5.0, 22.0), odds=low)
    lobe = room.lobe(centre)
    reach = 42.0
    clip = room.clip(lobe, centre - reach, centre + reach, 5.0, 0.5)
    plates = [
        _plate(rng, centre + np.array([0, rng.normal(0, 3), 9.0 * n])) for n in range(int(rng.integers(1, 4)))
    ]
    regions = [Region.make(_clipped(plate, clip), plate.low, plate.high, 4.0) for plate in plates]
    boxes = [region.box_mm for region in regions if region is not None]
    value = float(rng.normal(10, 20))

    def paint(canvas: Any) -> None:
        for plate in plates:
            at = window_of(canvas.grid, (plate.low, plate.high))
            if at is None:
                continue
            axes, edge = canvas.grid.axes(at), canvas.grid.edge_mm
            inside = soft(plate.thin(*axes), edge) * min(1.0, 2 * plate.half_mm / edge + 0.2)
            inside = inside * soft(np.maximum(plate(*axes), clip(*axes)), edge + 1.0)
            hu = canvas.hu[at]
            blend(hu, inside * canvas.lung_fraction(at, lobe[0]), np.maximum(hu, value))

    return Lesion(finding_of("atelectasis", lobe), join(boxes), paint, parts_mm=parts_of(boxes))


class _Plate:
    """A thin, slightly bent sheet, thicker towards one end."""

    def __init__(self, centre, axes, long_mm: float, wide_mm: float, half_mm: float, bend: float):
        self.centre, self.axes, self.half_mm, self.bend = centre, axes.astype(np.float32), half_mm, bend
        self.long, self.wide = long_mm, wide_mm
        reach = np.abs(axes[0]) * long_mm + np.abs(axes[1]) * wide_mm + np.abs(axes[2]) * (half_mm + 5)
        self.low, self.high = tuple(centre - reach), tuple(centre + reach)

    def _turned(self, x, y, z):
        d = [np.float32(1) * (v - np.float32(c)) for v, c in zip((x, y, z), self.centre, strict=True)]
        return tuple(sum(a * b for a, b in zip(row, d, strict=True)) for row in self.axes)

    def __call__(self, x, y, z):
        """The outline, seen from above."""
        u, v, w = self._turned(x, y, z)
        outline = (np.sqrt((u / self.long) ** 2 + (v / self.wide) ** 2) - 1) * min(self.long, self.wide)
        return np.maximum(outline, np.abs(w) - np.float32(self.half_mm + 5))

    def thin(self, x, y, z):
        u, v, w = self._turned(x, y, z)
        middle = w - np.float32(self.bend) * (u / self.long) ** 2 * 4 - 0.8 * np.sin(v * 0.35 + self.bend)
        return np.abs(middle) - self.half_mm * np.clip(1 - 0.45 * u / self.long, 0.3, 1.5)


def _plate(rng: np.random.Generator, centre: np.ndarray) -> _Plate:
    """Nearly level, or at most sloped as the diaphragm is."""
    turn, lean = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.3, 2)
    up = np.array([lean[0], lean[1], 1.0])
    up /= np.linalg.norm(up)
    along = np.cross(up, [np.cos(turn), np.sin(turn), 0])
    along /= np.linalg.norm(along)
    axes = np.stack([along, np.cross(up, along), up])
    return _Plate(
        np.asarray(centre, float), axes, float(rng.uniform(18, 34)), float(rng.uniform(10, 20)),
        float(rng.uniform(0.9, 2.2)), float(rng.normal(0, 0.7)),
    )  # fmt: skip


def _clipped(shape: Shape, clip: Shape) -> Shape:
    return lambda x, y, z: np.maximum(shape(x, y, z), clip(x, y, z))


def _collapse(room: Room, rng: np.random.Generator, side: Side) -> Lesion:
    """The lowest part of a lower lobe without air, against spine and diaphragm."""
    lobe = (side, "lower_lobe")
    mine = room.points_mm[room.lobes == LOBES.index(lobe)]
    sign = 1.0 if side is Side.RIGHT else -1.0
    # down, back and towards the spine
    way = np.array([-0.35 * sign, -0.75, -0.75])
    far = mine @ way
    level = float(np.quantile(far, 1 - rng.uniform(0.08, 0.24)))
    inside = mine[far > level - 8]
    low, high = inside.min(0) - 10, inside.max(0) + 10
    clip = room.clip(lobe, low, high, 5.0)
    bend, waves = rng.uniform(0.0015, 0.004), rng.normal(0, 0.045, (4, 3))
    phases = rng.uniform(0, 6.3, 4)
    middle = inside.mean(0)

    def shape(x, y, z):
        u, v, w = x - middle[0], y - middle[1], z - middle[2]
        f = (level - (way[0] * x + way[1] * y + way[2] * z)) / 1.1
        # the free edge is hollow, and not quite straight
        f = f - bend * (u * u + 0.3 * (v - w) ** 2) * 0.5
        for (a, b, c), phase in zip(waves, phases, strict=True):
            f = f + 1.6 * np.sin(a * u + b * v + c * w + phase)
        return np.maximum(np.asarray(f, np.float32), clip(x, y, z))

    region = Region.make(shape, low, high, 4.0)
    assert region is not None
    bronchi = [
        (b.points, np.maximum(0.6, 0.7 * b.radii))
        for b in room.chest.airways
        if (b.side, b.site) == lobe and b.generation >= 2
    ]
    tubes = tubes_of(bronchi) if bronchi else None
    value, shift = float(rng.normal(48, 8)), rng.uniform(0, 200, 3)
    room.taken.append((middle, 25.0))

    def paint(canvas: Any) -> None:
        found = region.on(canvas.grid)
        if found is None:
            return
        at, f = found
        grid, hu = canvas.grid, canvas.hu[at]
        inside = soft(f, float(np.hypot(grid.edge_mm, 1.5))) * canvas.lung_fraction(at, side)
        tissue = value + (45 if canvas.chest.enhanced else 0) + 6 * noise(grid, at, shift, 3.0)
        blend(hu, inside, np.maximum(hu, tissue))
        if tubes is not None:
            blend(hu, 0.8 * cover(tubes, grid, at) * inside, AIR_HU)

    return Lesion(finding_of("atelectasis", lobe), region.box_mm, paint)
