"""Patients who do not exist, with what they have and what the request says of them."""

from __future__ import annotations

import numpy as np
import pytest

from mla_med.phantom.patient import PREVALENCE, RAISES, Patient, choose_codes, context_of, make_patient
from mla_med.report.interpret import known_of
from mla_med.report.schema import SCHEMAS
from mla_med.types import Sex


def share_of(code: str, patient: Patient, examination: str = "chest_ct", n: int = 2000) -> float:
    rng = np.random.default_rng(0)
    return sum(code in choose_codes(patient, examination, rng) for _ in range(n)) / n


def someone(age: int = 60, *history: str) -> Patient:
    return Patient(1, Sex.FEMALE, age, 165.0, 26.0, frozenset(history))


def test_a_seed_is_one_patient():
    assert make_patient(7) == make_patient(7)
    assert make_patient(7) != make_patient(8)


def test_patients_are_adults_of_both_sexes_and_of_many_builds():
    patients = [make_patient(seed) for seed in range(500)]
    assert 0.4 < np.mean([p.sex is Sex.MALE for p in patients]) < 0.65
    assert min(p.age_years for p in patients) >= 18
    assert 55 < np.median([p.age_years for p in patients]) < 65
    assert np.std([p.bmi for p in patients]) > 3


@pytest.mark.parametrize(
    ("known", "code"),
    [("smoker", "emphysema"), ("heart_failure", "pleural_effusion"), ("infection", "consolidation")],
)
def test_what_is_known_brings_what_follows_from_it(known, code):
    assert share_of(code, someone(60, known)) > 1.5 * share_of(code, someone(60))


def test_calcium_comes_with_age():
    assert share_of("coronary_calcification", someone(80)) > 3 * share_of(
        "coronary_calcification", someone(40)
    )


def test_a_tenth_of_the_patients_has_nothing():
    rng = np.random.default_rng(3)
    normal = np.mean([not choose_codes(someone(30), "chest_ct", rng) for _ in range(2000)])
    assert 0.09 < normal < 0.2


def test_only_findings_of_the_schema_are_chosen():
    for examination, prevalence in PREVALENCE.items():
        assert set(prevalence) <= set(SCHEMAS[examination])
    every = {code for prevalence in PREVALENCE.values() for code in prevalence}
    assert {code for odds in RAISES.values() for code in odds} <= every


def test_a_request_says_what_is_known_in_both_languages():
    patients = [make_patient(seed) for seed in range(300)]
    for examination in PREVALENCE:
        for language in ("en", "zh"):
            said = [context_of(p, examination, language) for p in patients]
            known = [(known_of(c), p.history) for c, p in zip(said, patients, strict=True)]
            assert 0.2 < np.mean([bool(k) for k, _ in known]) < 0.7
            # chest pain is a complaint, not a history; nothing else is said that is not so
            assert all(k - {"chest_pain"} <= history for k, history in known)
