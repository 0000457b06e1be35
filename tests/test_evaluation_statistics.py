"""Intervals and p-values against theory, against scipy, and against values worked out by hand."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import bootstrap

from evaluation.protocols import Smoothing
from evaluation.score import Gap
from evaluation.statistics import (
    bca_ci,
    benjamini_hochberg,
    bootstrap_ci,
    difference,
    draw_resamples,
    estimate,
    holm,
    paired_randomisation,
    ratio,
    to_gap,
)
from evaluation.text import bleu, text_scores

SKEWED = np.random.default_rng(5).lognormal(size=20)


def mean_of(values):
    return lambda counts_BR: counts_BR @ values / counts_BR.sum(axis=1)


def means(sums_BT):
    return ratio(sums_BT[:, 0], sums_BT[:, 1])


def as_sums(values):
    return np.stack([values, np.ones(len(values))], axis=1).astype(float)


def each(num):
    return [f"r{k}" for k in range(num)]


@pytest.mark.parametrize(("ours", "method"), [(bca_ci, "BCa"), (bootstrap_ci, "percentile")])
def test_the_interval_of_a_skewed_mean_is_scipys(ours, method):
    drawn = draw_resamples(each(20), "report", 20_000, seed=1)
    theirs = bootstrap((SKEWED,), np.mean, n_resamples=20_000, method=method, rng=1).confidence_interval
    assert ours(mean_of(SKEWED), drawn) == pytest.approx(tuple(theirs), rel=0.02)


def test_few_reports_get_bca_and_many_get_percentiles_and_both_say_so():
    few, many = (draw_resamples(each(num), "report", 500) for num in (20, 60))
    assert few.signature.startswith("ci:bca|B:500")
    assert many.signature.startswith("ci:percentile|B:500")
    assert estimate(mean_of(SKEWED), few).ci95 == bca_ci(mean_of(SKEWED), few)
    values = np.arange(60.0)
    assert estimate(mean_of(values), many).ci95 == bootstrap_ci(mean_of(values), many)


@pytest.mark.parametrize("num", [20, 60])
def test_the_interval_of_a_gap_is_that_of_the_differences(num):
    """BCa below 50 groups, as that of the values beside it."""
    ours, theirs = np.random.default_rng(1).lognormal(size=(2, num))
    drawn = draw_resamples(each(num), "report", 500)
    of_both = (estimate(mean_of(values), drawn) for values in (theirs, ours))
    apart = difference(mean_of(theirs), mean_of(ours), *of_both, drawn)
    assert apart.ci95 == pytest.approx(estimate(mean_of(ours - theirs), drawn).ci95)
    low, high = apart.ci95
    assert to_gap(apart, higher_is_better=True) == Gap(apart.value, (low, high))
    assert to_gap(apart, higher_is_better=False) == Gap(-apart.value, (-high, -low))


def test_the_interval_of_a_gap_counts_draws_on_it_as_ties_though_their_last_digits_differ():
    """0.35 - 0.30 is not 0.40 - 0.35: which side of the value those fall on moved one interval in two."""
    ours, theirs = np.random.default_rng(9).integers(0, 2, (2, 17)).astype(float)
    drawn = draw_resamples(each(17), "report", 500)
    of_both = (estimate(mean_of(values), drawn) for values in (theirs, ours))
    apart = difference(mean_of(theirs), mean_of(ours), *of_both, drawn)
    whole = estimate(lambda counts_BR: counts_BR @ (ours - theirs), drawn)  # whole numbers, then divided
    assert apart.ci95 == pytest.approx(tuple(end / 17 for end in whole.ci95))


def test_a_value_without_spread_has_an_interval_of_width_zero_and_one_patient_has_none():
    drawn = draw_resamples(each(5), "report", 100)
    assert estimate(mean_of(np.ones(5)), drawn).ci95 == (1.0, 1.0)
    alone = draw_resamples(["p"] * 5, "patient", 100)
    assert np.isnan(
        [bca_ci(mean_of(np.arange(5.0)), alone), bootstrap_ci(mean_of(np.arange(5.0)), alone)]
    ).all()


def test_patients_are_drawn_and_not_their_reports():
    """Ten reports of each of eight patients are worth eight, not eighty."""
    values = np.repeat(np.arange(8.0), 10)
    by_report = draw_resamples(each(80), "report", 4000)
    by_patient = draw_resamples(np.repeat(each(8), 10).tolist(), "patient", 4000)
    widths = [np.diff(bootstrap_ci(mean_of(values), drawn))[0] for drawn in (by_report, by_patient)]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(10), rel=0.15)


def test_five_reports_cannot_have_a_p_below_a_sixteenth():
    p, smallest = paired_randomisation(as_sums(np.ones(5)), as_sums(np.zeros(5)), means)
    assert (p, smallest) == (2 / 32, 2 / 32)


def test_the_exact_p_of_three_pairs_is_counted_by_hand():
    # gaps 3, 1, -1 sum to 3; of the 8 ways 3+1+1, 3+1-1, 3-1+1 and their mirrors reach it
    p, smallest = paired_randomisation(as_sums(np.zeros(3)), as_sums(np.array([3, 1, -1])), means)
    assert (p, smallest) == (6 / 8, 2 / 8)


def test_no_p_is_ever_zero():
    p, smallest = paired_randomisation(as_sums(np.zeros(200)), as_sums(np.ones(200)), means, trials=1000)
    assert p == smallest == 1 / 1001


def test_equal_systems_differ_with_p_one():
    same = as_sums(np.arange(50.0))
    assert paired_randomisation(same, same, means, trials=500)[0] == 1.0


def test_p_of_chance_differences_is_uniform():
    rng = np.random.default_rng(0)
    ps = [
        paired_randomisation(as_sums(rng.normal(size=30)), as_sums(rng.normal(size=30)), means, trials=200)[0]
        for _ in range(200)
    ]
    assert np.mean(ps) == pytest.approx(0.5, abs=0.06)
    assert np.mean(np.array(ps) < 0.1) == pytest.approx(0.1, abs=0.06)


def test_randomisation_by_patient_swaps_all_reports_of_one():
    first, second = as_sums(np.zeros(40)), as_sums(np.ones(40))
    patients = np.repeat(each(4), 10).tolist()
    assert paired_randomisation(first, second, means, patients) == (2 / 16, 2 / 16)


def test_bleu_of_two_systems_is_randomised_over_its_counts():
    references = [f"there is a nodule of {k} mm in the right upper lobe" for k in range(30)]
    worse = text_scores(references, [text.replace("right", "left") for text in references])["BLEU-4"]
    best = text_scores(references, references)["BLEU-4"]
    p, smallest = paired_randomisation(worse.sums.each_RT, best.sums.each_RT, best.sums.value_of, trials=999)
    assert p == smallest == 1 / 1000
    value_of = partial(bleu, order=4, smoothing=Smoothing.TINY)
    assert value_of(worse.sums.each_RT.sum(axis=0)[None])[0] == pytest.approx(worse.value)


def test_same_seed_same_p_and_other_seed_nearly():
    rng = np.random.default_rng(1)
    first, second = as_sums(rng.normal(size=100)), as_sums(rng.normal(0.2, size=100))
    ps = [paired_randomisation(first, second, means, seed=seed)[0] for seed in (1, 1, 2)]
    assert ps[0] == ps[1]
    assert ps[2] == pytest.approx(ps[0], abs=0.02)


def test_what_cannot_be_measured_has_no_p():
    nothing = np.zeros((4, 2))
    assert np.isnan(paired_randomisation(nothing, nothing, means)).all()


def test_holm_and_benjamini_hochberg_as_worked_out_by_hand():
    ps = [0.04, 0.01, 0.03, 0.005]
    # Holm: 0.005*4, 0.01*3, 0.03*2, then not below the one before
    assert holm(ps) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    # from the largest: 0.04*4/4, 0.03*4/3, 0.01*4/2, 0.005*4/1
    assert benjamini_hochberg(ps) == pytest.approx([0.04, 0.02, 0.04, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == benjamini_hochberg([]) == []
