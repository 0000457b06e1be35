"""Knowing what it does not know: conformal sets keep their coverage, calibration keeps the order."""

from __future__ import annotations

import numpy as np
import pytest

from mla_med.model import CHECKPOINTS
from mla_med.model.calibrate import calibrate, repeatability
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.conformal import (
    Answer,
    calibration_error,
    conformal_quantile,
    coverage_of,
    fit_answer,
    fit_sigmoid,
    log_odds,
)
from mla_med.types import Presence


def draw(count: int, apart: float, seed: int, prevalence: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model whose classes lie so many standard deviations apart, and the truth."""
    rng = np.random.default_rng(seed)
    present = rng.random(count) < prevalence
    odds = rng.normal(np.where(present, apart / 2, -apart / 2), 1)
    return 1 / (1 + np.exp(-odds)), present


def test_the_quantile_is_corrected_for_few_examples():
    assert conformal_quantile(np.arange(1, 20) / 20, 0.95) == 0.95  # the 19th of 19
    assert conformal_quantile(np.arange(1, 19) / 20, 0.95) == 1.0  # 18 are too few to say
    assert conformal_quantile(np.arange(1, 100) / 100, 0.90) == 0.90


@pytest.mark.parametrize("apart", [0.5, 2.0, 6.0])
def test_sets_hold_the_truth_as_often_as_stated_in_each_class(apart):
    found = []
    for seed in range(60):
        probability, present = draw(400, apart, seed)
        answer = fit_answer(probability, present, 0.5, 0.9)
        found.append(coverage_of(answer, *draw(1000, apart, 1000 + seed)))
    assert np.mean([c.present for c in found]) == pytest.approx(0.9, abs=0.02)
    assert np.mean([c.absent for c in found]) == pytest.approx(0.9, abs=0.02)
    # what is said errs at most as often as the sets do
    assert np.mean([c.missed for c in found]) <= 0.11
    assert np.mean([c.invented for c in found]) <= 0.11


def test_the_worse_the_model_the_less_is_said():
    unsaid = []
    for apart in (0.5, 2.0, 6.0):
        answer = fit_answer(*draw(1000, apart, 1), 0.5, 0.9)
        unsaid.append(coverage_of(answer, *draw(1000, apart, 2)).unsaid)
    assert unsaid[0] > 0.6 > unsaid[1] > 0.1 > unsaid[2]


ANSWER = Answer(0.2, 0.6, 0.4, 1.0, 0.0, 50, 50)
APART = Answer(0.9, 0.1, 0.4, 1.0, 0.0, 50, 50)


@pytest.mark.parametrize(
    ("answer", "probability", "presence"),
    [
        (ANSWER, 0.1, Presence.ABSENT),
        (ANSWER, 0.3, Presence.CANNOT_SAY),
        (ANSWER, 0.5, Presence.CANNOT_SAY),
        (ANSWER, 0.7, Presence.PRESENT),
        (APART, 0.3, Presence.ABSENT),  # neither conforms: the likelier
        (APART, 0.5, Presence.PRESENT),
        # what conforms alone is not said against the odds
        (Answer(0.01, 0.02, 0.4, 1.0, 0.0, 50, 50), 0.05, Presence.CANNOT_SAY),
    ],
)
def test_present_and_absent_are_said_only_where_the_other_is_ruled_out(answer, probability, presence):
    assert answer.presence(probability) is presence


def test_a_finding_that_was_never_seen_is_never_ruled_out():
    probability = np.linspace(0.01, 0.2, 100)
    answer = fit_answer(probability, np.zeros(100, bool), 0.5, 0.95)
    assert answer.presence(0.0) is Presence.CANNOT_SAY
    assert answer.presence(0.9) is Presence.PRESENT


def test_calibration_keeps_the_order_and_lowers_the_error():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 3, 4000)
    present = rng.random(4000) < 1 / (1 + np.exp(-odds / 3))  # three times too sure
    probability = 1 / (1 + np.exp(-odds))
    answer = fit_answer(probability[:2000], present[:2000], 0.5)
    calibrated = np.array([answer.calibrated(p) for p in probability[2000:]])
    assert answer.slope == pytest.approx(1 / 3, abs=0.05)
    assert (np.argsort(calibrated, kind="stable") == np.argsort(probability[2000:], kind="stable")).all()
    before = calibration_error(probability[2000:], present[2000:])
    assert before > 0.12
    assert calibration_error(calibrated, present[2000:]) < 0.04


def test_classes_that_lie_apart_are_not_called_certain():
    probability = np.array([0.01] * 50 + [0.99] * 50)
    slope, offset = fit_sigmoid(log_odds(probability), np.arange(100) >= 50)
    assert 0.5 < slope < 2.5
    assert abs(offset) < 0.1


def test_a_model_worse_than_chance_is_not_turned_round():
    probability, present = draw(500, -3.0, 0)
    assert fit_answer(probability, present, 0.5).slope > 0


def test_calibration_error_by_hand():
    # 15 bins; two are used: |0.1 - 0.5| for two of four, |0.9 - 1| for the others
    assert calibration_error(np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 1, 1, 1])) == pytest.approx(0.25)
    assert np.isnan(calibration_error(np.array([]), np.array([])))


def test_nineteen_of_twenty_measurements_repeat_within_the_coefficient():
    assert repeatability(np.arange(1, 101)) == 96.0


def test_calibration_answers_with_a_probability_of_what_is_said():
    probability, present = draw(400, 2.0, 0)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 4))
    calibration = calibrate(
        ("a",),
        probability[:, None],
        present[:, None],
        features,
        features,
        {"a": np.linspace(0, 3, 20)},
    )
    assert calibration.coverage == 0.9
    assert calibration.size_repeat_mm == {"a": 3.0}
    said = {p: calibration.answer("a", p) for p in (0.001, 0.5, 0.999)}
    assert [s[0] for s in said.values()] == [Presence.ABSENT, Presence.CANNOT_SAY, Presence.PRESENT]
    assert said[0.001][1] > 0.9
    assert 0.5 <= said[0.5][1] < 0.75
    assert said[0.999][1] > 0.9


def test_nothing_is_called_present_that_is_more_likely_absent():
    """A finding that the model knows nothing of: its absent examples lie low too, and still it is no more
    likely present above them."""
    rng = np.random.default_rng(0)
    probability, present = rng.uniform(0.05, 0.15, 400), rng.random(400) < 0.1
    answer = fit_answer(probability, present, 0.1)
    assert answer.conforms(0.149) == (True, False)
    assert answer.calibrated(0.149) < 0.3
    assert answer.presence(0.149) is Presence.CANNOT_SAY


@pytest.mark.parametrize("examination", CHECKPOINTS)
def test_no_packaged_answer_contradicts_its_own_probability(examination):
    """Over all probabilities: present is more likely than not, absent is not."""
    calibration = load_checkpoint(CHECKPOINTS[examination]).calibration
    wrong = {
        (code, float(p))
        for code, answer in calibration.answers.items()
        for p in np.linspace(0, 1, 401)
        if answer.presence(p) is not Presence.CANNOT_SAY
        and (answer.presence(p) is Presence.PRESENT) != (answer.calibrated(p) >= 0.5)
    }
    assert wrong == set()


def test_nothing_is_called_absent_that_is_more_likely_present():
    unsure = Answer(0.6, 0.3, cut=0.5, slope=1.0, offset=1.0, num_present=50, num_absent=50)
    assert unsure.calibrated(0.4) > 0.5
    assert unsure.presence(0.4) is Presence.CANNOT_SAY
    assert unsure.presence(0.1) is Presence.ABSENT
