"""HU of a body -> HU as a CT scanner reconstructs them: kernel, noise, table, artefacts, tilt.

The noise is that of filtered back projection: its power rises with frequency until the kernel cuts it
off (Kijewski & Judy, Phys Med Biol 1987;32:565; Solomon et al., Med Phys 2012;39:6048), it is strongest
where most rays were weakened, and it is directed along those rays, so that shoulders are streaked from
side to side. Metal and dense bone leave what is left when the errors of their projections are filtered
and projected back (Joseph & Spital, J Comput Assist Tomogr 1978;2:100; De Man et al., IEEE Trans Nucl
Sci 1999;46:691). Knows HU and mm; knows no anatomy, no lesions and no DICOM.

How this was verified: on discs of water, the spectrum of the noise and its peak, its spread against what
the dose says, in the centre and at the rim, from slice to slice, and on a coarse grid against a fine one
averaged; on a slanted edge, the modulation transfer; on two discs of metal, the dark band between them.
"""

# I, J, K voxels to the right, to the front, up; A angles, B detector bins; k runs over slices

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import fft, ndimage, sparse

from mla_med.phantom.shapes import Grid, soft

HU_RANGE = (-1024, 3071)
"""What 12 bits hold."""
WATER_PER_MM = 0.02
"""Attenuation of water near 70 keV (NIST XCOM: 0.19 per cm)."""
BOWTIE = 0.8
"""The filter before the tube weakens what passes beside the centre: differences count by this share."""
EXPOSURE_CONTROL = 0.6
"""How much of the difference between slices the tube current evens out (in the exponent)."""
REFERENCE_HU, REFERENCE_MGY_MM = 8.0, 50.0
"""Noise of the soft kernel in 300 mm of water, at 10 mGy and slices of 5 mm."""
REFERENCE_MM = 300.0
METAL_HU = 2900.0
METAL_SATURATION = 2.5
"""Projected attenuation beyond which metal hardly weakens the rays that are left."""
BONE_HU, HARDENING = 250.0, 0.06
"""Error of a projection by the square of the bone that it crosses."""
MEASURED_MM = 500.0
"""What lies outside this circle is not measured, and brightens its rim."""
SECTORS = 4
MAP_MM, MAP_SLICE_MM, MAP_ANGLES = 6.0, 9.0, 48
STREAK_MM, STREAK_ANGLES = 2.4, 120


@dataclass(frozen=True, slots=True)
class Kernel:
    """Modulation transfer (1 + boost * bump) * exp(-(f / cut)^power), f in cycles per mm."""

    cut_per_mm: float
    power: float
    boost: float = 0.0
    """How far edges overshoot."""
    boost_per_mm: float = 0.45

    def transfer(self, f_per_mm: np.ndarray) -> np.ndarray:
        """1 at f = 0; f may have any shape."""
        bump = np.square(f_per_mm / self.boost_per_mm)
        return (1 + self.boost * bump * np.exp(1 - bump)) * np.exp(
            -((f_per_mm / self.cut_per_mm) ** self.power)
        )


# Half of the contrast is left at 0.36, 0.43 and 0.75 per mm, a tenth at 0.62, 0.70 and 1.1: as measured
# on Br36 to Br44, STANDARD and B; on Bl57, LUNG and YC.
KERNELS = {
    "soft": Kernel(0.425, 2.2),
    "standard": Kernel(0.50, 2.45),
    "lung": Kernel(0.85, 4.0, boost=0.4),
}


