"""Room in a chest -> disease of airways, septa and much of the lung: emphysema, mosaic attenuation, septal
and peribronchial thickening, bronchiectasis, fibrotic sequelae.

Patterns after Webb, Radiology 2006;239:322 (the secondary lobule) and Hansell et al., Radiology
2008;246:697. Knows no focal disease.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mla_med.phantom.chest.blobs import (
    Blob,
    Region,
    box_of,
    direction,
    finer,
    join,
    lobules,
    measure,
    noise,
    sample,
    shifted,
    slabs_of,
    tubes_of,
    wander,
    window_of,
)
from mla_med.phantom.chest.lesions_lung import AIR_HU, finding_of
from mla_med.phantom.chest.room import LOBES, Lobe, Room, lobe_index, lungs_box
from mla_med.phantom.chest.tree import Branch, Tubes, cover
from mla_med.phantom.lattice import Slices
from mla_med.phantom.lesion import Lesion, parts_of
from mla_med.phantom.shapes import blend, point, soft
from mla_med.types import Box, Finding, Side

SIDES = (Side.RIGHT, Side.LEFT)


def choose_side(rng: np.random.Generator, both: float) -> tuple[Side, tuple[Side, ...]]:
    """Bilateral with that chance; -> the side as stated, and the lungs that it means."""
    if rng.random() < both:
        return Side.BILATERAL, SIDES
    side = SIDES[int(rng.random() < 0.5)]
    return side, (side,)


def lungs_of(room: Room, sides: tuple[Side, ...]) -> Box:
    """The box of one lung or both."""
    low, high = lungs_box(room.chest, sides)
    return point(low), point(high)


# --- emphysema and mosaic attenuation


def emphysema(room: Room, rng: np.random.Generator) -> Lesion:
    """Centrilobular holes without walls, most in the upper zones; in some, bullae below the pleura."""
    box = lungs_of(room, SIDES)
    worse = room.chest.patient.history & {"smoker", "copd"}
    severity, shift = float(rng.uniform(0.55 if worse else 0.35, 1.0)), rng.uniform(0, 200, 3)
    (_, _, base), (_, _, top) = box
    bullae = []
    for _ in range(int(rng.integers(1, 8)) if rng.random() < 0.5 else 0):
        radius = float(rng.uniform(6, 18))
        odds = np.clip(room.height, 0.05, 1) ** 2
        at = room.spot(rng, radius, 2.0, (0.45 * radius, 0.9 * radius), odds=odds)
        if at is not None:
            bullae.append((Blob.make(rng, at, radius, 0.08, 0.25), room.lobe(at)[0]))

    def paint(canvas: Any) -> None:
        grid = canvas.grid
        for at in slabs_of(grid, box):
            hu = canvas.hu[at]
            upper = np.clip((grid.axes(at)[2] - base) / (top - base), 0, 1).astype(np.float32)
            lung = canvas.lung_fraction(at) * (hu < -640)
            # hyperinflated between the holes
            blend(hu, lung * (0.12 + 0.3 * severity * upper), np.float32(-930.0))
            grain = noise(grid, at, shift, 3.4) + 0.7 * noise(grid, at, shift, 12.0, 1)
            level = 1.55 - 1.05 * severity * upper + 0.9 * (1 - upper)
            holes = np.clip((grain - level) * 2.6, 0, 1)
            blend(hu, lung * holes, np.float32(-988.0))
        for bulla, side in bullae:
            part = window_of(grid, _ball(bulla))
            if part is None:
                continue
            f = bulla(*grid.axes(part))
            inside = canvas.lung_fraction(part, side)
            wall = soft(np.abs(f) - 0.5, grid.edge_mm) * min(1.0, 1.0 / grid.edge_mm)
            blend(canvas.hu[part], soft(f, grid.edge_mm) * inside, np.float32(-985.0))
            blend(canvas.hu[part], 0.7 * wall * inside, np.maximum(canvas.hu[part], -420.0))

    return Lesion(Finding("emphysema"), box, paint)


def _ball(blob: Blob) -> Box:
    return box_of(blob.centre_mm, blob.reach_mm + 1.0)


def mosaic(room: Room, rng: np.random.Generator) -> Lesion:
    """Groups of lobules that are darker than their neighbours, with sharp borders."""
    box = lungs_of(room, SIDES)
    shift, depth, share = rng.uniform(0, 200, 3), float(rng.uniform(110, 180)), float(rng.uniform(0.35, 0.6))

    def paint(canvas: Any) -> None:
        grid = canvas.grid
        for at in slabs_of(grid, box):
            hu = canvas.hu[at]
            lobule = sample(lobules()[1], shifted(finer(grid, 0.5), shift), at)
            # neighbours trap air together
            trapped = lobule + 0.24 * noise(grid, at, shift, 16.0, 1)
            dark = np.clip((share - trapped) * 9 + 0.5, 0, 1)
            lung = canvas.lung_fraction(at) * (hu < -500)
            hu += lung * np.float32(depth) * (0.62 - dark)
            np.maximum(hu, -1000.0, out=hu)

    return Lesion(Finding("mosaic_attenuation"), box, paint)


# --- septa


def septal_thickening(room: Room, rng: np.random.Generator) -> Lesion:
    """Lines around lobules, most at the base and below the pleura; in heart failure on both sides."""
    failing = "heart_failure" in room.chest.patient.history
    stated, sides = choose_side(rng, 0.9 if failing else 0.6)
    box = lungs_of(room, sides)
    shift, half = rng.uniform(0, 200, 3), float(rng.uniform(0.4, 0.75))
    (_, _, base), (_, _, top) = box
    haze, reach = float(rng.uniform(0, 90)), float(rng.uniform(18, 40))
    strength, patchy = float(rng.uniform(0.6, 0.95)), float(rng.uniform(-0.6, 0.2))

    parts = {side: lungs_of(room, (side,)) for side in sides}

    def paint(canvas: Any) -> None:
        for side in sides:
            for at in slabs_of(canvas.grid, parts[side]):
                _paint_septa(canvas, side, at)

    def _paint_septa(canvas: Any, side: Side, at: Slices) -> None:
        grid, hu = canvas.grid, canvas.hu[at]
        z, edge = grid.axes(at)[2], grid.edge_mm
        lines = soft(sample(lobules()[0], shifted(grid, shift), at) - half, edge) * min(
            1.0, 2.2 * half / edge
        )
        low = np.clip(1.2 - 1.1 * (z - base) / (top - base), 0.1, 1).astype(np.float32)
        deep = -canvas.chest.lungs[side].on(grid, at)
        # not every lobule, and not every septum of one
        here = np.clip(0.5 + 1.2 * (noise(grid, at, shift, 11.0, 1) - patchy), 0, 1)
        rind = np.clip(1.3 - deep / np.float32(reach), 0.06, 1) * here
        lung = canvas.lung_fraction(at, side) * low
        blend(hu, strength * lines * lung * rind, np.maximum(hu, -150.0))
        hu += np.float32(haze) * lung * rind * (hu < -600)

    return Lesion(Finding("septal_thickening", side=stated), box, paint)


# --- airways


def peribronchial_thickening(room: Room, rng: np.random.Generator) -> Lesion:
    stated, sides = choose_side(rng, 0.7)
    thick = float(rng.uniform(0.7, 1.7))
    branches = [
        b
        for b in room.chest.airways
        if b.side in sides and b.site and b.generation <= 5 and b.radii[-1] > 0.7
    ]
    wall = Tubes.of(branches, 0.6 + thick)
    lumen = Tubes.of(branches)
    box = join([box_of(b.points, b.radii + 0.6 + thick) for b in branches])
    value = float(rng.normal(25, 12))

    def paint(canvas: Any) -> None:
        for at in slabs_of(canvas.grid, box):
            hu = canvas.hu[at]
            cuff = cover(wall, canvas.grid, at) * (hu < 30)
            blend(hu, cuff * canvas.lung_fraction(at, stated), value)
            blend(hu, cover(lumen, canvas.grid, at), AIR_HU)

    return Lesion(Finding("peribronchial_thickening", side=stated), box, paint)


def bronchiectasis(room: Room, rng: np.random.Generator) -> Lesion:
    """Airways wider than the arteries at their side, out to the periphery, with walls."""
    odds = {"lower_lobe": 3.0, "middle_lobe": 2.0, "upper_lobe": 1.0}
    weights = np.array([odds[lobe[1]] * (0.001 + room.roomy(lobe)) for lobe in LOBES])
    for used in room.used.get("bronchiectasis", []):
        weights[LOBES.index(used)] *= 0.3
    lobe = LOBES[int(rng.choice(len(LOBES), p=weights / weights.sum()))]
    room.used.setdefault("bronchiectasis", []).append(lobe)
    kind = str(rng.choice(["cylindrical", "varicose", "cystic"], p=[0.55, 0.25, 0.2]))
    chosen = _dilated(room, rng, lobe, int(rng.integers(6, 14)))
    widen, thick = float(rng.uniform(1.5, 2.1)), float(rng.uniform(0.9, 1.5))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for branch, artery in chosen:
        line, radii = _along(branch, 2.5)
        wide = np.maximum(radii * widen, max(1.9, 1.45 * artery))
        if kind == "varicose":
            wide = wide * (1 + 0.28 * np.sin(np.arange(len(wide)) * 1.9 + rng.uniform(0, 6)))
        elif kind == "cystic":
            wide = wide * np.linspace(1, rng.uniform(1.4, 2.0), len(wide))
        parts.append((line, np.clip(wide, 1.6, 6.5)))
    lumen = tubes_of(parts)
    wall = lumen.grown(thick)
    boxes = [box_of(line, radii + thick) for line, radii in parts]
    box = join(boxes)
    room.taken.append((np.mean([line[len(line) // 2] for line, _ in parts], axis=0), 18.0))

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is None:
            return
        hu, lung = canvas.hu[at], canvas.lung_fraction(at, lobe[0])
        blend(hu, cover(wall, canvas.grid, at) * lung, np.maximum(hu, 10.0))
        blend(hu, cover(lumen, canvas.grid, at) * lung, AIR_HU)

    return Lesion(finding_of("bronchiectasis", lobe), box, paint, parts_mm=parts_of(boxes))


def _dilated(room: Room, rng: np.random.Generator, lobe: Lobe, number: int) -> list[tuple[Branch, float]]:
    """Neighbouring small airways of a lobe, each with the radius of its artery."""
    mine = [b for b in room.chest.airways if (b.side, b.site) == lobe and 2 <= b.generation <= 7]
    middles = np.array([b.points[len(b.points) // 2] for b in mine])
    ends = np.array([b.points[-1] for b in mine])
    lung = room.chest.lungs[lobe[0]]
    deep = -np.maximum(lung.at(middles), lung.at(ends))
    wanted = deep > min(4.5, float(np.sort(deep)[-min(6, len(deep))]) - 1e-6)
    inside = [b for b, good in zip(mine, wanted, strict=True) if good]
    middles = middles[wanted]
    first = middles[int(rng.integers(len(middles)))]
    near = np.argsort(np.linalg.norm(middles - first, axis=1))[:number]
    arteries = [b for b in room.chest.arteries if (b.side, b.site) == lobe]
    where = np.concatenate([a.points for a in arteries])
    thick = np.concatenate([a.radii for a in arteries])
    return [(inside[n], float(thick[np.linalg.norm(where - middles[n], axis=1).argmin()])) for n in near]


def _along(branch: Branch, step_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """The branch resampled."""
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(branch.points, axis=0), axis=1))])
    t = np.linspace(0, s[-1], max(3, int(s[-1] / step_mm) + 1))
    line = np.stack([np.interp(t, s, p) for p in branch.points.T], axis=1)
    return line, np.interp(t, s, branch.radii)


# --- scars


def fibrotic_sequela(room: Room, rng: np.random.Generator) -> Lesion:
    kind = str(rng.choice(["apical", "bands", "honeycomb"], p=[0.42, 0.35, 0.23]))
    if kind == "honeycomb":
        return _honeycomb(room, rng)
    lobes: tuple[Lobe, ...] = ((Side.RIGHT, "upper_lobe"), (Side.LEFT, "upper_lobe"))
    odds = np.clip((room.height - 0.72) * 8, 0, 1)
    if kind == "bands":
        # from the pleura of the wall, rather than from beside the heart
        far = np.abs(room.points_mm[:, 0]) / np.abs(room.points_mm[:, 0]).max()
        lobes, odds = LOBES, np.clip((far - 0.5) * 4, 0, 1)
    root = room.must_spot(rng, 12.0, 9.0, (1.0, 5.0), lobes, odds)
    lobe = room.lobe(root)
    hilum = np.asarray(room.chest.landmarks[f"hilum_{lobe[0].value}"], float)
    inward = (hilum - root) / np.linalg.norm(hilum - root)
    lines: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(int(rng.integers(4, 9))):
        turn = inward + 0.75 * direction(rng)
        start = root + rng.normal(0, 5 if kind == "apical" else 3, 3)
        line = wander(rng, start, start + turn / np.linalg.norm(turn) * rng.uniform(16, 42), 0.07)
        lines.append((line, np.linspace(rng.uniform(1.2, 2.4), 0.5, len(line))))
    lines = _kept_in(room, lobe, lines)
    reach = 14.0
    clip = room.clip(lobe, root - reach - 8, root + reach + 8, 4.0)
    shape = Blob.make(rng, root, float(rng.uniform(5.5, 9.5)), 0.3, 0.3, 3.2)
    extent = measure(lambda x, y, z: np.maximum(shape(x, y, z), clip(x, y, z)), root, min(shape.reach_mm, 20))
    assert extent is not None
    tubes = tubes_of(lines)
    box = join([extent.box_mm, *(box_of(line, radii) for line, radii in lines)])
    dots = []
    if kind == "apical" and rng.random() < 0.5:
        number = int(rng.integers(1, 5))
        dots = [(root + rng.normal(0, 4, 3), float(rng.uniform(0.8, 1.8))) for _ in range(number)]
        dots = [(p, r) for p, r in dots if np.all(p - r > box[0]) and np.all(p + r < box[1])]
    chalk = tubes_of([(np.stack([p, p + 0.3]), np.full(2, r)) for p, r in dots]) if dots else None
    value, calcium = float(rng.normal(15, 20)), float(rng.uniform(350, 900))
    shift = rng.uniform(0, 200, 3)

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is None:
            return
        grid, hu = canvas.grid, canvas.hu[at]
        lung, axes = canvas.lung_fraction(at, lobe[0]), grid.axes(at)
        rough = noise(grid, at, shift, 2.0)
        scar = soft(np.maximum(shape(*axes) + 1.2 * rough, clip(*axes)), float(np.hypot(grid.edge_mm, 1.2)))
        inside = np.maximum(0.9 * scar, cover(tubes, grid, at)) * lung
        blend(hu, inside, np.maximum(hu, value))
        if chalk is not None:
            blend(hu, cover(chalk, grid, at) * lung, calcium)

    return Lesion(finding_of("fibrotic_sequela", lobe), box, paint)


def _kept_in(
    room: Room, lobe: Lobe, lines: list[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lines cut where they would leave the lobe."""
    kept = []
    for line, radii in lines:
        inside = lobe_index(room.chest, line) == LOBES.index(lobe)
        inside &= room.chest.lungs[lobe[0]].at(line) < 1
        stop = len(line) if inside.all() else int(np.argmin(inside))
        if stop >= 2:
            kept.append((line[:stop], radii[:stop]))
    return kept or [(lines[0][0][:2], lines[0][1][:2])]


