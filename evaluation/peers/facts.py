"""Folder -> what its headers say of each series, read with pydicom alone, to explain what readers made of it.

Deliberately not our reader: a mistake there must not become the explanation here. Counts images,
positions, steps and tilt; refuses nothing, chooses nothing, knows no pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

SAME_POSITION_MM = 0.01
PHILIPS_SCALE_SLOPE = 0x2005100E
PARALLEL = 1e-3
"""Two orientations are one if no cosine differs by more."""


@dataclass(frozen=True, slots=True)
class Image:
    """One stored image, or one frame of it. None where the header does not say."""

    file: str
    series_uid: str
    series_number: int | None
    sop_uid: str
    frame: int | None
    modality: str
    rows: int
    columns: int
    samples: int
    mosaic: bool
    orientation: tuple[float, ...] | None
    position_mm: tuple[float, ...] | None
    """Patient coordinates as DICOM has them (LPS), like the orientation."""
    pixel_spacing_mm: tuple[float, ...] | None
    """Between rows, between columns."""
    thickness_mm: float | None
    declared_spacing_mm: float | None
    slope: float | None
    intercept: float | None
    padding: float | None
    """The stored value that means: nothing was measured here."""
    instance_number: int | None
    philips_scale: float | None
    """Philips' scale slope (2005,100E): floating point values are HU-like values over slope times this."""


@dataclass(frozen=True, slots=True)
class SeriesFacts:
    """All images under one SeriesInstanceUID. Slices lie along the normal of the first orientation."""

    series_uid: str
    images: tuple[Image, ...]
    orientations: int
    """How many directions the images have."""
    sizes: int
    """How many different numbers of rows and columns."""
    unique_images: int
    """Images that differ by SOPInstanceUID or frame."""
    positions: int
    """Different places along the normal."""
    steps_mm: tuple[float, ...]
    """Between neighbouring places, along the normal."""
    tilt_deg: float
    """Between the normal and the line from the first place to the last."""
    shift_mm: float
    """By how much each place lies beside the one before, on average: what a tilt costs a box."""

    @property
    def first(self) -> Image:
        return self.images[0]

    @property
    def colour_planes(self) -> frozenset[tuple[int, ...]]:
        """Rows and columns, the smaller first, of the images in colour."""
        return frozenset(tuple(sorted((i.rows, i.columns))) for i in self.images if i.samples > 1)

    @property
    def even(self) -> bool:
        """All steps within 1 % of the median."""
        steps = np.array(self.steps_mm)
        return steps.size == 0 or bool(np.abs(steps / np.median(steps) - 1).max() <= 0.01)

    @property
    def normal_ras(self) -> np.ndarray | None:
        """Of the first image; the others' are the same where `orientations` is 1."""
        if self.first.orientation is None:
            return None
        return _normal(self.first.orientation) * (-1, -1, 1)


