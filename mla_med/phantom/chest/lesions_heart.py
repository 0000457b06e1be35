"""Room in a chest -> lesions of heart and vessels, and what doctors put there.

Calcium after Agatston et al., J Am Coll Cardiol 1990;15:827 (130 HU and more); the ascending aorta is
aneurysmal from 50 mm, dilated from 45 mm on (Isselbacher et al., Circulation 2022;146:e334). Knows no lung
disease.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mla_med.phantom.chest.blobs import box_of, direction, join, tubes_of, window_of
from mla_med.phantom.chest.lesions_lung import regrower
from mla_med.phantom.chest.room import LOBES, Room, field_box
from mla_med.phantom.chest.tree import cover
from mla_med.phantom.lesion import Lesion, parts_of
from mla_med.phantom.shapes import blend
from mla_med.types import Finding, Presence, Side

ANEURYSM_MM = (42.0, 90.0)


def cardiomegaly(room: Room, rng: np.random.Generator) -> Lesion:
    scale = float(rng.uniform(1.2, 1.42))
    large = replace(room.chest, heart_scale=scale)
    return Lesion(
        Finding("cardiomegaly"),
        field_box(large.heart),
        change=lambda chest: replace(chest, heart_scale=scale),
    )


def pericardial_effusion(room: Room, rng: np.random.Generator) -> Lesion:
    thick = float(rng.uniform(9, 22))
    full = replace(room.chest, pericardial_mm=thick)
    return Lesion(
        Finding("pericardial_effusion"),
        field_box(full.pericardium),
        change=lambda chest: replace(chest, pericardial_mm=thick),
    )


def aortic_aneurysm(room: Room, rng: np.random.Generator) -> Lesion:
    """`size_mm` is the largest diameter of the ascending aorta, its wall included."""

    def grow(size_mm: float) -> Lesion:
        scale = 1.3
        for _ in range(4):
            wide = replace(room.chest, aorta_scale=scale)
            scale *= size_mm / (2 * float(wide.ascending_aorta[1].max()))
        points, radii = replace(room.chest, aorta_scale=scale).ascending_aorta
        return Lesion(
            Finding("aortic_aneurysm", size_mm=size_mm),
            box_of(points, radii),
            change=lambda chest: replace(chest, aorta_scale=scale),
            regrown=regrower(grow, size_mm, ANEURYSM_MM),
        )

    return grow(float(rng.integers(46, 66)))


def pulmonary_embolism(room: Room, rng: np.random.Generator) -> Lesion:
    """Clot in the arteries of one lung, central or segmental; nobody sees it without contrast medium."""
    side = Side.RIGHT if rng.random() < 0.58 else Side.LEFT
    central = bool(rng.random() < 0.45)
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    if central:
        points, radii = room.chest.vessels[f"{side.value} pulmonary artery"]
        main = resample_tube(points, radii, 2.0)
        long = int(np.clip(rng.uniform(18, 42) / 2, 4, len(main[0]) - 3))
        start = len(main[0]) - long if rng.random() < 0.6 else int(rng.integers(2, len(main[0]) - long + 1))
        pieces.append(_clot(rng, main[0][start : start + long], main[1][start : start + long], 0.4, 0.72))
        lobar = [b for b in room.chest.arteries if b.side is side and b.generation == 0]
        for branch in rng.permutation(np.arange(len(lobar)))[:2]:
            line, radii = resample_tube(lobar[branch].points, lobar[branch].radii, 1.5)
            pieces.append(_clot(rng, line, radii, 0.55, 0.95))
    else:
        odds = np.array([1.0, 0.6, 2.4, 1.0, 2.4]) * [lobe[0] is side for lobe in LOBES]
        lobe = LOBES[int(rng.choice(len(LOBES), p=odds / odds.sum()))]
        mine = [b for b in room.chest.arteries if (b.side, b.site) == lobe and 1 <= b.generation <= 3]
        first = mine[int(rng.integers(len(mine)))]
        middle = first.points.mean(axis=0)
        near = sorted(mine, key=lambda b: float(np.linalg.norm(b.points.mean(axis=0) - middle)))
        for branch in near[: int(rng.integers(2, 5))]:
            line, radii = resample_tube(branch.points, branch.radii, 1.5)
            pieces.append(_clot(rng, line, radii, 0.75, 1.0))
    clot, value = tubes_of(pieces), float(rng.uniform(35, 62))
    boxes = [box_of(line, radii) for line, radii in pieces]
    box = join(boxes)

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is not None:
            hu = canvas.hu[at]
            blend(hu, cover(clot, canvas.grid, at), np.minimum(hu, value))

    site = "central" if central else "segmental"
    found = Finding("pulmonary_embolism", Presence.PRESENT, site, side)
    return Lesion(found, box, paint, lambda chest: replace(chest, enhanced=True), parts_mm=parts_of(boxes))


def _clot(
    rng: np.random.Generator, line: np.ndarray, radii: np.ndarray, least: float, most: float
) -> tuple[np.ndarray, np.ndarray]:
    """A plug inside of a vessel, off its middle, thinner at its ends."""
    share = rng.uniform(least, most)
    off = direction(rng) * (1 - share) * 0.8
    ends = np.clip(np.minimum(np.arange(len(line)), np.arange(len(line))[::-1]) / 2 + 0.45, 0, 1)
    lumps = 1 + 0.12 * np.sin(np.arange(len(line)) * 1.1 + rng.uniform(0, 6))
    return line + off * radii[:, None], np.clip(radii * share * lumps * ends, 0.4, radii)


def coronary_calcification(room: Room, rng: np.random.Generator) -> Lesion:
    """Beads and rails along the coronary arteries: more, and on more of them, with age."""
    age = room.chest.patient.age_years
    names = [n for n in room.chest.coronaries if n != "left main"]
    first = "left anterior descending"
    number = int(np.clip(rng.poisson(2.0 + 0.07 * max(age - 50, 0)), 2, 12))
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    for n in range(number):
        # the anterior descending artery is diseased first, and near its origin
        name = first if n == 0 or rng.random() < 0.45 else names[int(rng.integers(len(names)))]
        line = resample_tube(room.chest.coronaries[name], np.ones(len(room.chest.coronaries[name])), 1.0)[0]
        long = int(np.clip(rng.gamma(2.0, 2.2), 1, 14))
        start = int(rng.beta(1.3, 2.4) * max(1, len(line) - long - 1))
        piece = line[start : start + long + 1] + 0.6 * direction(rng)
        radii = rng.uniform(0.6, 1.5) * rng.uniform(0.6, 1.15, len(piece))
        if n == 0:
            radii = np.maximum(radii, 1.1)
        pieces.append((piece, radii))
    tubes, value = tubes_of(pieces), float(rng.uniform(550, 1150))

    def paint(canvas: Any) -> None:
        for piece, radii in pieces:
            at = window_of(canvas.grid, box_of(piece, radii + 0.6))
            if at is not None:
                hu = canvas.hu[at]
                blend(hu, cover(tubes, canvas.grid, at), np.maximum(hu, value))

    boxes = [box_of(piece, radii + 0.6) for piece, radii in pieces]
    return Lesion(Finding("coronary_calcification"), join(boxes), paint, parts_mm=parts_of(boxes))


def arterial_wall_calcification(room: Room, rng: np.random.Generator) -> Lesion:
    """Plaques in the wall of arch and descending aorta."""
    age = room.chest.patient.age_years
    points, radii = room.chest.aorta_line
    low, _ = room.chest.z_range_mm
    line, wide = resample_tube(points, radii, 2.0)
    # past the ascending aorta, and not below the picture
    height = line[:, 2]
    usable = np.arange(int(height.argmax()) - 8, int(np.flatnonzero(height > low)[-1]))
    number = int(np.clip(rng.poisson(3 + 0.15 * max(age - 50, 0)), 3, 16))
    plaques = []
    for _ in range(number):
        middle = int(usable[int(rng.beta(0.8, 1.2) * (len(usable) - 1))])
        tangent = line[min(middle + 1, len(line) - 1)] - line[middle - 1]
        tangent /= np.linalg.norm(tangent)
        out = direction(rng)
        out -= (out @ tangent) * tangent
        out /= np.linalg.norm(out)
        across = np.cross(tangent, out)
        radius = float(wide[middle])
        turn, rise = rng.uniform(0.15, 0.75), rng.uniform(2, 9)
        arcs = []
        for along in np.arange(-rise, rise + 0.1, 1.4):
            spread = turn * np.sqrt(max(0.05, 1 - (along / (rise + 0.5)) ** 2))
            angles = np.linspace(-spread, spread, 2 + int(spread * radius / 1.5))
            arc = (
                line[middle]
                + along * tangent
                + (radius - 0.6) * (np.cos(angles)[:, None] * out + np.sin(angles)[:, None] * across)
            )
            arcs.append((arc, rng.uniform(0.7, 1.3)))
        plaques.append(
            (tubes_of(arcs), join([box_of(a, 1.6) for a, _ in arcs]), float(rng.uniform(350, 950)))
        )

    def paint(canvas: Any) -> None:
        for tubes, box, value in plaques:
            at = window_of(canvas.grid, box)
            if at is not None:
                hu = canvas.hu[at]
                blend(hu, cover(tubes, canvas.grid, at), np.maximum(hu, value))

    boxes = [box for _, box, _ in plaques]
    return Lesion(Finding("arterial_wall_calcification"), join(boxes), paint, parts_mm=parts_of(boxes))


def resample_tube(points: np.ndarray, radii: np.ndarray, step_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A line (N, 3) and its radii with points `step_mm` apart."""
    s = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    t = np.linspace(0, s[-1], max(3, int(s[-1] / step_mm) + 1))
    return np.stack([np.interp(t, s, p) for p in points.T], axis=1), np.interp(t, s, radii)
