"""Two volumes of one series -> how far apart they are, and why, as far as headers and voxels tell.

Both are brought to one frame first, so that another storage order is no difference. Every explanation
is a rule about numbers; none knows a reader, a folder or a scanner by name. Knows no files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from evaluation.peers.facts import SeriesFacts

SAME_VALUE = 1e-3
"""Largest difference of HU or MR units that single precision makes; for large values, SAME_SHARE of them."""
SAME_SHARE = 1e-6
SAME_PLACE_MM = 0.01
"""No corner of the volume lies farther off than this."""
SAME_SPACING_MM = 1e-3
NOTABLE_TILT_DEG = 0.5
SAME_ANGLE_DEG = 0.05
MAX_SAMPLES = 2**16


@dataclass(frozen=True, slots=True)
class Grid:
    """Voxels with three axes in any order, or four where the last is a colour; affine to RAS mm."""

    voxels: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.voxels.shape)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def is_singular(self) -> bool:
        spacing = self.spacing_mm
        volume = abs(np.linalg.det(self.affine[:3, :3])) if np.isfinite(self.affine).all() else 0.0
        return bool(volume <= 1e-6 * max(max(spacing), 1e-9) ** 3)


@dataclass(frozen=True, slots=True)
class Difference:
    """None where the shapes do not allow the comparison."""

    voxel: float | None
    """Largest difference of two voxels, in the unit of the volume."""
    num_voxels: int | None
    """How many differ at all."""
    corner_mm: float | None
    """The farthest that a corner of the volume lies from where the other puts it."""
    affine: float | None
    """Largest difference of two affine elements: mm, or mm per voxel."""
    largest: float = 0.0
    """The largest absolute value, to which rounding is relative."""

    @property
    def same_values(self) -> bool:
        return self.voxel is not None and self.voxel <= max(SAME_VALUE, SAME_SHARE * self.largest)

    @property
    def same_place(self) -> bool:
        return self.corner_mm is not None and self.corner_mm <= SAME_PLACE_MM

    @property
    def none(self) -> bool:
        return self.same_values and self.same_place


@dataclass(frozen=True, slots=True)
class Case:
    """A volume to explain: `other`, in the frame of `target` where there is one to compare with."""

    other: Grid
    target: Grid | None
    difference: Difference | None
    facts: SeriesFacts
    folder: tuple[SeriesFacts, ...]
    """All series of the folder, this one among them."""
    alone: bool = False
    """What it is compared with came from the same reader, so that only the headers can tell."""

    @property
    def slice_axis(self) -> int | None:
        """The voxel axis across the stored slices; if several may be, the one closest to the normal."""
        normal = self.facts.normal_ras
        if normal is None or not np.isfinite(self.other.affine).all():
            return None
        lengths = np.linalg.norm(self.other.affine[:3, :3], axis=0)
        cosines = np.abs(normal @ self.other.affine[:3, :3]) / np.where(lengths > 0, lengths, 1)
        return max(range(3), key=lambda axis: (self._plane(axis) == self.stored_plane, cosines[axis]))

    @property
    def slices(self) -> int | None:
        return None if self.slice_axis is None else self.other.shape[self.slice_axis]

    @property
    def plane(self) -> tuple[int, ...]:
        """The shape of a slice, the smaller number first."""
        return () if self.slice_axis is None else self._plane(self.slice_axis)

    def _plane(self, axis: int) -> tuple[int, ...]:
        return tuple(sorted(n for k, n in enumerate(self.other.shape[:3]) if k != axis))

    @property
    def stored_plane(self) -> tuple[int, ...]:
        return tuple(sorted((self.facts.first.rows, self.facts.first.columns)))

    @property
    def is_mixed(self) -> bool:
        """Images of several sizes, or grey and colour, under one UID: no one geometry to hold it against."""
        return self.facts.sizes > 1 or len({image.samples for image in self.facts.images}) > 1

    @property
    def same_shape(self) -> bool:
        return self.target is not None and self.target.shape == self.other.shape


def to_grids(
    voxels: np.ndarray, affine: np.ndarray, colour_planes: Collection[tuple[int, ...]] = ()
) -> list[Grid]:
    """One grid, or one for each index of a fourth axis, unless that is a colour of images of this size."""
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    while voxels.ndim < 3:
        voxels = voxels[..., None]
    plane = tuple(sorted(voxels.shape[:2]))
    if voxels.ndim == 3 or (plane in colour_planes and {3, 4} & set(voxels.shape[2:])):
        return [Grid(voxels, affine)]
    volumes = voxels.reshape(*voxels.shape[:3], -1, order="F")
    return [Grid(volumes[..., t], affine) for t in range(volumes.shape[-1])]


def to_frame(grid: Grid, target: Grid | None = None) -> Grid:
    """Axes flipped and swapped until they run as those of `target`, or as close to RAS as they can."""
    if grid.is_singular or (target is not None and target.is_singular):
        return grid
    frame = np.eye(4) if target is None else target.affine
    axes = io_orientation(np.linalg.inv(frame) @ grid.affine)
    if np.isnan(axes).any():
        return grid
    moved = apply_orientation(grid.voxels, axes)
    return Grid(moved, grid.affine @ inv_ornt_aff(axes, grid.shape[:3]))


def difference(target: Grid, other: Grid) -> Difference:
    """Of two grids in one frame."""
    if not np.isfinite(other.affine).all():
        return Difference(None, None, None, None)
    affine = float(np.abs(target.affine - other.affine).max())
    if target.shape != other.shape:
        return Difference(None, None, None, affine)
    largest_difference, number, largest = 0.0, 0, 0.0
    for a, b in _pairs_of_slices(target, other):
        gaps = np.abs(a - b)
        # NaN compares as no difference; a voxel that is NaN on one side alone is one.
        gaps[np.isnan(a) & np.isnan(b)] = 0
        gaps[np.isnan(gaps)] = np.inf
        largest_difference = max(largest_difference, float(gaps.max()))
        number += int(np.count_nonzero(gaps))
        largest = max(largest, float(np.nanmax(np.abs(a))))
    return Difference(largest_difference, number, _corner_mm(target, other), affine, largest)


def _pairs_of_slices(target: Grid, other: Grid) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A slice at a time, along the longest stride, so that large volumes stay on disk."""
    axis = int(np.argmax(np.abs(other.voxels.strides[:3])))
    slices = (np.moveaxis(grid.voxels, axis, 0) for grid in (target, other))
    for a, b in zip(*slices, strict=True):
        yield np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)


