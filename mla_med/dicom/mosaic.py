"""A mosaic, one MR image with many slices side by side -> the place of each slice in the patient.

Siemens tiles them with its CSA header as the only description, United Imaging with a private sequence.
Knows those two; what they do not describe stays one image, and is refused as MOSAIC later.
"""

from __future__ import annotations

import math
import warnings
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset

_SIEMENS_TAGS = [0x00190010, 0x0019100A, 0x00290010, 0x00290011, 0x00291010, 0x00291110]
_UIH_FRAMES = 0x00651051
MAX_TILES = 4096


def slice_positions(
    file: BinaryIO, header: dict, orientation: tuple[float, ...], position_mm: tuple[float, ...]
) -> list[tuple[float, ...]]:
    """Patient coordinates (LPS, mm) of the first voxel of each slice, in the order of the tiles.

    `header`: rows, columns and row_column_spacing_mm of the mosaic. Empty where it is not described.
    Siemens gives the corner of the whole mosaic, as if it were one slice about the same centre.
    """
    file.seek(0)
    dataset = pydicom.dcmread(
        file, stop_before_pixels=True, specific_tags=[*_SIEMENS_TAGS, "SpacingBetweenSlices", _UIH_FRAMES]
    )
    if frames := dataset.get(_UIH_FRAMES):
        positions = [item.get("ImagePositionPatient") for item in frames.value]
        return [tuple(map(float, p)) for p in positions if p is not None] if all(positions) else []
    return _siemens(dataset, header, np.array(orientation), np.array(position_mm))


def tile_side(tiles: int) -> int:
    """Tiles along one edge of the smallest square that holds them."""
    return math.isqrt(tiles - 1) + 1 if tiles > 0 else 1


def _siemens(
    dataset: Dataset, header: dict, orientation: np.ndarray, corner_mm: np.ndarray
) -> list[tuple[float, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its readers experimental
        from nibabel.nicom.csareader import CSAReadError, get_csa_header, get_n_mosaic, get_slice_normal

        try:
            csa = get_csa_header(dataset, "image")
        except CSAReadError:
            csa = None
    normal = None if csa is None else get_slice_normal(csa)
    tiles = None if csa is None else get_n_mosaic(csa)
    step_mm = dataset.get("SpacingBetweenSlices")
    if normal is None or not tiles or not step_mm or not 1 < tiles <= MAX_TILES:
        return []
    side = tile_side(int(tiles))
    if header["rows"] % side or header["columns"] % side:
        return []
    row_mm, column_mm = header["row_column_spacing_mm"]
    along_row = orientation[:3] * column_mm * (header["columns"] - header["columns"] // side) / 2
    down_column = orientation[3:] * row_mm * (header["rows"] - header["rows"] // side) / 2
    first = corner_mm + along_row + down_column
    step = np.array(normal, float) / np.linalg.norm(normal) * float(step_mm)
    return [tuple((first + k * step).tolist()) for k in range(int(tiles))]