@dataclass(frozen=True, slots=True)
class Scan:
    """How a patient was scanned."""

    spacing_mm: tuple[float, float, float] = (0.7, 0.7, 1.5)
    matrix: int = 512
    """Rows and columns."""
    kernel: str = "soft"
    """A key of KERNELS."""
    thickness_mm: float = 1.5
    """Of a slice; thicker than their distance, slices overlap."""
    ctdi_mgy: float = 8.0
    """CTDIvol, in the phantom of 320 mm."""
    kvp: int = 120
    patient_mm: float = REFERENCE_MM
    """Diameter of the water that weakens rays as the patient does; what `noise_hu` is stated for."""
    centre_mm: tuple[float, float] = (0.0, 0.0)
    """Middle of the field of view, right and front of the gantry's axis."""
    tilt_deg: float = 0.0
    """Of the gantry; positive leans the back of each slice up. The slices stay where they were taken,
    so that the volume is sheared."""
    motion_mm: float = 0.0
    """How far heart and diaphragm moved while their slices were taken."""
    table: str = "curved"
    """curved, flat, or empty for none."""
    circular: bool = False
    """Nothing is shown outside the circle of the field of view."""

    @property
    def fov_mm(self) -> float:
        return self.matrix * self.spacing_mm[0]

    @property
    def mas(self) -> int:
        """Effective tube current-time product: near 0.068 mGy per mAs at 120 kV, by the 2.5th power."""
        return round(self.ctdi_mgy / (0.068 * (self.kvp / 120) ** 2.5))

    @property
    def noise_hu(self) -> float:
        """Spread of HU in the centre of `patient_mm` of water, at this spacing, kernel and dose."""
        dx, dy, dz = self.spacing_mm
        fx, fy = (np.linspace(-0.5 / d, 0.5 / d, 200) for d in (dx, dy))
        power = noise_power(self, np.hypot(fx[:, None], fy), max(self.thickness_mm, dz))
        return float(np.sqrt(power.mean() / (dx * dy)))


@dataclass(frozen=True, slots=True)
class ScanSite:
    """What a hospital's scanner and its habits are: from this, `random_scan` draws."""

    maker: str
    """A key of makers.CT, whose headers its series have."""
    kernels: tuple[tuple[str, float], ...]
    """(kernel, odds)"""
    fov_mm: tuple[float, float]
    slices_mm: tuple[tuple[float, float, float], ...]
    """(distance, thickness, odds)"""
    ctdi_mgy: tuple[float, float]
    """For a patient of 300 mm; larger ones get more."""
    kvp: tuple[tuple[int, float], ...] = ((120, 1.0),)
    tilt_odds: float = 0.0
    tilt_deg: float = 15.0
    """Largest."""
    motion_odds: float = 0.2
    motion_mm: float = 3.0
    """Largest."""
    off_centre_mm: float = 6.0
    """Spread."""
    table: str = "curved"
    circular: bool = False


SITE_A = ScanSite(
    maker="siemens",
    kernels=(("soft", 0.8), ("standard", 0.2)),
    fov_mm=(330, 400),
    slices_mm=((1.0, 1.0, 0.3), (1.5, 1.5, 0.5), (2.0, 3.0, 0.2)),
    ctdi_mgy=(6.0, 11.0),
    kvp=((100, 0.4), (120, 0.6)),
    tilt_odds=0.02,
    motion_odds=0.15,
    off_centre_mm=5.0,
)
"""New scanner, smooth images, little noise, fields of view that fit the patient."""

SITE_B = ScanSite(
    maker="ge",
    kernels=(("standard", 0.65), ("lung", 0.35)),
    fov_mm=(390, 500),
    slices_mm=((1.25, 1.25, 0.4), (2.5, 2.5, 0.4), (5.0, 5.0, 0.2)),
    ctdi_mgy=(1.6, 4.5),
    tilt_odds=0.05,
    motion_odds=0.4,
    motion_mm=6.0,
    off_centre_mm=14.0,
    table="flat",
    circular=True,
)
"""Low dose, sharp kernels, wide fields of view cut to a circle, breathing patients, a flat table."""


