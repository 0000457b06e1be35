"""`head.py` as tensors: the series of one MR examination -> one tensor, a channel a sequence.

Knows nothing of DICOM, networks or reports.
"""

# C channels (sequences), I J K voxels to the right, to the front, up

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mla_med.imaging import head
from mla_med.imaging.grid import Preprocessing
from mla_med.imaging.head import CLIP as CLIP
from mla_med.imaging.head import inside_head as inside_head
from mla_med.types import Volume


def to_channels(volumes: Mapping[str, Volume], settings: Preprocessing) -> tuple[Tensor, Tensor, Tensor]:
    """Volumes by sequence -> image_CIJK float32, present_C bool, and the affine (4, 4) of the image: voxel
    index -> patient RAS mm. SeriesError where none of the wanted sequences is there, or none shows a head."""
    return _tensors(head.channels_of_volumes(volumes, settings))


def place_images(
    images: Mapping[str, tuple[np.ndarray, np.ndarray]], settings: Preprocessing
) -> tuple[Tensor, Tensor, Tensor]:
    """`to_channels` of plain arrays (I, J, K), each with its affine (4, 4)."""
    return _tensors(head.channels_of(images, settings))


def standardised(image_IJK: Tensor) -> Tensor:
    return torch.from_numpy(head.standardised(image_IJK.numpy()))


def _tensors(arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    image, present, affine = (torch.from_numpy(array) for array in arrays)
    return image, present, affine