def _corner_mm(target: Grid, other: Grid) -> float:
    ends = [(0, n - 1) for n in target.shape[:3]]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)]).T
    return float(np.linalg.norm(((target.affine - other.affine) @ corners)[:3], axis=0).max())


def tilt_kept_deg(case: Case) -> float | None:
    """The angle between the slice normal of the header and the way from slice to slice in the volume."""
    axis, normal = case.slice_axis, case.facts.normal_ras
    if axis is None or normal is None or case.other.is_singular:
        return None
    step = case.other.affine[:3, axis]
    return float(np.degrees(np.arccos(np.clip(abs(step @ normal) / np.linalg.norm(step), 0, 1))))


def explain(case: Case) -> tuple[str, ...]:
    """Why `other` differs from `target`, or from what the headers say; empty where it does not."""
    if case.difference is not None and case.difference.none and not case.alone:
        return (_rounding(case),) if _rounding(case) else ()
    rules = (_mixed,) if case.is_mixed else (HEADER_RULES if case.alone else (*HEADER_RULES, *VOXEL_RULES))
    words = tuple(text for text in (rule(case) for rule in rules) if text)
    if not words and case.difference is not None and not case.alone:
        return ("not explained",)
    return words


def _rounding(case: Case) -> str:
    gap = case.difference.voxel if case.difference else 0
    return f"values within {gap:.1g}: single precision" if gap else ""


def _mixed(case: Case) -> str:
    held = f"its UID holds {len(case.facts.images)} images of {case.facts.sizes} sizes, some in colour"
    held = held if case.facts.colour_planes else held.removesuffix(", some in colour")
    return f"{held}; this is {_times(case.other.shape)}"


def _kept_colour(case: Case) -> str:
    if case.facts.first.samples == 1:
        return ""
    return "keeps the colour channels" if len(case.other.shape) > 3 else "colour made grey"


