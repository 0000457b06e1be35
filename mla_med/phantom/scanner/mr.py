"""Tissues of a head -> the image of one sequence as an MR scanner shows it: coils, slices, motion, noise.

Magnitudes have Rician noise (Gudbjartsson & Patz, Magn Reson Med 1995;34:910). Knows maps and mm; knows no
anatomy, no lesions and no DICOM.
"""

# I, J, K voxels to the right, to the front, up, whatever the plane: the slices of a scan are stacked along
# K (axial), J (coronal) or I (sagittal), and the grid's spacing along that axis is their distance

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import fft, ndimage

from mla_med.errors import ConfigError
from mla_med.phantom.head.tissues import Tissues
from mla_med.phantom.lattice import Field, Lattice
from mla_med.phantom.scanner.makers import MR
from mla_med.phantom.scanner.makers.form import Times
from mla_med.phantom.scanner.mr_signal import signal, white_signal
from mla_med.phantom.shapes import Grid

__all__ = ["KINDS", "SEQUENCES", "MrScan", "MrSite", "acquire", "random_mr_scan", "signal", "white_signal"]

SEQUENCES = ("T1", "T2", "FLAIR", "DWI", "SWI", "T1 contrast")
"""The channels of a training array."""
KINDS = ("T1", "T2", "FLAIR", "DWI", "ADC", "SWI", "T1 contrast")
"""What can be acquired: keys of the makers' pulses."""
SLICE_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}

WHITE = 400.0
"""What white matter is scaled to, before gain and coils; ADC maps are in 1e-6 mm^2/s."""


@dataclass(frozen=True, slots=True)
class MrScan:
    """How one sequence of a patient was taken."""

    sequence: str
    """One of KINDS."""
    times: Times
    maker: str = "siemens"
    """A key of makers.MR."""
    tesla: float = 3.0
    plane: str = "axial"
    """axial, coronal or sagittal."""
    matrix: int = 448
    """Rows and columns."""
    pixel_mm: float = 0.5
    thickness_mm: float = 4.0
    distance_mm: float = 4.4
    """From slice to slice: thickness and gap."""
    slices: int = 32
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Middle of the stack."""
    snr: float = 60.0
    """Signal of white matter over the noise of one channel, in a voxel of this scan."""
    bias: float = 0.12
    """Spread of the logarithm of the coils' sensitivity."""
    bias_seed: int = 0
    """The series of one examination share coils, and so this."""
    motion_mm: float = 0.0
    resolution: float = 0.85
    """Share of the matrix that was measured; the rest is filled with zeros."""
    distortion_mm: float = 0.0
    """Largest shift of echo planar images near air."""
    b_s_per_mm2: float = 1000.0
    gain: float = 1.0

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Along I, J and K."""
        return _by_axis(self.plane, self.pixel_mm, self.distance_mm)

    @property
    def gap_mm(self) -> float:
        return self.distance_mm - self.thickness_mm

    @property
    def shape(self) -> tuple[int, int, int]:
        return _by_axis(self.plane, self.matrix, self.slices)


def _by_axis(plane: str, within, across) -> Any:
    out = [within] * 3
    out[SLICE_AXIS[plane]] = across
    return tuple(out)


@dataclass(frozen=True, slots=True)
class MrSite:
    """What a hospital's scanner and its habits are: from this, `random_mr_scan` draws."""

    maker: str
    """A key of makers.MR."""
    tesla: float
    thickness_mm: tuple[tuple[float, float, float], ...]
    """Of 2D sequences: (thickness, gap, odds)."""
    snr: tuple[float, float]
    """Of T2; other sequences have a share of it."""
    bias: tuple[float, float]
    motion_odds: float
    motion_mm: float
    """Largest."""
    matrix: int
    fov_mm: tuple[float, float]
    distortion_mm: float
    volume_t1: bool = True
    """T1 as a 3D sequence; otherwise as 2D spin echoes in thick slices."""


MR_SITE_A = MrSite(
    maker="siemens",
    tesla=3.0,
    thickness_mm=((3.0, 0.3, 0.35), (4.0, 0.4, 0.65)),
    snr=(60, 100),
    bias=(0.08, 0.20),
    motion_odds=0.12,
    motion_mm=1.5,
    matrix=448,
    fov_mm=(220, 235),
    distortion_mm=3.5,
)
"""3 T, thin slices, little noise."""

