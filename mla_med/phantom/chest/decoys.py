"""Chest -> decoys: normal variants, small wear and artefacts that look like a finding and are none.

After Hansell et al., Radiology 2008;246:697, Bankier et al., Radiology 2017;285:584 (what is no nodule) and
Barrett & Keat, Radiographics 2004;24:1679 (artefacts). An intrapulmonary lymph node or a granuloma is a
nodule, so it is not here. Knows no lesions: a decoy may lie beside one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mla_med.phantom.chest.anatomy import Chest
from mla_med.phantom.chest.blobs import (
    Blob,
    box_of,
    direction,
    fit,
    join,
    noise,
    tubes_of,
    wander,
    window_of,
)
from mla_med.phantom.chest.lesions_body import STATIONS
from mla_med.phantom.chest.lesions_heart import resample_tube
from mla_med.phantom.chest.room import Room
from mla_med.phantom.chest.tree import Branch, cover
from mla_med.phantom.lattice import curve
from mla_med.phantom.lesion import Decoy
from mla_med.phantom.shapes import blend, point, soft
from mla_med.types import Box, Side

SIDES = (Side.RIGHT, Side.LEFT)


def choose_decoys(chest: Chest, rng: np.random.Generator) -> tuple[Decoy, ...]:
    """None to four of a patient, of different kinds."""
    number = int(rng.choice(5, p=[0.1, 0.25, 0.3, 0.22, 0.13]))
    if not number:
        return ()
    room = Room.of(chest, rng)
    age = chest.patient.age_years
    odds = np.array([weight * (1 + late * (age - 60) / 30) for weight, late, _ in _KINDS.values()]).clip(0.05)
    kinds = rng.choice(len(_KINDS), number, replace=False, p=odds / odds.sum())
    makers = list(_KINDS.values())
    return tuple(makers[int(n)][2](room, rng) for n in kinds)


def _side(rng: np.random.Generator) -> Side:
    return SIDES[int(rng.random() < 0.5)]


def _reach_box(blob: Blob) -> Box:
    reach = np.abs(blob.axes).T @ blob.radii_mm * (1 + np.abs(blob.gains).sum())
    return point(blob.centre_mm - reach), point(blob.centre_mm + reach)


# --- in the lung


def _loop(room: Room, rng: np.random.Generator) -> Decoy:
    """A thick vessel that turns: seen end on, it is round."""
    radius = float(rng.uniform(1.8, 4.2))
    at = room.must_spot(rng, 8.0, 5.0, (7.0, 1e3))
    side = room.lobe(at)[0]
    way = direction(rng) * (0.5, 0.5, 1.6)
    way /= np.linalg.norm(way)
    bend = direction(rng) * rng.uniform(3, 7)
    knots = at + np.array([-16, -8, 0, 8, 16])[:, None] * way + np.array([1, 0.3, 0, 0.3, 1])[:, None] * bend
    radii = radius * np.array([0.85, 0.97, 1.0, 0.8, 0.5])
    feed = _nearest(room, at, radius)
    if feed is not None:
        line, wide = curve(np.vstack([[feed], knots]), np.array([0.8 * radius, *radii]), 3.0)
    else:
        line, wide = curve(knots, radii * (0.4, 1, 1, 1, 0.8), 3.0)
    return _vessel("vessel end on", [(line, wide)], side, box_of(knots[1:4], radius))


def _nearest(room: Room, at: np.ndarray, radius: float) -> np.ndarray | None:
    """A point of an artery from which a vessel of that radius could come."""
    points = [b.points[-1] for b in room.chest.arteries if b.generation >= 2 and b.radii[-1] > 0.7 * radius]
    if not points:
        return None
    far = np.linalg.norm(np.array(points) - at, axis=1)
    return points[int(far.argmin())] if far.min() < 45 else None


def _crossing(room: Room, rng: np.random.Generator) -> Decoy:
    """Two vessels that touch."""
    at = room.must_spot(rng, 8.0, 4.0, (8.0, 1e3))
    lines = []
    first = direction(rng)
    for way in (first, np.cross(first, direction(rng))):
        way = way / np.linalg.norm(way)
        shift = direction(rng) * 0.8
        line = wander(rng, at - 15 * way + shift, at + 15 * way + shift, 0.05, 8)
        lines.append((line, np.linspace(rng.uniform(1.6, 3.0), rng.uniform(1.0, 1.6), len(line))))
    return _vessel("vessels crossing", lines, room.lobe(at)[0], box_of(at[None], 6.0))


def _vessel(kind: str, lines: list[tuple[np.ndarray, np.ndarray]], side: Side, focus: Box) -> Decoy:
    """`focus`: what looks like something; the vessel goes on beyond it."""
    tubes = tubes_of(lines)
    whole = join([box_of(line, radii) for line, radii in lines])

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, whole)
        if at is not None:
            hu = canvas.hu[at]
            inside = cover(tubes, canvas.grid, at) * canvas.lung_fraction(at, side)
            blend(hu, inside, np.maximum(hu, canvas.chest.blood_hu["pulmonary"]))

    return Decoy(kind, focus, paint)


def _motion(room: Room, rng: np.random.Generator) -> Decoy:
    """Vessels beside the heart or the diaphragm, drawn twice."""
    heart = room.chest.landmarks["heart_centre"]
    near = [
        b for b in (*room.chest.arteries, *room.chest.veins)
        if 2 <= b.generation <= 4 and b.site and np.linalg.norm(b.points[1] - heart) < 95
    ]  # fmt: skip
    first: Branch = near[int(rng.integers(len(near)))]
    chosen = sorted(near, key=lambda b: float(np.linalg.norm(b.points[1] - first.points[1])))[:4]
    shift = direction(rng) * (1, 1, 0.3) * rng.uniform(2.5, 5.5)
    lines = [(b.points + shift, np.maximum(b.radii, 0.8)) for b in chosen]
    tubes, strength = tubes_of(lines), float(rng.uniform(0.35, 0.65))
    whole = join([box_of(line, radii) for line, radii in lines])

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, whole)
        if at is not None:
            hu = canvas.hu[at]
            inside = strength * cover(tubes, canvas.grid, at) * canvas.lung_fraction(at)
            blend(hu, inside, np.maximum(hu, 20.0))

    return Decoy("motion", box_of(lines[0][0], lines[0][1]), paint)


def _fissure(room: Room, rng: np.random.Generator) -> Decoy:
    """Fluid or fat in a fissure: a lens."""
    near = np.flatnonzero((room.fissure_mm < 1.2) & (room.depth_mm > 9))
    at = room.points_mm[int(rng.choice(near))]
    step = 1.5
    # across the fissure the distance changes most
    points = np.concatenate([at + step * np.eye(3), at - step * np.eye(3)])
    lobes = room.chest.lobe_of(points)
    sign = np.where(lobes == room.chest.lobe_of(at[None])[0], 1.0, -1.0)
    signed = sign * room.chest.fissure_distance_mm(points)
    up = signed[:3] - signed[3:]
    up = up / np.linalg.norm(up) if np.linalg.norm(up) > 0 else np.array([0, 0.6, 0.8])
    at = at - up * float(room.chest.fissure_distance_mm(at[None])[0])
    along = np.cross(up, direction(rng))
    along /= np.linalg.norm(along)
    blob = Blob.make(rng, at, 6.0, 0.08, 0.0, 1.6)
    half = float(rng.uniform(1.0, 3.2))
    lens = replace(
        blob, radii_mm=np.array([half, rng.uniform(5, 12), rng.uniform(4, 9)]),
        axes=np.stack([up, along, np.cross(up, along)]),
    )  # fmt: skip
    return _bump("fissural thickening", lens, float(rng.uniform(-60, 40)))


def _bump(kind: str, blob: Blob, value: float, shell: float | None = None, blur: float = 0.6) -> Decoy:
    box = _reach_box(blob)
    core = replace(blob, radii_mm=0.55 * blob.radii_mm)

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is None:
            return
        hu, axes = canvas.hu[at], canvas.grid.axes(at)
        inside = soft(blob(*axes), float(np.hypot(canvas.grid.edge_mm, blur)))
        tissue: Any = value
        if shell is not None:
            tissue = shell + soft(core(*axes), canvas.grid.edge_mm) * (value - shell)
        blend(hu, inside, np.maximum(hu, tissue))

    return Decoy(kind, box, paint)


def _dependent(room: Room, rng: np.random.Generator) -> Decoy:
    """The back of the lung, compressed by its own weight."""
    odds = np.clip((room.behind - 0.7) * 5, 0, 1) * (room.height < 0.6)
    at = room.must_spot(rng, 5.0, 4.0, (1.0, 5.0), odds=odds)
    side = room.lobe(at)[0]
    reach = np.array([rng.uniform(16, 30), 16.0, rng.uniform(18, 40)])
    box = point(at - reach), point(at + reach)
    shift, rise, thick = rng.uniform(0, 200, 3), float(rng.uniform(170, 380)), float(rng.uniform(5, 11))

    def paint(canvas: Any) -> None:
        where = window_of(canvas.grid, box)
        if where is None:
            return
        x, y, z = canvas.grid.axes(where)
        deep = -canvas.chest.lungs[side].on(canvas.grid, where)
        near = np.sqrt(sum(((v - a) / r) ** 2 for v, a, r in zip((x, y, z), at, reach, strict=True)))
        rough = 1 + 0.3 * noise(canvas.grid, where, shift, 5.0)
        share = np.clip((thick * rough - deep) / thick, 0, 1) * np.clip(2.2 * (1 - near), 0, 1)
        hu = canvas.hu[where]
        hu += np.float32(rise) * share * canvas.lung_fraction(where, side) * (hu < -500)

    return Decoy("dependent density", box, paint)


def _azygos(room: Room, rng: np.random.Generator) -> Decoy:
    """The azygos vein arches through the right upper lobe and takes a fold of pleura along."""
    frame = room.chest.frame
    ref = np.array([(8, -50, 48), (24, -42, 62), (40, -26, 70), (42, -10, 70), (34, -2, 58)], float)
    ref[1:4, 0] += rng.normal(0, 3)
    ref[1:4, 2] += rng.uniform(-4, 12)
    line, radii = curve(frame.to_patient(ref), np.array([4.2, 4.6, 5.0, 4.8, 4.6]), 4.0)
    tube, apex = tubes_of([(line, radii)]), float(room.chest.landmarks["apex_right"][2])
    low, high = line.min(0) - 5, np.array([line[:, 0].max() + 5, line[:, 1].max() + 5, apex])
    box = point(low), point(high)
    order = np.argsort(line[:, 1])

    def paint(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is None:
            return
        hu, (x, y, z) = canvas.hu[at], canvas.grid.axes(at)
        lung = canvas.lung_fraction(at, Side.RIGHT)
        middle = np.interp(np.ravel(y), line[order, 1], line[order, 0]).astype(np.float32).reshape(y.shape)
        foot = np.interp(np.ravel(y), line[order, 1], line[order, 2]).astype(np.float32).reshape(y.shape)
        up = np.clip((z - foot) / (apex - foot), 0, 1)
        sheet = np.abs(x - middle - 9 * np.sin(2.6 * up) * (0.4 + 0.6 * up)) - 0.6
        edge = canvas.grid.edge_mm
        share = (
            soft(sheet, edge) * min(1.0, 1.2 / edge) * (z > foot) * (y > line[0, 1]) * (y < line[:, 1].max())
        )
        blend(hu, share * lung, np.maximum(hu, -250.0))
        blend(hu, cover(tube, canvas.grid, at) * lung, canvas.chest.blood_hu["veins"])

    return Decoy("azygos fissure", box, paint)


# --- from outside of the lung


def _from_bone(
    room: Room, kind: str, side: Side, end: np.ndarray, radius: float, rng: np.random.Generator
) -> Decoy:
    """A bony knob at the end of a rib that dents the lung."""
    inward = room.chest.landmarks[f"hilum_{side.value}"] - end
    inward = inward / np.linalg.norm(inward)
    way = end + np.arange(0, 45.0)[:, None] * inward
    pleura = way[int(np.argmax(room.chest.lungs[side].at(way) < 0))]
    blob = Blob.make(rng, pleura + inward * radius * rng.uniform(-0.3, 0.5), radius, 0.12, 0.2, 2.2)
    hard, core = float(rng.uniform(300, 850)), float(rng.uniform(60, 220))
    return _bump(kind, blob, core if rng.random() < 0.6 else hard, hard, 0.8)


def _first_rib(room: Room, rng: np.random.Generator) -> Decoy:
    side = _side(rng)
    end = room.chest.ribs[side, 1][-1]
    return _from_bone(room, "first rib junction", side, end, float(rng.uniform(4, 8)), rng)


def _cartilage(room: Room, rng: np.random.Generator) -> Decoy:
    side, rib = _side(rng), int(rng.integers(2, 8))
    end = room.chest.ribs[side, rib][-1]
    return _from_bone(room, "costochondral knob", side, end, float(rng.uniform(3, 6.5)), rng)


def _osteophyte(room: Room, rng: np.random.Generator) -> Decoy:
    """Bony bridge at the side of a disc, most on the right, where no aorta beats against it."""
    names = list(room.chest.vertebrae)
    n = int(rng.integers(5, 12))
    disc = (room.chest.vertebrae[names[n]] + room.chest.vertebrae[names[n + 1]]) / 2
    sign = 1.0 if rng.random() < 0.85 else -1.0
    wide = (13.5 + 0.62 * n) * room.chest.frame.size
    at = disc + np.array([sign * (wide + 0.5), rng.uniform(0, 7), 0.0])
    blob = Blob.make(rng, at, 5.0, 0.12, 0.0, 2.0)
    knob = replace(
        blob, radii_mm=np.array([rng.uniform(3, 6.5), rng.uniform(4, 7), rng.uniform(5, 9)]), axes=np.eye(3)
    )
    hard = float(rng.uniform(350, 900))
    return _bump("osteophyte", knob, float(rng.uniform(100, 300)), hard, 0.8)


def _on_pleura(room: Room, rng: np.random.Generator, odds: np.ndarray) -> tuple[np.ndarray, np.ndarray, Side]:
    """A point of the pleura, and the way into the lung."""
    at = room.must_spot(rng, 4.0, 4.0, (0.5, 4.0), odds=odds)
    side = room.lobe(at)[0]
    lung = room.chest.lungs[side]
    step = 3.0 * np.eye(3)
    inward = lung.at(at - step) - lung.at(at + step)
    inward = inward / max(float(np.linalg.norm(inward)), 1e-6)
    return at + inward * float(lung.at(at[None])[0]), inward, side


def _slip(room: Room, rng: np.random.Generator) -> Decoy:
    """A muscle slip of the diaphragm that bulges into the base."""
    at, inward, _ = _on_pleura(room, rng, 1.0 * (room.chest.diaphragm.at(room.points_mm) < 5))
    radius = float(rng.uniform(3.5, 9))
    blob = Blob.make(rng, at + inward * radius * rng.uniform(-0.1, 0.5), radius, 0.08, 0.0, 1.6)
    along = np.cross(inward, direction(rng))
    along /= np.linalg.norm(along)
    slip = replace(
        blob, radii_mm=radius * np.array([1.0, rng.uniform(1.0, 1.9), rng.uniform(0.8, 1.1)]),
        axes=np.stack([inward, along, np.cross(inward, along)]),
    )  # fmt: skip
    return _bump("diaphragm slip", slip, float(rng.normal(48, 8)))


def _pleural_fat(room: Room, rng: np.random.Generator) -> Decoy:
    at, inward, _ = _on_pleura(room, rng, 1.0 * (room.chest.depth.at(room.points_mm) > -5))
    along = np.cross(inward, (rng.normal(0, 0.3), rng.normal(0, 0.3), 1.0))
    along /= np.linalg.norm(along)
    blob = Blob.make(rng, at, 6.0, 0.06, 0.0, 1.6)
    lens = replace(
        blob, radii_mm=np.array([rng.uniform(2.5, 6), rng.uniform(9, 20), rng.uniform(8, 20)]),
        axes=np.stack([inward, along, np.cross(inward, along)]),
    )  # fmt: skip
    box = _reach_box(lens)

    def paint(canvas: Any) -> None:
        where = window_of(canvas.grid, box)
        if where is None:
            return
        hu = canvas.hu[where]
        inside = soft(lens(*canvas.grid.axes(where)), float(np.hypot(canvas.grid.edge_mm, 0.6)))
        blend(hu, inside * (hu < -150), -98.0)

    return Decoy("pleural fat", box, paint)


def _nipple(room: Room, rng: np.random.Generator) -> Decoy:
    side = _side(rng)
    at = np.asarray(room.chest.landmarks[f"nipple_{side.value}"], float)
    blob = Blob.make(rng, at + np.array([0, rng.uniform(0, 3), 0]), rng.uniform(3.5, 6), 0.06, 0.12, 2.0)
    return _bump("nipple", blob, float(rng.normal(38, 10)))


# --- in the mediastinum


def _small_node(room: Room, rng: np.random.Generator) -> Decoy:
    """A lymph node of normal size, with fat in its hilum."""
    if rng.random() < 0.5:
        names = list(STATIONS)
        at = room.chest.frame.to_patient(np.array(STATIONS[names[int(rng.integers(len(names)))]]))[0]
    else:
        at = np.asarray(room.chest.landmarks[f"axilla_{_side(rng).value}"], float)
    at = at + rng.normal(0, 4, 3)
    short = float(rng.uniform(4, 8.5))
    blob = Blob.make(rng, at, short / 2, 0.04, 0.0, 2.0)
    blob = replace(blob, radii_mm=short / 2 * np.array([1.0, rng.uniform(1.1, 1.5), rng.uniform(1.3, 2.0)]))
    blob, extent = fit(blob, short, short=True)
    hilum = replace(
        blob, centre_mm=blob.centre_mm + 0.3 * short * direction(rng), radii_mm=0.45 * blob.radii_mm
    )

    def paint(canvas: Any) -> None:
        where = window_of(canvas.grid, extent.box_mm)
        if where is None:
            return
        hu, axes = canvas.hu[where], canvas.grid.axes(where)
        inside = soft(blob(*axes), canvas.grid.edge_mm) * (hu > -300)
        blend(hu, inside, np.maximum(hu, 36.0 + 20 * canvas.chest.enhanced))
        blend(hu, inside * soft(hilum(*axes), canvas.grid.edge_mm), -55.0)

    return Decoy("small lymph node", extent.box_mm, paint)


def _mucus(room: Room, rng: np.random.Generator) -> Decoy:
    """Mucus on the back wall of the trachea or of a main bronchus."""
    stems = [b for b in room.chest.airways if not b.site]
    stem = stems[int(rng.integers(len(stems)))] if rng.random() < 0.4 else stems[0]
    line, radii = resample_tube(stem.points, stem.radii, 2.0)
    n = int(rng.integers(len(line) // 2, len(line)))
    radius = float(min(rng.uniform(2.2, 5), 0.65 * radii[n]))
    at = line[n] + np.array([rng.normal(0, 0.25), -0.75, 0]) * radii[n]
    blob = Blob.make(rng, at, radius, 0.12, 0.15, 2.4)
    box, value = _reach_box(blob), float(rng.normal(14, 10))

    def paint(canvas: Any) -> None:
        where = window_of(canvas.grid, box)
        if where is None:
            return
        hu = canvas.hu[where]
        inside = soft(blob(*canvas.grid.axes(where)), canvas.grid.edge_mm)
        # only what the lumen holds
        blend(hu, inside * cover(tubes_of([(line, radii)]), canvas.grid, where), value)

    return Decoy("mucus", box, paint)


def _tracheal_rings(room: Room, rng: np.random.Generator) -> Decoy:
    """Cartilage of trachea and bronchi turns to chalk with age."""
    stem = next(b for b in room.chest.airways if b.side is Side.BILATERAL)
    line, radii = resample_tube(stem.points, stem.radii, 4.6)
    start = int(rng.integers(0, max(1, len(line) - 12)))
    arcs = []
    for n in range(start, min(start + 10, len(line))):
        for _ in range(2):
            middle, spread = rng.uniform(-2.0, 2.0), rng.uniform(0.25, 0.8)
            turns = np.linspace(middle - spread, middle + spread, 7)
            arc = (radii[n] + 1.2) * np.stack([np.sin(turns), np.cos(turns), 0 * turns], axis=1)
            arcs.append((line[n] + arc, float(rng.uniform(0.5, 0.9))))
    tubes, value = tubes_of(arcs), float(rng.uniform(250, 550))
    box = join([box_of(arc, r) for arc, r in arcs])

    def paint(canvas: Any) -> None:
        where = window_of(canvas.grid, box)
        if where is not None:
            hu = canvas.hu[where]
            blend(hu, cover(tubes, canvas.grid, where), np.maximum(hu, value))

    return Decoy("tracheal rings", box, paint)


# --- artefacts


def _streaks(room: Room, rng: np.random.Generator) -> Decoy:
    """Dark and bright rays in one plane, from dense contrast in the cava, or from shoulder and spine."""
    chest = room.chest
    if chest.enhanced:
        cava = chest.vessels["superior vena cava"][0]
        source = cava[int(rng.integers(len(cava) // 2))]
    else:
        names = list(chest.vertebrae)
        source = chest.vertebrae[names[int(rng.integers(1, 6))]] + np.array([0, 6.0, 0])
    reach, thick = float(rng.uniform(32, 60)), float(rng.uniform(2.5, 6))
    start = rng.uniform(0, 2 * np.pi)
    angles = start + rng.normal(0, 0.5, int(rng.integers(5, 11)))
    gains = rng.choice([-1.0, 1.0], len(angles)) * rng.uniform(40, 150, len(angles))
    middle = source + 0.6 * reach * np.array([np.cos(start), np.sin(start), 0])
    half = np.array([0.55 * reach, 0.55 * reach, 0.5 * thick + 1])
    box = point(middle - half), point(middle + half)

    def paint(canvas: Any) -> None:
        where = window_of(canvas.grid, box)
        if where is None:
            return
        x, y, z = canvas.grid.axes(where)
        u, v = x - source[0], y - source[1]
        far = np.sqrt(u * u + v * v) + 1e-3
        ray = np.zeros(np.broadcast_shapes(u.shape, v.shape), np.float32)
        for angle, gain in zip(angles, gains, strict=True):
            off = np.abs(u * np.sin(angle) - v * np.cos(angle))
            ahead = (u * np.cos(angle) + v * np.sin(angle)) > 0
            ray = ray + np.float32(gain) * ahead * np.exp(-((off / (0.8 + 0.02 * far)) ** 2))
        inside = np.clip((half[0] - np.abs(x - middle[0])) / 6, 0, 1) * np.clip(
            (half[1] - np.abs(y - middle[1])) / 6, 0, 1
        )
        ray = ray * inside * np.clip((reach * 1.2 - far) / 25, 0, 1)
        hu = canvas.hu[where]
        hu += (ray * soft(np.abs(z - source[2]) - thick / 2, canvas.grid.spacing_mm[2])).astype(np.float32)

    return Decoy("streaks", box, paint)


_KINDS: dict[str, tuple[float, float, Callable[[Room, np.random.Generator], Decoy]]] = {
    "vessel end on": (2.0, 0.0, _loop),
    "vessels crossing": (1.6, 0.0, _crossing),
    "motion": (0.7, 0.0, _motion),
    "fissural thickening": (1.3, 0.0, _fissure),
    "dependent density": (1.0, 0.2, _dependent),
    "azygos fissure": (0.25, 0.0, _azygos),
    "first rib junction": (1.0, 0.5, _first_rib),
    "costochondral knob": (1.0, 0.5, _cartilage),
    "osteophyte": (1.1, 0.8, _osteophyte),
    "diaphragm slip": (1.2, 0.3, _slip),
    "pleural fat": (0.7, 0.0, _pleural_fat),
    "nipple": (0.5, 0.0, _nipple),
    "small lymph node": (1.0, 0.0, _small_node),
    "mucus": (0.6, 0.2, _mucus),
    "tracheal rings": (0.5, 0.9, _tracheal_rings),
    "streaks": (0.6, 0.0, _streaks),
}
"""How often, how much more often at 90 than at 60 years, and what makes it."""
