"""What the extractor reads in text that anybody wrote."""

from __future__ import annotations

import time
import tomllib
from importlib.resources import files

import pytest

from evaluation.extractor import Labelled, default_readers, explain, read_all, read_ours, read_style, score
from evaluation.roundtrip import finding_sets
from mla_med.errors import ConfigError, ReportError
from mla_med.report.extract import Mention, extract, find_names, find_present
from mla_med.report.schema import CHEST_CT, SITES
from mla_med.report.style import load_style, packaged_languages, packaged_styles
from mla_med.types import Change, Presence, Side

PRESENT, ABSENT, UNSURE = Presence.PRESENT, Presence.ABSENT, Presence.CANNOT_SAY


def only(text: str, language: str = "en") -> Mention:
    (mention,) = extract(text, language)
    return mention


def read(text: str, language: str = "en") -> list[tuple[str, Presence]]:
    return [(m.code, m.presence) for m in extract(text, language)]


@pytest.mark.parametrize(
    ("text", "presence"),
    [
        ("No pleural effusion.", ABSENT),
        ("Pleural effusion was not observed.", ABSENT),
        ("Pleural effusion-thickening was not detected.", ABSENT),
        ("Without evidence of pleural effusion.", ABSENT),
        ("The lungs are clear of pleural effusion.", ABSENT),
        ("Pleura: No pleural effusion.", ABSENT),
        ("Pleural effusion: none.", ABSENT),
        ("Pleural effusion is seen.", PRESENT),
        ("Not only emphysema but also a pleural effusion.", PRESENT),
        ("No significant change in the pleural effusion.", PRESENT),
        ("There is no significant change in the pleural effusion.", PRESENT),
        ("Pleural effusion?", UNSURE),
        ("Possible pleural effusion.", UNSURE),
        ("A pleural effusion cannot be excluded.", UNSURE),
        ("Cannot exclude pleural effusion.", UNSURE),
        ("Atelectasis versus pleural effusion.", UNSURE),
        ("History of pleural effusion.", UNSURE),
        ("The pleural effusion has resolved.", ABSENT),
        ("Resolution of the pleural effusion.", ABSENT),
        ("The previously seen pleural effusion is no longer visible.", ABSENT),
        ("The pleural effusion is no longer visible.", ABSENT),
        ("Pleural effusion, however, is present.", PRESENT),
    ],
)
def test_what_negates_doubts_or_ends_an_effusion(text, presence):
    assert {m.presence for m in extract(text) if m.code == "pleural_effusion"} == {presence}


@pytest.mark.parametrize(
    ("text", "presence"),
    [
        ("The heart is of normal size.", ABSENT),
        ("Heart contour and size are normal.", ABSENT),
        ("Heart size: normal.", ABSENT),
        ("The heart is enlarged.", PRESENT),
        ("Heart size is increased.", PRESENT),
        ("The size of the heart cannot be assessed.", UNSURE),
    ],
)
def test_normal_size_is_no_cardiomegaly(text, presence):
    assert read(text) == [("cardiomegaly", presence)]


def test_a_negation_ends_where_the_sentence_turns():
    text = "No effusion, pneumothorax or consolidation, but there is emphysema."
    assert read(text) == [
        ("pleural_effusion", ABSENT),
        ("pneumothorax", ABSENT),
        ("consolidation", ABSENT),
        ("emphysema", PRESENT),
    ]


def test_nodes_that_did_not_reach_pathological_size_are_seen():
    text = "Lymph nodes that did not reach pathological size are seen in the mediastinum."
    assert read(text) == [("lymphadenopathy", PRESENT)]


def test_what_was_removed_is_gone():
    chest_tube = only("The right chest tube has been removed.")
    assert (chest_tube.presence, chest_tube.change) == (ABSENT, Change.RESOLVED)
    assert only("A right chest tube is in place.").presence is PRESENT


def test_a_question_mark_holds_for_its_brackets_alone():
    doubted = extract("Ground-glass opacity (consolidation?) in the left lower lobe.")
    assert [(m.code, m.presence) for m in doubted] == [
        ("ground_glass_opacity", PRESENT),
        ("consolidation", UNSURE),
    ]


@pytest.mark.parametrize(
    ("text", "side", "site"),
    [
        ("Nodule in the left upper lobe.", Side.LEFT, "upper_lobe"),
        ("There is a nodule in the RML.", Side.RIGHT, "middle_lobe"),
        ("LLL nodule.", Side.LEFT, "lower_lobe"),
        ("A nodule in the lingular segment of the left upper lobe.", Side.LEFT, "lingula"),
        ("Nodules in both lungs.", Side.BILATERAL, None),
        ("Nodules in the right upper lobe and the left lower lobe.", Side.BILATERAL, None),
        ("In the right lower lobe, a nodule is seen.", Side.RIGHT, "lower_lobe"),
        ("A nodule.", None, None),
    ],
)
def test_where_a_nodule_lies(text, side, site):
    nodule = only(text)
    assert (nodule.side, nodule.site) == (side, site)