def _unpacked_mosaic(case: Case) -> str:
    if not case.facts.first.mosaic:
        return ""
    if case.plane == case.stored_plane:
        return f"keeps the mosaic tiled: {_times(case.plane)} pixels hold many slices"
    return f"unpacks the mosaic into {case.slices} slices of {_times(case.plane)}"


def _wrong_number_of_slices(case: Case) -> str:
    n, facts = case.slices, case.facts
    images = len(facts.images)
    if n is None or facts.first.mosaic or len(case.other.shape) > 3:
        return ""
    if n == facts.positions == images:
        return ""
    if len(case.folder) > 1 and n == sum(len(f.images) for f in case.folder):
        return f"stacks all {n} images of {len(case.folder)} series"
    if facts.orientations > 1:
        return (
            f"stacks images of {facts.orientations} orientations as if parallel"
            if n == images
            else f"holds {n} of {images} images, which have {facts.orientations} orientations"
        )
    if n == 1 and facts.positions == 1 and images > 1:
        return f"one of {images} single slices, all of one position"
    if n == images and facts.positions == 1:
        return f"stacks {n} images of one position side by side"
    if n == images and facts.unique_images == facts.positions:
        return f"keeps {images - facts.unique_images} duplicate images as slices"
    if n == images:
        return f"stacks {images} images of {facts.positions} positions along one axis"
    if n == facts.positions:
        return ""
    if n < facts.positions:
        return f"leaves out {facts.positions - n} of {facts.positions} slices"
    return f"makes {n} slices of {facts.positions} by resampling"


def _changed_plane(case: Case) -> str:
    if case.facts.first.samples > 1 or case.facts.first.mosaic or not case.plane:
        return ""
    if case.plane == case.stored_plane:
        return ""
    if case.facts.tilt_deg > NOTABLE_TILT_DEG:
        return ""  # the rule on tilt says it
    return f"its slices are {_times(case.plane)}, stored are {_times(case.stored_plane)}"


def _changed_tilt(case: Case) -> str:
    facts, kept = case.facts, tilt_kept_deg(case)
    if facts.tilt_deg <= NOTABLE_TILT_DEG or facts.orientations > 1 or kept is None:
        return ""
    if abs(kept - facts.tilt_deg) <= NOTABLE_TILT_DEG:
        return ""
    if case.plane != case.stored_plane:
        return f"straightens the tilt of {facts.tilt_deg:.1f} degrees by resampling to {_times(case.plane)}"
    total = facts.shift_mm * (facts.positions - 1)
    return f"loses the tilt of {facts.tilt_deg:.1f} degrees: {total:.1f} mm of shift from first slice to last"


def _changed_step(case: Case) -> str:
    facts, axis, normal = case.facts, case.slice_axis, case.facts.normal_ras
    if axis is None or normal is None or facts.orientations > 1 or not facts.steps_mm:
        return ""
    if _lost_geometry(case):
        return ""
    step = float(abs(case.other.affine[:3, axis] @ normal))
    low, high = min(facts.steps_mm), max(facts.steps_mm)
    if facts.even and abs(step - np.median(facts.steps_mm)) <= SAME_SPACING_MM:
        return ""
    if not facts.even and case.slices not in (None, facts.positions) and case.slices != len(facts.images):
        return f"steps of {low:.3f} to {high:.3f} mm became {step:.3f} mm"
    source = _source_of(step, facts)
    stored = f"{low:.3f}" if high - low <= SAME_SPACING_MM else f"{low:.3f} to {high:.3f}"
    return f"slice step {step:.3f} mm{source} where positions are {stored} mm apart"


def _source_of(step_mm: float, facts: SeriesFacts) -> str:
    """Which number of the header the step is, if it is one."""
    steps, images = facts.steps_mm, len(facts.images)
    in_order, median = _steps_by_instance_number(facts), float(np.median(steps))
    cosine = float(np.cos(np.radians(facts.tilt_deg))) if facts.tilt_deg > NOTABLE_TILT_DEG else 0.0
    known: tuple[tuple[str, float | None], ...] = (
        ("SpacingBetweenSlices", facts.first.declared_spacing_mm),
        ("SliceThickness", facts.first.thickness_mm),
        ("the mean over first to last", sum(steps) / len(steps)),
        ("the median", median),
        ("the distance along the normal, laid along the tilt", median * cosine),
        ("the mean over all images, repeats counted", sum(steps) / (images - 1) if images > 1 else None),
        ("the first step", steps[0]),
        ("the last step", steps[-1]),
        ("the first step by InstanceNumber", in_order[0] if in_order else None),
        ("the mean by InstanceNumber", sum(in_order) / len(in_order) if in_order else None),
        ("no spacing at all", 1.0),
    )
    names = [name for name, value in known if value and abs(value - step_mm) <= SAME_SPACING_MM]
    return f" ({names[0]})" if names else ""


