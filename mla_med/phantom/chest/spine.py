"""Reference points -> vertebrae: bodies, discs, canal, arches and processes. Knows no HU.

Sizes after Panjabi et al., Spine 1991;16:861 (thoracic vertebrae) and Kunkel et al., J Anat 2011.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from mla_med.phantom.chest.frame import SPINE_Y, SPINE_Z

NAMES = ("C7", *(f"T{n}" for n in range(1, 13)), "L1", "L2", "L3")
_Z_TABLE = np.arange(-230, 200, 1.0)
_ORDER = np.argsort(SPINE_Z)
_LINE = CubicSpline(np.asarray(SPINE_Z)[_ORDER], np.asarray(SPINE_Y)[_ORDER], bc_type="natural")
_Y_TABLE = _LINE(_Z_TABLE).astype(np.float32)
_SLOPE_TABLE = _LINE(_Z_TABLE, 1).astype(np.float32)
_LEVEL_TABLE = CubicSpline(np.asarray(SPINE_Z)[_ORDER], np.arange(len(SPINE_Z))[_ORDER], bc_type="natural")(
    _Z_TABLE
).astype(np.float32)
_STEP_TABLE = np.abs(1 / np.gradient(_LEVEL_TABLE)).astype(np.float32)
"""mm from one vertebra to the next."""


@dataclass(frozen=True, eq=False)
class Vertebrae:
    """Signed distances in reference mm of the parts of the spine, on one window."""

    body: np.ndarray
    disc: np.ndarray
    endplate: np.ndarray
    """Distance to the nearest endplate."""
    canal: np.ndarray
    cord: np.ndarray
    arch: np.ndarray
    level: np.ndarray
    """Number of the nearest vertebra, an index into NAMES."""


def spine_y(z):
    """y of the middle of the vertebral bodies at height z, reference mm."""
    return np.interp(z, _Z_TABLE, _Y_TABLE)


def vertebrae(x, y, z) -> Vertebrae:
    """x, y, z: reference mm, one shape."""
    index = np.clip((z - np.float32(_Z_TABLE[0])).astype(np.int32), 0, len(_Z_TABLE) - 1)
    # along the spine rather than along z: endplates lean with it
    lean = np.take(_SLOPE_TABLE, index) * (y - np.take(_Y_TABLE, index))
    along = z + lean
    places = np.clip(along - np.float32(_Z_TABLE[0]), 0, len(_Z_TABLE) - 1.01)
    index = places.astype(np.int32)
    part = places - index
    level = _LEVEL_TABLE[index] * (1 - part) + _LEVEL_TABLE[index + 1] * part
    middle = _Y_TABLE[index] * (1 - part) + _Y_TABLE[index + 1] * part
    step = np.take(_STEP_TABLE, index)
    number = np.rint(level)
    dz = (number - level) * step
    half = step * np.float32(0.5) - (np.float32(1.5) + np.float32(0.16) * number)
    wide, deep = 13.5 + 0.62 * number, 9.5 + 0.5 * number
    v = y - middle
    waist = 1 - np.float32(0.07) * np.clip(1 - np.square(dz / half), 0, 1)
    wide, deep = (wide * waist).astype(np.float32), (deep * waist).astype(np.float32)
    # the back of a body is flat
    flat = np.where(v > 0, v / deep, v / (deep * np.float32(0.86)))
    r = np.sqrt(
        np.sqrt(
            np.square(np.square(x / wide)) + np.square(np.square(flat)) + 1.2 * np.square(x * flat / wide)
        )
        + 1e-6
    )
    outline = (r - 1) * deep
    endplate = np.abs(dz) - half
    body = np.maximum(outline, endplate)
    disc = np.maximum(outline + 0.6, -endplate)
    back = v + deep * np.float32(0.86)
    canal_v = back + np.float32(7.2)
    canal = np.sqrt(np.square(x / np.float32(1.15)) + np.square(canal_v)) - np.float32(7.6)
    cord = np.sqrt(np.square(x / np.float32(1.2)) + np.square(canal_v)) - np.float32(3.7)
    return Vertebrae(body, disc, endplate, canal, cord, _arch(x, back, dz, half, canal, number), number)


def _arch(x, back, dz, half, canal, number):
    """Pedicles, laminae, facets, spinous and transverse processes."""
    u = np.abs(x)
    ring = np.abs(canal - np.float32(3.4)) - np.float32(2.9)
    laminae = np.maximum(
        ring,
        np.where(back > -8, np.abs(dz - 0.28 * half) - 0.55 * half, np.abs(dz + 0.1 * half) - 0.86 * half),
    )
    laminae = np.maximum(laminae, back - 1.0)
    # spinous process: leans down, most in the middle of the back
    droop = np.float32(0.62) - np.float32(0.012) * np.square(number - 6)
    reach = back + 17
    drop = dz - droop * np.minimum(reach, 0)
    spinous = np.maximum.reduce(
        np.broadcast_arrays(
            u - 2.6 - 0.05 * np.clip(-reach - 18, 0, 9), reach + 1, -reach - 27, np.abs(drop + 1.5) - 5.2
        )
    )
    # transverse process: out, back and a little up
    t = np.clip((u - 10) / 22, 0, 1)
    axis_back, axis_up = -9.0 - 12.0 * t, 2.0 + 3.0 * t
    transverse = np.sqrt(np.square(back - axis_back) + np.square((dz - axis_up) * 0.85)) - (
        5.2 - 0.6 * t + 1.2 * np.square(t)
    )
    transverse = np.maximum(transverse, np.maximum(u - 31 + 0.7 * np.maximum(number - 8, 0), 9 - u))
    return np.minimum(np.minimum(laminae, spinous), transverse).astype(np.float32)


def centres() -> dict[str, tuple[float, float, float]]:
    """Middle of each vertebral body, reference mm."""
    return {name: (0.0, float(y), float(z)) for name, y, z in zip(NAMES, SPINE_Y, SPINE_Z, strict=True)}
