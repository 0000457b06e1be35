"""Resampling on request: what a linear field in the patient must look like afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_series import MR_CLASS, write_series

from mla_med.dicom.certificate import certify
from mla_med.dicom.resample import evenly, upright
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import PADDING_HU, read_volume
from mla_med.errors import SeriesError

UNEVEN_MM = [0.0, 2.0, 4.0, 6.1, 8.1, 10.0, 12.0]
TILTED = (1.0, 0.0, 0.0, 0.0, np.cos(np.radians(16.5)), -np.sin(np.radians(16.5)))


def field(x, y, z):
    """A value for every place in the patient (RAS, mm); linear interpolation keeps it exactly."""
    return 300 + 2 * x - 3 * y + 5 * z


def places(shape, affine):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)


def test_uneven_slices_are_refused_unless_asked_for(tmp_path):
    write_series(tmp_path, UNEVEN_MM)
    (series,) = read_study(tmp_path).series
    with pytest.raises(SeriesError, match="--resample") as error:
        certify(series)
    assert error.value.code == "UNEVEN_SPACING"
    assert certify(series, resample=True).largest_spacing_error == pytest.approx(0.05)


def test_a_missing_slice_is_never_interpolated(tmp_path):
    write_series(tmp_path, [0, 2, 4, 8, 10])
    (series,) = read_study(tmp_path).series
    with pytest.raises(SeriesError) as error:
        read_volume(series, resample=True)
    assert error.value.code == "MISSING_SLICE"


def test_uneven_slices_come_out_even_and_every_value_in_its_place(tmp_path):
    write_series(
        tmp_path,
        UNEVEN_MM,
        stored=lambda k: np.full((8, 6), round(1000 + 10 * UNEVEN_MM[k])),
        Modality="MR",
        SOPClassUID=MR_CLASS,
        RescaleIntercept=0,
    )
    (series,) = read_study(tmp_path).series
    volume = read_volume(series, resample=True)
    assert volume.voxels.shape == (6, 8, 7)
    assert volume.certificate.spacing_mm[2] == pytest.approx(2.0)
    assert volume.voxels[0, 0] == pytest.approx([1000, 1020, 1040, 1060, 1080, 1100, 1120], abs=0.6)
    assert volume.affine[:3, 2] == pytest.approx([0, 0, 2.0])
    assert "Resampled: 7 uneven slices to 7, 2.000 mm apart." in volume.certificate.notes
    assert [i.sop_instance_uid for i in volume.series.instances] == [f"2.25.1{k:04d}" for k in range(7)]


def test_nothing_is_extrapolated():
    voxels = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
    found, distances = evenly(voxels, np.array([0.0, 1.0, 2.2, 3.0]), 1.1)
    assert distances == pytest.approx([0.0, 1.1, 2.2])
    assert found[0, 0] == pytest.approx([0.0, 1 + 0.1 / 1.2, 2.0])


@pytest.mark.parametrize("tilt_deg", [16.5, -23.0])
def test_a_sheared_volume_stands_upright_with_every_value_in_its_place(tilt_deg):
    sheared = np.array(
        [[-0.7, 0, 0, 30.0], [0, -0.8, 3 * np.tan(np.radians(tilt_deg)), 20], [0, 0, 3, 5], [0, 0, 0, 1]]
    )
    voxels = field(*places((20, 24, 9), sheared)).astype(np.float32)
    found, affine = upright(np.asfortranarray(voxels), sheared, -9999.0)
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    assert abs(affine[:3, 2] @ normal) == pytest.approx(
        np.linalg.norm(affine[:3, 2]) * np.linalg.norm(normal)
    )
    assert np.linalg.norm(affine[:3, 2]) == pytest.approx(3.0)
    inside = found > -1000
    expected = field(*places(found.shape, affine))
    assert np.abs(found - expected)[inside].max() < 1e-2
    assert inside.sum() >= voxels.size * 0.9, "nothing but the rim is lost"


def test_a_tilted_series_is_kept_sheared_and_straightened_on_request(real_series):
    (series,) = read_study(real_series("ct_head_philips_tilt+16.5_28of58")).series
    as_stored, straight = read_volume(series), read_volume(series, resample=True)
    assert as_stored.certificate.tilt_deg == pytest.approx(16.5, abs=0.1)
    assert straight.certificate.tilt_deg == 0
    assert "Resampled: gantry tilt of 16.5 degrees taken out." in straight.certificate.notes
    assert straight.affine[:3, 2] @ straight.affine[:3, 1] == pytest.approx(0, abs=1e-6)
    # the brightest bone lies at one place in the patient, however it is stored
    for k in (5, 14, 22):
        old = np.unravel_index(as_stored.voxels[:, :, k].argmax(), as_stored.voxels.shape[:2])
        place = as_stored.affine @ [*old, k, 1]
        i, j, slice_ = (np.linalg.inv(straight.affine) @ place)[:3]
        around = straight.voxels[int(i) - 1 : int(i) + 3, int(j) - 1 : int(j) + 3, round(slice_)]
        assert slice_ == pytest.approx(k, abs=1e-6)
        assert around.max() > 0.75 * as_stored.voxels[:, :, k].max()
    assert straight.voxels.min() == PADDING_HU


def test_the_oblique_series_with_rounded_positions_is_read_on_request(real_series):
    (series,) = read_study(real_series("mr_head_ge_oblique")).series
    with pytest.raises(SeriesError) as error:
        read_volume(series)
    assert error.value.code == "UNEVEN_SPACING"
    volume = read_volume(series, resample=True)
    assert volume.voxels.shape[2] == 20
    assert volume.certificate.spacing_mm[2] == pytest.approx(6.972, abs=0.001)