def _honeycomb(room: Room, rng: np.random.Generator) -> Lesion:
    """Clustered cysts with thick walls below the pleura, most at the back of the base."""
    odds = np.clip(1.2 - room.height, 0.1, 1) * np.clip(room.behind, 0.15, 1)
    centre = room.must_spot(rng, 20.0, 8.0, (1.0, 9.0), odds=odds)
    lobe = room.lobe(centre)
    reach = float(rng.uniform(20, 34))
    clip = room.clip(lobe, centre - reach, centre + reach, 4.0)
    blob = Blob.make(rng, centre, reach / 1.35, 0.1, 0.15)
    rind = float(rng.uniform(9, 16))

    def shape(x, y, z):
        edge = clip(x, y, z)
        return np.maximum.reduce([blob(x, y, z), edge, -edge - np.float32(rind)])

    region = Region.make(shape, centre - reach * 1.1, centre + reach * 1.1, 3.0)
    assert region is not None
    shift, small = rng.uniform(0, 200, 3), float(rng.uniform(2.6, 3.8))
    value = float(rng.normal(-40, 60))

    def paint(canvas: Any) -> None:
        found = region.on(canvas.grid)
        if found is None:
            return
        at, f = found
        grid, hu = canvas.grid, canvas.hu[at]
        septum = sample(lobules()[0], shifted(finer(grid, small), shift), at) / np.float32(small)
        wall = np.clip(0.5 - (septum - 0.75) / np.float32(grid.edge_mm), 0, 1)
        if grid.edge_mm > 2:
            wall = 0.35 * wall + 0.25
        inside = soft(f, float(np.hypot(grid.edge_mm, 1.0))) * canvas.lung_fraction(at, lobe[0])
        blend(hu, inside, np.maximum(np.minimum(hu, -930.0), -940.0) * (1 - wall) + np.float32(value) * wall)

    return Lesion(finding_of("fibrotic_sequela", lobe), region.box_mm, paint)
