"""Several MR series -> one tensor: the same point of the head is the same voxel in every channel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mla_med.errors import SeriesError
from mla_med.imaging.sequences import standardised, to_channels
from mla_med.imaging.transforms import BRAIN_MR, Preprocessing
from mla_med.types import Certificate, Series, Volume

SMALL = replace(BRAIN_MR, shape=(48, 56, 44), spacing_mm=4.0)
CENTRE, RADII = np.array((6.0, -20.0, 40.0)), np.array((72.0, 88.0, 80.0))
LESION = np.array((36.0, -20.0, 70.0))


def head(axes: str, spacing: tuple[float, float, float], shape: tuple[int, int, int], gain: float) -> Volume:
    """An ellipsoid with a bright ball in it, its slices along the last of `axes` (letters of RAS)."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, letter in enumerate(axes):
        row = "RAS".index(letter) if letter in "RAS" else "LPI".index(letter)
        affine[row, column] = spacing[column] * (1 if letter in "RAS" else -1)
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.moveaxis(np.indices(shape), 0, -1).astype(float)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    inside = (((points - CENTRE) / RADII) ** 2).sum(-1) < 1
    ball = ((points - LESION) ** 2).sum(-1) < 12**2
    values = gain * (100.0 * inside + 150.0 * ball + np.random.default_rng(1).uniform(0, 4, shape))
    certificate = Certificate(
        shape, spacing, tuple(map(tuple, affine.tolist())), "axial", 0.0, 0.0, 0, "", "", False
    )
    return Volume(values.astype(np.float32), affine, Series("1", "MR", "", "", (), ()), certificate)


T1_SAGITTAL = head("AIR", (1.5, 1.5, 1.5), (150, 130, 110), gain=7.0)
FLAIR_AXIAL = head("LPS", (1.0, 1.0, 5.5), (190, 200, 34), gain=0.3)


def brightest_mm(channel: np.ndarray, affine: np.ndarray) -> np.ndarray:
    index = np.argwhere(channel > 0.7 * channel.max()).mean(0)
    return affine[:3, :3] @ index + affine[:3, 3]


def test_one_point_is_one_voxel_in_series_of_any_plane():
    image, present, affine = to_channels({"T1": T1_SAGITTAL, "FLAIR": FLAIR_AXIAL}, SMALL)
    assert tuple(image.shape) == (6, 48, 56, 44)
    assert present.tolist() == [True, False, True, False, False, False]
    for channel in (0, 2):
        place = brightest_mm(image[channel].numpy(), affine.numpy())
        assert place == pytest.approx(LESION, abs=3.0)


def test_a_missing_sequence_is_zeros():
    image, _, _ = to_channels({"T1": T1_SAGITTAL}, SMALL)
    assert not image[1:].any()
    assert image[0].any()


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_a_blank_sequence_is_none(value):
    blank = replace(FLAIR_AXIAL, voxels=np.full(FLAIR_AXIAL.voxels.shape, value, np.float32))
    image, present, affine = to_channels({"T1": T1_SAGITTAL, "FLAIR": blank}, SMALL)
    assert present.tolist() == [True, False, False, False, False, False]
    assert not image[1:].any()
    alone = to_channels({"T1": T1_SAGITTAL}, SMALL)
    assert torch.equal(affine, alone[2])
    assert torch.equal(image, alone[0])


def test_a_sequence_of_another_place_is_none():
    away = replace(FLAIR_AXIAL, affine=FLAIR_AXIAL.affine - 900 * np.eye(4, 4, 1)[[3, 3, 2, 3]])
    _, present, _ = to_channels({"T1": T1_SAGITTAL, "FLAIR": away}, replace(SMALL, shape=(48, 56, 30)))
    assert present.sum() == 1


def test_the_scale_of_the_scanner_does_not_matter():
    one, _, _ = to_channels({"FLAIR": FLAIR_AXIAL}, SMALL)
    louder = replace(FLAIR_AXIAL, voxels=FLAIR_AXIAL.voxels * 40)
    other, _, _ = to_channels({"FLAIR": louder}, SMALL)
    assert np.allclose(one, other, atol=1e-4)
    head_voxels = one[2][one[2] > 0]
    assert 0.0 < head_voxels.mean() < 1.5


def test_the_grid_hangs_from_the_vertex_whatever_the_coverage():
    whole, _, affine = to_channels({"T1": T1_SAGITTAL}, SMALL)
    top = 20  # the lower part of the head was not scanned
    cut = replace(
        FLAIR_AXIAL,
        voxels=FLAIR_AXIAL.voxels[:, :, 34 - top :],
        affine=FLAIR_AXIAL.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 34 - top], [0, 0, 0, 1]]),
    )
    partial, _, other = to_channels({"FLAIR": cut}, SMALL)
    top_mm, other_top_mm = (a[2, 3] + 4.0 * 43 for a in (affine, other))
    assert float(other_top_mm) == pytest.approx(float(top_mm), abs=6.0)
    assert whole[0][:, :, 5].any()
    assert not partial[2][:, :, 5].any()


def test_what_was_not_measured_is_zero_and_not_dark():
    image = to_channels({"FLAIR": FLAIR_AXIAL}, replace(SMALL, shape=(80, 90, 60)))[0]
    assert not image[2][0].any()
    assert standardised(image[2] * 0).abs().max() == 0


def test_none_of_the_sequences_is_an_error_that_names_them():
    with pytest.raises(SeriesError, match="SWI, T1 contrast is among those given: ADC") as caught:
        to_channels({"ADC": FLAIR_AXIAL}, SMALL)
    assert caught.value.code == "NO_SEQUENCE"


def test_settings_with_sequences_survive_json():
    import json

    assert Preprocessing.from_dict(json.loads(json.dumps(BRAIN_MR.to_dict()))) == BRAIN_MR
    assert BRAIN_MR.channels == 6
