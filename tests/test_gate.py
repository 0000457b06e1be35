"""The gate and the calibration: what is refused, with which code, and what is let through."""

from __future__ import annotations

import numpy as np
import pytest

from mla_med.model import DEFAULT_CHECKPOINT
from mla_med.model.calibrate import Calibration, calibrate, histogram_of, total_variation
from mla_med.model.gate import Scope, content_reasons, header_reasons, lung_share, pixel_reasons
from mla_med.types import Presence

CHEST = {
    "modality": "CT",
    "body_part": "CHEST",
    "orientation": "axial",
    "tilt_deg": 0.0,
    "shape": (256, 256, 100),
    "spacing_mm": (1.5, 1.5, 3.0),
}


def _codes(**changes) -> list[str]:
    return [reason.code for reason in header_reasons(Scope(), **{**CHEST, **changes})]


def test_a_whole_chest_passes():
    assert _codes() == []
    assert _codes(body_part="") == []  # the pixels will tell


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"modality": "MR"}, "WRONG_MODALITY"),
        ({"body_part": "BRAIN"}, "WRONG_BODY_PART"),
        ({"orientation": "coronal"}, "WRONG_ORIENTATION"),
        ({"tilt_deg": -16.5}, "GANTRY_TILT"),
        ({"shape": (256, 256, 20)}, "COVERAGE_TOO_SMALL"),
        ({"shape": (100, 256, 100)}, "FIELD_OF_VIEW_TOO_SMALL"),
        ({"spacing_mm": (1.5, 1.5, 8.0)}, "SLICES_TOO_THICK"),
        ({"image_type": ("DERIVED", "PRIMARY", "AXIAL", "SUBTRACTION")}, "PROCESSED_IMAGES"),
        ({"age_years": 9.0}, "AGE_UNFAMILIAR"),
    ],
)
def test_what_the_header_rules_out_is_refused_with_its_code(changes, code):
    assert _codes(**changes) == [code]


def test_a_reformatted_chest_of_an_adult_passes():
    assert _codes(image_type=("DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"), age_years=18.0) == []


@pytest.mark.parametrize(
    ("shown", "header", "pixels", "codes"),
    [
        ("chest", None, None, []),
        ("", None, None, []),  # the voxels do not tell
        ("chest and abdomen", False, False, []),
        ("abdomen", None, None, ["OTHER_EXAMINATION"]),
        ("head", None, None, ["OTHER_EXAMINATION"]),
        ("chest", True, None, ["CONTRAST_UNFAMILIAR"]),
        ("chest", None, True, ["CONTRAST_UNFAMILIAR"]),
        ("chest", True, False, []),  # injected for another series
        ("abdomen", None, True, ["OTHER_EXAMINATION", "CONTRAST_UNFAMILIAR"]),
    ],
)
def test_another_examination_is_told_by_what_the_voxels_show(shown, header, pixels, codes):
    assert [r.code for r in content_reasons(Scope(), shown, header, pixels)] == codes


def test_a_model_that_saw_contrast_medium_reads_it():
    assert content_reasons(Scope(enhanced=True), "chest", True, True) == ()


def test_the_histogram_tells_densities_that_were_never_seen(calibration):
    rng = np.random.default_rng(1)
    usual = np.concatenate([rng.normal(-850, 40, 600), rng.normal(40, 20, 400)])
    metal = np.concatenate([usual[:500], np.full(500, 3000.0)])
    assert histogram_of(usual).sum() == pytest.approx(1.0)
    near, far = (calibration.histogram_distance(histogram_of(hu)) for hu in (usual, metal))
    assert near < calibration.histogram_limit < far
    assert pixel_reasons(calibration, 0.25, None, near) == ()
    (reason,) = pixel_reasons(calibration, 0.25, None, far)
    assert reason.code == "HISTOGRAM_UNFAMILIAR"
    assert "other densities" in reason.words
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0


def test_a_calibration_from_before_there_were_answers_still_answers(calibration):
    old = {
        name: value
        for name, value in calibration.to_dict().items()
        if name in ("thresholds", "feature_mean", "feature_precision", "feature_limit", "lung_range")
    }
    loaded = Calibration.from_dict(old)
    assert loaded.answer("a", 0.9) == (Presence.PRESENT, 0.9)
    assert loaded.answer("a", 0.25) == (Presence.ABSENT, 0.75)
    assert loaded.histogram_distance(np.zeros(20)) == 0.0


def test_the_packaged_checkpoint_states_its_coverage_and_can_say_that_it_cannot():
    import json

    calibration = Calibration.from_dict(json.loads((DEFAULT_CHECKPOINT / "calibration.json").read_text()))
    assert calibration.coverage == 0.9
    nodule = calibration.answers["lung_nodule"]
    assert min(nodule.num_present, nodule.num_absent) >= 50
    assert nodule.presence((nodule.present_from + nodule.absent_to) / 2) is Presence.CANNOT_SAY
    assert 2 < calibration.size_repeat_mm["lung_mass"] < 10


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    present = rng.random((300, 2)) < 0.3
    # the first finding separates at 0.7, the second at 0.3
    centre = np.array([0.7, 0.3])
    probability = np.clip(centre + np.where(present, 0.15, -0.15) + rng.normal(0, 0.03, (300, 2)), 0, 1)
    features = rng.normal(size=(300, 8)) * np.linspace(0.2, 1, 8)
    known, held_out = features[:200], features[100:]
    share = rng.uniform(0.5, 0.7, 300)
    histograms = np.stack(
        [
            histogram_of(np.concatenate([rng.normal(-850, 40, int(1000 * s)), rng.normal(40, 20, 400)]))
            for s in share
        ]
    )
    return calibrate(
        ("a", "b"),
        probability,
        present,
        held_out,
        known,
        lung_share_N=rng.uniform(0.2, 0.3, 300),
        histogram_NH=histograms,
    )


def test_thresholds_lie_between_present_and_absent(calibration):
    assert calibration.thresholds["a"] == pytest.approx(0.7, abs=0.06)
    assert calibration.thresholds["b"] == pytest.approx(0.3, abs=0.06)


def test_the_familiar_passes_and_the_far_away_is_refused(calibration):
    near, far = np.zeros(8), np.full(8, 10.0)
    assert pixel_reasons(calibration, 0.25, calibration.feature_distance(near)) == ()
    (reason,) = pixel_reasons(calibration, 0.25, calibration.feature_distance(far))
    assert reason.code == "FEATURES_UNFAMILIAR"


def test_distance_counts_in_units_of_what_was_seen(calibration):
    steady, varied = np.zeros(8), np.zeros(8)
    steady[0] = varied[7] = 1.0  # the first feature hardly varies in training, the last one does
    assert calibration.feature_distance(steady) > 1.5 * calibration.feature_distance(varied)


def test_an_image_without_lungs_is_refused(calibration):
    head = np.full((20, 20, 20), 40.0)
    assert lung_share(head) == 0.0
    assert [r.code for r in pixel_reasons(calibration, lung_share(head), None)] == ["HISTOGRAM_UNFAMILIAR"]


def test_a_calibration_survives_json(calibration):
    import json

    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again == calibration


def test_what_is_not_a_number_is_unfamiliar(calibration):
    distance = calibration.feature_distance(np.full(8, np.nan))
    assert [r.code for r in pixel_reasons(calibration, 0.25, distance)] == ["FEATURES_UNFAMILIAR"]
    assert [r.code for r in pixel_reasons(calibration, float("nan"), None)] == ["HISTOGRAM_UNFAMILIAR"]
