"""Does the suite see what would hurt a patient, and keep quiet when only the words change?"""

import csv
import json
import random
from pathlib import Path

import pytest

from evaluation.findings import reader_of
from evaluation.perturb import alarms, compares, perturbation_card, perturbations
from mla_med.report.schema import CHEST_CT

TEXTS = Path(__file__).parents[2] / "shared/data/text"
REPORTS = [
    "There is an 8 mm nodule in the right upper lobe. No pleural effusion. The heart is not enlarged. "
    "The left adrenal gland is normal. A renal cyst of 12 mm was observed on the left.",
    "No nodule was detected. There is a left pleural effusion. There is no evidence of emphysema. "
    "The thyroid is unremarkable. The right kidney is not enlarged.",
    "Both lungs are clear. No pneumothorax. There is edema of the chest wall on the right. "
    "The esophagus is within normal limits. A lymph node of 1.5 cm was observed in the mediastinum.",
]
CHINESE = [
    "右肺上叶见结节，大小约8mm。左侧胸腔积液。未见气胸。心影不大。右肾见囊肿，大小约12mm。",
    "左肺下叶见结节，大小约6mm。未见胸腔积液。两肺未见肺气肿。左侧肾上腺增粗。",
]


def change(name, text, language="en"):
    (found,) = (p for p in perturbations(language) if p.name == name)
    return found.change(text, reader_of("chest_ct", language)(text), random.Random(0))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("negations dropped", "No nodule. There is no effusion.", "nodule. effusion."),
        ("sides swapped", "Left nodule, right effusion.", "Right nodule, left effusion."),
        ("sizes times ten", "A nodule of 8 x 6 mm at 3-4 cm.", "A nodule of 80 x 60 mm at 30-40 cm."),
        ("units", "A nodule of 8 x 6 mm.", "A nodule of 0.8 x 0.6 cm."),
        ("findings omitted", "There is a nodule. No effusion.", "No effusion."),
        ("order", "One. Two. Three. Four.", "Three. Four. One. Two."),
        (
            "synonyms",
            "Nodules were not observed. It is unremarkable.",
            "Nodules were not seen. It is normal.",
        ),
        ("spacing and case", "One. Two.", "one.  two."),
        ("British spelling", "Edema of the esophagus.", "oedema of the oesophagus."),
        ("sizes times ten", "Level T12 is intact.", "Level T12 is intact."),
    ],
)
def test_each_change_does_what_it_says(name, text, expected):
    assert change(name, text) == expected


def test_sides_that_say_the_same_when_swapped_are_no_fault():
    assert change("sides swapped", "The right lung is clear. The left lung is clear.") is None


def test_invented_findings_are_not_in_the_report():
    text = change("findings invented", "There is a pneumothorax. There is emphysema.")
    assert text.count("pneumothorax") == 1
    assert text.count("emphysema") == 1
    assert len(text.split(". ")) == 5


@pytest.mark.parametrize(("language", "reports"), [("en", REPORTS), ("zh", CHINESE)])
def test_faults_are_caught_and_rewordings_are_not(language, reports):
    card = perturbation_card(reports, reader_of("chest_ct", language), list(CHEST_CT), language)
    rows = {row.name: row for row in card}
    assert rows["identity"].caught == 0.0
    for row in card:
        assert row.holds, row
        if row.kind == "fault":
            assert row.num > 0, row
            assert row.caught == 1.0, row
        elif row.num:
            assert row.caught == 0.0, row
    assert rows["sides swapped"].scores["findings F1 micro"] == 1.0  # F1 alone does not see it
    assert rows["sides swapped"].scores["side accuracy"] == 0.0
    assert rows["negations dropped"].scores["findings F1 micro"] < 1


def test_alarms_name_what_is_wrong():
    read = reader_of()

    def found(reference, draft):
        return alarms(reference, draft, read(reference), read(draft))

    assert found("No pleural effusion.", "There is a pleural effusion.")[0] == "CONTRADICTED"
    assert found("The heart is large.", "There is a pleural effusion.")[0] == "INVENTED"
    assert "SIDE" in found("Left pleural effusion.", "Right pleural effusion.")
    assert "SIZE" in found("A lung nodule of 8 mm.", "A lung nodule of 80 mm.")
    assert "PRIOR" in found("A lung nodule of 8 mm.", "A lung nodule of 8 mm, unchanged.")
    assert found("A lung nodule of 8 mm.", "A lung nodule of 8 mm.") == ()


def test_a_comparison_is_known_in_both_languages():
    assert compares("The nodule is unchanged compared with the previous examination.")
    assert compares("结节较前增大。", "zh")
    assert not compares("There is a nodule.")


def real_reports(name):
    if name == "ct_rate":
        with (TEXTS / "ct_rate_reports_train/train.csv").open(newline="", encoding="utf-8") as file:
            return [row["report_text"] for row in csv.DictReader(file)]
    rows = json.loads((TEXTS / "iu_xray/annotation.json").read_text())["test"]
    return [row["report"] for row in rows]


@pytest.mark.skipif(not TEXTS.exists(), reason="the shared real reports are not on this machine")
@pytest.mark.parametrize(("name", "most"), [("ct_rate", 30), ("iu", 60)])
def test_on_real_reports_faults_are_caught_and_rewordings_are_not(name, most):
    card = perturbation_card(real_reports(name), reader_of(), list(CHEST_CT), most=most)
    rows = {row.name: row for row in card}
    assert rows["identity"].caught == 0
    assert rows["negations dropped"].caught >= 0.9
    assert rows["sides swapped"].caught >= 0.99
    assert rows["sizes times ten"].caught >= 0.99
    assert rows["findings invented"].caught >= 0.98
    harmless = [row for row in card if row.kind == "harmless" and row.num]
    assert len(harmless) >= 3
    assert all(row.caught <= 0.05 for row in harmless)
