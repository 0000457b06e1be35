"""Patient -> Habitus and Frame: how big this chest is, how it is bent, and where its wall lies.

Organs are described once, in a reference man of 175 cm (mm, origin in the middle of the chest, x to
the right, y to the front, z up), and stretched and warped to each patient. The chest wall has
coordinates of its own: depth from the pleura (mm, outwards), angle around the chest (0 front, 90
side, 180 back, degrees) and height; muscles, fat and scapulae are maps over angle and height.
Knows no voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from mla_med.phantom.patient import Patient
from mla_med.types import Sex

# The pleural cavity of the reference man by height z: half width, depth to the front and to the
# back of the centre line, y of the centre line (mm).
_Z = (-230, -160, -120, -90, -60, -30, 0, 30, 60, 85, 105, 118, 130, 260)
_WIDE = (126, 130, 133, 136, 138, 137, 132, 123, 108, 88, 66, 48, 40, 38)
_FRONT = (98, 98, 97, 95, 93, 89, 82, 72, 59, 45, 33, 24, 20, 20)
_BACK = (78, 84, 90, 94, 96, 96, 95, 90, 80, 66, 50, 38, 32, 30)
_MIDDLE = (-8, -8, -8, -8, -8, -8, -8, -10, -17, -26, -33, -38, -42, -46)

SPINE_Z = (146, 126, 106, 85.5, 64.5, 43, 21, -1.5, -24.5, -48, -72.5, -98, -124.5, -152.5, -182.5, -213)
SPINE_Y = (-45, -52, -58, -63, -66.5, -69, -71, -72, -72, -70, -67, -63, -58.5, -54, -50, -47)
"""Centres of the vertebral bodies C7, T1 ... T12, L1, L2, L3."""

ANGLES = np.arange(0, 180.01, 0.5)
HEIGHTS = np.arange(-240, 261, 1.0)
N_WAVES, WARP_MM = 7, 2.2


@dataclass(frozen=True, slots=True)
class Habitus:
    """What differs between bodies, beyond size."""

    scale: tuple[float, float, float]
    """Reference mm -> patient mm along x, y, z."""
    fat_mm: float
    """Subcutaneous fat at the side of the chest."""
    visceral: float
    """Fat inside the chest, 1 for a body mass index of 25."""
    muscle: float
    """Thickness of the muscles against the reference man."""
    breast_mm: float
    """Height of the breast over the chest wall, 0 in men."""
    glandular: float
    """Share of the breast that is gland."""
    arms_up: bool
    dome_mm: tuple[float, float]
    """z of the right and the left diaphragm dome (reference mm)."""


def choose_habitus(patient: Patient, rng: np.random.Generator) -> Habitus:
    """Anthropometry in the range of adults; heavier people are wider, deeper and less deeply inspired."""
    female = patient.sex is Sex.FEMALE
    tall = patient.height_cm / 175
    heavy = float(np.clip(patient.bmi - 25, -8, 20))
    copd = bool({"copd"} & patient.history)
    wide = (0.94 if female else 1.0) * tall**0.6 * (1 + 0.006 * heavy) * rng.normal(1, 0.025)
    deep = (0.93 if female else 1.0) * tall**0.4 * (1 + 0.009 * heavy) * rng.normal(1, 0.035)
    deep *= 1 + (0.08 if copd else 0.0) + 0.001 * (patient.age_years - 50)
    high = tall * (0.96 if female else 1.0) * rng.normal(1, 0.03) * (1.03 if copd else 1.0)
    fat = (8 + 1.35 * (patient.bmi - 19)) if female else (5 + 1.1 * (patient.bmi - 19))
    age_loss = 1 - 0.004 * max(patient.age_years - 45, 0)
    right = -50 + 0.5 * heavy + rng.normal(0, 5) - (12 if copd else 0)
    return Habitus(
        scale=(float(wide), float(deep), float(high)),
        fat_mm=float(np.clip(fat * rng.normal(1, 0.15), 3, 55)),
        visceral=float(
            np.clip((1 + 0.07 * heavy) * (0.8 if female else 1.05) * rng.normal(1, 0.15), 0.3, 2.5)
        ),
        muscle=float((0.78 if female else 1.0) * age_loss * rng.normal(1, 0.1)),
        breast_mm=float(np.clip(30 + 1.8 * heavy + rng.normal(0, 8), 14, 75)) if female else 0.0,
        glandular=float(np.clip(0.75 - 0.011 * (patient.age_years - 25) + rng.normal(0, 0.12), 0.05, 0.85)),
        arms_up=bool(rng.random() < 0.85),
        dome_mm=(float(right), float(right - rng.uniform(7, 17))),
    )


@dataclass(frozen=True, eq=False)
class Frame:
    """Reference mm <-> patient mm, and the coordinates of the chest wall."""

    habitus: Habitus
    waves: np.ndarray
    """(N, 3) wave vectors of the warp, radians per mm."""
    phases: np.ndarray
    gains: np.ndarray
    """(N, 3) amplitudes in mm."""

    @classmethod
    def make(cls, habitus: Habitus, rng: np.random.Generator) -> Frame:
        direction = rng.normal(0, 1, (N_WAVES, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        waves = direction * (2 * np.pi / rng.uniform(115, 280, (N_WAVES, 1)))
        gains = rng.normal(0, WARP_MM / np.sqrt(N_WAVES / 2), (N_WAVES, 3))
        return cls(habitus, waves, rng.uniform(0, 2 * np.pi, N_WAVES), gains)

    @property
    def size(self) -> float:
        """Mean of the three scales."""
        return float(np.mean(self.habitus.scale))

    def warp_points(self, points_mm: np.ndarray) -> np.ndarray:
        """The displacement at patient points (N, 3), mm."""
        return np.sin(points_mm @ self.waves.T + self.phases) @ self.gains

    def warp_grid(self, x, y, z) -> list[np.ndarray]:
        """The displacement on a grid given by its axes: sums of products of two and one dimensions."""
        flat = (np.ravel(x)[:, None] * self.waves[:, 0])[:, None, :] + np.ravel(y)[
            None, :, None
        ] * self.waves[:, 1]
        up = np.ravel(z)[None, :] * self.waves[:, 2:3] + self.phases[:, None]
        inplane = np.concatenate([np.sin(flat), np.cos(flat)], axis=-1).astype(np.float32)
        out = []
        for gain in self.gains.T:
            along = np.concatenate([gain[:, None] * np.cos(up), gain[:, None] * np.sin(up)])
            out.append(inplane @ along.astype(np.float32))
        return out

    def to_reference(self, points_mm) -> np.ndarray:
        """Patient points (N, 3) -> reference points (N, 3)."""
        p = np.atleast_2d(np.asarray(points_mm, float))
        return (p - self.warp_points(p)) / self.habitus.scale

    def to_patient(self, points_ref) -> np.ndarray:
        """Reference points (N, 3) -> patient points (N, 3)."""
        q = np.atleast_2d(np.asarray(points_ref, float)) * self.habitus.scale
        p = q
        for _ in range(5):
            p = q + self.warp_points(p)
        return p

    def wall(self, x, y, z) -> tuple[np.ndarray, np.ndarray]:
        """Reference coordinates -> depth from the pleura (patient mm, outwards) and the index into
        the maps over angle and height."""
        row = np.clip((z - np.float32(HEIGHTS[0])).astype(np.int32), 0, len(HEIGHTS) - 1)
        wide, front, back, middle = (np.take(p, row) for p in _PROFILES)
        v = y - middle
        deep = np.where(v > 0, front, back)
        u, v2 = np.abs(x) / wide, np.abs(v) / deep
        root_u, root_v = np.sqrt(u), np.sqrt(v2)
        total = u * u * root_u + v2 * v2 * root_v + np.float32(1e-6)
        radius = total ** np.float32(0.4)
        # the gradient of a superellipse of exponent 2.5
        slope = np.sqrt((u * root_u / wide) ** 2 + (v2 * root_v / deep) ** 2) / (radius * np.sqrt(radius))
        depth = (radius - 1) / np.maximum(slope, np.float32(0.004))
        angle = np.arctan2(np.abs(x), v) * np.float32(360 / np.pi) + np.float32(0.5)
        flat = np.clip(angle.astype(np.int32), 0, len(ANGLES) - 1) * len(HEIGHTS) + row
        mean = float(np.sqrt(self.habitus.scale[0] * self.habitus.scale[1]))
        return depth * np.float32(mean), flat

    def on_wall(self, angle_deg, z, depth_mm, side: float) -> np.ndarray:
        """Points (N, 3) in patient mm at angle, height (reference) and depth (patient mm); `side` 1 right."""
        angle, z = np.broadcast_arrays(np.asarray(angle_deg, float), np.asarray(z, float))
        phi = np.deg2rad(angle)
        row = np.clip((z - HEIGHTS[0]).astype(int), 0, len(HEIGHTS) - 1)
        wide, front, back, middle = (p[row] for p in _PROFILES)
        deep = np.where(np.cos(phi) > 0, front, back)
        radius = (np.abs(np.sin(phi) / wide) ** 2.5 + np.abs(np.cos(phi) / deep) ** 2.5) ** -0.4
        u = np.abs(np.sin(phi) * radius / wide) ** 1.5 / wide
        v = np.abs(np.cos(phi) * radius / deep) ** 1.5 / deep * np.sign(np.cos(phi))
        length = np.hypot(u, v)
        sx, sy, _ = self.habitus.scale
        step = np.asarray(depth_mm) / np.sqrt(sx * sy)
        x = side * (np.sin(phi) * radius + step * u / length)
        y = middle + np.cos(phi) * radius + step * v / length
        return self.to_patient(np.stack([x, y, z], axis=-1).reshape(-1, 3))

    @cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """Muscles and fat over angle and height, flat, depths in patient mm: see `_wall_maps`."""
        return _wall_maps(self.habitus, self.phases)


def _profile(values) -> np.ndarray:
    return PchipInterpolator(_Z, values)(HEIGHTS).astype(np.float32)


_PROFILES = tuple(_profile(v) for v in (_WIDE, _FRONT, _BACK, _MIDDLE))

RIB_LAYER_MM = 10.5


def _wall_maps(habitus: Habitus, phases: np.ndarray) -> dict[str, np.ndarray]:
    """Name of the muscle -> its inner depth ("name<") and outer depth ("name>"); "muscle" is the
    envelope of all of them, "skin" the surface of the body, "scapula" the middle of the blade."""
    a, z = ANGLES[:, None], HEIGHTS[None, :]
    m, base = habitus.muscle, RIB_LAYER_MM - 0.4
    maps: dict[str, np.ndarray] = {}
    outer = np.full((len(ANGLES), len(HEIGHTS)), RIB_LAYER_MM)

    def lay(name: str, inner, thick, gap: float = 1.3) -> np.ndarray:
        # no muscle is as even as its plateau, nor the fat between two of them
        number = len(maps) // 2
        turn = phases[number % len(phases)] + number
        bumps = np.sin(a * 0.11 + turn) * np.sin(z * 0.045 + 1.7 * turn)
        thick = thick * m * (1 + 0.10 * bumps)
        gap = 0.7 * gap + min(habitus.fat_mm * 0.03, 1.0) * (0.8 - bumps)
        maps[name + "<"] = inner + 0 * thick
        maps[name + ">"] = inner + thick
        return inner + thick + gap * np.clip((thick - 0.4) / 2.0, 0, 1)

    def over(lo, hi, rim, low, high, edge) -> np.ndarray:
        return _plateau(a, lo, hi, rim) * _plateau(z, low, high, edge)

    minor = lay("pectoralis minor", base, 7.0 * over(30, 66, 12, 22, 92, 14))
    slant = z - 0.5 * np.clip(a - 25, 0, 60)
    major_z = _plateau(slant, -30, 95, 16)
    major = lay(
        "pectoralis major", minor, (8.5 + 0.14 * np.clip(a - 20, 0, 60)) * _plateau(a, 13, 84, 9) * major_z
    )
    serratus = lay("serratus", base, 6.5 * over(68, 128, 18, -95, 72, 22), 1.0)
    subscap = lay("subscapularis", np.maximum(serratus, base), 12.5 * over(100, 149, 14, -32, 86, 20), 2.6)
    maps["scapula"] = subscap + 0.4
    infra = lay("infraspinatus", subscap + 3.0, 14.0 * over(98, 147, 14, -28, 84, 20))
    latissimus_low = 8.5 * over(92, 158, 20, -300, -2, 30)
    latissimus_fold = 15.0 * over(88, 114, 12, -20, 62, 26)
    latissimus = lay(
        "latissimus",
        np.where(infra > subscap + 5, infra, serratus),
        np.maximum(latissimus_low, latissimus_fold),
    )
    erector_thick = (19 - 0.045 * np.clip(z, -150, 120)) * _plateau(a, 153, 177.5, 7)
    erector = lay("erector", base - 3.0 + 0 * a, erector_thick + 0 * z)
    rhomboid = lay("rhomboid", np.maximum(erector, base), 5.5 * over(140, 170, 12, 12, 100, 16))
    trapezius = lay("trapezius", np.maximum(rhomboid, infra), 6.0 * over(134, 178.5, 14, -40, 300, 40))
    rectus = lay("rectus", base, 9.0 * over(3, 38, 5, -400, -96, 14))
    oblique = lay("oblique", base, 9.0 * over(42, 120, 14, -400, -100, 30))
    for top in (major, serratus, infra, latissimus, erector, rhomboid, trapezius, rectus, oblique):
        outer = np.maximum(outer, top)
    maps["muscle"] = np.maximum(outer, _smooth(outer, (2, 2)))
    # fat lies where the muscles are not: the surface is far smoother than they are
    where = (
        1.0 + 0.30 * _plateau(z, -400, -60, 60) - 0.45 * _plateau(a, -40, 45, 25) * _plateau(z, -30, 300, 50)
    )
    where = where - 0.25 * _plateau(a, 168, 200, 12) + 0.2 * _plateau(a, 70, 110, 20)
    muscle = maps["muscle"]
    maps["skin"] = np.maximum(_smooth(muscle) + 2.0, muscle + 0.35 * habitus.fat_mm + 1.5)
    maps["skin"] = _smooth(maps["skin"] + 0.9 * habitus.fat_mm * where, (3, 2))
    maps["skin"] = np.maximum(maps["skin"], muscle + 2.5)
    return {
        k: np.ascontiguousarray(np.broadcast_to(v, outer.shape), np.float32).ravel() for k, v in maps.items()
    }


def _smooth(surface: np.ndarray, reach: tuple[float, float] = (7, 5)) -> np.ndarray:
    """A map blurred by so many fourths of its rows and columns, mirrored at the middle of front and back."""
    coarse = np.ascontiguousarray(surface[::4, ::4])
    both = np.concatenate([coarse[:0:-1], coarse, coarse[-2::-1]])
    blurred = ndimage.gaussian_filter(both, reach, mode="nearest", truncate=3)
    blurred = blurred[len(coarse) - 1 :][: len(coarse)]
    return ndimage.zoom(
        blurred, (surface.shape[0] / len(coarse), surface.shape[1] / coarse.shape[1]), order=1
    )


MUSCLES: tuple[str, ...] = (
    "pectoralis minor", "pectoralis major", "serratus", "subscapularis", "infraspinatus", "latissimus",
    "erector", "rhomboid", "trapezius", "rectus", "oblique",
)  # fmt: skip


def _plateau(v, low: float, high: float, rim: float):
    """1 between low and high, falling to 0 over `rim` inside of them."""
    up = np.clip((v - low) / rim, 0, 1)
    down = np.clip((high - v) / rim, 0, 1)
    t = np.minimum(up, down)
    return t * t * (3 - 2 * t)