def read_facts(folder: Path) -> tuple[SeriesFacts, ...]:
    """By series number, of the files that lie in the folder itself; empty where none is an image."""
    groups: dict[str, list[Image]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        for image in _read_images(path):
            groups.setdefault(image.series_uid, []).append(image)
    facts = [_to_facts(uid, images) for uid, images in groups.items()]
    return tuple(sorted(facts, key=lambda f: (f.first.series_number or 0, f.series_uid)))


def _read_images(path: Path) -> list[Image]:
    with pydicom.config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            return _images(path, dataset) if "Rows" in dataset else []
        # A damaged file explains nothing; what the readers make of it is in their rows.
        except (InvalidDicomError, OSError, ValueError, TypeError, AttributeError, LookupError, EOFError):
            return []


def _images(path: Path, dataset: Dataset) -> list[Image]:
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return [_image(path, dataset, None, (dataset,))]
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    return [
        _image(path, dataset, k, (dataset, *_macros(group), *_macros(shared[0])))
        for k, group in enumerate(groups)
    ]


def _macros(group: Dataset) -> list[Dataset]:
    """The items of every functional group macro (PS3.3 C.7.6.16)."""
    return [element.value[0] for element in group if element.VR == "SQ" and element.value]


def _image(path: Path, dataset: Dataset, frame: int | None, places: Sequence[Dataset]) -> Image:
    # An enhanced object may state a value both on top and for its frame: the frame's holds.
    places = (*places[1:], places[0])

    def numbers(keyword: str | int, count: int) -> tuple[float, ...] | None:
        found = (_numbers(place, keyword, count) for place in places)
        return next((values for values in found if values is not None), None)

    def number(keyword: str | int) -> float | None:
        found = numbers(keyword, 1)
        return found[0] if found else None

    def whole(keyword: str) -> int | None:
        found = number(keyword)
        return None if found is None else int(found)

    return Image(
        file=path.stem,
        series_uid=str(dataset.get("SeriesInstanceUID", "")),
        series_number=whole("SeriesNumber"),
        sop_uid=str(dataset.get("SOPInstanceUID", "")),
        frame=frame,
        modality=str(dataset.get("Modality", "")),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        mosaic="MOSAIC" in [str(word) for word in _list(dataset.get("ImageType"))],
        orientation=numbers("ImageOrientationPatient", 6),
        position_mm=numbers("ImagePositionPatient", 3),
        pixel_spacing_mm=numbers("PixelSpacing", 2),
        thickness_mm=number("SliceThickness"),
        declared_spacing_mm=number("SpacingBetweenSlices"),
        slope=number("RescaleSlope"),
        intercept=number("RescaleIntercept"),
        padding=number("PixelPaddingValue"),
        instance_number=whole("InstanceNumber"),
        philips_scale=number(PHILIPS_SCALE_SLOPE),
    )


def _numbers(place: Dataset, keyword: str | int, count: int) -> tuple[float, ...] | None:
    value: Any = place[keyword].value if keyword in place else None
    try:
        values = tuple(float(v) for v in (value if count > 1 else [value]))
    except (TypeError, ValueError):
        return None
    return values if len(values) == count else None


def _list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value or ())


def _to_facts(uid: str, images: Sequence[Image]) -> SeriesFacts:
    placed = [image for image in images if image.orientation and image.position_mm]
    distances, tilt_deg, shift_mm = _along_normal(placed)
    return SeriesFacts(
        series_uid=uid,
        images=tuple(images),
        orientations=_count_orientations(placed),
        sizes=len({(image.rows, image.columns) for image in images}),
        unique_images=len({(image.sop_uid, image.frame) for image in images}),
        positions=len(distances),
        steps_mm=tuple(np.diff(distances).tolist()),
        tilt_deg=tilt_deg,
        shift_mm=shift_mm,
    )


def _along_normal(placed: Sequence[Image]) -> tuple[np.ndarray, float, float]:
    """Different distances along the normal, ascending; tilt in degrees; shift from place to place in mm."""
    if not placed:
        return np.array([]), 0.0, 0.0
    normal = _normal(placed[0].orientation)
    positions = np.array([image.position_mm for image in placed])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    distances = positions @ normal
    new = np.concatenate([[True], np.diff(distances) > SAME_POSITION_MM])
    distances, positions = distances[new], positions[new]
    line = positions[-1] - positions[0]
    length = float(np.linalg.norm(line))
    if length == 0:
        return distances, 0.0, 0.0
    cosine = float(np.clip(line @ normal / length, -1, 1))
    sideways = float(np.linalg.norm(line - normal * (line @ normal)))
    return distances, float(np.degrees(np.arccos(cosine))), sideways / (len(distances) - 1)


def _normal(orientation: Sequence[float] | None) -> np.ndarray:
    assert orientation is not None
    normal = np.cross(orientation[:3], orientation[3:])
    return np.asarray(normal / (np.linalg.norm(normal) or 1.0))


def _count_orientations(placed: Sequence[Image]) -> int:
    known: list[np.ndarray] = []
    for image in placed:
        orientation = np.array(image.orientation)
        if not any(np.abs(orientation - other).max() <= PARALLEL for other in known):
            known.append(orientation)
    return len(known)