def random_scan(
    rng: np.random.Generator, site: ScanSite, patient_mm: float = REFERENCE_MM, matrix: int = 512
) -> Scan:
    """A scan as the technicians of the site vary it. `patient_mm` as in Scan."""
    kernel = _one_of(rng, [(name, odds) for name, odds in site.kernels])
    distance, thickness = _one_of(rng, [((d, t), odds) for d, t, odds in site.slices_mm])
    pixel = round(float(rng.uniform(*site.fov_mm)) / matrix, 4)
    ctdi = float(rng.uniform(*site.ctdi_mgy)) * math.exp((patient_mm - REFERENCE_MM) * 0.012)
    x, y = rng.normal(0, site.off_centre_mm, 2).round(1)
    tilted, moved = rng.random(2) < (site.tilt_odds, site.motion_odds)
    return Scan(
        spacing_mm=(pixel, pixel, distance),
        matrix=matrix,
        kernel=kernel,
        thickness_mm=thickness,
        ctdi_mgy=round(ctdi, 2),
        kvp=_one_of(rng, list(site.kvp)),
        patient_mm=patient_mm,
        centre_mm=(float(x), float(y)),
        tilt_deg=round(float(rng.uniform(-1, 1)) * site.tilt_deg * 2) / 2 if tilted else 0.0,
        motion_mm=round(float(rng.uniform(0.4, 1)) * site.motion_mm, 1) if moved else 0.0,
        table=site.table,
        circular=site.circular,
    )


def _one_of(rng: np.random.Generator, choices: list):
    odds = np.array([odds for _, odds in choices])
    return choices[int(rng.choice(len(choices), p=odds / odds.sum()))][0]


def scan_grid(scan: Scan, low_mm: float, high_mm: float) -> Grid:
    """The voxels that the scan fills from z = low_mm to high_mm (upright; see `scan_affine` for tilt)."""
    slices = math.ceil((high_mm - low_mm) / scan.spacing_mm[2]) + 1
    flat = Grid.centred((scan.matrix, scan.matrix, slices), scan.spacing_mm)
    x, y, _ = flat.origin_mm
    return Grid(flat.shape, flat.spacing_mm, (x + scan.centre_mm[0], y + scan.centre_mm[1], float(low_mm)))


def drawn_grid(grid: Grid, scan: Scan) -> Grid:
    """Where to draw the body so that `reconstruct` can fill `grid`: as high as a tilted gantry reaches, and
    no coarser along z than 2.5 mm, for what slices average."""
    parts = math.ceil(grid.spacing_mm[2] / 2.5)
    step = grid.spacing_mm[2] / parts
    lean_mm = abs(math.sin(math.radians(scan.tilt_deg))) * (grid.shape[1] - 1) * grid.spacing_mm[1] / 2
    more = math.ceil((lean_mm + max(scan.thickness_mm - step, 0.0) / 2) / step - 1e-6)
    if parts == 1 and more == 0:
        return grid
    x, y, z = grid.origin_mm
    slices = (grid.shape[2] - 1) * parts + 1 + 2 * more
    return Grid((*grid.shape[:2], slices), (*grid.spacing_mm[:2], step), (x, y, z - more * step))


def scan_affine(grid: Grid, scan: Scan) -> np.ndarray:
    """(4, 4) voxel index of what `reconstruct` gives -> patient RAS mm; sheared where the gantry is tilted.

    Each slice turns about the horizontal line through its middle."""
    affine = grid.affine
    if scan.tilt_deg:
        lean = math.radians(scan.tilt_deg)
        half_mm = (grid.shape[1] - 1) * grid.spacing_mm[1] / 2
        affine[1:3, 1] = np.array((math.cos(lean), -math.sin(lean))) * grid.spacing_mm[1]
        affine[1, 3] += half_mm * (1 - math.cos(lean))
        affine[2, 3] += half_mm * math.sin(lean)
    return affine


def noise_power(scan: Scan, f_per_mm: np.ndarray, thickness_mm: float) -> np.ndarray:
    """HU^2 mm^2 at each frequency: ramp times kernel squared, by dose, thickness and patient."""
    soft_kernel = KERNELS["soft"]
    dose = REFERENCE_MGY_MM / (scan.ctdi_mgy * thickness_mm)
    size = math.exp(WATER_PER_MM * BOWTIE * (scan.patient_mm - REFERENCE_MM))
    level = REFERENCE_HU**2 * dose * size / _ramp_integral(soft_kernel)
    return level * f_per_mm * np.square(KERNELS[scan.kernel].transfer(f_per_mm))


