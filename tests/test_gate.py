"""The gate and the calibration: what is refused, with which code, and what is let through."""

from __future__ import annotations

import numpy as np
import pytest

from mla_med.imaging.values import HISTOGRAM_HU, histogram_of, lung_share
from mla_med.model import DEFAULT_CHECKPOINT
from mla_med.model.calibrate import Calibration, calibrate
from mla_med.model.gate import Scope, content_reasons, feature_reasons, header_reasons, value_reasons
from mla_med.model.usual import Usual, total_variation, usual_of
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


def ct(values) -> dict[str, np.ndarray]:
    return {"CT": histogram_of(values, HISTOGRAM_HU)}


def test_the_histogram_tells_densities_that_were_never_seen(calibration):
    rng, usual = np.random.default_rng(1), calibration.usual
    known = np.concatenate([rng.normal(-850, 40, 600), rng.normal(40, 20, 400)])
    metal = np.concatenate([known[:500], np.full(500, 3000.0)])
    assert ct(known)["CT"].sum() == pytest.approx(1.0)
    (near,), (far,) = (usual.distances(ct(hu)).values() for hu in (known, metal))
    assert near < usual.limits["CT"] < far
    assert value_reasons(usual, 0.25, ct(known)) == ()
    (reason,) = value_reasons(usual, 0.25, ct(metal))
    assert reason.code == "HISTOGRAM_UNFAMILIAR"
    assert "other densities" in reason.words
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0


def test_each_sequence_of_a_head_has_its_own_limit():
    rng = np.random.default_rng(0)
    steady = [np.array([0.5, 0.5]) + x * np.array([1, -1]) for x in rng.uniform(-0.02, 0.02, 50)]
    varied = [np.array([0.5, 0.5]) + x * np.array([1, -1]) for x in rng.uniform(-0.2, 0.2, 50)]
    # T2 of every other head
    heads = [
        {"T1": t1} | ({"T2": t2} if n % 2 else {})
        for n, (t1, t2) in enumerate(zip(steady, varied, strict=True))
    ]
    usual = usual_of("MR", rng.uniform(0.5, 0.6, 50), heads)
    assert usual.limits["T1"] < 0.05 < 0.3 < usual.limits["T2"]
    assert 0.37 < usual.share[0] < 0.39 < 0.68 < usual.share[1] < 0.7
    few = usual_of(
        "MR", [0.5] * 30, [{"T1": t1} | ({"SWI": t1} if n < 3 else {}) for n, t1 in enumerate(steady[:30])]
    )
    assert set(few.limits) == {"T1"}
    odd = np.array([0.6, 0.4])
    assert value_reasons(usual, 0.55, {"T2": odd, "SWI": np.array([0.0, 1.0])}) == ()  # SWI: nobody had one
    (reason,) = value_reasons(usual, 0.55, {"T1": odd, "T2": odd})
    assert reason.code == "HISTOGRAM_UNFAMILIAR"
    assert reason.words == (
        "10 % of the head is brighter or darker on T1 than the images that this model knows; the limit is "
        "4 %."
    )
    (reason,) = value_reasons(usual, 0.91, {"T1": odd})
    assert reason.words == (
        "91 % of what was measured lies in the head; in the images that this model knows it is 38 to 69 %."
    )


def test_a_calibration_from_before_there_were_answers_still_answers(calibration):
    old = {
        name: value
        for name, value in calibration.to_dict().items()
        if name in ("thresholds", "feature_mean", "feature_precision", "feature_limit")
    }
    loaded = Calibration.from_dict(old | {"lung_range": [0.2, 0.4]})
    assert loaded.answer("a", 0.9) == (Presence.PRESENT, 0.9)
    assert loaded.answer("a", 0.25) == (Presence.ABSENT, 0.75)
    assert loaded.usual == Usual((0.2, 0.4))
    assert loaded.usual.distances(ct(np.zeros(20))) == {}  # nothing was known of them


def test_a_calibration_from_before_there_were_limits_of_mr_has_those_of_ct(calibration):
    old = calibration.to_dict() | {
        "lung_range": [0.2, 0.4],
        "histogram": [0.25, 0.75],
        "histogram_limit": 0.1,
    }
    del old["usual"]
    assert Calibration.from_dict(old).usual == Usual((0.2, 0.4), {"CT": (0.25, 0.75)}, {"CT": 0.1})
    of_mr = old | {"lung_range": [0.0, 1.0], "histogram": [], "histogram_limit": 1.0}
    assert Calibration.from_dict(of_mr).usual == Usual()


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
    images = [np.concatenate([rng.normal(-850, 40, int(1000 * s)), rng.normal(40, 20, 400)]) for s in share]
    usual = usual_of("CT", rng.uniform(0.2, 0.3, 300), [ct(image) for image in images])
    return calibrate(
        ("a", "b"),
        probability,
        present,
        held_out,
        known,
        usual=usual,
    )


def test_thresholds_lie_between_present_and_absent(calibration):
    assert calibration.thresholds["a"] == pytest.approx(0.7, abs=0.06)
    assert calibration.thresholds["b"] == pytest.approx(0.3, abs=0.06)


def test_the_familiar_passes_and_the_far_away_is_refused(calibration):
    near, far = np.zeros(8), np.full(8, 10.0)
    assert feature_reasons(calibration, calibration.feature_distance(near)) == ()
    (reason,) = feature_reasons(calibration, calibration.feature_distance(far))
    assert reason.code == "FEATURES_UNFAMILIAR"


def test_distance_counts_in_units_of_what_was_seen(calibration):
    steady, varied = np.zeros(8), np.zeros(8)
    steady[0] = varied[7] = 1.0  # the first feature hardly varies in training, the last one does
    assert calibration.feature_distance(steady) > 1.5 * calibration.feature_distance(varied)


def test_an_image_without_lungs_is_refused(calibration):
    head = np.full((20, 20, 20), 40.0)
    assert lung_share(head) == 0.0
    reasons = value_reasons(calibration.usual, lung_share(head), {})
    assert [r.code for r in reasons] == ["HISTOGRAM_UNFAMILIAR"]


def test_a_calibration_survives_json(calibration):
    import json

    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again == calibration


def test_what_is_not_a_number_is_unfamiliar(calibration):
    distance = calibration.feature_distance(np.full(8, np.nan))
    assert [r.code for r in feature_reasons(calibration, distance)] == ["FEATURES_UNFAMILIAR"]
    nothing = np.full(len(HISTOGRAM_HU) + 1, np.nan)
    for share, histograms in ((float("nan"), {}), (0.25, {"CT": nothing})):
        reasons = value_reasons(calibration.usual, share, histograms)
        assert [r.code for r in reasons] == ["HISTOGRAM_UNFAMILIAR"]
