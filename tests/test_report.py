"""Findings and words: every statement survives the way into text and back."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import roundtrip
from evaluation.roundtrip import FindingSet, finding_sets, measure, write
from mla_med.errors import ConfigError, ReportError
from mla_med.report.check import check_report
from mla_med.report.context import context_text
from mla_med.report.parse import check_style, parse_report, parse_sentence
from mla_med.report.render import complete_findings, render_report, report_text
from mla_med.report.schema import CHEST_CT, SCHEMAS
from mla_med.report.style import Style, load_style, packaged_languages, packaged_styles, read_style
from mla_med.types import (
    Change,
    ClinicalContext,
    Evidence,
    Finding,
    Presence,
    Report,
    Sentence,
    Sex,
    Side,
)

PACKAGED = [(language, name) for language in packaged_languages() for name in packaged_styles(language)]


def replace_phrase(style: Style, code: str, key: str, phrase: str) -> Style:
    wording = style.examinations["chest_ct"]
    phrases = {**wording.phrases, code: {**wording.phrases[code], key: (phrase,)}}
    return replace(style, examinations={"chest_ct": replace(wording, phrases=phrases)})


@st.composite
def findings(draw):
    chosen = []
    for code, kind in CHEST_CT.items():
        presence = draw(st.sampled_from(list(Presence)))
        if presence is not Presence.PRESENT:
            chosen.append(Finding(code, presence))
            continue
        for side, site in draw(st.lists(st.sampled_from(kind.places), min_size=1, max_size=3, unique=True)):
            size = draw(st.integers(1, 1500)) / 10 if kind.has_size else None
            count = draw(st.sampled_from((None, 2, 17))) if kind.countable else None
            change = draw(st.sampled_from((None, Change.NEW, Change.STABLE, Change.INCREASED)))
            chosen.append(Finding(code, presence, site, side, size, count, change))
    return tuple(chosen)


@settings(max_examples=60, deadline=None)
@given(findings(), st.integers(0, 1000))
def test_a_report_survives_render_and_parse(chosen, seed):
    report = render_report(chosen, rng=random.Random(seed))
    parsed = parse_report(report_text(report))
    assert parsed.findings == chosen
    assert parsed.sentences == report.sentences
    assert parsed.technique == report.technique


def test_what_is_not_given_is_stated_as_absent():
    report = render_report([Finding("emphysema")])
    required = [code for code, kind in CHEST_CT.items() if kind.required]
    assert [f.code for f in report.findings] == required
    assert sum(f.presence is Presence.PRESENT for f in report.findings) == 1
    assert len(report.sentences) == 22


def test_a_report_of_some_codes_is_silent_on_the_others():
    report = render_report([Finding("emphysema")], codes=("lung_mass", "emphysema"))
    assert [s.text for s in report.sentences] == [
        "No pulmonary mass.",
        "There is emphysema, predominantly in the upper lobes.",
    ]


def test_the_text_of_a_report_is_what_a_radiologist_would_read():
    nodule = Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=12.0)
    text = report_text(render_report([nodule]))
    assert "There is a 12 mm nodule in the left upper lobe. No pulmonary mass." in text
    assert text.endswith("IMPRESSION: Nodule in the left upper lobe, 12 mm.")


def test_critical_findings_lead_the_impression():
    found = [Finding("emphysema"), Finding("pneumothorax", side=Side.RIGHT)]
    assert [s.text for s in render_report(found).impression] == ["Pneumothorax, right.", "Emphysema."]


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (Finding("emphysema", Presence.ABSENT, size_mm=3.0), "is absent and has"),
        (Finding("emphysema", count=3), "cannot state a count of 3"),
        (Finding("emphysema", Presence.ABSENT, change=Change.NEW), "is absent and said to be new"),
        (Finding("lung_mass", site="upper_lobe", side=Side.LEFT, size_mm=31.25), "stated to 0.1 mm"),
        (Finding("lung_nodule", site="upper_lobe", side=Side.LEFT), "needs a size"),
        (
            Finding("lung_nodule", site="middle_lobe", side=Side.LEFT, size_mm=5),
            "legal: right upper_lobe, right middle_lobe, right lower_lobe, left upper_lobe, left lower_lobe",
        ),
        (Finding("pneumothorax", side=Side.BILATERAL), "legal: right, left"),
        (Finding("emphysema", side=Side.LEFT), "legal: none"),
        (Finding("consolidation", side=Side.LEFT), "site None; legal"),
    ],
)
def test_a_finding_that_no_sentence_can_state_is_refused(finding, words):
    with pytest.raises(ReportError, match=words):
        render_report([finding])


def test_a_finding_is_not_said_twice():
    nodule = Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=5.0)
    with pytest.raises(ReportError, match="give a count"):
        render_report([nodule, nodule])
    with pytest.raises(ReportError, match="one statement is legal"):
        render_report([Finding("emphysema"), Finding("emphysema", Presence.ABSENT)])


def test_two_nodules_are_two_sentences():
    left = Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=5.0)
    right = Finding("lung_nodule", site="lower_lobe", side=Side.RIGHT, size_mm=8.5, change=Change.NEW)
    report = render_report([right, left])
    assert [s.text for s in report.sentences[:2]] == [
        "There is an 8.5 mm nodule in the right lower lobe, new since the prior examination.",
        "There is a 5 mm nodule in the left upper lobe.",
    ]
    assert parse_report(report_text(report)).findings[:2] == (right, left)


def test_an_unknown_code_is_named():
    with pytest.raises(ReportError, match="'hangnail'"):
        complete_findings([Finding("hangnail")])


def test_an_unknown_style_names_those_that_exist():
    with pytest.raises(ConfigError, match=r"there are: .*prose"):
        load_style("baroque")


def test_four_styles_of_each_language_speak_of_three_examinations():
    assert packaged_languages() == ("en", "zh")
    for language in packaged_languages():
        assert packaged_styles(language) == ("itemised", "prose", "template", "terse")
        for name in packaged_styles(language):
            assert set(load_style(name, language).examinations) == set(SCHEMAS)


@pytest.mark.parametrize(("language", "name"), PACKAGED)
def test_every_statement_of_a_packaged_style_is_read_back_as_itself(language, name):
    assert check_style(load_style(name, language)) == []


@pytest.mark.parametrize(("language", "name"), PACKAGED)
def test_whatever_was_found_is_read_back_whole_from_every_style(language, name):
    tally = measure(load_style(name, language), list(finding_sets(24)))
    assert tally.findings > 500
    assert (tally.lost, tally.invented, tally.unequal) == (0, 0, 0)
    assert (tally.retyped, tally.retyped_unequal) == (3, 0)


def test_the_round_trip_prints_a_row_for_each_style(capsys):
    assert roundtrip.main(["--n", "3"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [[f"| {lang}/{name}", "3"] for lang, name in PACKAGED]


def test_a_lost_finding_is_counted():
    nodule = Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=5.0)
    broken = FindingSet("chest_ct", (nodule, Finding("emphysema", Presence.ABSENT)), ())
    style = replace_phrase(load_style(), "emphysema", "absent", "No pneumothorax.")
    tally = measure(style, [broken])
    assert (tally.findings, tally.lost, tally.invented, tally.unequal) == (2, 1, 1, 1)


@pytest.mark.parametrize("name", ["itemised", "prose", "template", "terse"])
def test_chinese_reports_are_punctuated_in_full_width(name):
    style = load_style(name, "zh")
    for chosen in finding_sets(6):
        text = report_text(write(chosen, style, random.Random(1)), style)
        assert not re.search(r"[,;:?!]|\.(?!\d)", text)


def test_an_effusion_does_not_grow_in_chinese():
    style = load_style("prose", "zh")
    effusion = Finding("pleural_effusion", side=Side.BILATERAL, change=Change.INCREASED)
    mass = Finding("lung_mass", site="upper_lobe", side=Side.RIGHT, size_mm=42.0, change=Change.INCREASED)
    text = report_text(render_report([effusion, mass], style), style)
    assert "双侧胸腔见积液，较前增多。" in text
    assert "右肺上叶见一肿块，大小约42mm，较前增大。" in text
    assert parse_sentence("双侧胸腔见积液，较前增多。", style) == effusion
    assert parse_sentence("右肺上叶见一肿块，大小约42mm，较前增多。", style) is None


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("chest_ct", '[emphysema]\nchanges = { bigger = ", bigger" }', "'bigger' is not one of: new, stable"),
        ("chest_ct", '[emphysema]\nabsnt = ["No."]', "'absnt' is not one of: term"),
        ("chest_ct", '[emphysema]\nseveral = ["Two."]', "'several' is not one of: term"),
        ("chest_ct", '[emphysemas]\nabsent = ["No."]', r"\[emphysemas\] is no finding"),
        ("chest_ct", '[emphysema]\nabsent = ["In {lobe}."]', "'lobe' is not one of: place, side"),
        ("chest_ct", '[emphysema]\nabsent = ["In {."]', "braces of 'In {.' do not match"),
        ("chest_ct", "[emphysema]\nabsent = []", "lacks phrases for 'absent'"),
        ("style", '[sites]\nupper_lobes = "upper"', "'upper_lobes' is not one of: upper_lobe"),
        ("style", '[places]\n"left middle_lobe" = "LML"', "'left middle_lobe' is not one of"),
        ("style", "[sides]\nright = 1", "lacks the text right under"),
        ("style", '[heading]\nfindings = "F:"', "'heading' is not one of"),
    ],
)
def test_a_style_that_is_misspelt_is_refused_with_its_place(tmp_path, file, line, words):
    (tmp_path / "style.toml").write_text('language = "en"\nbase = "prose"\n')
    with (tmp_path / f"{file}.toml").open("a") as out:
        out.write(line + "\n")
    with pytest.raises(ConfigError, match=words):
        read_style(tmp_path)


def test_the_style_of_the_manual_can_be_used(tmp_path):
    """docs/styles.md shows two files; what follows `# FILE` on their first line is their name."""
    manual = (Path(__file__).parents[1] / "docs" / "styles.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n# (\w+\.toml)\n(.*?)```", manual, re.DOTALL)
    assert [name for name, _ in blocks] == ["style.toml", "chest_ct.toml"]
    for name, text in blocks:
        (tmp_path / name).write_text(text, encoding="utf-8")
    style = read_style(tmp_path)
    assert check_style(style) == []
    shown = Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=8.0)
    assert report_text(render_report([shown], style), style) in manual


def test_a_sentence_of_no_finding_stays_with_what_was_said_before_it():
    style = load_style("template")
    report = render_report([], style)
    effusion = next(n for n, s in enumerate(report.sentences) if s.codes == ("pneumothorax",))
    more = (*report.sentences[: effusion + 1], Sentence("An aside."), *report.sentences[effusion + 1 :])
    text = report_text(replace(report, sentences=more), style)
    assert "\nPleura: Pleural effusion: none. Pneumothorax: none. An aside.\n" in text
    assert parse_report(text, style).sentences == more


def test_a_number_within_a_line_is_no_bullet():
    style = load_style("template")
    text = "Findings:\nBrain parenchyma: Cerebral microbleeds: 12. Intracranial mass: none."
    assert parse_report(text, style, "brain_mr").findings == (
        Finding("microbleeds", count=12),
        Finding("brain_mass", Presence.ABSENT),
    )
    itemised = load_style("itemised", "zh")
    assert parse_report("影像所见：\n3、48枚结节。", itemised).sentences[0].text == "48枚结节。"


def test_a_group_is_known_by_a_title_of_either_width():
    style = load_style("template", "zh")
    assert parse_report("胸膜:气胸:无。", style).findings == (Finding("pneumothorax", Presence.ABSENT),)


def test_a_phrase_that_is_read_as_another_finding_is_named(tmp_path):
    (tmp_path / "style.toml").write_text('language = "en"\nbase = "prose"\n')
    (tmp_path / "chest_ct.toml").write_text('[emphysema]\nabsent = ["No consolidation."]\n')
    faults = check_style(read_style(tmp_path))
    assert faults[0] == (
        "chest_ct [consolidation]: 'No consolidation.' is read as emphysema absent, "
        "and means consolidation absent."
    )


def test_the_middle_lobe_of_the_left_lung_is_not_read():
    assert parse_sentence("There is consolidation in the left middle lobe.") is None


@pytest.mark.parametrize(
    "sentence",
    [
        "There is a 0 mm nodule in the left upper lobe.",
        "There are 1 nodules, the largest of 8 mm in the left upper lobe.",
        "There is an 8 mm nodule in the left upper lobe, resolved since the prior examination.",
        "No pneumothorax, new since the prior examination.",
        "A pulmonary nodule cannot be excluded, new since the prior examination.",
    ],
)
def test_what_no_report_may_state_is_not_read(sentence):
    assert parse_sentence(sentence) is None


def test_a_sentence_of_another_style_is_kept_and_not_guessed():
    report = parse_report("FINDINGS: The gallbladder sings. No emphysema.")
    assert report.sentences[0] == Sentence("The gallbladder sings.", ())
    assert report.findings == (Finding("emphysema", Presence.ABSENT),)


def test_context_text_leaves_out_what_is_unknown():
    assert context_text(ClinicalContext(61.0, Sex.FEMALE, "fever")) == "61 years, F, fever"
    assert context_text(ClinicalContext()) == ""


# The linter


@pytest.fixture
def clean() -> Report:
    return render_report(
        [
            Finding("lung_nodule", site="upper_lobe", side=Side.LEFT, size_mm=12.0),
            Finding("pleural_effusion", side=Side.RIGHT),
        ]
    )


def _with_sentence(report: Report, before: str, after: str) -> Report:
    sentences = tuple(Sentence(s.text.replace(before, after), s.codes) for s in report.sentences)
    return Report(report.findings, sentences, report.impression, report.technique)


def test_a_clean_report_has_no_complaint(clean):
    assert check_report(clean, ClinicalContext()) == ()


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("left upper", "right upper", "SIDE"),
        ("12 mm", "120 mm", "SIZE"),
        ("No emphysema.", "There is emphysema, predominantly in the upper lobes.", "NEGATION"),
        ("upper lobe", "lower lobe", "SITE"),
        ("No pneumothorax.", "The pneumothorax is unchanged.", "COMPARISON_WITHOUT_PRIOR"),
    ],
)
def test_an_injected_fault_is_named(clean, before, after, rule):
    complaints = check_report(_with_sentence(clean, before, after), ClinicalContext())
    assert rule in [c.rule for c in complaints]


def test_comparison_is_allowed_where_there_is_a_prior(clean):
    faulty = _with_sentence(clean, "No pneumothorax.", "The pneumothorax is unchanged.")
    rules = [c.rule for c in check_report(faulty, ClinicalContext(prior="2025-01-01"))]
    assert "COMPARISON_WITHOUT_PRIOR" not in rules


def test_evidence_on_the_other_side_is_named(clean):
    low, high = (40.0, 0.0, 0.0), (60.0, 10.0, 10.0)  # RAS: the right of the patient
    nodule = Finding(
        "lung_nodule",
        site="upper_lobe",
        side=Side.LEFT,
        size_mm=12.0,
        evidence=Evidence(("1.2.3",), (low, high)),
    )
    report = render_report([nodule])
    assert [c.rule for c in check_report(report)] == ["SIDE_OF_EVIDENCE"]
    assert check_report(report, midline_mm=50.0) == ()


def test_an_impression_that_forgets_a_finding_is_named(clean):
    short = Report(clean.findings, clean.sentences, clean.impression[:1], clean.technique)
    assert [c.rule for c in check_report(short)] == ["IMPRESSION"]


def test_contrast_in_the_text_and_not_in_the_header_is_named(clean):
    said = Report(clean.findings, clean.sentences, clean.impression, "CT of the chest with contrast medium.")
    assert [c.rule for c in check_report(said, contrast_given=False)] == ["CONTRAST"]
    assert check_report(clean, contrast_given=False) == ()