def _steps_by_instance_number(facts: SeriesFacts) -> list[float]:
    placed = [i for i in facts.images if i.position_mm is not None and i.instance_number is not None]
    if len(placed) < 2 or facts.normal_ras is None:
        return []
    placed.sort(key=lambda image: image.instance_number or 0)
    normal_lps = facts.normal_ras * (-1, -1, 1)
    return np.abs(np.diff([normal_lps @ np.array(image.position_mm) for image in placed])).tolist()


def _lost_geometry(case: Case) -> str:
    if case.other.is_singular:
        return "its affine is singular: an axis has no length"
    spacing = case.facts.first.pixel_spacing_mm
    is_identity = np.allclose(np.sort(np.abs(case.other.affine[:3, :3]).ravel())[-3:], 1) and np.allclose(
        np.abs(case.other.affine[:3, :3]).sum(), 3
    )
    if is_identity and (spacing is None or not np.allclose(spacing, 1)):
        return "its affine holds no geometry, only ones"
    return ""


def _misplaced(case: Case) -> str:
    """Same shape, other place, and neither tilt nor step is the reason."""
    gap = case.difference
    if case.target is None or gap is None or gap.corner_mm is None or gap.same_place:
        return ""
    if _changed_tilt(case) or _changed_step(case) or _lost_geometry(case):
        return ""
    ours, theirs = case.target.affine, case.other.affine
    words = []
    spacings = np.abs(np.array(case.target.spacing_mm) - case.other.spacing_mm)
    if spacings.max() > SAME_SPACING_MM:
        words.append(f"spacing differs by up to {spacings.max():.3f} mm")
    angle = _largest_angle_deg(ours[:3, :3], theirs[:3, :3])
    if angle > SAME_ANGLE_DEG:
        words.append(f"axes are turned by up to {angle:.2f} degrees")
    offset = theirs[:3, 3] - ours[:3, 3]
    if np.abs(offset).max() > SAME_PLACE_MM:
        words.append("origin is off by (" + ", ".join(f"{x:.2f}" for x in offset) + ") mm")
    return ", ".join(words) or f"corners are up to {gap.corner_mm:.3f} mm apart"


