"""Room in a chest -> lesions outside of the lungs and the heart: lymph nodes, hernia, fractures, thyroid,
adrenal and liver.

Sizes after ACR incidental findings committee (thyroid: Hoang et al., J Am Coll Radiol 2015;12:143; adrenal:
Mayo-Smith et al., J Am Coll Radiol 2017;14:1038) and, for nodes, the short axis (Eisenhauer et al., Eur J
Cancer 2009;45:228: 10 mm and more is enlarged). Knows no lung disease.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from mla_med.phantom.chest.blobs import (
    Blob,
    box_of,
    fit,
    join,
    noise,
    window_of,
)
from mla_med.phantom.chest.lesions_lung import regrower
from mla_med.phantom.chest.room import Room
from mla_med.phantom.chest.tree import Tubes, cover
from mla_med.phantom.lattice import Slices
from mla_med.phantom.lesion import Lesion, parts_of
from mla_med.phantom.shapes import blend, point, soft
from mla_med.types import Finding, Presence, Side

ABOVE_MM, BELOW_MM = 12.0, 25.0
"""How far every scan reaches beyond the lungs."""


def side_of(rng: np.random.Generator, right: float = 0.5) -> Side:
    return Side.RIGHT if rng.random() < right else Side.LEFT


# --- lymph nodes

# Stations of the mediastinum in reference mm (Rusch et al., J Thorac Oncol 2009;4:568).
STATIONS: dict[str, tuple[float, float, float]] = {
    "upper paratracheal": (16.0, -18.0, 94.0),
    "prevascular": (4.0, 30.0, 66.0),
    "right lower paratracheal": (16.0, -17.0, 60.0),
    "aortopulmonary": (-27.0, -3.0, 58.0),
    "subcarinal": (2.0, -36.0, 29.0),
}
_STATION_ODDS = (0.14, 0.16, 0.3, 0.14, 0.26)


def lymphadenopathy(room: Room, rng: np.random.Generator) -> Lesion:
    """`size_mm` is the largest short axis, `count` how many are enlarged."""
    place = str(rng.choice(["mediastinum", "hilum", "axilla"], p=[0.5, 0.3, 0.2]))
    side = None if place == "mediastinum" else side_of(rng)
    used = room.used.get("lung_mass")
    if place == "hilum" and used:
        side = used[0][0]  # on the side of a mass
    size = float(round(np.exp(rng.uniform(np.log(11), np.log(26 if place != "hilum" else 22)))))
    count = int(rng.choice([1, 2, 3, 4], p=[0.4, 0.28, 0.2, 0.12]))
    sizes = [1.0, *sorted(rng.uniform(0.62, 0.95, count - 1), reverse=True)]
    seeds: list[Blob] = []
    for share in sizes:
        radius = 0.5 * size * share
        at = _node_place(room, rng, place, side, radius, seeds)
        blob = Blob.make(rng, at, radius, 0.05, 0.0, 2.0)
        stretch = np.array([1.0, 1.05, rng.uniform(1.1, 1.8)])
        seeds.append(Blob(at, radius * stretch, blob.axes, blob.waves, blob.phases, blob.gains))
    value, necrotic = float(rng.normal(36, 7)), bool(rng.random() < 0.2)

    def grow(size_mm: float) -> Lesion:
        fitted = [
            fit(blob.scaled(size_mm / size), max(10.0, size_mm * share), short=True)
            for blob, share in zip(seeds, sizes, strict=True)
        ]
        boxes = [e.box_mm for _, e in fitted]

        def paint(canvas: Any) -> None:
            grid = canvas.grid
            for blob, extent in fitted:
                at = window_of(grid, extent.box_mm)
                if at is None:
                    continue
                hu, f = canvas.hu[at], blob(*grid.axes(at))
                airway = Tubes.of([b for b in canvas.chest.airways if b.radii[0] > 2.2], 0.8)
                inside = soft(f, grid.edge_mm) * (1 - cover(airway, grid, at))
                tissue = value + (42 if canvas.chest.enhanced else 0)
                blend(hu, inside, tissue)
                if necrotic and size_mm > 15:
                    blend(hu, soft(f + 0.22 * size_mm, grid.edge_mm + 2), 14.0)

        number = count if count > 1 else None
        found = Finding("lymphadenopathy", Presence.PRESENT, place, side, size_mm, number)
        again = regrower(grow, size_mm, (10.0, 45.0))
        return Lesion(found, join(boxes), paint, regrown=again, parts_mm=parts_of(boxes))

    return grow(size)


def _node_place(
    room: Room, rng: np.random.Generator, place: str, side: Side | None, radius: float, others: list[Blob]
) -> np.ndarray:
    """Of some tries near a station, the one with most fat around it."""
    chest = room.chest
    if side is None:
        names = list(STATIONS)
        station = STATIONS[names[int(rng.choice(len(names), p=_STATION_ODDS))]]
        middle, spread = chest.frame.to_patient(np.array(station))[0], (4.0, 4.0, 5.0)
    else:
        middle, spread = np.asarray(chest.landmarks[f"{place}_{side.value}"], float), (6.0, 8.0, 9.0)
    if others:
        spread = (12.0, 14.0, 20.0)
    tries = middle + rng.normal(0, 1, (40, 3)) * np.array(spread)
    tries[:, 2] = np.minimum(tries[:, 2], chest.z_range_mm[1] + ABOVE_MM - 2 * radius)
    score = np.zeros(len(tries))
    stems = [b for b in chest.airways if b.radii[0] > 2.2]
    for points, thick in [*((b.points, b.radii) for b in stems), *_vessel_lines(chest)]:
        gap = (np.linalg.norm(tries[:, None] - points, axis=2) - thick).min(axis=1) - radius
        score += np.minimum(gap, 0)
    for blob in others:
        # nodes that touch would be measured as one
        gap = np.linalg.norm(tries - blob.centre_mm, axis=1) - 1.4 * (radius + blob.radii_mm.min()) - 1.5
        score += 3 * np.minimum(gap, 0)
    return tries[int(score.argmax())]


def _vessel_lines(chest: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [chest.aorta_line, *(chest.vessels[name] for name in _NEAR_NODES)]


_NEAR_NODES = (
    "superior vena cava", "brachiocephalic artery", "left brachiocephalic vein", "pulmonary trunk",
    "right pulmonary artery", "left pulmonary artery",
)  # fmt: skip


# --- hiatal hernia


def hiatal_hernia(room: Room, rng: np.random.Generator) -> Lesion:
    """Stomach above the diaphragm: folds, fluid, and gas that lies in front."""
    wide = float(rng.uniform(30, 62))
    points, radii = replace(room.chest, hernia_mm=wide).hernia
    level, shift = float(rng.uniform(-0.5, 0.8)), rng.uniform(0, 200, 3)
    box = box_of(points, radii)

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is None:
            return
        grid, hu = canvas.grid, canvas.hu[at]
        rough = noise(grid, at, shift, 2.5)
        sac = Tubes.along(*canvas.chest.hernia)
        blend(hu, cover(sac, grid, at), 40.0 + (30 if canvas.chest.enhanced else 0))
        content = cover(sac.grown(-3.5), grid, at)
        blend(hu, content * np.clip(0.75 + 0.5 * rough, 0, 1), 18.0 + 9 * rough)
        surface = points[-1, 1] + 0.5 * level * wide
        gas = soft(surface - grid.axes(at)[1], grid.edge_mm) * cover(sac.grown(-4.5), grid, at)
        blend(hu, gas, -970.0)

    def change(chest: Any) -> Any:
        return replace(chest, hernia_mm=wide)

    return Lesion(Finding("hiatal_hernia"), box, paint, change)


# --- fractures


def fracture(room: Room, rng: np.random.Generator) -> Lesion:
    trauma = "trauma" in room.chest.patient.history
    old = room.chest.patient.age_years > 65
    odds = np.array([0.72, 0.12, 0.16]) if trauma else np.array([0.45, 0.5 if old else 0.3, 0.1])
    kind = int(rng.choice(3, p=odds / odds.sum()))
    if kind == 0:
        side = side_of(rng)
        air = room.used.get("pneumothorax")
        if air:
            side = air[0][0]  # ribs break on the side of the air
        return _rib(room, rng, side)
    return _vertebra(room, rng) if kind == 1 else _sternum(room, rng)


def _rib(room: Room, rng: np.random.Generator, side: Side) -> Lesion:
    """A step and a gap in the bone, with a bruise between it and the lung."""
    line = np.asarray(room.chest.ribs[side, int(rng.integers(3, 10))], float)
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    where = float(rng.uniform(0.3, 0.75)) * s[-1]
    near, centre, far = (np.array([np.interp(where + d, s, p) for p in line.T]) for d in (-3, 0, 3))
    tangent = (far - near) / np.linalg.norm(far - near)
    inward = np.array([0.25 * centre[0], line[:, 1].mean(), centre[2]]) - centre
    inward -= (inward @ tangent) * tangent
    inward /= np.linalg.norm(inward)
    step = inward * float(rng.uniform(3.0, 5.5)) + np.cross(inward, tangent) * float(rng.normal(0, 1.5))
    gap_mm, lean = float(rng.uniform(1.2, 3.0)), rng.normal(0, 0.35, 3)
    cut = tangent + lean - (lean @ tangent) * tangent
    depth = float(rng.uniform(3.5, 7.5))
    shape = Blob.make(rng, centre + (4.0 + 0.6 * depth) * inward, 9.0, 0.08, 0.0, 2.0)
    axes = np.stack([inward, tangent, np.cross(inward, tangent)])
    bruise = replace(shape, radii_mm=np.array([depth, 19.0, 11.0]), axes=axes)
    reach = np.abs(axes).T @ (bruise.radii_mm * 1.12)
    box = join([
        box_of(centre, 17.0), (point(bruise.centre_mm - reach), point(bruise.centre_mm + reach)),
    ])  # fmt: skip

    def moved(x, y, z):
        u, v, w = x - centre[0], y - centre[1], z - centre[2]
        along = tangent[0] * u + tangent[1] * v + tangent[2] * w
        off = np.sqrt(np.maximum(u * u + v * v + w * w - along * along, 0))
        past = cut[0] * u + cut[1] * v + cut[2] * w
        # the outer fragment is moved, least at its far end
        share = (past > 0) * np.clip(1 - along / 16, 0, 1) * np.clip((14 - off) / 6, 0, 1)
        return [share * np.float32(d) for d in step]

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is None:
            return
        grid = canvas.grid
        move(canvas, at, moved)
        hu, (x, y, z) = canvas.hu[at], grid.axes(at)
        u, v, w = x - centre[0], y - centre[1], z - centre[2]
        past = np.abs(cut[0] * u + cut[1] * v + cut[2] * w) - gap_mm / 2
        ball = np.sqrt(u * u + v * v + w * w) - 10
        gap = soft(np.maximum(past, ball), grid.edge_mm) * min(1.0, 1.5 * gap_mm / grid.edge_mm)
        blend(hu, gap * (hu > 90), 55.0)
        blend(hu, soft(bruise(x, y, z), grid.edge_mm + 0.8) * (hu < 80), 52.0)

    return Lesion(Finding("fracture", site="rib", side=side), box, paint)


def _vertebra(room: Room, rng: np.random.Generator) -> Lesion:
    """A body whose front has lost height: its upper endplate has sunk, the disc follows."""
    names = list(room.chest.vertebrae)
    number = names.index(str(rng.choice(["T6", "T7", "T8", "T9", "T10", "T11", "T12"])))
    above, centre, below = (np.asarray(room.chest.vertebrae[names[number + d]], float) for d in (-1, 0, 1))
    tall = float(np.linalg.norm(above - below)) / 2
    half = 0.5 * tall - (1.5 + 0.16 * number)
    lean = float((above[1] - below[1]) / (above[2] - below[2]))
    loss = float(rng.uniform(0.3, 0.55)) * 2 * half
    deep, wide = 11.0 + 0.5 * number, 15.0 + 0.62 * number
    top = 2 * (0.5 * tall - half)
    low, high = (
        centre - np.array([wide + 4, deep + 3, half]),
        centre + np.array([wide + 4, deep + 4, half + top + 3]),
    )
    box = point(low), point(high)

    def sunk(x, y):
        v = (y - centre[1]) / deep
        outline = np.sqrt(((x - centre[0]) / (wide + 3)) ** 2 + (v / 1.25) ** 2)
        return loss * np.clip(0.5 + 0.62 * v, 0, 1) * np.clip((1.12 - outline) * 5, 0, 1)

    def moved(x, y, z):
        w = z - centre[2] + lean * (y - centre[1])
        down = sunk(x, y)
        low, high = (w + 0.8 * half) / (1.8 * half - down), (half + top - w) / (top + down)
        share = np.where(w < half - down, low, high)
        return [0.0, 0.0, -down * np.clip(share, 0, 1)]

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is None:
            return
        grid = canvas.grid
        move(canvas, at, moved)
        hu, (x, y, z) = canvas.hu[at], grid.axes(at)
        # crushed bone is dense
        down = sunk(x, y)
        w = z - centre[2] + lean * (y - centre[1]) - (half - down) + 2.6
        band = soft(np.abs(w) - 1.8, grid.edge_mm) * np.clip(down / 4, 0, 1)
        blend(hu, 0.7 * band * (hu > 100), np.maximum(hu, 420.0))

    return Lesion(Finding("fracture", site="vertebra"), box, paint)


def _sternum(room: Room, rng: np.random.Generator) -> Lesion:
    """A gap and a step across the body of the sternum, with a bruise behind it."""
    line = np.asarray(room.chest.sternum, float)
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    where = float(rng.uniform(0.35, 0.7)) * s[-1]
    centre = np.array([np.interp(where, s, p) for p in line.T])
    step, gap_mm = float(rng.choice([-1, 1]) * rng.uniform(2.5, 5.0)), float(rng.uniform(1.5, 3.2))
    lean = float(rng.normal(0, 0.25))
    depth = float(rng.uniform(4, 7))
    shape = Blob.make(rng, centre - np.array([0, 6.0 + 0.55 * depth, 0]), 9.0, 0.06, 0.0, 2.0)
    bruise = replace(shape, radii_mm=np.array([24.0, depth, 20.0]), axes=np.eye(3))
    swollen = 1.1 * bruise.radii_mm
    box = join([
        (point(centre - np.array([26, 13, 8])), point(centre + np.array([26, 13, 26]))),
        (point(bruise.centre_mm - swollen), point(bruise.centre_mm + swollen)),
    ])  # fmt: skip

    def moved(x, y, z):
        w = z - centre[2] + lean * (y - centre[1])
        share = (w > 0) * np.clip(1 - w / 24, 0, 1)
        side = np.clip((25 - np.abs(x - centre[0])) / 6, 0, 1)
        side = side * np.clip((12 - np.abs(y - centre[1])) / 4, 0, 1)
        return [0.0, np.float32(step) * share * side, 0.0]

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is None:
            return
        grid = canvas.grid
        move(canvas, at, moved)
        hu, (x, y, z) = canvas.hu[at], grid.axes(at)
        past = np.abs(z - centre[2] + lean * (y - centre[1])) - gap_mm / 2
        near = np.maximum(np.abs(x - centre[0]) - 22, np.abs(y - centre[1]) - 10)
        gap = soft(np.maximum(past, near), grid.edge_mm) * min(1.0, 1.5 * gap_mm / grid.edge_mm)
        blend(hu, gap * (hu > 90), 55.0)
        blend(hu, soft(bruise(x, y, z), grid.edge_mm + 1.0) * (hu < 70), 50.0)

    return Lesion(Finding("fracture", site="sternum"), box, paint)


def move(canvas: Any, at: Slices, moved: Callable[..., list[Any]]) -> None:
    """Shifts what was drawn: `moved` gives, in mm, by how much what is now at x, y, z was moved."""
    hu, grid = canvas.hu[at], canvas.grid
    index = np.indices(hu.shape, dtype=np.float32)
    for axis, shift in enumerate(moved(*grid.axes(at))):
        index[axis] -= np.float32(1 / grid.spacing_mm[axis]) * shift
    hu[...] = ndimage.map_coordinates(hu.copy(), index, np.float32, order=1, mode="nearest")


# --- thyroid, adrenals, liver


def thyroid_nodule(room: Room, rng: np.random.Generator) -> Lesion:
    side = side_of(rng)
    size = float(round(np.exp(rng.uniform(np.log(9), np.log(32)))))
    at = np.asarray(room.chest.landmarks[f"thyroid_{side.value}"], float)
    outward = 1.0 if side is Side.RIGHT else -1.0
    at = at + np.array([outward * 0.28 * size * rng.uniform(0.4, 1), 0.1 * size, rng.normal(0, 5)])
    # low enough to be on every scan of the chest (which ends little above the lungs)
    at[2] = min(float(at[2]), room.chest.z_range_mm[1] + ABOVE_MM - 0.55 * size)
    first = Blob.make(rng, at, size / 2, 0.04, 0.1, 2.0)
    value, rim, lumps = float(rng.normal(52, 12)), bool(rng.random() < 0.25), rng.uniform(0, 200, 3)

    def grow(size_mm: float) -> Lesion:
        blob, extent = fit(first.scaled(size_mm / size), size_mm)

        def paint(canvas: Any) -> None:
            at = window_of(canvas.grid, extent.box_mm)
            if at is None:
                return
            grid, hu = canvas.grid, canvas.hu[at]
            f = blob(*grid.axes(at))
            tubes = Tubes.of([b for b in canvas.chest.airways if not b.site], 1.8)
            inside = soft(f, grid.edge_mm) * (1 - cover(tubes, grid, at)) * (hu < 400)
            tissue = value + 8 * noise(grid, at, lumps, 2.5) + (45 if canvas.chest.enhanced else 0)
            blend(hu, inside, tissue)
            if rim:
                shell = soft(np.abs(f + 1.0) - 0.7, grid.edge_mm) * min(1.0, 1.4 / grid.edge_mm)
                blend(hu, shell * inside * (noise(grid, at, lumps, 4.0, 1) > -0.2), 480.0)

        found = Finding("thyroid_nodule", side=side, size_mm=size_mm)
        return Lesion(found, extent.box_mm, paint, regrown=regrower(grow, size_mm, (5.0, 60.0)))

    return grow(size)


def adrenal_lesion(room: Room, rng: np.random.Generator) -> Lesion:
    side = side_of(rng, 0.4)
    size = float(round(np.exp(rng.uniform(np.log(12), np.log(42)))))
    at = np.asarray(room.chest.landmarks[f"adrenal_{side.value}"], float) + rng.normal(0, 1.5, 3)
    # it grows away from spine and crus
    at = at + np.array([0.32 if side is Side.RIGHT else -0.32, 0.16, 0.0]) * size
    first = Blob.make(rng, at, size / 2, 0.03, 0.1, 1.8)
    adenoma = bool(rng.random() < 0.65)
    value, shift = float(rng.normal(4, 7) if adenoma else rng.normal(34, 6)), rng.uniform(0, 200, 3)

    def grow(size_mm: float) -> Lesion:
        blob, extent = fit(first.scaled(size_mm / size), size_mm)

        def paint(canvas: Any) -> None:
            at = window_of(canvas.grid, extent.box_mm)
            if at is None:
                return
            grid, hu = canvas.grid, canvas.hu[at]
            f = blob(*grid.axes(at))
            blend(hu, soft(f - 2.0, grid.edge_mm + 1) * (hu < 250), -100.0)
            tissue = value + 5 * noise(grid, at, shift, 3.0) + (38 if canvas.chest.enhanced else 0)
            blend(hu, soft(f, grid.edge_mm), tissue)

        found = Finding("adrenal_lesion", side=side, size_mm=size_mm)
        return Lesion(found, extent.box_mm, paint, regrown=regrower(grow, size_mm, (8.0, 90.0)))

    return grow(size)


def liver_lesion(room: Room, rng: np.random.Generator) -> Lesion:
    cancer = "cancer" in room.chest.patient.history
    cyst = bool(rng.random() < (0.3 if cancer else 0.7))
    size = float(round(np.exp(rng.uniform(np.log(9), np.log(48)))))
    count = int(rng.choice([1, 2, 3, 5], p=[0.55, 0.2, 0.15, 0.1]))
    shares = [1.0, *sorted(rng.uniform(0.35, 0.9, count - 1), reverse=True)]
    seeds: list[Blob] = []
    size = _fits_liver(room, rng, size, shares, seeds, 0.02 if cyst else 0.07)
    value = float(rng.normal(6, 4) if cyst else rng.normal(34, 4))
    shift = rng.uniform(0, 200, 3)

    def grow(size_mm: float) -> Lesion:
        fitted = [
            fit(b.scaled(size_mm / size), max(5.0, size_mm * share))
            for b, share in zip(seeds, shares, strict=True)
        ]

        def paint(canvas: Any) -> None:
            grid = canvas.grid
            for blob, extent in fitted:
                at = window_of(grid, extent.box_mm)
                if at is None:
                    continue
                hu, f = canvas.hu[at], blob(*grid.axes(at))
                liver = soft(canvas.chest.organs["liver"].on(grid, at), grid.edge_mm)
                inside = soft(f, grid.edge_mm + (0.0 if cyst else 1.5)) * liver
                tissue: Any = value
                if not cyst:
                    tissue = value + 4 * noise(grid, at, shift, 3.0) + 32 * canvas.chest.enhanced
                blend(hu, inside, tissue)

        number = len(fitted) if count > 1 else None
        found = Finding("liver_lesion", size_mm=size_mm, count=number)
        boxes = [e.box_mm for _, e in fitted]
        again = regrower(grow, size_mm, (5.0, 90.0))
        return Lesion(found, join(boxes), paint, regrown=again, parts_mm=parts_of(boxes))

    return grow(size)


def _fits_liver(
    room: Room, rng: np.random.Generator, size: float, shares: list[float], seeds: list[Blob], rough: float
) -> float:
    """Puts a blob for each share into the liver, apart from each other; -> the size that had room."""
    liver = room.chest.organs["liver"]
    inside = np.argwhere(liver.values < -4)
    step, origin = np.asarray(liver.lattice.grid.spacing_mm), np.asarray(liver.lattice.grid.origin_mm)
    points = (inside + liver.first) * step + origin
    depth = -liver.values[tuple(inside.T)]
    above = points[:, 2] - (room.chest.z_range_mm[0] - BELOW_MM)
    depth = np.minimum(depth, above)  # what the scan does not reach is no lesion of this scan
    points, depth = points[depth > 0], depth[depth > 0]
    size = min(size, float(np.floor(1.7 * depth.max())))
    for share in shares:
        radius = size * share / 2
        good = depth >= min(0.95 * radius + 1, depth.max() - 1e-3)
        for other in seeds:
            good &= np.linalg.norm(points - other.centre_mm, axis=1) > radius + other.radii_mm.max() + 2
        found = np.flatnonzero(good)
        if found.size == 0:
            found = np.array([int(depth.argmax())])
        seeds.append(Blob.make(rng, points[int(rng.choice(found))], radius, rough, 0.08, 2.0))
    return size