def test_two_findings_of_one_sentence_keep_their_sides():
    effusion, pneumothorax = extract("Right pleural effusion and left pneumothorax.")
    assert (effusion.side, pneumothorax.side) == (Side.RIGHT, Side.LEFT)
    first, second = extract("There is no pneumothorax on the left; on the right there is a pneumothorax.")
    assert (first.presence, first.side) == (ABSENT, Side.LEFT)
    assert (second.presence, second.side) == (PRESENT, Side.RIGHT)


@pytest.mark.parametrize(
    ("words", "size_mm"),
    [
        ("8 mm", 8.0),
        ("8mm", 8.0),
        ("1.2 cm", 12.0),
        ("12,5 mm", 12.5),
        ("1.2 x 0.9 cm", 12.0),
        ("13x9.3 mm", 13.0),
        ("4-6 mm", 6.0),
        ("3 to 7 mm", 7.0),
        ("less than 3 mm", None),
    ],
)
def test_the_largest_dimension_is_the_size_in_mm(words, size_mm):
    assert only(f"A nodule of {words} in the left upper lobe.").size_mm == size_mm


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("The nodule is unchanged.", Change.STABLE),
        ("Nodule, not significantly changed.", Change.STABLE),
        ("A new nodule.", Change.NEW),
        ("The nodule has increased in size.", Change.INCREASED),
        ("Nodule, decreased since the prior examination.", Change.DECREASED),
        ("No nodule, resolved since the prior examination.", Change.RESOLVED),
        ("A nodule.", None),
    ],
)
def test_how_a_nodule_changed(text, change):
    assert only(text).change is change


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Three nodules, the largest 9 mm.", 3),
        ("Pulmonary nodules: 12, up to 9 mm.", 12),
        ("A nodule.", None),
    ],
)
def test_how_many_nodules(text, count):
    assert only(text).count == count


def test_a_nodule_belongs_to_the_organ_that_is_named():
    assert read("Nodule of the right adrenal gland, 2 cm.") == [("adrenal_lesion", PRESENT)]
    assert read("A nodule in the left lobe of the thyroid gland.") == [("thyroid_nodule", PRESENT)]
    assert read("Breast nodule.") == []
    assert read("The thyroid gland is heterogeneous. It contains a nodule.") == [("thyroid_nodule", PRESENT)]


def test_spans_are_the_characters_of_the_text():
    text = "İncidental:\n  A 7 mm NODULE is seen in the left upper lobe.\r\nNo effusion."
    nodule, effusion = extract(text)
    assert text[nodule.start : nodule.end] == "NODULE"
    assert text[slice(*nodule.sentence)] == "A 7 mm NODULE is seen in the left upper lobe."
    assert text[effusion.start : effusion.end] == "effusion"
    assert text[slice(*effusion.sentence)] == "No effusion."


def test_present_in_one_place_is_present():
    mentions = extract("No nodule in the left lung. Nodule of 6 mm in the right lower lobe. No effusion.")
    assert find_present(mentions) == {"lung_nodule"}


def test_names_are_found_in_whatever_sense():
    text = "No nodule. Heart size is normal."
    assert [(code, text[slice(*span)]) for code, span in find_names(text)] == [("lung_nodule", "nodule")]


def test_text_without_findings_or_letters_is_read_as_nothing():
    assert extract("") == extract("\n \n") == extract("...?!;\u2028") == extract("The weather is fine.") == ()


def test_time_is_linear_in_the_text():
    def seconds(times: int) -> float:
        began = time.process_time()
        extract("No evidence of a mass in the lungs, 12 mm x 9 mm, and ground glass " * times)
        return time.process_time() - began

    seconds(10)
    assert seconds(400) < 30 * max(seconds(40), 0.001)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The heart is enlarged, aortic and coronary artery calcification is seen.", "en"),
        ("心脏增大，主动脉壁及冠状动脉钙化。", "zh"),
    ],
)
def test_a_list_of_organs_before_one_word_is_read_whole(text, language):
    assert find_present(extract(text, language)) == {
        "cardiomegaly",
        "arterial_wall_calcification",
        "coronary_calcification",
    }


def test_two_lobes_of_two_lungs_are_not_one_site():
    mention = only("Nodules in the right upper and left lower lobes.")
    assert (mention.side, mention.site) == (Side.BILATERAL, None)


