"""Room in a chest -> what doctors put there: pacemaker, port, wires, valve, stent, tubes, screws.

Metal is drawn at 3000 HU, what 12 bits hold (metal is denser, scanners do not say by how much). Knows no
disease.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mla_med.phantom.chest.blobs import Lines, join, tubes_of, window_of
from mla_med.phantom.chest.frame import ANGLES, HEIGHTS
from mla_med.phantom.chest.heart import CHAMBERS, HEART_ANCHOR
from mla_med.phantom.chest.lesions_heart import resample_tube
from mla_med.phantom.chest.room import Room
from mla_med.phantom.chest.tree import Tubes, cover
from mla_med.phantom.lattice import curve
from mla_med.phantom.lesion import Lesion
from mla_med.phantom.shapes import blend, point, soft
from mla_med.types import Box, Finding, Side

METAL_HU = 3000.0
Made = tuple[list[tuple[Tubes, float]], list[Box], list[Callable[[Any], None]]]
"""Tubes and what they are made of in HU, boxes of what is no tube, and what draws that."""

KINDS = ("pacemaker", "port", "wires", "valve", "stent", "gastric tube", "tracheal tube", "screws")


def medical_material(room: Room, rng: np.random.Generator) -> Lesion:
    history, age = room.chest.patient.history, room.chest.patient.age_years
    odds = np.array([2.0, 1.0, 2.0, 0.7, 1.2, 0.8, 0.5, 0.6])
    if age < 50:
        odds *= [0.3, 1.2, 0.5, 0.3, 0.3, 1, 1, 1]
    if "heart_failure" in history:
        odds[0] *= 4
    if "cancer" in history:
        odds[1] *= 8
    kind = KINDS[int(rng.choice(len(KINDS), p=odds / odds.sum()))]
    parts, boxes, extra = _MAKERS[kind](room, rng)
    for tubes, _ in parts:
        low, high = tubes.bounds
        boxes.append((point(low.min(0)), point(high.max(0))))

    def paint(canvas: Any) -> None:
        grid = canvas.grid
        for body in extra:
            body(canvas)
        for tubes, value in parts:
            low, high = tubes.bounds
            at = window_of(grid, (point(low.min(0)), point(high.max(0))))
            if at is not None:
                blend(canvas.hu[at], cover(tubes, grid, at), value)

    return Lesion(Finding("medical_material"), join(boxes), paint)


def _pocket(room: Room, angle: float, z: float, sign: float, lift_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A point between muscle and skin, and the frame of the wall there: outwards, along, up."""
    frame = room.chest.frame
    muscle = frame.maps["muscle"].reshape(len(ANGLES), len(HEIGHTS))
    depth = float(muscle[int(angle * 2), int(z - HEIGHTS[0])]) + lift_mm
    at = frame.on_wall(angle, z, depth, sign)[0]
    out = frame.on_wall(angle, z, depth + 10, sign)[0] - at
    out /= np.linalg.norm(out)
    along = np.cross((0, 0, 1.0), out)
    along /= np.linalg.norm(along)
    return at, np.stack([out, along, np.cross(out, along)])


def _slab(centre: np.ndarray, axes: np.ndarray, half: np.ndarray, value: float) -> tuple[Any, Box]:
    """A rounded flat body."""
    reach = np.abs(axes).T @ half
    box = point(centre - reach), point(centre + reach)

    def draw(canvas: Any) -> None:
        at = window_of(canvas.grid, box)
        if at is None:
            return
        d = [v - np.float32(c) for v, c in zip(canvas.grid.axes(at), centre, strict=True)]
        u, v, w = (np.abs(sum(a * np.float32(b) for a, b in zip(d, row, strict=True))) for row in axes)
        flat = (np.sqrt(np.sqrt((v / half[1]) ** 4 + (w / half[2]) ** 4)) - 1) * np.float32(half[1])
        f = np.maximum(u - np.float32(half[0]), flat)
        blend(canvas.hu[at], soft(f, canvas.grid.edge_mm), value)

    return draw, box


