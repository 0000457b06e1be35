"""Phantoms -> HU of their tissues, measured as a radiologist would, beside what is published of people.

    python -m evaluation.phantom_hu --n 20

Healthy chests without contrast medium are scanned by site A, and regions of interest laid into lungs, the
descending aorta, liver, spleen, the erector spinae, subcutaneous fat and the first lumbar vertebra. Printed
for each: mean and spread over the patients, the published range, and how many patients lie within.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

FIRST_SEED = 830_000_000
SPACING_MM = 2.0


@dataclass(frozen=True, slots=True)
class Published:
    """A range of healthy adults."""

    low: Callable[[float], float]
    """By age."""
    high: Callable[[float], float]
    source: str
    unit: str = "HU"


def _fixed(low: float, high: float, source: str, unit: str = "HU") -> Published:
    return Published(lambda age: low, lambda age: high, source, unit)


def _trabecular(age: float) -> float:
    """226 HU below 30 years, 2.5 HU less each year, 89 HU from 90 on."""
    return float(np.clip(226 - 2.5 * (age - 30), 89, 226))


PROKOP = "Prokop & Galanski, Spiral and Multislice CT of the Body, 2003"
PUBLISHED: dict[str, Published] = {
    "lung": _fixed(-910, -850, f"parenchyma in inspiration, {PROKOP}"),
    "lung below -950 HU": _fixed(
        0, 7.4, "mean 2.0 %, spread 2.7, never-smokers: Zach, Invest Radiol 2012;47:596", "%"
    ),
    "blood": _fixed(39.2, 50, "descending aorta, quartiles without anaemia: Sci Rep 2022;12:21380"),
    "liver": _fixed(45, 65, PROKOP),
    "spleen": _fixed(35, 55, PROKOP),
    "liver less spleen": _fixed(1, 18, "liver donors without steatosis: Park, Radiology 2011;258:760"),
    "muscle": _fixed(30, 150, "not infiltrated by fat: Aubrey, Acta Physiol 2014;210:489"),
    "fat": _fixed(-190, -30, "adipose tissue: Yoshizumi, Radiology 1999;211:283"),
    "trabecular bone, L1": Published(
        lambda age: _trabecular(age) - 2 * 42,
        lambda age: _trabecular(age) + 2 * 42,
        "by age, two spreads: Jang, Radiology 2019;291:360",
    ),
}


def measure(seed: int) -> tuple[float, dict[str, float]]:
    """-> age, and the value of each row of PUBLISHED; what this body does not show is left out."""
    from mla_med.phantom.chest.anatomy import draw_chest, make_chest
    from mla_med.phantom.patient import make_patient
    from mla_med.phantom.scanner import ct
    from mla_med.phantom.shapes import Grid

    patient = make_patient(seed)
    chest = replace(make_chest(patient), enhanced=False)
    low, high = chest.z_range_mm
    bottom = min(low, float(chest.vertebrae["L1"][2]) - 15) - 10
    slices = int((high - bottom) / SPACING_MM)
    flat = Grid.centred((230, 170, slices), (SPACING_MM,) * 3)
    grid = Grid(flat.shape, flat.spacing_mm, (*flat.origin_mm[:2], bottom))
    body = draw_chest(chest, (), grid)
    rng = np.random.default_rng([seed, 311])
    scan = replace(
        ct.random_scan(rng, ct.SITE_A),
        spacing_mm=grid.spacing_mm,
        matrix=grid.shape[0],
        tilt_deg=0.0,
        motion_mm=0.0,
    )
    hu = ct.reconstruct(body, grid, scan, rng).astype(np.float32)
    return float(patient.age_years), _values(chest, hu, grid)


def _values(chest: Any, hu: np.ndarray, grid: Any) -> dict[str, float]:
    everywhere = tuple(slice(0, n) for n in grid.shape)

    def deep(field: Any, depth_mm: float) -> np.ndarray:
        """HU of what lies that deep inside a field."""
        window = field.window(grid, everywhere)
        if window is None:
            return np.empty(0)
        return hu[window][field.on(grid, window) < -depth_mm]

    def at(points_mm: np.ndarray) -> np.ndarray:
        index = np.rint((points_mm - grid.origin_mm) / grid.spacing_mm).astype(int)
        inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
        return hu[tuple(index[inside].T)]

    lung = np.concatenate([deep(field, 3.0) for field in chest.lungs.values()])
    points, radii = chest.aorta_line
    down = int(np.argmax(points[:, 2])) + 6
    found = {
        # the median: vessels and bronchi are no parenchyma
        "lung": float(np.median(lung)),
        "lung below -950 HU": float(np.mean(lung < -950) * 100),
        "blood": float(np.median(at(_balls(points[down:], radii[down:] * 0.5)))),
        "liver": _mean(deep(chest.organs["liver"], 12.0)),
        "spleen": _mean(deep(chest.organs["spleen"], 8.0)),
        "muscle": _mean(at(_wall(chest, "erector<", "erector>"))),
        "fat": _mean(at(_under_skin(chest, _wall(chest, "muscle", "skin")))),
        "trabecular bone, L1": _mean(at(_balls(chest.vertebrae["L1"][None], np.array([6.0])))),
    }
    found["liver less spleen"] = found["liver"] - found["spleen"]
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size >= 20 else float("nan")


def _balls(centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Points every 2 mm in balls around centres."""
    step = np.arange(-12, 13, SPACING_MM)
    offsets = np.stack(np.meshgrid(step, step, step, indexing="ij"), axis=-1).reshape(-1, 3)
    far = np.linalg.norm(offsets, axis=1)
    return np.concatenate([c + offsets[far <= r] for c, r in zip(centres, radii, strict=True)])