MR_SITE_B = MrSite(
    maker="philips",
    tesla=1.5,
    thickness_mm=((5.0, 1.0, 0.7), (6.0, 1.2, 0.3)),
    snr=(22, 40),
    bias=(0.15, 0.38),
    motion_odds=0.35,
    motion_mm=3.0,
    matrix=320,
    fov_mm=(225, 250),
    distortion_mm=2.5,
    volume_t1=False,
)
"""1.5 T, thick slices, noisier, uneven coils, patients who move."""

_SPIN_ECHO_T1 = Times(500, 10, 90)
_SHARE_OF_SNR = {"T1": 0.7, "T1 contrast": 0.7, "T2": 1.0, "FLAIR": 0.75, "DWI": 0.4, "ADC": 0.4, "SWI": 0.5}


def random_mr_scan(rng: np.random.Generator, site: MrSite, sequence: str = "T2") -> MrScan:
    """A scan of this sequence as the technicians of the site vary it."""
    if sequence not in KINDS:
        raise ConfigError(
            f"No sequence '{sequence}'; there are: {', '.join(KINDS)}.", code="SEQUENCE_UNKNOWN"
        )
    odds = np.array([o for _, _, o in site.thickness_mm])
    thickness, gap, _ = site.thickness_mm[int(rng.choice(len(odds), p=odds / odds.sum()))]
    fov = float(rng.uniform(*site.fov_mm))
    snr = float(rng.uniform(*site.snr)) * _SHARE_OF_SNR[sequence]
    moved = rng.random() < site.motion_odds
    motion = round(float(rng.uniform(0.3, 1)) * site.motion_mm, 2) if moved else 0.0
    x, y, z = (float(v) for v in rng.normal(0, (2.0, 3.0, 3.0)).round(1))
    times = MR[site.maker].pulses[sequence].times
    scan = MrScan(
        sequence=sequence,
        times=times,
        maker=site.maker,
        tesla=site.tesla,
        matrix=site.matrix,
        pixel_mm=round(fov / site.matrix, 4),
        thickness_mm=thickness,
        distance_mm=round(thickness + gap, 2),
        slices=math.ceil(150 / (thickness + gap)),
        centre_mm=(x, y, z + 10),
        snr=round(snr, 1),
        bias=round(float(rng.uniform(*site.bias)), 3),
        bias_seed=int(rng.integers(2**31)),
        motion_mm=motion,
        gain=round(float(rng.uniform(0.7, 1.4)), 3),
    )
    if sequence in ("T1", "T1 contrast"):
        if site.volume_t1:
            return replace(
                scan,
                plane="sagittal",
                matrix=256,
                pixel_mm=1.0,
                thickness_mm=1.0,
                distance_mm=1.0,
                slices=176,
                centre_mm=(x, y, z),
                resolution=1.0,
            )
        return replace(scan, times=_SPIN_ECHO_T1)
    if sequence in ("DWI", "ADC"):
        return replace(
            scan,
            matrix=256,
            pixel_mm=round(fov / 256, 4),
            resolution=0.6,
            distortion_mm=round(float(rng.uniform(0.4, 1)) * site.distortion_mm, 2),
            motion_mm=0.0,
        )
    if sequence == "SWI":
        return replace(scan, thickness_mm=2.0, distance_mm=2.0, slices=72)
    return scan


def scan_grid(head: Any, scan: MrScan) -> Grid:
    """The voxels of a series, in patient mm. `head` is what is examined; the stack lies around the middle of
    its brain. The slices are stacked along SLICE_AXIS[scan.plane]; grid.affine holds for all planes."""
    middle = head.to_patient([(0.0, -18.0, 8.0)], False)[0]
    flat = Grid.centred(scan.shape, scan.spacing_mm)
    x, y, z = (float(o + c + m) for o, c, m in zip(flat.origin_mm, scan.centre_mm, middle, strict=True))
    return Grid(flat.shape, flat.spacing_mm, (x, y, z))


def drawn_grid(grid: Grid, scan: MrScan) -> Grid:
    """Where to draw the tissues so that `acquire` can fill `grid`: several thin slices for each thick one."""
    axis = SLICE_AXIS[scan.plane]
    parts = math.ceil(grid.spacing_mm[axis] / 2.2)
    if parts == 1:
        return grid
    shape, spacing, origin = list(grid.shape), list(grid.spacing_mm), list(grid.origin_mm)
    shape[axis] *= parts
    spacing[axis] /= parts
    origin[axis] -= spacing[axis] * (parts - 1) / 2
    (a, b, c), (d, e, f), (g, h, i) = shape, spacing, origin
    return Grid((a, b, c), (d, e, f), (g, h, i))


