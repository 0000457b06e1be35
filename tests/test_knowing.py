"""Scores of what a model knows of itself: the curve of selective prediction and the table of coverage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benches import calibration, write_checkpoint, write_corpus

from evaluation.faithfulness import Case, area, measure
from evaluation.knowing import curves_of, reliability_of, risk_coverage, rows_of, table
from mla_med.corpus import read_examples
from mla_med.model.calibrate import calibrate
from mla_med.model.checkpoint import load_checkpoint


def test_the_surest_answers_come_first_and_ties_enter_together():
    curve = risk_coverage(np.array([0.9, 0.6, 0.6, 0.99]), np.array([True, False, True, True]))
    assert curve.coverage == (0.25, 0.5, 1.0)
    assert curve.risk == (0.0, 0.0, 0.25)
    assert curve.risk_at(0.5) == 0.0
    assert curve.risk_at(0.75) == 0.25
    assert curve.area == pytest.approx(0.5 * 0.25)  # two of the four answers share the last risk


@pytest.fixture(scope="module")
def measured():
    rng = np.random.default_rng(0)
    present = rng.random((1500, 2)) < 0.3
    odds = rng.normal(np.where(present, 1.5, -1.5), 1)
    odds[:, 0] *= 9  # the evidence is 3 for each unit
    probability, features = 1 / (1 + np.exp(-odds)), rng.normal(size=(1500, 3))
    half = slice(0, 750)
    calibration = calibrate(("a", "b"), probability[half], present[half], features, features)
    return calibration, probability[750:], present[750:]


def test_the_table_shows_coverage_beside_what_was_stated(measured):
    calibration, probability, present = measured
    rows = rows_of(calibration, ("a", "b"), probability, present)
    for row in rows:
        assert row.coverage.present == pytest.approx(0.90, abs=0.05)
        assert row.coverage.absent == pytest.approx(0.90, abs=0.04)
    assert rows[0].error_before > 1.5 * rows[0].error_after  # three times too sure, until calibrated
    words = table(rows, 0.95)
    assert "Coverage stated: 0.95 in each class." in words
    assert words.splitlines()[-1].startswith("| all |")


def test_confidence_sorts_better_than_chance(measured):
    curves = curves_of(measured[0], ("a", "b"), measured[1], measured[2])
    by_confidence, at_random = curves.values()
    assert by_confidence.risk[-1] == pytest.approx(at_random.risk[-1])
    assert by_confidence.area < 0.5 * at_random.area


def test_a_bin_has_its_mean_probability_its_share_and_its_number():
    bins = reliability_of(np.array([0.1, 0.2, 0.9]), np.array([0, 1, 1]), bins=2)
    assert bins == [(pytest.approx(0.15), 0.5, 2), (pytest.approx(0.9), 1.0, 1)]
    assert reliability_of(np.array([0.9]), np.array([1]), bins=2)[0][2] == 0


def test_the_area_is_the_share_of_pairs_won_and_its_interval_is_by_patient():
    won = [Case("a", f"{n}", 2.0, (0.0, 1.0), True) for n in range(9)]
    lost = [Case("a", "10", 0.0, (1.0, 0.0), False)]  # one lost, one tied
    mean, low, high = area([*won, *lost])
    assert mean == pytest.approx(0.925)
    assert low < mean <= high


def test_what_is_there_and_stated_is_masked_and_nothing_else(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "checkpoint", corpus))
    nodules, normal, effusion = read_examples(corpus, "test")
    always = replace(checkpoint, calibration=calibration(0.0))
    (case,) = measure(always, [nodules, normal], regions=2)
    assert (case.code, case.patient) == ("lung_nodule", nodules.id)
    assert len(case.random_falls) <= 2
    assert measure(replace(checkpoint, calibration=calibration(1.0)), [effusion]) == []