@pytest.mark.parametrize("words", ["dilated ", "emphysema ", "\n", "lymph node ", "thyroid nodule "])
def test_a_text_that_never_stops_does_not_take_for_ever(words):
    began = time.process_time()
    extract(words * (60_000 // len(words)))
    assert time.process_time() - began < 3


def test_a_sentence_that_is_too_long_is_cut_between_words():
    mentions = extract("no change " * 200 + "of the large left pleural effusion")
    assert [(m.code, m.side) for m in mentions] == [("pleural_effusion", Side.LEFT)]


@pytest.mark.parametrize(
    ("text", "presence"),
    [
        ("双侧胸腔未见积液。", ABSENT),
        ("无胸水。", ABSENT),
        ("胸腔积液：无。", ABSENT),
        ("右侧胸腔见少量积液。", PRESENT),
        ("不除外胸腔积液。", UNSURE),
        ("胸腔积液不除外。", UNSURE),
        ("影像表现：不除外胸腔积液。", UNSURE),
        ("左侧胸腔积液，较前已吸收。", ABSENT),
        ("左侧胸腔积液，较前无明显变化。", PRESENT),
    ],
)
def test_what_negates_doubts_or_ends_an_effusion_in_chinese(text, presence):
    assert read(text, "zh") == [("pleural_effusion", presence)]


def test_a_chinese_nodule_is_read_whole():
    nodule = only("左肺上叶见一结节，大小约1.2cm×0.9cm，较前增大。", "zh")
    assert (nodule.code, nodule.side, nodule.site) == ("lung_nodule", Side.LEFT, "upper_lobe")
    assert (nodule.size_mm, nodule.change) == (12.0, Change.INCREASED)
    nodule = only("双肺纹理清晰，右肺上叶见一结节，直径约6mm。", "zh")
    assert (nodule.side, nodule.size_mm) == (Side.RIGHT, 6.0)
    assert only("肺内见3枚结节，较大者位于右肺下叶，约8mm。", "zh").count == 3
    assert read("甲状腺左叶见一结节。双侧肾上腺未见异常。", "zh") == [
        ("thyroid_nodule", PRESENT),
        ("adrenal_lesion", ABSENT),
    ]


@pytest.mark.parametrize("language", packaged_languages())
@pytest.mark.parametrize("name", packaged_styles("en"))
def test_what_a_packaged_style_writes_is_read_as_it_was_meant(language, name):
    sets = [chosen for chosen in finding_sets(15) if chosen.examination == "chest_ct"]
    row = read_style(load_style(name, language), sets)
    assert row.sentences > 100
    assert (row.wrong, row.texts_wrong) == ({}, 0)


@pytest.mark.parametrize("language", packaged_languages())
def test_a_lexicon_has_words_for_every_finding_of_the_chest_and_sites_that_it_can_have(language):
    path = files("mla_med.report") / "lexicon" / f"{language}.toml"
    lexicon = tomllib.loads(path.read_text(encoding="utf-8"))
    assert sorted(row["code"] for row in lexicon["findings"]) == sorted(CHEST_CT)
    assert set(lexicon["sites"]) - set(SITES) == {"lingula"}
    for row in lexicon["findings"]:
        assert set(CHEST_CT[row["code"]].sites) <= {*row.get("sites", ())}
        assert CHEST_CT[row["code"]].has_size <= row.get("sized", False)


def test_a_language_without_a_lexicon_names_those_that_there_are():
    with pytest.raises(ReportError, match="there are: en, zh"):
        extract("Kein Erguss.", "de")


REPORTS = [
    Labelled("train_1", "A nodule. No effusion.", frozenset({"lung_nodule"})),
    Labelled("train_2", "No nodule. Effusion.", frozenset({"pleural_effusion"})),
    Labelled("train_3", "Emphysema.", frozenset({"lung_nodule"})),
]


def test_labels_are_scored_by_precision_and_recall():
    rows, means = score(REPORTS, read_all("ours", read_ours, REPORTS))
    cells = {row.label: (row.num, *row.cells[:2]) for row in rows}
    assert cells["Lung nodule"] == (2, "1.000", "0.500")
    assert cells["Pleural effusion"] == (1, "1.000", "1.000")
    assert cells["Emphysema"] == (0, "0.000", "–")
    assert means["micro"] == pytest.approx(2 * 2 / (3 + 3))


def test_names_alone_are_a_worse_reader():
    readers = default_readers()
    assert next(iter(readers)) == "mla_med"
    assert readers["names alone"]("No effusion.") == {"pleural_effusion"}
    assert readers["mla_med"]("No effusion.") == set()


def test_errors_show_the_sentence_behind_them():
    assert [r.half for r in REPORTS] == ["tuned", "held-out", "tuned"]
    assert explain(REPORTS, "Lung nodule") == ["train_3 missed: not named"]
    assert explain(REPORTS, "Emphysema") == ["train_3 invented: [present: Emphysema] Emphysema."]
    with pytest.raises(ConfigError, match="No label 'Hangnail'"):
        explain(REPORTS, "Hangnail")