def _largest_angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    cosines = (a * b).sum(axis=0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def _reordered(case: Case) -> str:
    """The same slices in another order, or mirrored."""
    if not _values_differ(case):
        return ""
    assert case.target is not None
    a, b = case.target.voxels, case.other.voxels
    for axes in _mirrors(3):
        if _all_close(a, np.flip(b, axes)):
            return "voxels are mirrored along " + " and ".join("IJK"[axis] for axis in axes)
    for axis in range(3):
        order = _order_of_slices(a, b, axis)
        if order is not None and order != list(range(len(order))):
            moved = sum(number != k for k, number in enumerate(order))
            return f"the same slices in another order: {moved} of {len(order)} lie elsewhere"
    return ""


def _values_differ(case: Case) -> bool:
    gap = case.difference
    return case.same_shape and gap is not None and gap.voxel is not None and not gap.same_values


def _mirrors(axes: int) -> Iterator[tuple[int, ...]]:
    for count in range(1, axes + 1):
        yield from itertools.combinations(range(axes), count)


def _all_close(a: np.ndarray, b: np.ndarray) -> bool:
    return all(np.allclose(a[k], b[k], rtol=SAME_SHARE, atol=SAME_VALUE) for k in range(a.shape[0]))


def _order_of_slices(a: np.ndarray, b: np.ndarray, axis: int) -> list[int] | None:
    """Where in `a` each slice of `b` stands, if each stands somewhere exactly once."""
    slices_a, slices_b = (np.moveaxis(v, axis, 0).reshape(v.shape[axis], -1) for v in (a, b))
    every = max(1, slices_a.shape[1] // 997)
    slices_a, slices_b = slices_a[:, ::every], slices_b[:, ::every]
    order = []
    for row in slices_b:
        matches = np.flatnonzero(np.abs(slices_a - row).max(axis=1) <= SAME_VALUE)
        if len(matches) != 1:
            return None
        order.append(int(matches[0]))
    return order if len(set(order)) == len(order) else None


def _scaled(case: Case) -> str:
    """Other values: scaled, not rescaled, rounded, or replaced where nothing was measured."""
    if not _values_differ(case) or _reordered(case):
        return ""
    assert case.target is not None
    ours, theirs = _samples(case.target.voxels), _samples(case.other.voxels)
    replaced = _replaced(case)
    if replaced:
        return replaced
    line = _line_through(ours, theirs)
    if line is not None:
        return _words_of_line(*line, case.facts)
    gap = float(np.abs(ours - theirs).max())
    if gap <= 0.5 and (theirs == np.round(theirs)).all():
        return "values are rounded to whole numbers"
    assert case.difference is not None
    return f"{case.difference.num_voxels} voxels differ, by up to {case.difference.voxel:.4g}"


def _samples(voxels: np.ndarray) -> np.ndarray:
    every = max(1, voxels.size // MAX_SAMPLES)
    return np.asarray(voxels.reshape(-1)[::every], dtype=float)


def _line_through(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """(a, b) with y = a x + b for every sample, within what single precision keeps."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0:
        return None
    a, b = np.polyfit(x, y, 1)
    error = max(SAME_VALUE, 2e-6 * np.abs(y).max())
    if np.abs(a * x + b - y).max() > error or (abs(a - 1) <= SAME_SHARE and abs(b) <= SAME_VALUE):
        return None
    return float(a), float(b) if abs(b) > max(SAME_VALUE, 1e-5 * np.abs(y).max()) else 0.0


def _words_of_line(a: float, b: float, facts: SeriesFacts) -> str:
    for image in (facts.images[0], facts.images[-1]):
        slope, intercept = image.slope or 1.0, image.intercept or 0.0
        rescale = f"slope {slope:g}, intercept {intercept:g}"
        if np.allclose((a * slope, a * intercept + b), (1, 0), rtol=1e-4, atol=SAME_VALUE):
            return f"stored values: the rescale ({rescale}) is not applied"
        if np.allclose((a, b), (slope, intercept), rtol=1e-4, atol=SAME_VALUE):
            return f"rescaled ({rescale}) where the other holds stored values"
        scale = slope * (image.philips_scale or 0.0)
        if scale and np.isclose(a * scale, 1, rtol=1e-5) and not b:
            return f"Philips' floating point values: {a:.6g} times the rescaled ones, by its scale slope"
    return f"values are {a:.6g} times the other's" + (f", plus {b:.6g}" if b else "")


def _replaced(case: Case) -> str:
    """One value stands wherever the two differ."""
    assert case.target is not None
    theirs, others = _values_where_different(case.other, case.target)
    padding = _padding_words(case.facts)
    if theirs.size and np.ptp(theirs) == 0:
        return f"{theirs.size} voxels are {theirs[0]:g} instead of {_range(others)}{padding}"
    if theirs.size and np.ptp(others) == 0:
        return f"{theirs.size} voxels are {_range(theirs)} instead of {others[0]:g}{padding}"
    return ""


def _values_where_different(one: Grid, other: Grid) -> tuple[np.ndarray, np.ndarray]:
    found = [(a[a != b], b[a != b]) for a, b in _pairs_of_slices(one, other)]
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


def _range(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _padding_words(facts: SeriesFacts) -> str:
    first = facts.first
    if first.padding is None:
        return ""
    rescaled = first.padding * (first.slope or 1.0) + (first.intercept or 0.0)
    return f" (PixelPaddingValue {first.padding:g}, {rescaled:g} rescaled)"


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


HEADER_RULES: tuple[Callable[[Case], str], ...] = (
    _kept_colour,
    _unpacked_mosaic,
    _wrong_number_of_slices,
    _changed_plane,
    _changed_tilt,
    _changed_step,
    _lost_geometry,
)
"""What the headers and the shape tell."""
VOXEL_RULES: tuple[Callable[[Case], str], ...] = (_misplaced, _reordered, _scaled)
"""What takes a second volume."""
