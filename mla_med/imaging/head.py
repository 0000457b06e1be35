"""The series of one MR examination -> one array, a channel a sequence, all on one grid of the head.

Series differ in plane, slice thickness and coverage; what they share is the patient's frame of reference.
The grid is upright (RAS), hangs from the vertex, and is centred on the head. A sequence that was not taken
is a channel of zeros that is said to be absent. Knows nothing of DICOM, networks or reports, and no torch:
`sequences.py` is the same for whoever wants tensors.
"""

# C channels (sequences), I J K voxels to the right, to the front, up

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from mla_med.errors import SeriesError
from mla_med.imaging.fused import mean_of_slabs
from mla_med.imaging.grid import Preprocessing
from mla_med.types import Volume

HEAD_SHARE = 0.12
"""Of the 99th percentile of its values, a voxel has in the head; the noise of air lies far below."""
ABOVE_MM = 6.0
"""Room above the vertex."""
CLIP = (-2.5, 5.0)
"""Standardised values beyond these are fat, vessels and artefacts."""
AIR = -0.9
"""Standardised values below are air, bone or fluid: beside the head there is nothing else."""
LOOK_MM = 4.0
"""The head is looked for on a grid of this spacing."""

Image = tuple[np.ndarray, np.ndarray]
"""Voxels (I, J, K) and their affine (4, 4)."""


def channels_of_volumes(
    volumes: Mapping[str, Volume], settings: Preprocessing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes by sequence -> image_CIJK float32, present_C bool, and the affine (4, 4) of the image: voxel
    index -> patient RAS mm. A sequence that has one value everywhere where the head lies is not present.
    SeriesError where none of the wanted sequences is there, or none shows a head."""
    return channels_of({name: (v.voxels, v.affine) for name, v in volumes.items()}, settings)


def channels_of(
    images: Mapping[str, Image], settings: Preprocessing
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`channels_of_volumes` of plain arrays."""
    found = {name: images[name] for name in settings.sequences if name in images}
    if not found:
        raise SeriesError(
            f"None of the sequences {', '.join(settings.sequences)} is among those given: "
            f"{', '.join(images) or 'none'}. Was the series chosen for another examination?",
            code="NO_SEQUENCE",
        )
    told = {name: image for name, image in found.items() if np.ptp(image[0]) > 0}
    averaged = {name: mean_of_slabs(*image, settings.spacing_mm) for name, image in told.items()}
    low_mm, high_mm = head_box(averaged)
    affine = _affine(low_mm, high_mm, settings)
    channels = np.zeros((len(settings.sequences), *settings.shape), np.float32)
    for number, name in enumerate(settings.sequences):
        if name in averaged:
            channels[number] = standardised(_sampled(averaged[name], affine, settings.shape))
    return channels, np.asarray(channels.any((1, 2, 3))), affine.astype(np.float32)


def standardised(image_IJK: np.ndarray) -> np.ndarray:
    """(x - mean) / deviation over the head, clipped; 0 outside of what was measured. MR has no units: the
    scale of a scanner says nothing."""
    image = np.asarray(image_IJK, np.float32)
    head = image > HEAD_SHARE * _bright(image)
    if not head.any():
        return np.zeros_like(image)
    values = image[head]
    deviation = np.maximum(values.std(ddof=1), np.float32(1e-6))
    return np.where(image == 0, np.float32(0), ((image - values.mean()) / deviation).clip(*CLIP))


def head_box(images: Mapping[str, Image]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner in patient mm of the head, as far as any of the images shows it."""
    corners = [box for image in images.values() if (box := _foreground(*image)) is not None]
    if not corners:
        raise SeriesError("No voxel stands out from the others in any sequence.", code="NO_HEAD")
    return np.min([low for low, _ in corners], axis=0), np.max([high for _, high in corners], axis=0)


def inside_head(image_CIJK: Any) -> np.ndarray:
    """Voxels (I, J, K) of a placed examination that any sequence shows above the noise of air, and what
    they enclose in each axial slice. An array, or a tensor of the CPU."""
    # air lies well below the mean of the head in every sequence; 0 is what was not measured
    image_CIJK = np.asarray(image_CIJK)
    bright = ((image_CIJK > AIR) & (image_CIJK != 0)).any(0)
    opened = ndimage.binary_opening(bright)
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(opened, 2, 0)], 2)


def _foreground(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The box of the largest bright piece of one image."""
    steps = [max(1, round(LOOK_MM / s)) for s in np.linalg.norm(affine[:3, :3], axis=0)]
    values = values[:: steps[0], :: steps[1], :: steps[2]]
    bright = ndimage.uniform_filter(values, 3) > HEAD_SHARE * _bright(values)
    pieces, count = ndimage.label(bright)
    if count == 0:
        return None
    largest = np.argwhere(pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:])))
    ends = np.array([largest.min(0), largest.max(0)])
    corners = np.array(np.meshgrid(*ends.T)).reshape(3, -1) * np.array(steps)[:, None]
    points = affine[:3, :3] @ corners + affine[:3, 3:]
    return points.min(1), points.max(1)


def _bright(values: np.ndarray) -> float:
    return float(np.percentile(values, 99))


def _affine(low_mm: np.ndarray, high_mm: np.ndarray, settings: Preprocessing) -> np.ndarray:
    """The grid hangs from the vertex: a series may reach down to the neck or end above the skull base."""
    extent_mm = (np.array(settings.shape) - 1) * settings.spacing_mm
    first = (low_mm + high_mm) / 2 - extent_mm / 2
    first[2] = high_mm[2] + ABOVE_MM - extent_mm[2]
    affine = np.diag([settings.spacing_mm] * 3 + [1.0])
    affine[:3, 3] = first
    return affine


def _sampled(image: Image, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Trilinear; 0 where nothing was measured."""
    values, own = image
    to_voxel = np.linalg.inv(own.astype(float)) @ affine
    return ndimage.affine_transform(
        values, to_voxel[:3, :3], to_voxel[:3, 3], shape, order=1, mode="grid-constant"
    )
