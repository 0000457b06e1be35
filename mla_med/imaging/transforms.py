"""Volume -> tensor: orientation, spacing, crop and intensity channels, as MONAI transforms.

The settings belong to the model and travel in its checkpoint. Knows nothing of networks or reports.
"""

from __future__ import annotations

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
    SpatialCrop,
)
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool3d

from mla_med.imaging.fused import channels_of, place
from mla_med.imaging.grid import AIR_HU as AIR_HU
from mla_med.imaging.grid import BODY_HU as BODY_HU
from mla_med.imaging.grid import BRAIN_MR as BRAIN_MR
from mla_med.imaging.grid import CHEST_CT as CHEST_CT
from mla_med.imaging.grid import Preprocessing as Preprocessing
from mla_med.imaging.grid import hu_of as hu_of
from mla_med.imaging.grid import inside_body as inside_body
from mla_med.imaging.lungs import first_seen
from mla_med.types import Modality, Volume


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


class LungsSeen(MapTransform):
    """Of a body that is larger than the grid, the part around its lungs (imaging/lungs.py)."""

    def __init__(self, keys, settings: Preprocessing):
        super().__init__(keys)
        self.settings = settings

    def __call__(self, data):
        data, shape = dict(data), self.settings.shape
        for key in self.keys:
            first = first_seen(np.asarray(data[key])[0], shape, self.settings.spacing_mm)
            starts = [max(0, n) for n in first]
            ends = [min(a + n, have) for a, n, have in zip(starts, shape, data[key].shape[1:], strict=True)]
            data[key] = SpatialCrop(roi_start=starts, roi_end=ends)(data[key])
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
            LungsSeen("image", settings),
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


class FusedImage(MapTransform):
    """`image_transform` in one pass (imaging/fused.py): what a MONAI pipeline takes in its place."""

    def __init__(self, keys, settings: Preprocessing):
        super().__init__(keys)
        self.settings = settings

    def __call__(self, data):
        data = dict(data)
        for key in self.keys:
            image = data[key]
            placed, affine = place(image.as_tensor()[0].numpy(), image.affine.numpy(), self.settings)
            channels = torch.from_numpy(channels_of(placed, self.settings))
            data[key] = MetaTensor(channels, affine=torch.from_numpy(affine))
        return data


def to_tensor(volume: Volume, settings: Preprocessing) -> tuple[Tensor, Tensor]:
    """-> image_CIJK float32, and its affine (4, 4): voxel index of the result -> patient RAS mm."""
    # the copy is MONAI's to change: a Volume is read-only
    image = MetaTensor(torch.tensor(volume.voxels)[None], affine=torch.tensor(volume.affine))
    image = image_transform(settings)({"image": image})["image"]
    return image.as_tensor().contiguous(), image.affine.to(torch.float32)


def window_channels(hu: Tensor, windows_hu: tuple[tuple[float, float], ...]) -> Tensor:
    """HU (..., I, J, K) -> channels (..., C, I, J, K) in 0 to 1, as `_windows` does in the chain."""
    return torch.stack([((hu - low) / (high - low)).clamp(0, 1) for low, high in windows_hu], dim=-4)


def body_mask(image: Tensor) -> Tensor:
    """The largest piece of tissue of (1, I, J, K) HU: the patient without the table."""
    pieces, count = ndimage.label(ndimage.binary_erosion(np.asarray(image)[0] > BODY_HU))
    if count == 0:
        return torch.ones(image.shape, dtype=torch.bool)
    return torch.from_numpy(pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:])))[None]


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
