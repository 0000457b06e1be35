"""A body larger than the grid: what is shown of it holds the lungs, or nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.drafting import draft_study
from mla_med.errors import SeriesError
from mla_med.imaging.fused import place
from mla_med.imaging.grid import Preprocessing
from mla_med.imaging.lungs import cut_off_cm2, lung_ends
from mla_med.imaging.transforms import FusedImage, image_transform
from mla_med.model.gate import cut_off_reasons
from mla_med.types import Presence

SMALL = Preprocessing(shape=(48, 40, 60), spacing_mm=6.0)
"""288 x 240 x 360 mm."""


def a_body(
    slices: int, lungs: tuple[int, int], width: int = 40, left: int = 0, gas: tuple[int, int] | None = None
) -> np.ndarray:
    """Voxels of 6 mm: tissue with two lungs from the first to the last of these slices, and a loop of
    bowel."""
    hu = np.full((width + 8, 44, slices), -1000.0, np.float32)
    hu[4:-4, 6:38, 1:-1] = 30.0
    low, high = lungs
    for first in (left + 8, left + 28):
        hu[first : first + 12, 10:34, low:high] = -850.0
    if gas is not None:
        hu[14:20, 14:20, gas[0] : gas[1]] = -800.0
    return hu


AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])


def seen_mm(hu: np.ndarray) -> np.ndarray:
    """Lower and upper end in mm of what of the lungs lies on the grid."""
    placed, affine = place(hu, AFFINE, SMALL)
    lung = np.argwhere((placed < -700) & (placed > -990))
    return np.array([lung.min(0), lung.max(0)]) @ affine[:3, :3] + affine[:3, 3]


@pytest.mark.parametrize(
    "lungs",
    [
        pytest.param((70, 118), id="down to the pelvis"),
        pytest.param((3, 50), id="up to the vertex"),
        pytest.param((36, 84), id="both"),
    ],
)
def test_apices_and_bases_are_seen_in_a_long_scan(lungs):
    low, high = seen_mm(a_body(120, lungs))
    assert (low[2], high[2]) == (6.0 * lungs[0], 6.0 * (lungs[1] - 1))


def test_so_is_what_lies_around_them_as_far_as_there_is_room():
    _, affine = place(a_body(120, (60, 100)), AFFINE, SMALL)
    assert affine[2, 3] <= 6.0 * 60 - 24
    assert affine[2, 3] + 6.0 * 60 >= 6.0 * 100 + 24


def test_a_body_that_lies_aside_is_seen_by_its_lungs_too():
    low, high = seen_mm(a_body(50, (5, 45), width=80, left=40))
    assert high[0] - low[0] == 6.0 * 31


def test_gas_in_the_bowel_is_no_lung():
    with_gas = a_body(120, (70, 118), gas=(4, 8))
    assert lung_ends(with_gas, 6.0)[2].tolist() == [70, 118]
    low, high = seen_mm(with_gas[:, :, 40:])
    assert high[2] - low[2] == 6.0 * 47


def test_lungs_that_the_grid_cannot_hold_are_refused():
    with pytest.raises(SeriesError, match="408 mm from bottom to top, 48 mm more") as raised:
        place(a_body(120, (20, 88)), AFFINE, SMALL)
    assert raised.value.code == "LUNGS_OUTSIDE"


def test_a_long_body_without_lungs_is_placed_by_its_middle():
    hu = a_body(120, (0, 0))
    _, affine = place(hu, AFFINE, SMALL)
    assert affine[2, 3] == pytest.approx(6.0 * (120 / 2 - 60 / 2), abs=12)


@pytest.mark.parametrize("lungs", [(70, 118), (3, 50), (36, 84)])
def test_the_chain_of_transforms_sees_the_same(lungs):
    image = MetaTensor(torch.from_numpy(a_body(120, lungs))[None], affine=torch.from_numpy(AFFINE))
    wanted = image_transform(SMALL)({"image": image.clone()})["image"]
    got = FusedImage("image", SMALL)({"image": image})["image"]
    assert np.asarray(got.affine) == pytest.approx(np.asarray(wanted.affine), abs=1e-6)
    assert (got.as_tensor() - wanted.as_tensor()).abs().max() <= 1e-5


def longer(volume, slices: int):
    """The scan goes on downwards: what its lowest slices show, again and again."""
    first = volume.affine[2, 2] > 0
    edge = volume.voxels[:, :, :8] if first else volume.voxels[:, :, -8:]
    more = np.concatenate([edge, edge[:, :, ::-1]] * (slices // 16 + 1), 2)[:, :, :slices]
    affine, instances = volume.affine.copy(), volume.series.instances
    if first:
        affine[:3, 3] -= slices * affine[:3, 2]
    parts = (more, volume.voxels) if first else (volume.voxels, more)
    given = (instances[:1] * slices, instances) if first else (instances, instances[-1:] * slices)
    voxels = np.asfortranarray(np.concatenate(parts, 2))
    certificate = replace(volume.certificate, shape=voxels.shape, affine=tuple(map(tuple, affine.tolist())))
    series = replace(volume.series, instances=given[0] + given[1])
    return replace(volume, voxels=voxels, affine=affine, series=series, certificate=certificate)


def test_what_lies_below_a_chest_does_not_hide_what_is_in_it(phantom_series, checkpoint):
    study = read_study(phantom_series)

    def read(reader, *args):
        answer = reader(*args)
        return longer(answer, 50) if reader is read_volume else answer

    usual, lower = draft_study(study, checkpoint)[0], draft_study(study, checkpoint, call=read)[0]
    assert lower.gate.accepted, lower.gate.reasons
    masses = [[f for f in d.report.findings if f.code == "lung_mass"] for d in (usual, lower)]
    assert [m.presence for (m,) in masses] == [Presence.PRESENT] * 2
    assert masses[0][0].side is masses[1][0].side


def test_what_is_too_long_for_the_model_is_refused_and_says_so(phantom_series, checkpoint):
    """The same chest, said to have slices of twice the thickness."""
    study = read_study(phantom_series)

    def read(reader, *args):
        answer = reader(*args)
        if reader is not read_volume:
            return answer
        affine = answer.affine @ np.diag([1, 1, 2.0, 1])
        return replace(answer, affine=affine)

    draft, _ = draft_study(study, checkpoint, call=read)
    assert draft.report is None
    assert [reason.code for reason in draft.gate.reasons] == ["LUNGS_OUTSIDE"]
    assert "must not call normal" in draft.gate.reasons[0].words


@pytest.mark.parametrize("end", [slice(None, 45), slice(45, None)])
def test_a_scan_that_ends_within_the_lungs_is_refused(phantom_series, checkpoint, end):
    """As when the rest of it came as another series."""
    study = read_study(phantom_series)
    (series,) = (s for s in study.series if len(s.instances) > 50)
    assert len(series.instances) > 90
    part = replace(series, instances=series.instances[end])
    draft, _ = draft_study(replace(study, series=(part,)), checkpoint)
    assert draft.report is None
    codes = {reason.code for reason in draft.gate.reasons}
    assert codes & {"LUNGS_CUT_OFF", "COVERAGE_TOO_SMALL"}


def test_how_much_lung_lies_on_the_last_slices():
    whole = a_body(120, (70, 118))
    assert cut_off_cm2(whole, 6.0) == 0.0
    area = 2 * 12 * 24 * 0.36
    assert cut_off_cm2(whole[:, :, :100], 6.0) == pytest.approx(area)
    assert cut_off_cm2(whole[:, :, 80:], 6.0) == pytest.approx(area)
    assert cut_off_cm2(np.full((20, 20, 20), -1000.0), 6.0) == 0.0
    assert [r.code for r in cut_off_reasons(area)] == ["LUNGS_CUT_OFF"]
    assert cut_off_reasons(25.0) == ()
