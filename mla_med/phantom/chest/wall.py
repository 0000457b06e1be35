"""Space -> skin, breasts, shoulders, muscles, ribs and the other bones of the chest wall. Knows no HU.

Ribs and muscles live in the coordinates of the wall (angle, height, depth; see frame.py): their
outlines are maps over angle and height, exact at any voxel size. Ribs after Wang et al., J Anat
2016;228:297 (slope, section), scapula and clavicle after Gray's Anatomy, 41st ed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mla_med.phantom.chest.frame import ANGLES, HEIGHTS, MUSCLES, RIB_LAYER_MM, SPINE_Z
from mla_med.phantom.chest.space import Space
from mla_med.phantom.lattice import Field, chain, curve, ellipsoid, smooth_max, smooth_min
from mla_med.types import Side

_FRONT_Z = (90, 60, 36, 12, -12, -36, -60, -86, -108, -126, -138, -146)
"""z of the front end of the bony part of ribs 1 to 12."""
_FRONT_ANGLE = (26, 27, 28, 30, 33, 38, 44, 51, 58, 66, 84, 126)
_STERNAL_Z = (86, 53, 33, 14, -5, -21, -34, -48, -62, -76)
"""z where the cartilages of ribs 1 to 10 end, at the sternum or at the cartilage above."""
_STERNAL_ANGLE = (14, 9, 9, 9, 9, 9, 10, 22, 32, 42)
HEAD_ANGLE = 171.0
RIB_DEPTH_MM = 5.4
RIB_HALF_MM = (6.4, 3.7)
"""Half height and half thickness of a rib."""
STERNUM_Z = (95.0, -58.0)


@dataclass(frozen=True, eq=False)
class Wall:
    """The chest wall of one patient."""

    space: Space

    @cached_property
    def surface(self) -> Field:
        """Signed distance to the skin."""
        space, habitus = self.space, self.space.frame.habitus
        depth, _ = space.wall
        out = depth - space.on_map("skin")
        axes = space.lattice.grid.axes()
        for side in (1.0, -1.0):
            points, radii = self.arm(side)
            box = space.lattice.box(
                points.min(0) - radii.max() - habitus.fat_mm - 30,
                points.max(0) + radii.max() + habitus.fat_mm + 30,
            )
            i, j, k = box
            d = chain(axes[0][i], axes[1][:, j], axes[2][..., k], points, radii + 3 + 0.8 * habitus.fat_mm)
            out[box] = smooth_min(out[box], np.minimum(d, 60), 46.0 if habitus.arms_up else 14.0)
        # the back lies on the table and is pressed flat
        skin = space.frame.maps["skin"].reshape(len(ANGLES), len(HEIGHTS))
        rows = (np.array([-80, -40, 0, 30]) - HEIGHTS[0]).astype(int)
        back = [
            space.frame.on_wall(158.0, HEIGHTS[r], skin[316, r], s)[0, 1] for r in rows for s in (1.0, -1.0)
        ]
        out = smooth_max(out, np.float32(np.median(back) + 3) - axes[1], 18.0)
        if habitus.breast_mm:
            for breast in self.breasts.values():
                i, j, k = (slice(f, f + n) for f, n in zip(breast.first, breast.values.shape, strict=True))
                out[i, j, k] = smooth_min(out[i, j, k], breast.values, 22.0)
        return Field(space.lattice, out.astype(np.float32), (0, 0, 0))

    def arm(self, side: float) -> tuple[np.ndarray, np.ndarray]:
        """The muscles of shoulder and upper arm as a tube, patient mm."""
        habitus = self.space.frame.habitus
        if habitus.arms_up:
            ref = [
                (34, -44, 122),
                (80, -44, 106),
                (124, -40, 101),
                (148, -34, 122),
                (158, -26, 165),
                (161, -22, 230),
            ]
            radii = [26, 32, 35, 38, 35, 32]
        else:
            ref = [
                (38, -42, 118),
                (80, -44, 106),
                (130, -42, 88),
                (160, -42, 62),
                (178, -40, 0),
                (186, -38, -230),
            ]
            radii = [24, 28, 38, 40, 37, 33]
        points = np.array(ref, float) * (side, 1, 1)
        return self.space.line(points, np.array(radii) * (0.55 + 0.45 * habitus.muscle), step_mm=16.0)

    def muscles_of_arm(self, side: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same as bellies around the bone with fat between them."""
        points, radii = self.arm(side)
        way = np.gradient(points, axis=0)
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        first = np.cross(way, (0, 1.0, 0))
        first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-6)
        second = np.cross(way, first)
        out = [(points, 0.8 * radii)]
        for number in range(6):
            turn = 2 * np.pi * number / 6 + 0.6
            off = np.cos(turn) * first + np.sin(turn) * second
            share = 0.42 + 0.05 * (number % 3)
            out.append((points + off * ((0.97 - share) * radii)[:, None], share * radii))
        return out

    @cached_property
    def breasts(self) -> dict[Side, Field]:
        """The whole breast of each side, empty in men."""
        return {s: self._breast(s, 1.0) for s in (Side.RIGHT, Side.LEFT)} if self._female else {}

    @cached_property
    def glands(self) -> dict[Side, Field]:
        """Where glandular tissue may lie."""
        return {s: self._breast(s, 0.72) for s in (Side.RIGHT, Side.LEFT)} if self._female else {}

    @property
    def _female(self) -> bool:
        return self.space.frame.habitus.breast_mm > 0

    def nipple(self, side: Side) -> np.ndarray:
        """At the tip of the breast, or over the fourth rib, on the skin; patient mm (3,)."""
        sign = 1.0 if side is Side.RIGHT else -1.0
        habitus = self.space.frame.habitus
        low = self.space.frame.on_wall(44.0, 2.0 - 0.36 * habitus.breast_mm, 10.0, sign)[0]
        high = self.space.frame.on_wall(44.0, 2.0 - 0.36 * habitus.breast_mm, 150.0, sign)[0]
        way = np.linspace(0, 1, 281)[:, None] * (high - low) + low
        outside = np.flatnonzero(self.surface.at(way) > -0.5)
        return way[int(outside[0]) if outside.size else -1]

    def _breast(self, side: Side, share: float) -> Field:
        space, habitus = self.space, self.space.frame.habitus
        sign = 1.0 if side is Side.RIGHT else -1.0
        foot = space.frame.on_wall(48.0, 0.0 - 0.3 * habitus.breast_mm, RIB_LAYER_MM + 14, sign)[0]
        way = space.frame.on_wall(46.0, -6.0 - 0.36 * habitus.breast_mm, 60, sign)[0] - foot
        way /= np.linalg.norm(way)
        across = np.cross(way, (0, 0, 1.0))
        across /= np.linalg.norm(across)
        tall = (habitus.breast_mm + 0.4 * habitus.fat_mm + 12) * share
        wide = (46 + 0.42 * habitus.breast_mm + 0.2 * habitus.fat_mm) * share
        radii = (tall, wide, wide * 0.95)
        box = space.lattice.box(foot - wide - 26, foot + wide + 26)
        i, j, k = box
        axes = space.lattice.grid.axes()
        d = ellipsoid(
            axes[0][i], axes[1][:, j], axes[2][..., k], foot, radii,
            np.stack([way, across, np.cross(way, across)]),
        )  # fmt: skip
        return Field(space.lattice, d.astype(np.float32), (i.start, j.start, k.start))

    def muscle_table(self, fine: bool) -> tuple[np.ndarray, int]:
        """How much muscle there is at (angle, height by 4 mm, depth by 1 mm), and the step of the angle in
        rows of the maps: 1 if `fine`, else 4."""
        return (self._fine_table, 1) if fine else (self._coarse_table, 4)

    @cached_property
    def _fine_table(self) -> np.ndarray:
        return self._table(1)

    @cached_property
    def _coarse_table(self) -> np.ndarray:
        return self._table(4)

    def _table(self, step: int) -> np.ndarray:
        shape = (len(ANGLES), len(HEIGHTS))
        maps = {k: v.reshape(shape)[::step, ::4] for k, v in self.space.frame.maps.items()}
        depth = np.arange(0, int(maps["muscle"].max()) + 4, dtype=np.float32)
        # between the ribs: muscle with fat in its layers, none at the pleura
        a, z = ANGLES[::step, None, None].astype(np.float32), HEIGHTS[None, ::4, None].astype(np.float32)
        out = np.zeros((*maps["muscle"].shape, len(depth)), np.float32)
        low = depth[:12]
        uneven = 0.78 + 0.2 * np.sin(a * 0.19 + 0.06 * z) * np.sin(z * 0.21 + low * 0.9)
        out[..., :12] = uneven * np.clip(np.minimum(low - 1.6, RIB_LAYER_MM - 0.9 - low) + 0.5, 0, 1)
        for name in MUSCLES:
            inner, outer = maps[name + "<"], maps[name + ">"]
            there = outer - inner > 0.5
            rows, columns = np.flatnonzero(there.any(axis=1)), np.flatnonzero(there.any(axis=0))
            if rows.size == 0:
                continue
            i, j = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            inner, outer = inner[i, j, None], outer[i, j, None]
            k = slice(int(max(inner.min() - 1, 0)), int(outer.max()) + 2)
            inside = np.clip(np.minimum(depth[k] - inner, outer - depth[k]) + np.float32(0.5), 0, 1)
            inside *= np.clip((outer - inner - 0.5) / 1.5, 0, 1)
            part = out[i, j, k]
            np.maximum(part, inside, out=part)
        return out

    @cached_property
    def rib_maps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Over angle and height: distance to the middle line of the nearest rib (patient mm, along the
        wall), its half height (0 where no rib is), and how far it is bone rather than cartilage."""
        distance = np.full((len(ANGLES), len(HEIGHTS)), 99.0, np.float32)
        half, bone = np.zeros_like(distance), np.zeros_like(distance)
        sz = self.space.frame.habitus.scale[2]
        size = self.space.frame.size
        for rib in range(1, 13):
            z = rib_height(rib, ANGLES)
            slope = np.gradient(z, ANGLES) * (180 / np.pi / 108)
            away = np.abs(HEIGHTS[None, :] - z[:, None]) * (sz / np.sqrt(1 + slope**2))[:, None]
            end = _STERNAL_ANGLE[rib - 1] if rib <= 10 else _FRONT_ANGLE[rib - 1]
            there = np.clip((HEAD_ANGLE - ANGLES) / 1.5, 0, 1) * np.clip((ANGLES - end) / 1.5, 0, 1)
            is_bone = np.clip((ANGLES - _FRONT_ANGLE[rib - 1]) / 1.5, 0, 1)
            high = RIB_HALF_MM[0] * size * there * (0.92 if rib > 10 else 1.0)
            high = high * (1 - 0.12 * np.clip((ANGLES - 140) / 30, 0, 1))
            closer = (away < distance) & (high[:, None] > 0)
            distance = np.where(closer, away, distance)
            half = np.where(closer, high[:, None], half)
            bone = np.where(closer, is_bone[:, None], bone)
        a, b, c = (np.ascontiguousarray(v, np.float32) for v in (distance, half, bone))
        return a, b, c

    @cached_property
    def ribs(self) -> dict[tuple[Side, int], np.ndarray]:
        """The middle line of the bony part of each rib from back to front, (N, 3) patient mm."""
        out = {}
        for rib in range(1, 13):
            angles = np.linspace(HEAD_ANGLE, _FRONT_ANGLE[rib - 1] + 1.0, 48)
            z = rib_height(rib, angles)
            for side, sign in ((Side.RIGHT, 1.0), (Side.LEFT, -1.0)):
                out[side, rib] = self.space.frame.on_wall(angles, z, RIB_DEPTH_MM, sign)
        return out

    @cached_property
    def sternum(self) -> np.ndarray:
        """The middle line of manubrium and body, downwards, (N, 3) patient mm."""
        z = np.linspace(STERNUM_Z[0] - 2, STERNUM_Z[1] + 4, 24)
        return self.space.frame.on_wall(0.0 * z, z, 7.0, 1.0)

    @cached_property
    def clavicles(self) -> dict[Side, tuple[np.ndarray, np.ndarray]]:
        ref = [(21, 24, 94), (44, 27, 101), (75, 12, 108), (104, -12, 112), (132, -24, 114)]
        up = 6.0 if self.space.frame.habitus.arms_up else 0.0
        out = {}
        for side, sign in ((Side.RIGHT, 1.0), (Side.LEFT, -1.0)):
            points = np.array(ref, float) * (sign, 1, 1) + [(0, 0, up * n / 4) for n in range(5)]
            out[side] = self.space.line(points, [8.5, 6.2, 5.8, 6.2, 6.5], step_mm=5.0)
        return out

    @cached_property
    def humeri(self) -> dict[Side, tuple[np.ndarray, np.ndarray]]:
        """Head and shaft as a tube."""
        out = {}
        for side, sign in ((Side.RIGHT, 1.0), (Side.LEFT, -1.0)):
            if self.space.frame.habitus.arms_up:
                ref = [(136, -36, 103), (141, -34, 112), (150, -31, 128), (160, -27, 165), (165, -22, 230)]
            else:
                ref = [(138, -40, 92), (145, -40, 86), (153, -41, 66), (172, -40, 0), (182, -38, -230)]
            points = np.array(ref, float) * (sign, 1, 1)
            out[side] = self.space.line(points, [22, 23.5, 15, 11, 10.5], step_mm=6.0)
        return out

    @cached_property
    def scapula_maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Over angle and height: depth of the middle of the blade, half its thickness (negative: none)."""
        a, z = ANGLES[:, None], HEIGHTS[None, :]
        # a triangle: medial border near 148 degrees, lateral border from the tip up and outwards
        low, high = -30.0, 82.0
        medial = 148 - 0.05 * np.clip(z - 40, 0, 60)
        lateral = 137 - 29 * np.clip((z - low) / (72.0 - low), 0, 1) ** 0.8
        inside = np.minimum.reduce(
            np.broadcast_arrays((medial - a) * 1.9, (a - lateral) * 1.9, z - low, high - z)
        )
        # borders are thick, the blade is thin
        half = np.where(inside > 0, 1.5 + 3.0 * np.exp(-(((inside - 4) / 4.5) ** 2)), -3.0)
        half = np.minimum(half, inside)
        middle = self.space.frame.maps["scapula"].reshape(len(ANGLES), len(HEIGHTS))
        return np.ascontiguousarray(middle, np.float32), np.clip(half, -3, 6).astype(np.float32)

    @cached_property
    def scapular_spines(self) -> dict[Side, tuple[np.ndarray, np.ndarray]]:
        """Spine of the scapula, acromion and the socket, as a tube."""
        out = {}
        for side, sign in ((Side.RIGHT, 1.0), (Side.LEFT, -1.0)):
            frame = self.space.frame
            middle = self.scapula_maps[0]
            start = frame.on_wall(143.0, 56.0, float(middle[286, 56 - int(HEIGHTS[0])]) + 8, sign)[0]
            rest = frame.to_patient(
                np.array([(112, -74, 88), (134, -56, 110), (140, -34, 119)]) * (sign, 1, 1)
            )
            points = np.vstack([start[None], rest])
            out[side] = curve(points, np.array([3.0, 5.0, 6.0, 5.0]) * frame.size, 5.0)
        return out

    @cached_property
    def neck_muscles(self) -> list[tuple[np.ndarray, np.ndarray]]:
        out = []
        for sign in (1.0, -1.0):
            for ref, radii in (
                ([(16, 18, 94), (27, 4, 118), (40, -14, 150), (52, -34, 190)], [5, 8, 10, 11]),
                ([(44, -30, 104), (34, -40, 130), (27, -50, 190)], [7, 11, 12]),
                ([(9, -38, 100), (10, -36, 190)], [6, 7]),
            ):
                points = np.array(ref, float) * (sign, 1, 1)
                out.append(self.space.line(points, np.array(radii) * (0.6 + 0.4 * self._muscle), 8.0))
        return out

    @cached_property
    def mammary_vessels(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The internal thoracic vessels beside the sternum."""
        z = np.linspace(78, -40, 8)
        lines = [self.space.frame.on_wall(a, z, 0.6, side) for side in (1.0, -1.0) for a in (17.0, 19.5)]
        return [(line, np.full(len(line), 1.3)) for line in lines]

    @property
    def _muscle(self) -> float:
        return self.space.frame.habitus.muscle


def rib_height(rib: int, angles) -> np.ndarray:
    """z (reference mm) of the middle of a rib and of its cartilage, by angle around the chest."""
    top = SPINE_Z[rib] + 7.0
    front, bone_end = _FRONT_Z[rib - 1], _FRONT_ANGLE[rib - 1]
    t = np.clip((HEAD_ANGLE - np.asarray(angles, float)) / (HEAD_ANGLE - bone_end), 0, 1)
    # nearly level at the neck, steepest at the side, level again at the front
    fall = (1 - np.cos(np.pi * 0.80 * t)) / (1 - np.cos(np.pi * 0.80))
    z = top - (top - front) * fall
    if rib > 10:
        return z
    end, end_angle = _STERNAL_Z[rib - 1], _STERNAL_ANGLE[rib - 1]
    s = np.clip((bone_end - np.asarray(angles, float)) / (bone_end - end_angle), 0, 1)
    return z + (end - front) * s * s * (3 - 2 * s)


def sternum_half_width(z):
    """Reference mm; manubrium, its joint with the body, the body, the xiphoid."""
    return np.interp(
        z, [-60, -56, -46, -36, -10, 30, 50, 58, 78, 90, 96], [2, 5, 11, 19, 18, 15, 14, 17, 27, 26, 12]
    ).astype(np.float32)


def on_maps(maps: Sequence[np.ndarray], angle: np.ndarray, z: np.ndarray) -> list[np.ndarray]:
    """Maps over angle and height, interpolated at flat arrays of degrees and reference mm."""
    rows, columns = maps[0].shape
    a = np.clip(angle * np.float32(2), 0, rows - 1.001)
    b = np.clip(z - np.float32(HEIGHTS[0]), 0, columns - 1.001)
    i, j = a.astype(np.int32), b.astype(np.int32)
    a -= i
    b -= j
    flat = i * columns + j
    out = []
    for table in maps:
        values = table.ravel()
        low = values[flat] * (1 - b) + values[flat + 1] * b
        high = values[flat + columns] * (1 - b) + values[flat + columns + 1] * b
        out.append(low * (1 - a) + high * a)
    return out
