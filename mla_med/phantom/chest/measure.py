"""Chest + HU on a grid -> HU statistics of its tissues, where they are pure. Knows no lesions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mla_med.phantom.chest.anatomy import Chest
from mla_med.phantom.chest.frame import ANGLES, HEIGHTS
from mla_med.phantom.shapes import Grid
from mla_med.types import Side


def tissue_statistics(chest: Chest, hu: np.ndarray, grid: Grid) -> dict[str, tuple[float, float]]:
    """Tissue -> mean and deviation of HU in voxels well inside of it; what the grid misses is left out.

    lung (vessels included), trachea, blood (descending aorta), fat (under the skin), muscle (beside the
    spine), liver, spleen, marrow (vertebral bodies), heart."""
    out = {}
    for name, values in _samples(chest, hu, grid):
        if values.size >= 5:
            out[name] = float(values.mean()), float(values.std())
    return out


def _samples(chest: Chest, hu: np.ndarray, grid: Grid) -> Iterator[tuple[str, np.ndarray]]:
    for name, shapes, margin in (
        ("lung", [chest.lungs[Side.RIGHT], chest.lungs[Side.LEFT]], 6.0),
        ("heart", [chest.heart], 8.0),
        ("liver", [chest.organs["liver"]], 10.0),
        ("spleen", [chest.organs["spleen"]], 6.0),
    ):
        parts = []
        for shape in shapes:
            window = shape.window(grid, grid.everywhere)
            if window is not None:
                parts.append(hu[window][shape.on(grid, window) < -margin])
        yield name, np.concatenate(parts) if parts else np.zeros(0)
    points, _ = chest.aorta_line
    yield "blood", _at(hu, grid, points[len(points) // 2 :])
    yield "trachea", _at(hu, grid, chest.airways[0].points)
    bodies = np.array([chest.vertebrae[f"T{n}"] for n in range(4, 13)])
    steps = np.array([(x, y, 0.0) for x in (-5, 0, 5) for y in (-3, 1)])
    yield "marrow", _at(hu, grid, (bodies[:, None] + steps).reshape(-1, 3))
    maps = {k: v.reshape(len(ANGLES), len(HEIGHTS)) for k, v in chest.frame.maps.items()}
    z = np.arange(-110, 40, 5)
    rows = (z - HEIGHTS[0]).astype(int)
    for name, angle, inner, outer in (
        ("muscle", 165, maps["erector<"], maps["erector>"]),
        ("fat", 80, maps["muscle"], maps["skin"]),
    ):
        depth = (inner[2 * angle, rows] + outer[2 * angle, rows]) / 2
        keep = outer[2 * angle, rows] - inner[2 * angle, rows] > 8
        sides = [chest.frame.on_wall(float(angle), z[keep], depth[keep], s) for s in (1.0, -1.0)]
        yield name, _at(hu, grid, np.concatenate(sides))


def _at(hu: np.ndarray, grid: Grid, points_mm: np.ndarray) -> np.ndarray:
    """The nearest voxels to points (N, 3), those on the grid."""
    index = np.rint((points_mm - grid.origin_mm) / grid.spacing_mm).astype(int)
    inside = np.all((index >= 0) & (index < grid.shape), axis=1)
    return hu[tuple(index[inside].T)]
