"""One pass over a volume gives what the chain of MONAI transforms gives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Spacingd

from mla_med.imaging.fused import channels_of, place
from mla_med.imaging.grid import Preprocessing
from mla_med.imaging.transforms import FusedImage, image_transform

SMALL = Preprocessing(shape=(48, 40, 44), spacing_mm=3.0)


def turned(x_deg: float, y_deg: float, z_deg: float) -> np.ndarray:
    x, y, z = np.radians((x_deg, y_deg, z_deg))
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def affine_of(axes: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(spacing)
    affine[:3, 3] = (-41.3, 27.7, -312.9)
    return affine


def tilted(deg: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """The slices are upright, and each lies a little higher in its plane than the one before."""
    affine = affine_of(np.diag([-1.0, -1.0, 1.0]), spacing)
    affine[1, 2] = np.tan(np.radians(deg)) * spacing[2]
    return affine


LPS = np.diag([-1.0, -1.0, 1.0])
SAGITTAL = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])
VOLUMES = {
    "as a scanner stores it": ((101, 87, 63), affine_of(LPS, (0.8, 0.8, 1.25))),
    "thick slices": ((90, 77, 31), affine_of(LPS, (0.9, 0.9, 5.0))),
    "coarser than the grid": ((40, 33, 31), affine_of(np.eye(3), (4.1, 3.7, 6.0))),
    "on the grid already": ((50, 44, 41), affine_of(np.eye(3), (3.0, 3.0, 3.0))),
    "feet first": ((80, 77, 50), affine_of(np.diag([1.0, -1.0, -1.0]), (1.1, 1.3, 2.2))),
    "sagittal": ((83, 79, 60), affine_of(SAGITTAL, (0.9, 1.1, 3.3))),
    "oblique": ((83, 71, 60), affine_of(turned(11, -17, 23) @ LPS, (1.1, 1.2, 2.5))),
    "oblique and turned over": ((83, 71, 60), affine_of(turned(100, 20, -60), (1.1, 0.9, 2.5))),
    "tilted gantry": ((83, 91, 60), tilted(15, (1.1, 1.1, 2.5))),
    "tilted the other way": ((83, 91, 60), tilted(-12, (0.9, 0.9, 4.0))),
    "anisotropic in the plane": ((83, 50, 60), affine_of(LPS, (0.7, 2.3, 3.1))),
}


def hu_of_shape(shape: tuple[int, int, int], order: str) -> np.ndarray:
    """Tissue in air, with as much noise as is cruel to an interpolation."""
    rng = np.random.default_rng(sum(shape))
    hu = rng.normal(-1000, 30, shape)
    inner = tuple(slice(n // 6, n - n // 7) for n in shape)
    hu[inner] = rng.normal(20, 300, hu[inner].shape)
    return np.asarray(hu, np.float32, order=order)


def in_double(settings: Preprocessing) -> Compose:
    """The chain with its grid in double precision, as MONAI's own default has it: in single precision the
    places themselves are wrong by some 1e-5 of a voxel."""
    chain = image_transform(settings)
    for transform in chain.flatten().transforms:
        if isinstance(transform, Spacingd):
            transform.dtype = (torch.float64,)
    return chain


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("name", VOLUMES)
def test_one_pass_equals_the_chain(name, order):
    shape, affine = VOLUMES[name]
    image = MetaTensor(torch.from_numpy(hu_of_shape(shape, order))[None], affine=torch.tensor(affine))
    wanted = in_double(SMALL)({"image": image.clone()})["image"]
    got = FusedImage("image", SMALL)({"image": image})["image"]
    assert got.shape == wanted.shape == (3, *SMALL.shape)
    assert np.asarray(got.affine) == pytest.approx(np.asarray(wanted.affine), abs=1e-6)
    assert (got.as_tensor() - wanted.as_tensor()).abs().max() <= 1e-5


def test_an_mr_of_one_channel_equals_the_chain():
    settings = Preprocessing(modality="MR", shape=(32, 32, 24), spacing_mm=3.0)
    values = np.random.default_rng(0).uniform(100, 900, (40, 40, 30)).astype(np.float32)
    image = MetaTensor(
        torch.from_numpy(values)[None], affine=torch.diag(torch.tensor([2.0, 2, 2, 1])).double()
    )
    wanted = in_double(settings)({"image": image.clone()})["image"]
    got = FusedImage("image", settings)({"image": image})["image"]
    assert (got.as_tensor() - wanted.as_tensor()).abs().max() <= 1e-5


def test_an_image_of_air_is_placed_whole():
    hu = np.full((60, 50, 40), -1000.0, np.float32)
    placed, affine = place(hu, np.diag([1.5, 1.5, 2.0, 1.0]), SMALL)
    assert placed.shape == SMALL.shape
    assert set(np.unique(placed.round())) == {-1024.0, -1000.0}
    assert np.diag(affine)[:3] == pytest.approx([3.0, 3.0, 3.0])


def test_the_volume_is_not_changed():
    shape, affine = VOLUMES["as a scanner stores it"]
    hu = hu_of_shape(shape, "F")
    before = hu.copy()
    hu.setflags(write=False)
    channels_of(place(hu, affine, SMALL)[0], SMALL)
    assert np.array_equal(hu, before)


def test_it_needs_neither_torch_nor_monai():
    code = (
        "import sys, mla_med.imaging.fused; "
        "print([m for m in ('torch', 'monai', 'transformers') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