def _heart_point(room: Room, name: str, along: float = 0.0) -> np.ndarray:
    """The middle of a chamber, or a point `along` of its long axis."""
    centre, radii, axis = CHAMBERS[name]
    ref = np.asarray(centre, float)
    if axis is not None:
        ref = ref + along * radii[0] * np.asarray(axis) / np.linalg.norm(axis)
    anchor = np.asarray(HEART_ANCHOR)
    return room.chest.frame.to_patient(anchor + (ref - anchor) * room.chest.heart_scale)[0]


def _line(points: list[Any], radius: float, step_mm: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    p = np.vstack([np.atleast_2d(q) for q in points])
    return curve(p, np.full(len(p), radius), step_mm)


def _pacemaker(room: Room, rng: np.random.Generator) -> Made:
    v = room.chest.vessels
    at, axes = _pocket(room, float(rng.uniform(36, 44)), float(rng.uniform(58, 68)), -1.0, 2.0)
    body, box = _slab(at, axes, np.array([4.2, 22.0, 20.0]), METAL_HU)
    header, header_box = _slab(at + 20 * axes[2], axes, np.array([4.0, 16.0, 6.0]), 900.0)
    vein = v["left subclavian vein"][0][::-1]
    vein = vein[vein[:, 0] > at[0] - 5]
    way = [at + 22 * axes[2], *vein[::2], *v["left brachiocephalic vein"][0][2::3]]
    way += [*v["superior vena cava"][0][3::2]]
    atrium, tip = _heart_point(room, "right atrium"), _heart_point(room, "right ventricle", 0.78)
    lines = [
        _line([*way, atrium + np.array([0, 3, -6]), (atrium + tip) / 2 + np.array([2, 2, -10]), tip], 0.95)
    ]
    if rng.random() < 0.7:
        lines.append(
            _line(
                [
                    *(p + np.array([0, 1.8, 0.5]) for p in way),
                    atrium + np.array([0, 2, 8]),
                    atrium + np.array([-4, 20, 16]),
                ],
                0.95,
            )
        )
    coils = [(line[-3:], radii[-3:] * 1.5) for line, radii in lines]
    return [(tubes_of(lines), 1800.0), (tubes_of(coils), METAL_HU)], [box, header_box], [body, header]


def _port(room: Room, rng: np.random.Generator) -> Made:
    v = room.chest.vessels
    at, axes = _pocket(room, float(rng.uniform(34, 42)), float(rng.uniform(62, 72)), 1.0, 5.0)
    turns = np.linspace(0, 2 * np.pi, 25)
    ring = at + 9.5 * (np.cos(turns)[:, None] * axes[1] + np.sin(turns)[:, None] * axes[2])
    base = ring - 4 * axes[0]
    jugular = v["right jugular vein"][0]
    vein = [*jugular[1:4][::-1], *v["right brachiocephalic vein"][0][1::2], *v["superior vena cava"][0][2::2]]
    neck = jugular[min(3, len(jugular) - 1)] + np.array([6, 8, 2])
    line = _line([at + 9 * axes[2], (at + neck) / 2 + np.array([0, 14, 8]), neck, *vein], 1.2)
    septum, box = _slab(at, axes, np.array([4.0, 9.0, 9.0]), 260.0)
    return [(tubes_of([line]), 480.0), (tubes_of([(ring, 1.6), (base, 2.0)]), METAL_HU)], [box], [septum]


def _wires(room: Room, rng: np.random.Generator) -> Made:
    """Loops around the sternum, each with its twist in front."""
    line = room.chest.sternum
    parts: Lines = []
    for t in np.linspace(0.12, 0.88, int(rng.integers(5, 8))):
        middle = line[int(t * (len(line) - 1))] + rng.normal(0, 0.8, 3)
        half = float(np.interp(t, [0, 0.25, 0.4, 1], [20, 15, 14, 17])) * room.chest.frame.size
        turns = np.linspace(0, 2 * np.pi, 21)
        lean = rng.normal(0, 0.18)
        loop = middle + np.stack(
            [half * np.cos(turns), 8.0 * np.sin(turns), lean * half * np.cos(turns)], axis=1
        )
        parts.append((loop, 0.5))
        knot = middle + np.array([rng.normal(0, 5), 8.5, 0])
        parts.append(
            (np.stack([knot, knot + np.array([3.0 * rng.choice([-1, 1]), 1.2, rng.normal(0, 3)])]), 1.0)
        )
    return [(tubes_of(parts), METAL_HU)], [], []


def _valve(room: Room, rng: np.random.Generator) -> Made:
    """The frame of an aortic valve prosthesis: two rings and struts in zigzag."""
    line, radii = room.chest.aorta_line
    way = (line[1] - line[0]) / np.linalg.norm(line[1] - line[0])
    side = np.cross(way, (0, 1.0, 0))
    side /= np.linalg.norm(side)
    other = np.cross(way, side)
    wide = float(min(0.8 * radii[0], 13.0))
    turns = np.linspace(0, 2 * np.pi, 37)
    circle = wide * (np.cos(turns)[:, None] * side + np.sin(turns)[:, None] * other)
    parts: Lines = [(line[0] + up * way + circle, 0.7) for up in (-7.0, 7.0)]
    zigzag = line[0] + circle + 7.0 * np.where(np.arange(37) % 4 < 2, 1.0, -1.0)[:, None] * way
    parts.append((zigzag, 0.55))
    return [(tubes_of(parts), METAL_HU)], [], []


def _stent(room: Room, rng: np.random.Generator) -> Made:
    name = ("left anterior descending", "right", "circumflex")[int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
    points = room.chest.coronaries[name]
    line, _ = resample_tube(points, np.ones(len(points)), 1.0)
    long = int(rng.integers(14, 28))
    start = int(rng.integers(2, max(3, len(line) // 2 - 10)))
    piece = line[start : start + long]
    return [(tubes_of([(piece, 1.8)]), 1500.0), (tubes_of([(piece, 1.0)]), 260.0)], [], []


def _gastric_tube(room: Room, rng: np.random.Generator) -> Made:
    line, _ = room.chest.oesophagus
    stomach = line[-1] + np.array([[-14.0, 6.0, -14.0], [-24.0, 16.0, -34.0]])
    tube = _line([*line, *stomach], 2.3)
    lead = _line([*(line + np.array([0.0, 1.6, 0.0])), *(stomach + np.array([0.0, 1.6, 0.0]))], 0.45)
    return (
        [(tubes_of([tube]), 180.0), (tubes_of([(tube[0], 1.4)]), -900.0), (tubes_of([lead]), 1400.0)],
        [],
        [],
    )


def _tracheal_tube(room: Room, rng: np.random.Generator) -> Made:
    trachea = next(b for b in room.chest.airways if b.side is Side.BILATERAL)
    line, _ = resample_tube(trachea.points, trachea.radii, 4.0)
    line = line[: int(np.flatnonzero(line[:, 2] > line[-1, 2] + rng.uniform(22, 48))[-1]) + 1]
    line = line + np.array([0.0, -1.5, 0.0])
    lead = (line + np.array([0.0, 4.4, 0.0]), 0.5)
    return (
        [(tubes_of([(line, 5.2)]), 160.0), (tubes_of([(line, 3.9)]), -990.0), (tubes_of([lead]), 1300.0)],
        [],
        [],
    )


def _screws(room: Room, rng: np.random.Generator) -> Made:
    """Pedicle screws of some neighbouring vertebrae, and a rod on each side."""
    names = list(room.chest.vertebrae)
    first = int(rng.integers(5, 10))
    size = room.chest.frame.size
    parts: Lines = []
    heads: dict[int, list[np.ndarray]] = {1: [], -1: []}
    for name in names[first : first + int(rng.integers(2, 5))]:
        centre = room.chest.vertebrae[name]
        for sign in (1, -1):
            head = centre + np.array([sign * 17.0, -31.0, 5.0]) * size
            tip = centre + np.array([sign * 5.0, 9.0, 1.0]) * size
            parts.append((np.stack([head, tip]), np.array([2.9, 2.2])))
            heads[sign].append(head)
    rods: Lines = [(np.stack(h), 2.8) for h in heads.values()]
    knobs: Lines = [(np.stack([p, p - np.array([0, 6, 0])]), 5.5) for h in heads.values() for p in h]
    return [(tubes_of([*parts, *rods, *knobs]), METAL_HU)], [], []


_MAKERS = {
    **{"pacemaker": _pacemaker, "port": _port, "wires": _wires, "valve": _valve, "stent": _stent},
    **{"gastric tube": _gastric_tube, "tracheal tube": _tracheal_tube, "screws": _screws},
}