def acquire(
    tissues: Tissues, grid: Grid, sequence: str, scan: MrScan, rng: np.random.Generator
) -> np.ndarray:
    """Maps on `grid`, or on `drawn_grid(grid, scan)` -> float32 signal (I, J, K) of that sequence, >= 0.

    White matter is near WHITE times scan.gain (on diffusion, at b = 1000); ADC maps are in 1e-6 mm^2/s. On a
    grid that is not the scan's own, slices are as thick and noise is as strong as the scan has it. The same
    rng state gives the same values."""
    if sequence == "ADC":
        return _adc_map(tissues, grid, scan, rng)
    times = scan.times
    clean = signal(tissues, sequence, times, scan.tesla, scan.b_s_per_mm2)
    # images of several b-values share their scale
    scale = np.float32(WHITE * scan.gain / white_signal(sequence, times, scan.tesla))
    clean *= scale
    return _measured(clean, tissues, grid, scan, rng, WHITE * scan.gain / scan.snr)


def _measured(
    clean: np.ndarray, tissues: Tissues, grid: Grid, scan: MrScan, rng: np.random.Generator, sigma: float
) -> np.ndarray:
    """What coils, gradients and noise make of a signal."""
    if scan.distortion_mm:
        clean = _distorted(clean, tissues, scan.distortion_mm)
    out = _slices(clean, tissues.grid, grid, scan)
    out = _in_plane(out, grid, scan)
    out *= _coils(grid, scan)
    if scan.motion_mm:
        out = _ghosts(out, grid, scan, rng)
    # noise falls with the volume of a voxel
    volume = float(np.prod(grid.spacing_mm)) / float(np.prod(scan.spacing_mm))
    spread = np.float32(sigma / math.sqrt(max(volume, 0.05)))
    out += rng.standard_normal(grid.shape, dtype=np.float32) * spread
    imaginary = rng.standard_normal(grid.shape, dtype=np.float32) * spread
    return np.hypot(out, imaginary, out=out)


def _adc_map(tissues: Tissues, grid: Grid, scan: MrScan, rng: np.random.Generator) -> np.ndarray:
    """Two noisy images -> the map a scanner calculates; 0 where there is no signal."""
    scale = np.float32(WHITE / white_signal("DWI", scan.times, scan.tesla, scan.b_s_per_mm2))
    sigma = WHITE / scan.snr
    quiet = replace(scan, motion_mm=0.0)
    images = []
    for b in (0.0, scan.b_s_per_mm2):
        clean = signal(tissues, "DWI", scan.times, scan.tesla, b) * scale
        # several directions and averages stand behind a map
        images.append(_measured(clean, tissues, grid, quiet, rng, sigma / 2))
    plain, weighted = images
    adc = np.log(np.maximum(plain, 1) / np.maximum(weighted, 1)) * np.float32(1e6 / scan.b_s_per_mm2)
    adc[plain < WHITE * 0.6] = 0
    return np.clip(adc, 0, 4000)


def _slices(clean: np.ndarray, drawn: Grid, grid: Grid, scan: MrScan) -> np.ndarray:
    """Averages thin slices over the thickness of a slice."""
    axis = SLICE_AXIS[scan.plane]
    parts = round(grid.spacing_mm[axis] / drawn.spacing_mm[axis])
    assert drawn.shape[axis] == parts * grid.shape[axis]
    if parts == 1:
        width = scan.thickness_mm / grid.spacing_mm[axis]
        if width <= 1.2:
            return clean
        # an odd window with broken ends
        reach = math.ceil((width - 1) / 2)
        weights = np.ones(2 * reach + 1)
        weights[[0, -1]] = (width - (2 * reach - 1)) / 2
        return ndimage.correlate1d(clean, weights / weights.sum(), axis=axis, mode="nearest")
    moved = np.moveaxis(clean, axis, 0)
    used = [
        p for p in range(parts) if abs(p - (parts - 1) / 2) * drawn.spacing_mm[axis] < scan.thickness_mm / 2
    ]
    out = moved[used[0] :: parts].copy()
    for p in used[1:]:
        out += moved[p::parts]
    out /= np.float32(len(used))
    return np.moveaxis(out, 0, axis)


