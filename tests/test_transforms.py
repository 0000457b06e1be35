"""Volume -> tensor: the affine stays true, no slice is ignored, intensities are the windows'."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from mla_med.imaging.grid import body_box
from mla_med.imaging.transforms import (
    Preprocessing,
    SlabAveraged,
    body_mask,
    image_transform,
    mean_of_blocks,
    place_transform,
    window_channels,
)

SMALL = Preprocessing(shape=(48, 40, 44), spacing_mm=3.0)


def _body(shape=(60, 50, 40), spacing=(1.5, 1.5, 2.0), flip=False):
    """A box of water in air with one bright cube, as LPS if `flip`."""
    hu = np.full(shape, -1000.0, np.float32)
    hu[6:54, 6:44, :] = 0.0
    hu[12:20, 30:38, 10:18] = 900.0
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-40.0, -30.0, 100.0)
    if flip:
        affine[0, 0], affine[1, 1] = -spacing[0], -spacing[1]
        affine[:2, 3] = (40.0, 30.0)
    return hu, affine


def _run(transform, hu, affine):
    image = MetaTensor(torch.from_numpy(hu)[None], affine=torch.tensor(affine))
    return transform({"image": image})["image"]


def _centre_mm(weights, affine) -> np.ndarray:
    index = np.argwhere(weights > 0.6 * weights.max()).mean(0)
    return (np.asarray(affine) @ [*index, 1])[:3]


@pytest.mark.parametrize("flip", [False, True])
def test_a_point_keeps_its_place_in_the_patient(flip):
    hu, affine = _body(flip=flip)
    placed = _run(place_transform(SMALL), hu, affine)
    assert tuple(placed.shape) == (1, 48, 40, 44)
    before, after = _centre_mm(hu, affine), _centre_mm(placed[0].numpy(), placed.affine)
    assert after == pytest.approx(before, abs=1.0)
    assert np.asarray(placed.affine)[:3, :3] == pytest.approx(np.eye(3) * 3.0, abs=1e-4)


def test_every_slice_counts_when_slices_are_thinner_than_the_grid():
    hu = np.zeros((1, 8, 8, 12), np.float32)
    hu[..., 4] = 300.0  # one slice of twelve, 1 mm apart
    image = MetaTensor(torch.from_numpy(hu), affine=torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0]).double()))
    pooled = SlabAveraged("image", 3.0)({"image": image})["image"]
    assert tuple(pooled.shape) == (1, 8, 8, 4)
    assert pooled[0, 0, 0].tolist() == [0.0, 100.0, 0.0, 0.0]
    # voxel 0 of the result is the mean of slices 0 to 2: its centre is slice 1
    assert (pooled.affine @ torch.tensor([0.0, 0.0, 0.0, 1.0]).double())[2] == pytest.approx(1.0)


def test_windows_are_channels_between_0_and_1():
    hu, affine = _body()
    image = _run(image_transform(SMALL), hu, affine)
    assert tuple(image.shape) == (3, 48, 40, 44)
    assert image.min() == 0
    assert image.max() == 1
    placed = _run(place_transform(SMALL), hu, affine)
    windows = window_channels(placed[0].as_tensor(), SMALL.windows_hu)
    assert torch.allclose(image.as_tensor(), windows, atol=1e-6)
    # water lies at the same height in each window for ever: (0 - low) / (high - low)
    water = image[:, 24, 15, 22].tolist()
    assert water == pytest.approx([0.9, 0.4, 500 / 1800], abs=1e-3)


def test_a_table_does_not_move_the_patient():
    hu, _ = _body()
    hu = np.pad(hu, ((0, 0), (14, 0), (0, 0)), constant_values=-1000.0)
    with_table = hu.copy()
    with_table[:, 2:3, :] = -300.0  # a thin shell below the back
    plain, tabled = (body_mask(torch.from_numpy(v)[None]) for v in (hu, with_table))
    assert torch.equal(plain, tabled)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("shape", [(23, 17, 30), (2, 20, 20), (20, 1, 20), (3, 3, 3)])
def test_the_box_of_the_body_is_that_of_the_largest_piece(shape, share):
    """Of many pieces too, where none is more than half of all."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        hu = np.where(rng.random(shape) < share, 40.0, -1000.0).astype(np.float32)
        mask = body_mask(torch.from_numpy(hu)[None])[0].numpy()
        box = body_box(hu)
        if box is None:
            assert mask.all()
        else:
            assert box == ndimage.find_objects(mask.astype(int))[0]


def test_mr_is_normalised_and_has_one_channel():
    settings = Preprocessing(modality="MR", shape=(32, 32, 24), spacing_mm=3.0)
    rng = np.random.default_rng(0)
    hu = rng.uniform(100, 900, (40, 40, 30)).astype(np.float32)
    image = _run(image_transform(settings), hu, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert image.shape[0] == settings.channels == 1
    inside = image[image != 0]
    assert inside.mean() == pytest.approx(0, abs=0.2)
    assert 0.5 < inside.std() < 1.5


def test_settings_survive_json():
    import json

    assert Preprocessing.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


def test_means_of_blocks_do_not_depend_on_the_order_in_memory():
    """MONAI's order of axes and that of the files differ; pooling is done in the latter."""
    image = torch.rand(1, 13, 10, 9)
    wanted = torch.nn.functional.avg_pool3d(image[None], (4, 3, 2))[0]
    for stored in itertools.permutations((1, 2, 3)):
        back = [stored.index(axis) + 1 for axis in (1, 2, 3)]
        same = image.permute(0, *stored).contiguous().permute(0, *back)
        torch.testing.assert_close(mean_of_blocks(same, [4, 3, 2]), wanted)
