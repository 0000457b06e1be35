"""What a model's input is (its grid, its channels), and what can be read back from it, without a network.

Plain arrays: knows neither torch nor MONAI, so that drafting through ONNX needs neither.
"""

# C channels, I J K voxels to the right, to the front, up

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np
from scipy import ndimage

from mla_med.types import Modality

AIR_HU = -1024.0
BODY_HU = -500.0
CHEST_GRID = (128, 96, 112)
"""Voxels of 3 mm."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a model's input is: the default is chest CT at 3 mm."""

    modality: str = Modality.CT
    shape: tuple[int, int, int] = CHEST_GRID
    """Voxels to the right, to the front, up (RAS)."""
    spacing_mm: float = 3.0
    windows_hu: tuple[tuple[float, float], ...] = ((-1350.0, 150.0), (-160.0, 240.0), (-500.0, 1300.0))
    """CT: lower and upper HU of each channel (lung, soft tissue, bone)."""
    sequences: tuple[str, ...] = ()
    """MR: the sequence of each channel (roles of dicom/examinations.toml); none: one channel of any."""

    @property
    def channels(self) -> int:
        return len(self.windows_hu) if self.modality == Modality.CT else max(1, len(self.sequences))

    def at(self, spacing_mm: float) -> Preprocessing:
        """The same region in voxels of another size."""
        i, j, k = (round(n * self.spacing_mm / spacing_mm) for n in self.shape)
        return replace(self, shape=(i, j, k), spacing_mm=float(spacing_mm))

    def at_once(self, most: int) -> int:
        """So many images in a batch, at most `most`, that memory holds no more than `most` chests of 3 mm."""
        return max(1, min(most, most * prod(CHEST_GRID) // prod(self.shape)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        windows = tuple((float(low), float(high)) for low, high in values["windows_hu"])
        shape = tuple(int(n) for n in values["shape"])
        assert len(shape) == 3
        sequences = tuple(map(str, values.get("sequences", ())))
        return cls(str(values["modality"]), shape, float(values["spacing_mm"]), windows, sequences)


CHEST_CT = Preprocessing()
BRAIN_MR = Preprocessing(
    modality=Modality.MR,
    shape=(80, 104, 88),
    spacing_mm=2.0,
    windows_hu=(),
    sequences=("T1", "T2", "FLAIR", "DWI", "SWI", "T1 contrast"),
)
"""Brain MR at 2 mm, from the vertex down to the foramen magnum: see `sequences.py`."""


def hu_of(image_CIJK: Any, settings: Preprocessing) -> np.ndarray:
    """The HU that the windows were cut from, as far as they reach: each next one where those before it
    are saturated. An array, or a tensor of the CPU."""
    hu, reached = np.full(image_CIJK.shape[1:], -np.inf, np.float32), -np.inf
    for (low, high), channel in zip(settings.windows_hu, np.asarray(image_CIJK), strict=True):
        hu = np.where(hu >= reached, np.maximum(hu, channel * (high - low) + low), hu)
        reached = max(reached, high)
    return hu


def inside_body(hu_IJK: np.ndarray) -> np.ndarray:
    """Tissue and what it encloses in each axial slice: lungs, airways, bowel."""
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(hu_IJK > BODY_HU, 2, 0)], 2)


def body_box(hu_IJK: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The box around the largest piece of tissue of an image in HU, the patient without the table; None
    without tissue."""
    order = np.argsort([-stride for stride in hu_IJK.strides], kind="stable")
    # in the order of memory
    tissue = _eroded(hu_IJK.transpose(order) > BODY_HU)
    pieces, count = ndimage.label(tissue)
    if count == 0:
        return None
    # what most of every fourth voxel belongs to is the largest, if it is more than half of all
    likely = _commonest(pieces[::4, ::4, ::4])
    body = pieces == likely
    if likely == 0 or 2 * np.count_nonzero(body) <= np.count_nonzero(tissue):
        body = pieces == _commonest(pieces)
    rows = body.any(2)
    ends = [ends_of(along) for along in (rows.any(1), rows.any(0), body.any((0, 1)))]
    i, j, k = (ends[n] for n in np.argsort(order))
    return i, j, k


def _eroded(mask_IJK: np.ndarray) -> np.ndarray:
    """What is set, and all six neighbours with it; `ndimage.binary_erosion` in a third of its time."""
    eroded = np.zeros_like(mask_IJK)
    inner = eroded[1:-1, 1:-1, 1:-1]
    inner[...] = mask_IJK[1:-1, 1:-1, 1:-1]
    for axis in range(3):
        for neighbour in (slice(None, -2), slice(2, None)):
            at = [slice(1, -1)] * 3
            at[axis] = neighbour
            inner &= mask_IJK[tuple(at)]
    return eroded


def _commonest(pieces: np.ndarray) -> int:
    """The number above 0 that stands in most voxels; 0: there is none."""
    counts = np.bincount(pieces.ravel(), minlength=1)
    counts[0] = 0
    return int(np.argmax(counts))


def ends_of(along: np.ndarray) -> slice:
    """From the first to behind the last that is set."""
    return slice(int(along.argmax()), len(along) - int(along[::-1].argmax()))
