"""What the linter says of planted faults, of clean reports, and of reports that people wrote."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluation.linter import FAULTS, clean_reports, complaints_of, measure, struck_negation
from mla_med.phantom.examine import TECHNIQUES
from mla_med.report.check import check_report, check_text
from mla_med.report.render import render_report
from mla_med.report.style import load_style
from mla_med.types import ClinicalContext, Finding, Presence, Report, Sentence, Sex, Side


@pytest.fixture(scope="module")
def measured():
    return measure(96)


def test_every_planted_fault_is_found(measured):
    rows, _, _ = measured
    assert {r.fault.name: r.found for r in rows} == {r.fault.name: r.planted for r in rows}
    assert len(rows) == len(FAULTS) == 13
    assert min(r.planted for r in rows) > 10


def test_a_planted_fault_is_named_for_what_it_is(measured):
    rows, _, _ = measured
    # what is left of a sentence whose negation was struck out is mostly one that no style has
    assert all(r.named >= 0.95 * r.planted for r in rows if r.fault.plant is not struck_negation)


def test_every_comparison_without_a_prior_is_named(measured):
    rows, _, _ = measured
    compared = next(r for r in rows if r.fault.rule == "COMPARISON_WITHOUT_PRIOR")
    assert compared.named == compared.planted > 80


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
        ("结节大小约700 mm。", "SIZE"),
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


@pytest.mark.parametrize(
    ("sentence", "rules"),
    [
        ("Tiny pneumothorax on the left.", ["NEGATION"]),
        ("The known nodule of the right upper lobe.", ["SIDE"]),
        ("The lungs contain no nodules.", ["NEGATION"]),
        ("A nodule is seen in the left upper lobe again.", ["UNKNOWN_SENTENCE"]),
        ("A possible pneumothorax.", ["UNKNOWN_SENTENCE"]),
        ("Nodules in both lungs.", ["UNKNOWN_SENTENCE"]),
    ],
)
def test_a_sentence_of_no_style_is_read_against_the_findings(sentence, rules):
    nodule = Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=8.0)
    report = render_report([nodule])
    freely = replace(report, sentences=(*report.sentences, Sentence(sentence)))
    assert [c.rule for c in check_report(freely)] == rules


def test_a_language_without_words_for_the_linter_is_held_against_its_findings_alone():
    report = replace(render_report([]), language="de")
    odd = replace(report, sentences=(*report.sentences, Sentence("Kein Erguss, im Vergleich.")))
    assert check_report(report, style=load_style()) == ()
    assert [c.rule for c in check_report(odd, style=load_style())] == ["UNKNOWN_SENTENCE"]


@pytest.mark.parametrize(
    ("language", "given", "text", "complained"),
    [
        ("zh", True, "颅脑MR平扫及增强，序列包括T1WI、T2WI、FLAIR及DWI。", False),
        ("zh", True, "胸部CT平扫。", True),
        ("zh", False, "胸部CT平扫+增强。", True),
        ("zh", False, "胸部增强CT。", True),
        ("zh", False, "建议增强扫描进一步检查。", False),
        ("en", True, "CT of the chest with and without IV contrast.", False),
        ("en", True, "No contrast reaction occurred.", False),
        ("en", False, "CT of the chest with and without IV contrast.", True),
        ("en", False, "A contrast-enhanced CT is recommended.", False),
    ],
)
def test_contrast_is_what_was_given_not_what_is_advised(language, given, text, complained):
    assert bool(check_text(text, language, contrast_given=given)) is complained


def test_the_technique_that_a_phantom_states_has_no_complaint():
    for (_, language), technique in TECHNIQUES.items():
        assert check_text(technique, language, contrast_given=True) == ()


@pytest.mark.parametrize(
    ("text", "compares"),
    [
        ("Sternotomy wires from previous cardiac surgery.", False),
        ("New York Heart Association class II.", False),
        ("The right lung is smaller compared to the left.", False),
        ("Compared to the prior examination, the nodule is larger.", True),
        ("A nodule on the previous examination of 6 mm.", True),
    ],
)
def test_a_history_is_no_comparison(text, compares):
    said = [c.rule for c in check_text(text, context=ClinicalContext(60.0, Sex.FEMALE, ""))]
    assert ("COMPARISON_WITHOUT_PRIOR" in said) is compares


# The side of the request


def sides_complained_of(indication: str, *findings: Finding, language: str = "en") -> list[str]:
    report = render_report(findings, load_style(language=language))
    found = check_report(report, ClinicalContext(60.0, Sex.FEMALE, indication, prior="CT."))
    return [f"{c.words} {c.sentence}" for c in found if c.rule == "SIDE_OF_REQUEST"]


LEFT_NODULE = Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=8.0)
RIGHT_NODULE = replace(LEFT_NODULE, side=Side.RIGHT)


@pytest.mark.parametrize(
    "indication",
    [
        "Nodule of the right upper lobe, follow-up",
        "8 mm RUL nodule seen on prior CT; smoker",
        "Cough. Known nodule in the right lung.",
        "Nodule, right lower lobe.",
        "发现右肺上叶结节3月，复查",
        "体检发现右肺结节。左胸痛。",
        "肺结节，较大者位于右肺下叶",
    ],
)
def test_a_side_of_the_request_that_the_report_has_on_the_other_alone_is_named(indication):
    (said,) = sides_complained_of(indication, LEFT_NODULE)
    assert said.startswith("The request states nodule on the right, the report on the left alone.")
    assert "left upper lobe" in said
    (said,) = sides_complained_of(indication, LEFT_NODULE, language="zh")
    assert "左肺上叶" in said


@pytest.mark.parametrize(
    "indication",
    [
        "",
        "nodule",
        "nodule in the left upper lobe",
        "nodules in both lungs",
        "nodule on the right, another nodule on the left",
        "history of a right lung nodule",
        "s/p resection of a right upper lobe nodule",
        "right upper lobectomy, nodule follow-up",
        "rule out nodule on the right",
        "? right lung nodule",
        "right lung nodule?",
        "no nodule on the right",
        "resolved nodule of the right lower lobe",
        "pain in the right flank",
        "lung nodule and right shoulder pain",
        "lung nodule, right breast cancer",
        "lung nodule, right hemiparesis",
        "history of left mastectomy",
        "nodule of the right thyroid lobe",
        "right pleural effusion",
        "右肺结节待查",
        "右肺结节？",
        "右肺结节术后",
        "右肺上叶切除术后，肺结节随访",
        "既往右肺结节",
        "未见右肺结节",
        "右胸痛，肺结节",
        "双肺结节",
        "左肺结节",
    ],
)
def test_what_the_request_does_not_state_on_the_other_side_is_left_alone(indication):
    assert sides_complained_of(indication, LEFT_NODULE) == []


def test_a_report_that_has_both_sides_none_or_no_such_finding_agrees_with_every_request():
    asked = "nodule of the right upper lobe, effusion on the left"
    assert sides_complained_of(asked, LEFT_NODULE, RIGHT_NODULE) == []
    assert sides_complained_of(asked, Finding("lung_nodule", Presence.ABSENT)) == []
    assert sides_complained_of(asked) == []
    assert (
        sides_complained_of("right pleural effusion", Finding("pleural_effusion", side=Side.BILATERAL)) == []
    )


def test_several_sides_of_a_request_are_named_in_the_order_of_the_request():
    effusion = Finding("pleural_effusion", side=Side.RIGHT)
    said = sides_complained_of("Nodule of the right lung. Left pleural effusion.", LEFT_NODULE, effusion)
    assert [words.split(" on ")[0] for words in said] == [
        "The request states nodule",
        "The request states pleural effusion",
    ]


def test_the_side_of_the_request_is_a_matter_of_the_chest_alone():
    infarct = Finding("acute_infarct", site="frontal_lobe", side=Side.LEFT, size_mm=20.0)
    report = render_report([infarct], examination="brain_mr")
    found = check_report(report, ClinicalContext(60.0, Sex.FEMALE, "right lung nodule"))
    assert "SIDE_OF_REQUEST" not in [c.rule for c in found]


def test_a_request_in_the_words_of_any_style_is_read_for_its_side():
    other = {Side.LEFT: Side.RIGHT, Side.RIGHT: Side.LEFT}
    agreeing, planted, named = 0, 0, 0
    for report, style in clean_reports(160):
        present = [f for f in report.findings if f.presence is Presence.PRESENT and f.side in other]
        for finding in present if report.examination == "chest_ct" else ():
            of_code = {f.side for f in report.findings if f.code == finding.code}
            agreeing += 1
            assert not complains_of_side(report, impression_of(finding, style))
            turned = replace(finding, side=other[finding.side])
            if of_code == {finding.side} and finding.site != "middle_lobe":
                planted += 1
                named += complains_of_side(report, impression_of(turned, style))
    assert agreeing > 200
    assert planted > 80
    assert named >= 0.97 * planted


def impression_of(finding: Finding, style) -> str:
    report = render_report([replace(finding, change=None)], style)
    return next(s.text for s in report.impression if finding.code in s.codes)


def complains_of_side(report: Report, indication: str) -> bool:
    found = check_report(report, ClinicalContext(60.0, Sex.FEMALE, indication, prior="CT."))
    return "SIDE_OF_REQUEST" in [c.rule for c in found]
