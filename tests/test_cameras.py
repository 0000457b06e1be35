"""The example that is not radiology: two cameras, one fusion class, a planted crack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image

from evaluation.cameras import BOTH, INFRARED, VISIBLE, look, look_at_pairs, make_parts, read_pairs, train
from mla_med.errors import StudyError


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return train(make_parts(200, 0), BOTH, steps=50, seed=0, batch=32)


def test_the_same_seed_gives_the_same_parts():
    one, same, other = make_parts(20, 5), make_parts(20, 5), make_parts(20, 6)
    assert torch.equal(one.pictures_BMIJ, same.pictures_BMIJ)
    assert not torch.equal(one.pictures_BMIJ, other.pictures_BMIJ)
    assert int(one.cracked_B.sum()) == 10


def test_a_crack_is_dark_to_the_eye_and_warm_to_the_infrared():
    parts = make_parts(200, 1)
    clear = parts.pictures_BMIJ[~parts.covered_BM.any(1)]
    cracked = parts.cracked_B[~parts.covered_BM.any(1)]
    darkest, warmest = clear[:, 0].amin((1, 2)), clear[:, 1].amax((1, 2))
    assert darkest[cracked].mean() < darkest[~cracked].mean() - 0.03
    assert warmest[cracked].mean() > warmest[~cracked].mean() + 0.03


def test_cracks_are_found_well_above_chance_in_a_few_seconds(model):
    right, _ = look(model, make_parts(200, 1), BOTH)
    assert right.mean() > 0.6


def test_weights_sum_to_one_and_a_missing_camera_has_none(model):
    parts = make_parts(30, 2)
    for present, gone in ((BOTH, None), (VISIBLE, 1), (INFRARED, 0)):
        _, weights = look(model, parts, present)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        if gone is not None:
            assert (weights[:, gone] == 0).all()
        else:
            assert weights[:, 0].std() > 1e-4  # they follow the part


def test_what_a_missing_camera_holds_changes_nothing(model):
    parts = make_parts(8, 3)
    spoilt = parts.pictures_BMIJ.clone()
    spoilt[:, 1] = float("nan")
    present = torch.tensor([VISIBLE]).expand(8, -1)
    with torch.no_grad():
        one, other = (model(pictures, present)[0] for pictures in (parts.pictures_BMIJ, spoilt))
    assert torch.equal(one, other)


def test_real_pairs_are_looked_at(model):
    folder = SHARED / "roadscene_150"
    if not folder.is_dir():
        pytest.skip("development data is not here: roadscene_150")
    pictures = read_pairs(folder, most=8)
    assert len(pictures) == 8
    found = look_at_pairs(model, pictures)
    assert np.isfinite(found["both"]).all()
    assert np.ptp(found["both"][:, 0]) > 0  # they follow the pair
    assert found["infrared missing"].tolist() == [[1.0, 0.0]] * 8


def test_pairs_are_read_by_their_names(model, tmp_path):
    for camera, grey in (("visible", 200), ("infrared", 60)):
        (tmp_path / camera).mkdir()
        Image.new("L", (70, 50), grey).save(tmp_path / camera / "1.png")
    Image.new("L", (70, 50)).save(tmp_path / "visible" / "alone.png")
    pictures = read_pairs(tmp_path)
    assert pictures.shape == (1, 2, 48, 48)
    assert pictures[0, 0].mean() == pytest.approx(200 / 255)
    found = look_at_pairs(model, pictures)
    assert found["both"].sum() == pytest.approx(1, abs=1e-6)
    assert found["infrared missing"].tolist() == [[1.0, 0.0]]
    with pytest.raises(StudyError, match="no pairs"):
        read_pairs(tmp_path / "visible")
