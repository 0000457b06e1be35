"""What decisions move, how far, and that it can be taken back to the byte; and what the drift page counts."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed (the extra pacs)")

from hypothesis import given, settings
from hypothesis import strategies as st

from mla_med.errors import CheckpointError, ConfigError
from mla_med.model import DEFAULT_CHECKPOINT
from mla_med.review.learning import (
    MIN_DECISIONS,
    account_of,
    examples_of,
    moved,
    own_copy,
    read_calibration,
    recalibrate,
    recalibrated,
    shift_of,
    undo_recalibration,
    wilson,
)

ANSWER = {
    "present_from": 0.2,
    "absent_to": 0.6,
    "cut": 0.4,
    "slope": 0.8,
    "offset": 0.1,
    "num_present": 100,
    "num_absent": 300,
}


def calibration() -> dict:
    return {
        "thresholds": {"lung_nodule": 0.4, "lung_mass": 0.5, "emphysema": 0.3},
        "answers": {"lung_nodule": dict(ANSWER), "lung_mass": dict(ANSWER)},
        "feature_limit": 3.0,
    }


def simulated(codes: dict[str, float], decisions: int = 500, seed: int = 0) -> list[dict]:
    """Decisions on drafts of a calibrated model, where the log odds of each finding are really `codes` higher
    than it says: what a reviewer who looks makes of them."""
    rng, rows = random.Random(seed), []
    for decision in range(decisions):
        for code, shift in codes.items():
            z = rng.gauss(-0.5, 1.5)
            p, true = 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(-z - shift))
            said, is_ = p >= 0.5, rng.random() < true
            rows.append(
                {
                    "decision_id": f"{decision}",
                    "code": code,
                    "drafted": "present" if said else "absent",
                    "decided": "present" if is_ else "absent",
                    "outcome": "kept" if said == is_ else "removed" if said else "added",
                    "confidence": p if said else 1 - p,
                }
            )
    return rows


def test_500_decisions_move_thresholds_to_where_the_site_is():
    rows = simulated({"lung_nodule": 1.0, "lung_mass": -1.0, "emphysema": 0.0}, 500, seed=2)
    old = calibration()
    new, shifts = recalibrated(old, rows)
    by_code = {shift.code: shift for shift in shifts}
    assert by_code["lung_nodule"].log_odds == pytest.approx(1.0, abs=0.25)
    assert by_code["lung_mass"].log_odds == pytest.approx(-1.0, abs=0.25)
    assert abs(by_code["emphysema"].log_odds) < 0.25
    assert new["thresholds"]["lung_nodule"] < 0.4 < 0.5 < new["thresholds"]["lung_mass"]
    for key in ("cut", "present_from", "absent_to"):
        assert new["answers"]["lung_nodule"][key] < ANSWER[key] < new["answers"]["lung_mass"][key]
    assert old == calibration()
    assert new["feature_limit"] == 3.0


def test_the_same_patient_is_answered_with_the_probability_that_was_found():
    """At a moved threshold the calibrated probability is what it was at the old one."""
    from mla_med.model.conformal import Answer

    new, (shift,) = recalibrated(calibration(), simulated({"lung_nodule": 1.0}))
    before = Answer.from_dict(ANSWER)
    after = Answer.from_dict(new["answers"]["lung_nodule"])
    assert after.calibrated(after.cut) == pytest.approx(before.calibrated(before.cut))
    assert after.calibrated(0.3) > before.calibrated(0.3)
    assert shift.threshold == 0.4


def test_order_of_patients_stays_as_it_was():
    from mla_med.model.conformal import Answer

    new, _ = recalibrated(calibration(), simulated({"lung_nodule": -1.5}))
    after = Answer.from_dict(new["answers"]["lung_nodule"])
    said = [after.calibrated(p / 100) for p in range(1, 100)]
    assert said == sorted(said)


probabilities = st.floats(0.01, 0.99)


@given(st.lists(st.tuples(probabilities, st.booleans()), max_size=40), probabilities)
@settings(max_examples=60, deadline=None)
def test_one_more_finding_that_is_there_never_raises_a_threshold(examples, p):
    was = shift_of(examples)
    assert shift_of([*examples, (p, True)]) >= was - 1e-9
    assert shift_of([*examples, (p, False)]) <= was + 1e-9


@given(probabilities, probabilities, st.floats(-2, 2), st.floats(0.1, 3))
def test_moving_keeps_thresholds_in_their_order(one, other, shift, slope):
    low, high = sorted((one, other))
    assert moved(low, shift, slope) <= moved(high, shift, slope)
    assert moved(0.0, shift, slope) == 0.0
    assert moved(1.0, shift, slope) == 1.0


def test_few_decisions_move_nothing_and_what_could_not_be_said_does_not_count():
    rows = simulated({"lung_nodule": 2.0}, MIN_DECISIONS - 1)
    assert recalibrated(calibration(), rows) == (calibration(), ())
    unsaid = [row | {"drafted": "cannot say"} for row in simulated({"lung_nodule": 2.0})]
    undecided = [row | {"decided": "cannot say"} for row in simulated({"lung_nodule": 2.0})]
    assert examples_of([*unsaid, *undecided]) == {}
    unknown = [row | {"code": "no_such_code"} for row in simulated({"lung_nodule": 2.0})]
    assert recalibrated(calibration(), unknown)[1] == ()


def test_two_nodules_of_one_patient_are_one_example():
    row = {"decision_id": "1", "code": "lung_nodule", "drafted": "present", "decided": "absent"}
    rows = [row | {"confidence": 0.7}, row | {"confidence": 0.9, "decided": "present"}]
    assert examples_of(rows) == {"lung_nodule": [(0.9, True)]}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_recalibration_is_undone_to_the_byte_step_by_step(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shutil.copy(DEFAULT_CHECKPOINT / "calibration.json", folder)
    first = (folder / "calibration.json").read_bytes()
    rows = simulated({"lung_nodule": 1.0, "pleural_effusion": -0.7})
    assert len(recalibrate(folder, rows)) == 2
    second = contents(folder)
    assert second["calibration.json"] != first
    recalibrate(folder, simulated({"lung_nodule": -1.0}))
    assert (folder / "calibration.json").read_bytes() not in (first, second["calibration.json"])
    undo_recalibration(folder)
    assert contents(folder) == second
    undo_recalibration(folder)
    assert (folder / "calibration.json").read_bytes() == first
    assert [path.name for path in folder.iterdir()] == ["calibration.json"]
    with pytest.raises(ConfigError, match="never recalibrated"):
        undo_recalibration(folder)


def test_a_recalibrated_checkpoint_is_read_as_one(tmp_path):
    from mla_med.model.calibrate import Calibration

    shutil.copy(DEFAULT_CHECKPOINT / "calibration.json", tmp_path)
    before = Calibration.from_dict(read_calibration(tmp_path))
    recalibrate(tmp_path, simulated({"lung_nodule": 2.0}))
    after = Calibration.from_dict(read_calibration(tmp_path))
    assert after.thresholds["lung_nodule"] < before.thresholds["lung_nodule"]
    assert after.thresholds["emphysema"] == before.thresholds["emphysema"]
    assert after.feature_precision == before.feature_precision


def test_the_package_itself_is_never_changed(tmp_path):
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    (packaged / "calibration.json").write_text(json.dumps(calibration()))
    copy = own_copy(packaged, tmp_path / "own")
    recalibrate(copy, simulated({"lung_nodule": 1.0}))
    assert json.loads((packaged / "calibration.json").read_text()) == calibration()
    with pytest.raises(ConfigError, match="there already"):
        own_copy(packaged, tmp_path / "own")


def test_nothing_is_written_where_nothing_moves_or_nothing_is_a_checkpoint(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps(calibration()))
    assert recalibrate(tmp_path, []) == ()
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "calibration.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no calibration"):
        recalibrate(tmp_path, [])
    with pytest.raises(CheckpointError, match="Cannot read"):
        recalibrate(tmp_path / "none", [])


DAY = 86_400.0
MONDAY = 1_767_571_200.0  # 2026-01-05


def outcome(code: str, name: str, at: float = MONDAY, **values) -> dict:
    said = {"kept": ("present", "present"), "changed": ("present", "present")}
    said |= {"removed": ("present", "absent"), "added": ("absent", "present")}
    drafted, decided = said.get(name, ("absent", "absent"))
    row = {"code": code, "outcome": name, "drafted": drafted, "decided": decided, "at": at}
    return row | {"scanner": "A", "subgroup": "F 60-79"} | values


def test_the_drift_page_counts_what_was_stated_by_finding_week_scanner_and_subgroup():
    rows = [
        *(outcome("lung_nodule", "kept") for _ in range(3)),
        outcome("lung_nodule", "removed", MONDAY + 8 * DAY, scanner="B"),
        outcome("lung_mass", "added", subgroup="M 20-39"),
        outcome("emphysema", "kept", drafted="absent", decided="absent"),
    ]
    account = account_of([], rows)
    assert [(s.name, s.kept, s.removed, s.added) for s in account.by_code] == [
        ("lung_nodule", 3, 1, 0),
        ("lung_mass", 0, 0, 1),
    ]
    assert account.by_code[0].accepted == 0.75
    assert [(w.start, w.share.total) for w in account.weeks] == [("2026-01-05", 4), ("2026-01-12", 1)]
    assert [(s.name, s.total) for s in account.by_scanner] == [("A", 4), ("B", 1)]
    assert [(s.name, s.total) for s in account.by_subgroup] == [("F 60-79", 4), ("M 20-39", 1)]
    assert len(account.by_week_and_code["lung_nodule"]) == 2


def test_the_drift_page_says_how_long_it_took_and_what_was_refused():
    decided = [
        {"at": MONDAY + hours * 3600, "drafted_at": MONDAY, "opened_at": MONDAY + hours * 3600 - 120,
         "decision": "ACCEPTED", "refusal": "NO_SERIES" if hours == 1 else ""}
        for hours in range(1, 11)
    ]  # fmt: skip
    account = account_of(decided, [])
    assert account.turnaround_h == (5.5, 9.0)
    assert account.reading_min == 2.0
    assert account.refusals == {"NO_SERIES": 1}
    assert account.drafts == {"ACCEPTED": 10}
    assert account_of([], []).turnaround_h is None


def test_an_interval_is_as_wide_as_there_are_few():
    """Wilson's of 8 of 10: 0.490 to 0.943 (Newcombe, Stat Med 1998;17:857, method 3)."""
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=0.001)
    assert wilson(0, 0) == (0.0, 1.0)
