"""The same findings mean something else in another patient."""

from __future__ import annotations

import pytest

from mla_med.report.check import check_report
from mla_med.report.interpret import interpret, known_of, rules
from mla_med.report.parse import parse_report
from mla_med.report.render import render_report, report_text
from mla_med.report.schema import SCHEMAS
from mla_med.types import ClinicalContext, Finding, Presence, Sex, Side


def nodule(size_mm: float, count: int | None = None) -> Finding:
    return Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=size_mm, count=count)


FRACTURE = Finding("fracture", site="vertebra")
CONSOLIDATION = Finding("consolidation", site="lower_lobe", side=Side.RIGHT)


def asked(indication: str, age: float | None = 60.0) -> ClinicalContext:
    return ClinicalContext(age, Sex.FEMALE, indication)


@pytest.mark.parametrize(
    ("finding", "context", "meaning"),
    [
        (CONSOLIDATION, asked("fever and cough"), ("consolidation_pneumonia",)),
        (CONSOLIDATION, asked("weight loss"), ("consolidation_follow_up",)),
        (CONSOLIDATION, asked("cough without fever"), ("consolidation_follow_up",)),
        (CONSOLIDATION, asked("发热"), ("consolidation_pneumonia",)),
        (CONSOLIDATION, asked("无发热"), ("consolidation_follow_up",)),
        (CONSOLIDATION, ClinicalContext(60.0), ()),
        (nodule(5), asked("cough"), ("nodule_no_follow_up",)),
        (nodule(5), asked("smoker, cough"), ("nodule_optional_follow_up",)),
        (nodule(7), asked("cough"), ("nodule_follow_up",)),
        (nodule(12), asked("cough"), ("nodule_work_up",)),
        (nodule(12), asked("cough", age=30), ()),
        (nodule(7, count=4), asked("cough"), ("nodules_follow_up",)),
        (nodule(12, count=2), asked("cough"), ("nodules_follow_up",)),
        (nodule(5, count=4), asked("cough"), ("nodule_no_follow_up",)),
        (nodule(12), asked("lung cancer screening"), ("nodule_work_up",)),
        (FRACTURE, asked("back pain", age=75), ("fracture_osteoporotic",)),
        (FRACTURE, asked("known breast cancer, back pain", age=75), ()),
        (nodule(12), asked("cough", age=None), ()),
        (nodule(5), asked("staging of a melanoma", age=30), ("nodule_metastasis",)),
    ],
)
def test_a_finding_is_read_in_the_light_of_the_request(finding, context, meaning):
    assert interpret([finding], context) == meaning


def test_what_is_absent_means_nothing():
    assert interpret([Finding("consolidation", Presence.ABSENT)], asked("fever")) == ()


def test_the_largest_nodule_decides():
    assert interpret([nodule(4), nodule(9)], asked("cough")) == ("nodules_follow_up",)
    assert interpret([nodule(4), nodule(5)], asked("cough")) == ("nodule_no_follow_up",)


def test_white_matter_disease_depends_on_age():
    found = [Finding("white_matter_hyperintensity")]
    assert interpret(found, asked("optic neuritis", 28.0), "brain_mr") == ("hyperintensity_demyelination",)
    assert interpret(found, asked("dizziness", 71.0), "brain_mr") == ("hyperintensity_small_vessel",)


def test_what_a_request_denies_is_not_known():
    assert known_of(asked("No fever, known heart failure")) == {"heart_failure"}


@pytest.mark.parametrize(
    ("indication", "known"),
    [
        ("non-smoker", set()),
        ("ex-smoker", {"smoker"}),
        ("不吸烟", set()),
        ("denies fever, chills, productive cough", set()),
        ("no fever but known cancer", {"cancer"}),
        ("no history of smoking or malignancy", set()),
        ("fever: no", set()),
        ("trauma excluded", set()),
        ("无发热、咳痰", set()),
        ("否认发热、咳嗽、咳痰，吸烟20年", {"smoker"}),
        ("无明显诱因发热", {"infection"}),
        ("四肢无力、发热", {"infection"}),
        ("不明原因发热", {"infection"}),
        ("cerebrovascular accident", {"stroke"}),
        ("pulmonary hypertension", set()),
        ("转移性右下腹痛", set()),
    ],
)
def test_a_request_is_read_with_its_lists_and_denials(indication, known):
    assert known_of(asked(indication)) == known


@pytest.mark.parametrize(
    "indication",
    [
        "lung cancer screening", "rule out metastasis", "exclude malignancy", "? metastases",
        "family history of breast cancer", "suspected lung cancer", "肺癌筛查", "排除转移", "可疑恶性肿瘤",
        "父亲肺癌家族史", "肺癌待排",
    ],
)  # fmt: skip
def test_a_malignancy_that_is_only_asked_for_is_not_known(indication):
    assert known_of(asked(indication)) == frozenset()


@pytest.mark.parametrize(
    "indication",
    [
        "breast cancer, exclude metastases",
        "rule out infection in known lymphoma",
        "恶性肿瘤分期",
        "结肠癌术后",
    ],
)
def test_a_known_malignancy_stays_known_beside_a_question(indication):
    assert "cancer" in known_of(asked(indication))


def test_an_interpretation_survives_render_and_parse():
    report = render_report([CONSOLIDATION], interpretations=("consolidation_pneumonia",))
    assert (
        report.impression[-1].text
        == "In the clinical context, the consolidation is consistent with pneumonia."
    )
    assert parse_report(report_text(report)) == report


def test_an_interpretation_that_the_request_does_not_support_is_named():
    report = render_report([CONSOLIDATION], interpretations=("consolidation_pneumonia",))
    assert check_report(report, asked("fever")) == ()
    assert [c.rule for c in check_report(report, asked("weight loss"))] == ["INTERPRETATION"]


def test_every_rule_is_of_a_finding_of_its_examination():
    for examination, schema in SCHEMAS.items():
        assert all(rule.finding in schema for rule in rules(examination))
    assert len(rules("chest_ct")) == 21