def _in_plane(values: np.ndarray, grid: Grid, scan: MrScan) -> np.ndarray:
    """Only a part of k-space was measured: edges ring a little. On coarser grids nothing is left of that."""
    pixel = scan.pixel_mm / max(scan.resolution, 0.1)
    axis = SLICE_AXIS[scan.plane]
    axes = tuple(a for a in range(3) if a != axis)
    if grid.spacing_mm[axes[0]] >= pixel * 0.98:
        return values
    filters = []
    for a in axes:
        n = values.shape[a]
        f = fft.fftfreq(n, grid.spacing_mm[a]) if a == axes[0] else fft.rfftfreq(n, grid.spacing_mm[a])
        filters.append(1 / (1 + np.exp((np.abs(f) - 0.5 / pixel) / (0.045 / pixel))))
    transfer = (filters[0][:, None] * filters[1][None, :]).astype(np.float32)
    moved = np.moveaxis(values, axis, 0)
    out = np.empty(moved.shape, np.float32)
    for k in range(moved.shape[0]):
        plane = fft.irfft2(fft.rfft2(moved[k]) * transfer, moved[k].shape, overwrite_x=True)
        np.abs(plane, out=out[k])
    return np.moveaxis(out, 0, axis)


def _coils(grid: Grid, scan: MrScan) -> np.ndarray:
    """Sensitivity of the receiving coils, smooth, near 1 in the middle of the head."""
    rng = np.random.default_rng([scan.bias_seed, 401])
    x, y, z = (c / np.float32(100) for c in grid.axes())
    c = rng.normal(0, 1, 9).astype(np.float32)
    # coils lie around the head: nearer is brighter
    log = (0.4 + 0.3 * c[0]) * x * x + (0.4 + 0.3 * c[1]) * y * y + 0.3 * c[2] * z * z
    log = log + 0.5 * c[3] * x + 0.7 * c[4] * y + 0.7 * c[5] * z
    log = log + 0.6 * c[6] * x * y + 0.6 * c[7] * y * z + 0.4 * c[8] * x * z
    return np.exp(np.float32(scan.bias) * log)


def _ghosts(values: np.ndarray, grid: Grid, scan: MrScan, rng: np.random.Generator) -> np.ndarray:
    """Motion: a blur, and faint copies along the phase encoding direction."""
    axis = 0 if scan.plane != "sagittal" else 1
    blur = 0.35 * scan.motion_mm / grid.spacing_mm[axis]
    out = ndimage.gaussian_filter1d(values, blur, axis=axis) if blur > 0.3 else values.copy()
    n = values.shape[axis]
    strength = 0.022 * scan.motion_mm
    period = int(n / rng.uniform(4, 9))
    for k, share in ((1, 1.0), (2, 0.5)):
        for sign in (1, -1):
            out += np.float32(strength * share) * np.roll(values, sign * k * period, axis=axis)
    return out


def _distorted(clean: np.ndarray, tissues: Tissues, shift_mm: float) -> np.ndarray:
    """Echo planar images are shifted along y near air, and brighter where they are squeezed (Jezzard and
    Balaban, Magn Reson Med 1995;34:65)."""
    grid = tissues.grid
    empty = 1 - np.clip(tissues.pd + tissues.water + tissues.blood, 0, 1)
    # the difference of two blurs is near zero deep in tissue and in air, and large on either side of an edge
    coarse = tuple(max(1, round(4.0 / s)) for s in grid.spacing_mm)
    few = empty[:: coarse[0], :: coarse[1], :: coarse[2]]
    steps = [s * c for s, c in zip(grid.spacing_mm, coarse, strict=True)]
    wide = ndimage.gaussian_filter(few, [16 / s for s in steps]) - ndimage.gaussian_filter(
        few, [30 / s for s in steps]
    )
    wide = wide / max(float(np.abs(wide).max()), 1e-6) * shift_mm / grid.spacing_mm[1]
    lattice = Lattice(Grid(few.shape, (steps[0], steps[1], steps[2]), grid.origin_mm))
    field = Field(lattice, wide.astype(np.float32), (0, 0, 0))
    out = np.empty_like(clean)
    last = grid.shape[1] - 1
    j = np.arange(grid.shape[1], dtype=np.float32)[None, :, None]
    step = max(1, 1_000_000 // (grid.shape[0] * grid.shape[1]))
    for k in range(0, grid.shape[2], step):
        part = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(k, min(k + step, grid.shape[2])))
        shift = field.on(grid, part)
        at = np.clip(j + shift, 0, last - 0.001)
        low = at.astype(np.intp)
        at -= low
        below = np.take_along_axis(clean[part], low, 1)
        below += at * (np.take_along_axis(clean[part], low + 1, 1) - below)
        below *= np.clip(1 + np.gradient(shift, axis=1), 0.4, 2.5)
        out[part] = below
    return out
