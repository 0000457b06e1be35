"""An image as it might have been scanned otherwise: moved a little, noisier, of another contrast. Never
mirrored: the heart is on the left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Augment:
    shift: int = 4
    """Images are moved by up to so many voxels along each axis."""
    noise_hu: float = 8.0
    """Most noise that is added to a CT."""
    gain: float = 0.1
    """By how much the contrast and the brightness of an MR sequence are changed, in standard deviations."""
    hidden: float = 0.1
    """Chance that a sequence of an MR is left out; one always stays."""


def moved(
    image: Tensor, affine: np.ndarray, most: int, rng: np.random.Generator, outside: float
) -> tuple[Tensor, np.ndarray]:
    """The image (..., I, J, K) moved within its frame by at most `most` voxels and an eighth of its size: a
    picture is one voxel deep. Never mirrored: the heart is on the left."""
    limits = [min(most, size // 8) for size in image.shape[-3:]]
    offset = [int(rng.integers(-limit, limit + 1)) for limit in limits]
    image = torch.roll(image, offset, (-3, -2, -1))
    affine[:3, 3] -= affine[:3, :3] @ np.array(offset, affine.dtype)
    for axis, o in zip((-3, -2, -1), offset, strict=True):
        if o:
            start = 0 if o > 0 else image.shape[axis] + o
            image.narrow(axis, start, abs(o)).fill_(outside)
    return image, affine


def noisy(hu: Tensor, augment: Augment, rng: np.random.Generator) -> Tensor:
    generator = torch.Generator(hu.device).manual_seed(int(rng.integers(2**62)))
    mean, deviation = float(rng.normal(0, 4)), float(rng.uniform(0, augment.noise_hu))
    return hu + torch.empty_like(hu).normal_(mean, deviation, generator=generator)


def varied(
    image_CIJK: Tensor, present_C: Tensor, augment: Augment, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Other contrast and brightness in every sequence, and some of them left out."""
    channels = len(image_CIJK)
    gain_C = torch.from_numpy(1 + rng.uniform(-augment.gain, augment.gain, channels).astype(np.float32))
    more_C = torch.from_numpy(rng.uniform(-augment.gain, augment.gain, channels).astype(np.float32))
    gain_C, more_C = gain_C.to(image_CIJK.device), more_C.to(image_CIJK.device)
    changed = image_CIJK * gain_C[:, None, None, None] + more_C[:, None, None, None]
    # what was not measured stays 0
    image_CIJK = torch.where(image_CIJK == 0, image_CIJK, changed)
    kept_C = present_C & torch.from_numpy(rng.random(channels) >= augment.hidden)
    return image_CIJK, kept_C if kept_C.any() else present_C