@cache
def _ramp_integral(kernel: Kernel) -> float:
    f = np.linspace(0, 3, 3001)
    return float(np.sum(2 * np.pi * f * f * np.square(kernel.transfer(f))) * f[1])


def reconstruct(
    hu_IJK: np.ndarray, grid: Grid, scan: Scan, rng: np.random.Generator, out: Grid | None = None
) -> np.ndarray:
    """HU of the body (float32, not changed) -> int16 HU (I, J, K) as the scanner shows them.

    `grid`: where hu_IJK lies. `out`: what is wanted, with the same x and y; `grid` itself where None. What a
    slice needs from above or below `grid` is taken from its last slice: draw on `drawn_grid(out, scan)`.
    The voxels lie at `scan_affine(out, scan)`. On a grid coarser than the scan's own, noise is what averaging
    leaves of it. The same rng state gives the same bytes."""
    out = out or grid
    assert hu_IJK.shape == grid.shape
    assert out.shape[:2] == grid.shape[:2]
    assert out.spacing_mm[:2] == grid.spacing_mm[:2]
    streak_seed = int(rng.integers(2**63))
    maps = _make_maps(hu_IJK, grid, scan)
    table = _table(hu_IJK, grid, scan) if scan.table else None
    transfer, sectors = _filters(out, scan)
    hidden = _hidden(out, scan)
    # slices first: each is written whole, and is one block for the writer of DICOM
    result = np.empty((out.shape[2], *out.shape[:2]), np.int16).transpose(1, 2, 0)
    for k, white in enumerate(_white_slices(rng, out, scan)):
        z_mm = out.origin_mm[2] + k * out.spacing_mm[2]
        plane = _taken(hu_IJK, grid, scan, z_mm)
        if table is not None:
            plane += table[0] * (table[1] - plane)
        sigmas, hardening = maps.at(z_mm)
        plane += hardening
        if plane.max() > METAL_HU:
            plane += _metal_streaks(plane, grid, scan, np.random.default_rng([streak_seed, k]))
        plane = _rimmed(plane, out)
        plane = fft.irfft2(fft.rfft2(plane) * transfer, plane.shape, overwrite_x=True)
        spectrum = fft.rfft2(white)
        for sector, sigma in zip(sectors, sigmas, strict=True):
            plane += fft.irfft2(spectrum * sector, plane.shape, overwrite_x=True) * sigma
        if hidden is not None:
            plane[hidden] = HU_RANGE[0]
        result[:, :, k] = np.rint(np.clip(plane, *HU_RANGE, out=plane), out=plane)
    return result


