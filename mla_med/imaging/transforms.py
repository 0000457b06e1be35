"""Volume -> tensor: orientation, spacing, crop and intensity channels, as MONAI transforms.

The settings belong to the model and travel in its checkpoint. Knows nothing of networks or reports.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    ConcatItemsd,
    CopyItemsd,
    CropForegroundd,
    EnsureTyped,
    MapTransform,
    NormalizeIntensityd,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    Spacingd,
)
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool3d

from mla_med.types import Modality, Volume

AIR_HU = -1024.0
BODY_HU = -500.0


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a model's input is: the default is chest CT at 3 mm."""

    modality: str = Modality.CT
    shape: tuple[int, int, int] = (128, 96, 112)
    """Voxels to the right, to the front, up (RAS)."""
    spacing_mm: float = 3.0
    windows_hu: tuple[tuple[float, float], ...] = ((-1350.0, 150.0), (-160.0, 240.0), (-500.0, 1300.0))
    """CT: lower and upper HU of each channel (lung, soft tissue, bone)."""
    sequences: tuple[str, ...] = ()
    """MR: the sequence of each channel (roles of dicom/examinations.toml); none: one channel of any."""

    @property
    def channels(self) -> int:
        return len(self.windows_hu) if self.modality == Modality.CT else max(1, len(self.sequences))

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


class SlabAveraged(MapTransform):
    """Averages whole voxels until the spacing is within a factor of two of the target.

    `Spacingd` interpolates between neighbours: from 1 mm to 3 mm it would never look at two of
    three slices. Averaging uses them all, and lowers the noise as it should.
    """

    def __init__(self, keys, spacing_mm: float):
        super().__init__(keys)
        self.spacing_mm = spacing_mm

    def __call__(self, data):
        data = dict(data)
        for key in self.keys:
            image = data[key]
            factors = [max(1, int(self.spacing_mm / s + 1e-3)) for s in image.pixdim.tolist()]
            factors = [min(f, n) for f, n in zip(factors, image.shape[1:], strict=True)]
            if max(factors) > 1:
                data[key] = MetaTensor(
                    mean_of_blocks(image.as_tensor(), factors), affine=image.affine @ _pooled_affine(factors)
                )
        return data


def mean_of_blocks(image_1IJK: Tensor, factors: list[int]) -> Tensor:
    """Each block of `factors` voxels as its mean; what is left over at the end of an axis is dropped. In the
    order of memory: pooling across it takes thirty times as long."""
    order = sorted(range(3), key=lambda axis: -image_1IJK.stride(axis + 1))
    as_stored = image_1IJK.permute(0, *(axis + 1 for axis in order))
    pooled = avg_pool3d(as_stored[None], [factors[axis] for axis in order])[0]
    return pooled.permute(0, *(order.index(axis) + 1 for axis in range(3)))


def place_transform(settings: Preprocessing) -> Compose:
    """-> a MONAI transform of {"image": MetaTensor (1, I, J, K)} to the model's grid, intensities kept."""
    place = [
        EnsureTyped("image", dtype=torch.float32),
        Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        SlabAveraged("image", settings.spacing_mm),
        Spacingd(
            "image", (settings.spacing_mm,) * 3, mode="bilinear", padding_mode="border", dtype=torch.float32
        ),
    ]
    if settings.modality == Modality.MR:
        return Compose([*place, ResizeWithPadOrCropd("image", settings.shape)])
    return Compose(
        [
            *place,
            CropForegroundd("image", source_key="image", select_fn=body_mask, allow_smaller=True),
            ResizeWithPadOrCropd("image", settings.shape, mode="constant", value=AIR_HU),
        ]
    )


def image_transform(settings: Preprocessing) -> Compose:
    """-> a MONAI transform of {"image": MetaTensor (1, I, J, K)} to {"image": (C, I, J, K)}."""
    if settings.modality == Modality.MR:
        channels = [NormalizeIntensityd("image", nonzero=True)]
    else:
        channels = _windows(settings.windows_hu)
    return Compose([place_transform(settings), *channels])


def to_tensor(volume: Volume, settings: Preprocessing) -> tuple[Tensor, Tensor]:
    """-> image_CIJK float32, and its affine (4, 4): voxel index of the result -> patient RAS mm."""
    # the copy is MONAI's to change: a Volume is read-only
    image = MetaTensor(torch.tensor(volume.voxels)[None], affine=torch.tensor(volume.affine))
    image = image_transform(settings)({"image": image})["image"]
    return image.as_tensor().contiguous(), image.affine.to(torch.float32)


def window_channels(hu: Tensor, windows_hu: tuple[tuple[float, float], ...]) -> Tensor:
    """HU (..., I, J, K) -> channels (..., C, I, J, K) in 0 to 1, as `_windows` does in the chain."""
    return torch.stack([((hu - low) / (high - low)).clamp(0, 1) for low, high in windows_hu], dim=-4)


def hu_of(image_CIJK: Tensor, settings: Preprocessing) -> np.ndarray:
    """The HU that the windows were cut from, as far as they reach: each next one where those before it
    are saturated."""
    hu, reached = np.full(image_CIJK.shape[1:], -np.inf, np.float32), -np.inf
    for (low, high), channel in zip(settings.windows_hu, image_CIJK.numpy(), strict=True):
        hu = np.where(hu >= reached, np.maximum(hu, channel * (high - low) + low), hu)
        reached = max(reached, high)
    return hu


def inside_body(hu_IJK: np.ndarray) -> np.ndarray:
    """Tissue and what it encloses in each axial slice: lungs, airways, bowel."""
    return np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(hu_IJK > BODY_HU, 2, 0)], 2)


def body_mask(image: Tensor) -> Tensor:
    """The largest piece of tissue of (1, I, J, K) HU: the patient without the table."""
    tissue = ndimage.binary_erosion(np.asarray(image)[0] > BODY_HU)
    pieces, count = ndimage.label(tissue)
    if count == 0:
        return torch.ones(image.shape, dtype=torch.bool)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return torch.from_numpy(pieces == largest)[None]


def _windows(windows_hu) -> list:
    names = [f"window_{n}" for n in range(len(windows_hu))]
    scale = [
        ScaleIntensityRanged(name, low, high, 0.0, 1.0, clip=True)
        for name, (low, high) in zip(names, windows_hu, strict=True)
    ]
    return [CopyItemsd("image", times=len(names), names=names), *scale, ConcatItemsd(names, name="image")]


def _pooled_affine(factors: list[int]) -> Tensor:
    """Index of a pooled voxel -> index, at its centre, in the voxels that it averages."""
    matrix = torch.diag(torch.tensor([*map(float, factors), 1.0], dtype=torch.float64))
    matrix[:3, 3] = (torch.tensor(factors, dtype=torch.float64) - 1) / 2
    return matrix