def _wall(chest: Any, inner: str, outer: str) -> np.ndarray:
    """Points in the middle of a layer of the chest wall beside the spine, where it is thick enough."""
    from mla_med.phantom.chest.frame import ANGLES, HEIGHTS

    maps = {name: chest.frame.maps[name].reshape(len(ANGLES), len(HEIGHTS)) for name in (inner, outer)}
    places = []
    for angle in range(160, 172, 2):
        for height in range(-150, -60, 4):
            i, k = int(np.searchsorted(ANGLES, angle)), int(np.searchsorted(HEIGHTS, height))
            low, high = float(maps[inner][i, k]), float(maps[outer][i, k])
            if high - low > 8:
                places += [
                    chest.frame.on_wall(angle, height, (low + high) / 2, side)[0] for side in (1.0, -1.0)
                ]
    return np.array(places).reshape(-1, 3)


def _under_skin(chest: Any, points: np.ndarray) -> np.ndarray:
    return points[chest.surface.at(points) < -4.0] if len(points) else points


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.phantom_hu", description=__doc__)
    parser.add_argument("--n", type=int, default=20, help="patients (%(default)s)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="of the first (%(default)s)")
    options = parser.parse_args(arguments)
    measured = [measure(seed) for seed in range(options.seed, options.seed + options.n)]
    print(f"{options.n} phantoms from seed {options.seed}, site A, {SPACING_MM:g} mm")
    print(f"{'':22} {'mean':>7} {'spread':>7} {'published':>15} {'within':>9}")
    for name, range_ in PUBLISHED.items():
        rows = [(age, values[name]) for age, values in measured if name in values]
        values = np.array([value for _, value in rows])
        within = sum(range_.low(age) <= value <= range_.high(age) for age, value in rows)
        low, high = (float(np.mean([f(age) for age, _ in rows])) for f in (range_.low, range_.high))
        shown = f"{low:.0f} to {high:.0f} {range_.unit}"
        print(
            f"{name:22} {values.mean():7.1f} {values.std():7.1f} {shown:>15} {within:4} of {len(rows):<3} "
            f"{range_.source}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
