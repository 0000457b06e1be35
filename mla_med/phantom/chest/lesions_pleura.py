"""Room in a chest -> fluid or air in the pleural cavities. The anatomy makes the room for it (chest.Chest);
what is stated follows from the depth that is chosen here. Knows no lung disease.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mla_med.phantom.chest.blobs import join
from mla_med.phantom.chest.room import Room, sdf_box
from mla_med.phantom.lesion import Lesion
from mla_med.types import Box, Finding, Side

SIDES = (Side.RIGHT, Side.LEFT)


def pleural_effusion(room: Room, rng: np.random.Generator) -> Lesion:
    """Heart failure fills both sides, the right more."""
    failing = "heart_failure" in room.chest.patient.history
    draw = rng.random()
    both = 0.62 if failing else 0.25
    sides = SIDES if draw < both else (SIDES[int(draw > both + 0.55 * (1 - both))],)
    depth = [float(np.exp(rng.uniform(np.log(16), np.log(62)))) if side in sides else 0.0 for side in SIDES]
    change = _add("effusion_mm", (depth[0], depth[1]))
    stated = Side.BILATERAL if len(sides) == 2 else sides[0]
    return Lesion(
        Finding("pleural_effusion", side=stated),
        join([_beside_lung(change(room.chest), side) for side in sides]),
        change=change,
    )


def pneumothorax(room: Room, rng: np.random.Generator) -> Lesion:
    side = SIDES[int(rng.random() < 0.45)]
    depth = float(rng.uniform(11, 42))
    change = _add("pneumothorax_mm", (depth, 0.0) if side is Side.RIGHT else (0.0, depth))
    room.used.setdefault("pneumothorax", []).append((side, ""))
    box = _beside_lung(change(replace(room.chest, effusion_mm=(0.0, 0.0))), side)
    return Lesion(Finding("pneumothorax", side=side), box, change=change)


def _add(name: str, depth_mm: tuple[float, float]) -> Callable[[Any], Any]:
    """Chest -> chest with that much more on each side."""

    def change(chest: Any) -> Any:
        before = getattr(chest, name)
        return replace(chest, **{name: (before[0] + depth_mm[0], before[1] + depth_mm[1])})

    return change


def _beside_lung(chest: Any, side: Side) -> Box:
    """What of the pleural cavity is no lung."""
    cavity, lung = chest.cavities[SIDES.index(side)], chest.lungs[side]
    values = np.asarray(cavity, np.float32).copy()
    i, j, k = (slice(f, f + n) for f, n in zip(lung.first, lung.values.shape, strict=True))
    values[i, j, k] = np.maximum(values[i, j, k], -lung.values)
    grid = chest.space.lattice.grid
    return sdf_box(values, np.asarray(grid.origin_mm), np.asarray(grid.spacing_mm))
