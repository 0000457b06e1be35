"""What the linter says of planted faults, of clean reports, and of reports that people wrote."""

from __future__ import annotations

import pytest

from evaluation.linter import FAULTS, clean_reports, complaints_of, measure
from mla_med.report.check import check_report, check_text
from mla_med.report.render import render_report
from mla_med.types import ClinicalContext, Finding, Report, Sentence, Sex, Side


@pytest.fixture(scope="module")
def measured():
    return measure(90)


def test_every_planted_fault_is_found(measured):
    rows, _, _ = measured
    assert {name: found for name, _, found, _, _ in rows} == {name: planted for name, planted, *_ in rows}
    assert len(rows) == len(FAULTS) == 10
    assert min(planted for _, planted, *_ in rows) > 10


def test_clean_reports_have_no_complaint(measured):
    _, alarms, _ = measured
    assert alarms["reports"] == 0


def test_a_side_that_another_finding_has_is_found():
    nodules = [
        Finding("lung_nodule", site="upper_lobe", side=s, size_mm=8.0) for s in (Side.RIGHT, Side.LEFT)
    ]
    report = render_report(nodules)
    first, second, *rest = report.sentences
    twice = Report(report.findings, (second, second, *rest), report.impression, report.technique)
    assert first != second
    assert [c.rule for c in check_report(twice)] == ["SIDE"]


def test_every_complaint_names_its_sentence():
    for report, style in clean_reports(3):
        first = report.sentences[0].text
        odd = Report(
            report.findings,
            (*report.sentences, Sentence("The gallbladder sings.")),
            report.impression,
            report.technique,
            report.language,
            report.examination,
        )
        complaint = check_report(odd, style=style)[0]
        assert (complaint.rule, complaint.sentence) == ("UNKNOWN_SENTENCE", "The gallbladder sings.")
        assert first
        assert complaints_of(report, style) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Consolidation in the left middle lobe.", "NO_SUCH_PLACE"),
        ("左肺中叶见实变影。", "NO_SUCH_PLACE"),
        ("A nodule of 700 mm.", "SIZE"),
        ("结节大小约120cm。", "SIZE"),
        ("The prostate is enlarged. The uterus is normal.", "ORGAN_OF_OTHER_SEX"),
    ],
)
def test_what_is_in_no_patient_is_named_in_free_text(text, rule):
    language = "zh" if text[0] > "z" else "en"
    assert [c.rule for c in check_text(text, language)] == [rule]


def test_free_text_is_held_against_the_header():
    text = "After contrast the uterus is normal, unchanged to the prior study."
    context = ClinicalContext(50.0, Sex.MALE)
    rules = [c.rule for c in check_text(text, context=context, contrast_given=False)]
    assert rules == ["CONTRAST", "COMPARISON_WITHOUT_PRIOR", "ORGAN_OF_OTHER_SEX"]
    known = ClinicalContext(50.0, Sex.FEMALE, prior="CT of the chest.")
    assert check_text(text, context=known, contrast_given=True) == ()


def test_free_text_of_which_nothing_is_known_is_left_alone():
    assert check_text("The nodule is unchanged. 12 mm in the left upper lobe, after contrast.") == ()