def _filters(grid: Grid, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """-> transfer of the kernel, and amplitudes of the noise in SECTORS directions; (I, J // 2 + 1)."""
    (rows, columns), (dx, dy) = grid.shape[:2], grid.spacing_mm[:2]
    fx, fy = fft.fftfreq(rows, dx)[:, None], fft.rfftfreq(columns, dy)
    f, direction = np.hypot(fx, fy), np.arctan2(fy, fx)
    amplitude = np.sqrt(noise_power(scan, f, max(scan.thickness_mm, grid.spacing_mm[2])) / (dx * dy))
    sectors = [amplitude * _sector(direction, number) for number in range(SECTORS)]
    return KERNELS[scan.kernel].transfer(f).astype(np.float32), np.array(sectors, np.float32)


def _sector(direction: np.ndarray, number: int) -> np.ndarray:
    """Weight of one of SECTORS directions; together 1."""
    return np.cos(direction - number * np.pi / SECTORS) ** 4 * 8 / (3 * SECTORS)


def _white_slices(rng: np.random.Generator, grid: Grid, scan: Scan) -> Iterator[np.ndarray]:
    """White noise (I, J) of spread 1, slice after slice, alike in neighbours as the slice profile has it."""
    reach = max(scan.thickness_mm, grid.spacing_mm[2]) / grid.spacing_mm[2]
    distances = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
    profile = np.exp(-4 * math.log(2) * np.square(distances / reach)).astype(np.float32)
    profile /= np.sqrt(np.square(profile).sum())
    taken: deque[np.ndarray] = deque(maxlen=len(profile))
    for _ in range(grid.shape[2] + len(profile) - 1):
        taken.append(rng.standard_normal(grid.shape[:2], dtype=np.float32))
        if len(taken) == len(profile):
            mixed = profile[0] * taken[0]
            for weight, slice_ in zip(profile[1:], list(taken)[1:], strict=True):
                mixed += weight * slice_
            yield mixed


def _taken(hu: np.ndarray, grid: Grid, scan: Scan, z_mm: float) -> np.ndarray:
    """One slice (I, J): averaged over its thickness, leaning with the gantry, blurred by motion."""
    plane = _slab(hu, grid, scan, z_mm)
    if not scan.motion_mm:
        return plane
    height = (z_mm - grid.origin_mm[2]) / max((grid.shape[2] - 1) * grid.spacing_mm[2], 1e-3)
    x, y, _ = grid.axes()
    x, y = x[..., 0] - x.mean(), y[..., 0] - y.mean()
    # the diaphragm and what lies upon it, the more the further in front of the spine
    breath = max(0.0, 1 - height / 0.45)
    if breath:
        phase = scan.motion_mm / 2 * math.cos(z_mm / 7.0)
        moved = (_slab(hu, grid, scan, z_mm + phase) + _slab(hu, grid, scan, z_mm - phase)) / 2
        plane += (breath * np.clip((y + 60) / 80, 0, 1)) * (moved - plane)
    # the heart, in the steps of its beats along the table
    beat = math.exp(-(((height - 0.4) / 0.15) ** 2)) * abs(math.sin(z_mm / 9.0))
    if beat > 0.05:
        step = scan.motion_mm / 2 / math.sqrt(2) / np.array(grid.spacing_mm[:2])
        doubled = sum(ndimage.shift(plane, s * step, order=1, mode="nearest") for s in (1, -1)) / 2
        plane += beat * np.exp(-(((x + 25) / 50) ** 2) - ((y - 20) / 45) ** 2) * (doubled - plane)
    return plane


def _slab(hu: np.ndarray, grid: Grid, scan: Scan, z_mm: float) -> np.ndarray:
    parts = max(1, round(scan.thickness_mm / grid.spacing_mm[2]))
    offsets_mm = (np.arange(parts) - (parts - 1) / 2) * scan.thickness_mm / parts
    heights = (z_mm + offsets_mm - grid.origin_mm[2]) / grid.spacing_mm[2]
    if scan.tilt_deg:
        return _leaning(hu, grid, scan, heights)
    weights = np.zeros(hu.shape[2], np.float32)
    for at, share in _between(heights, hu.shape[2]):
        np.add.at(weights, at, share / parts)
    (used,) = np.nonzero(weights > 1e-4)
    plane = hu[:, :, used[0]] * weights[used[0]]
    for k in used[1:]:
        plane += hu[:, :, k] * weights[k]
    return plane


def _leaning(hu: np.ndarray, grid: Grid, scan: Scan, heights: np.ndarray) -> np.ndarray:
    lean, columns = math.radians(scan.tilt_deg), hu.shape[1]
    from_middle = np.arange(columns) - (columns - 1) / 2
    fronts = (columns - 1) / 2 + from_middle * math.cos(lean)
    rises = -from_middle * math.sin(lean) * grid.spacing_mm[1] / grid.spacing_mm[2]
    plane = np.zeros(hu.shape[:2], np.float32)
    for height in heights:
        for j, of_front in _between(fronts, columns):
            for k, of_height in _between(height + rises, hu.shape[2]):
                plane += hu[:, j, k] * (of_front * of_height / len(heights)).astype(np.float32)
    return plane


def _between(at: np.ndarray, n: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Linear interpolation at fractional indices: the index below and above, each with its share."""
    low = np.floor(at + 1e-6).astype(int)
    share = np.clip(at - low, 0, 1)
    return (np.clip(low, 0, n - 1), 1 - share), (np.clip(low + 1, 0, n - 1), share)


def _table(hu: np.ndarray, grid: Grid, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """-> how much of each voxel (I, J) is table, and its HU. It lies under whatever tissue there is."""
    every = max(1, round(MAP_SLICE_MM / grid.spacing_mm[2]))
    tissue = (hu[:, :, ::every] > -300).any(axis=2)
    behind = ~np.logical_or.accumulate(tissue, axis=1)
    x, y, _ = grid.axes()
    x, y = x[..., 0], y[..., 0]
    near = tissue & (np.abs(x) < 150)
    back = float(y[0, int(near.any(axis=0).argmax())]) if near.any() else float(y.min()) + 60.0
    if scan.table == "curved":
        inner = y - (back - 5.0 + 0.0011 * np.square(x))
        shell = np.maximum(np.abs(inner + 16) - 16, np.abs(x) - 205)
    else:
        inner = y - (back - 7.0 + 1.2e-6 * np.abs(x) ** 3)
        shell = np.maximum(np.abs(inner + 24) - 24, np.abs(x) - 230)
    edge = float(grid.spacing_mm[0])
    filled = soft(shell, edge) * behind
    skin = soft(np.abs(shell) - 1.1, edge)
    return filled.astype(np.float32), (-920.0 + skin * 560.0).astype(np.float32)


def _rimmed(plane: np.ndarray, grid: Grid) -> np.ndarray:
    """Tissue that is cut off by the circle that is measured brightens its rim."""
    if _furthest_mm(grid) <= MEASURED_MM / 2:
        return plane
    inside = MEASURED_MM / 2 - _from_axis(grid)
    plane += (plane > -300) * 140 * np.exp(-np.maximum(inside, 0) / 9)
    return np.where(inside < 0, np.float32(HU_RANGE[0]), plane)


def _hidden(grid: Grid, scan: Scan) -> np.ndarray | None:
    """Voxels (I, J) that are not shown."""
    hidden = np.zeros(grid.shape[:2], bool)
    if _furthest_mm(grid) > MEASURED_MM / 2:
        hidden |= _from_axis(grid) > MEASURED_MM / 2
    if scan.circular:
        hidden |= outside_circle(grid)
    return hidden if hidden.any() else None


def outside_circle(grid: Grid) -> np.ndarray:
    """Voxels (I, J) outside the circle that fits into the longer side of the field of view."""
    x, y, _ = grid.axes()
    radius = max(n * s for n, s in zip(grid.shape[:2], grid.spacing_mm[:2], strict=True)) / 2
    return (np.hypot(x - x.mean(), y - y.mean()) > radius)[..., 0]


def _from_axis(grid: Grid) -> np.ndarray:
    x, y, _ = grid.axes()
    return np.hypot(x, y)[..., 0]


def _furthest_mm(grid: Grid) -> float:
    x, y, _ = grid.axes()
    return math.hypot(float(np.abs(x).max()), float(np.abs(y).max()))


@dataclass(frozen=True, slots=True)
class _Maps:
    """On a coarse grid: noise relative to the scan's own in each sector, and the hardening by bone, HU."""

    fields: np.ndarray
    """(K, SECTORS + 1, I, J)"""
    low_mm: float
    step_mm: float
    up: tuple[np.ndarray, np.ndarray]
    """Coarse to fine along I and J."""

    def at(self, z_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """-> (SECTORS, I, J) and (I, J) on the fine grid."""
        height = np.array([(z_mm - self.low_mm) / self.step_mm])
        (low, of_low), (high, of_high) = _between(height, len(self.fields))
        coarse = self.fields[low[0]] * np.float32(of_low[0]) + self.fields[high[0]] * np.float32(of_high[0])
        fine = np.matmul(self.up[0] @ coarse, self.up[1].T)
        return fine[:-1], fine[-1]


def _make_maps(hu: np.ndarray, grid: Grid, scan: Scan) -> _Maps:
    every = max(1, round(MAP_SLICE_MM / grid.spacing_mm[2]))
    steps = [max(1, round(MAP_MM / s)) for s in grid.spacing_mm[:2]]
    coarse = _pooled(np.clip(hu[:, :, ::every], -1000, 3000), steps)
    rays = _Rays.over(coarse.shape[:2], [n * s for n, s in zip(steps, grid.spacing_mm[:2], strict=True)])
    fields = [*_relative_noise(coarse, rays, scan), _hardening(coarse, rays)]
    return _Maps(
        np.ascontiguousarray(np.stack(fields).transpose(3, 0, 1, 2), np.float32),
        grid.origin_mm[2],
        every * grid.spacing_mm[2],
        (_stretch(hu.shape[0], steps[0]), _stretch(hu.shape[1], steps[1])),
    )


def _relative_noise(coarse: np.ndarray, rays: _Rays, scan: Scan) -> list[np.ndarray]:
    """sqrt of the mean over the rays through each voxel of how much they were weakened, by sector."""
    columns = (coarse.reshape(-1, coarse.shape[2]) / 1000 + 1) * np.float32(WATER_PER_MM * BOWTIE)
    weakened = rays.project(columns)
    thickest = weakened.max(axis=1).mean(axis=0)
    control = EXPOSURE_CONTROL * (thickest - np.median(thickest))
    weakened -= WATER_PER_MM * BOWTIE * scan.patient_mm + control
    variance = np.exp(np.clip(weakened, -6, 3))
    maps = []
    for number in range(SECTORS):
        weight = _sector(rays.angles, number)
        through = rays.back_project(variance * (weight / weight.sum())[:, None, None])
        maps.append(np.sqrt(through).reshape(coarse.shape))
    return maps


def _hardening(coarse: np.ndarray, rays: _Rays) -> np.ndarray:
    bone = np.maximum(coarse.reshape(-1, coarse.shape[2]) - BONE_HU, 0) * (WATER_PER_MM / 1000)
    crossed = rays.project(bone.astype(np.float32))
    image = rays.filtered_back_project(-HARDENING * np.square(crossed))
    return (image * (1000 / WATER_PER_MM)).reshape(coarse.shape)


def _metal_streaks(plane: np.ndarray, grid: Grid, scan: Scan, rng: np.random.Generator) -> np.ndarray:
    """What beam hardening and starved detectors leave of metal, HU (I, J)."""
    steps = [max(1, round(STREAK_MM / s)) for s in grid.spacing_mm[:2]]
    dense = np.where(plane > METAL_HU, plane, 0)[..., None]
    metal = _pooled(np.minimum(dense, 8000), steps) * np.float32(WATER_PER_MM / 1000)
    body = (_pooled(np.clip(plane, -1000, 1500)[..., None], steps) / 1000 + 1) * np.float32(WATER_PER_MM)
    sizes = tuple(n * s for n, s in zip(steps, grid.spacing_mm[:2], strict=True))
    rays = _rays_for_streaks(metal.shape[:2], sizes)
    crossed = rays.project(metal.reshape(-1, 1))
    weakened = rays.project(body.reshape(-1, 1))
    missing = METAL_SATURATION * (1 - np.exp(-crossed / METAL_SATURATION)) - crossed
    # against what the exposure was set for
    starved = np.exp(np.clip((weakened - WATER_PER_MM * scan.patient_mm) / 2, -1.5, 1.0))
    dose = math.sqrt(REFERENCE_MGY_MM / (scan.ctdi_mgy * scan.thickness_mm))
    noise = 0.012 * dose * np.expm1(np.minimum(crossed, 5) / 1.5) * starved
    missing += noise * rng.standard_normal(crossed.shape, dtype=np.float32)
    image = rays.filtered_back_project(missing).reshape(metal.shape[:2]) * (1000 / WATER_PER_MM)
    fine = (
        _stretch(plane.shape[0], steps[0]) @ image.astype(np.float32) @ _stretch(plane.shape[1], steps[1]).T
    )
    return np.clip(fine, -900, 900)


@cache
def _rays_for_streaks(shape: tuple[int, int], sizes_mm: tuple[float, float]) -> _Rays:
    return _Rays.over(shape, sizes_mm, STREAK_ANGLES)


def _pooled(volume: np.ndarray, steps: list[int]) -> np.ndarray:
    """Means over blocks of voxels along I and J; the last block may be smaller."""
    for axis, step in enumerate(steps):
        starts = np.arange(0, volume.shape[axis], step)
        counts = np.diff(np.append(starts, volume.shape[axis])).astype(np.float32)
        volume = np.add.reduceat(volume, starts, axis=axis)
        volume /= counts.reshape([-1 if a == axis else 1 for a in range(volume.ndim)])
    return volume.astype(np.float32)


def _stretch(n: int, step: int) -> np.ndarray:
    """(n, blocks) that interpolates between the means of blocks of `step` voxels."""
    blocks = math.ceil(n / step)
    matrix = np.zeros((n, blocks), np.float32)
    for at, share in _between((np.arange(n) + 0.5) / step - 0.5, blocks):
        np.add.at(matrix, (np.arange(n), at), share)
    return matrix


@dataclass(frozen=True)
class _Rays:
    """Parallel rays through an image: a sparse matrix, so that many slices are projected at once."""

    matrix: sparse.csr_matrix
    """(A * B, I * J), in mm."""
    angles: np.ndarray
    """(A,) of the detector, radians; rays run across it."""
    bin_mm: float
    pixel_mm2: float

    @classmethod
    def over(cls, shape, sizes_mm, number: int = MAP_ANGLES) -> _Rays:
        (rows, columns), (dx, dy) = shape, sizes_mm
        bin_mm = float(max(dx, dy))
        bins = math.ceil(math.hypot(rows * dx, columns * dy) / bin_mm) + 3
        angles = np.arange(number) * np.pi / number
        x = ((np.arange(rows) - (rows - 1) / 2) * dx)[:, None]
        y = (np.arange(columns) - (columns - 1) / 2) * dy
        at = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
        at = (at / bin_mm + (bins - 1) / 2).reshape(number, -1)
        low = np.floor(at).astype(np.int32)
        share = (at - low).astype(np.float32)
        row = (low + (np.arange(number, dtype=np.int32) * bins)[:, None]).ravel()
        column = np.tile(np.arange(rows * columns, dtype=np.int32), number)
        values = np.concatenate([1 - share.ravel(), share.ravel()]) * np.float32(dx * dy / bin_mm)
        places = (np.concatenate([row, row + 1]), np.concatenate([column, column]))
        matrix = sparse.csr_matrix((values, places), (number * bins, rows * columns))
        return cls(matrix, angles, bin_mm, float(dx * dy))

    def project(self, image: np.ndarray) -> np.ndarray:
        """(I * J, K) per mm -> line integrals (A, B, K)."""
        return (self.matrix @ image).reshape(len(self.angles), -1, image.shape[1])

    def back_project(self, rays: np.ndarray) -> np.ndarray:
        """(A, B, K) -> sum of the rays through each pixel (I * J, K)."""
        flat = rays.reshape(-1, rays.shape[2]).astype(np.float32)
        return (self.matrix.T @ flat) * np.float32(self.bin_mm / self.pixel_mm2)

    def filtered_back_project(self, rays: np.ndarray) -> np.ndarray:
        """Line integrals (A, B, K) -> image (I * J, K) per mm."""
        size = fft.next_fast_len(2 * rays.shape[1], real=True)
        ramp = fft.rfftfreq(size, self.bin_mm).astype(np.float32)[:, None]
        filtered = fft.irfft(fft.rfft(rays, size, axis=1) * ramp, size, axis=1)[:, : rays.shape[1]]
        return self.back_project(filtered) * np.float32(np.pi / len(self.angles))
