"""What texts state, what a draft gets wrong, and how sure anybody can be of it."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from evaluation.calibration import reliabilities, reliability, risk_coverage
from evaluation.compare import compare
from evaluation.conflicts import find_conflicts
from evaluation.findings import count_findings, finding_measures, merge, reader_of, sizes_agree
from evaluation.floors import NEAREST, best_constant, floor_texts, nearest
from evaluation.habits import template_score
from evaluation.judges import JUDGES, judge_reports, why_not
from evaluation.run import evaluate_reports
from evaluation.statistics import Measure, draw_resamples, mean
from evaluation.subgroups import group_of, subgroup_rows
from evaluation.systems import Options
from mla_med.errors import ConfigError, ReportError
from mla_med.report.schema import CHEST_CT
from mla_med.types import Finding, Presence, Side

TEXTS = Path(__file__).parents[2] / "shared/data/text"
needs_texts = pytest.mark.skipif(not TEXTS.exists(), reason="the shared real reports are not on this machine")
ABSENT, UNSURE = Presence.ABSENT, Presence.CANNOT_SAY


def values_of(references, drafts, codes=("a", "b")):
    measures = finding_measures(count_findings(references, drafts, codes))
    return {m.name: float(m.statistic(np.ones((1, len(references))))[0]) for m in measures}


# ---------------------------------------------------------------- reading


def test_a_nodule_said_again_in_the_impression_is_one_nodule():
    text = "There is an 8 mm nodule in the right upper lobe. No pleural effusion. Impression: lung nodule."
    findings = reader_of()(text).findings
    nodules = [f for f in findings if f.code == "lung_nodule"]
    assert nodules == [Finding("lung_nodule", site="upper_lobe", side=Side.RIGHT, size_mm=8.0)]
    assert Finding("pleural_effusion", ABSENT) in findings


def test_what_is_merged_does_not_hang_on_the_order_of_the_text():
    stated = [Finding("a", side=Side.LEFT), Finding("a", size_mm=5.0), Finding("a", side=Side.RIGHT)]
    assert set(merge(stated)) == set(merge(stated[::-1])) == set(merge([stated[1], stated[0], stated[2]]))


def test_present_in_one_place_is_present_and_doubt_goes_before_denial():
    assert merge([Finding("a", ABSENT), Finding("a")]) == (Finding("a"),)
    assert merge([Finding("a", ABSENT), Finding("a", UNSURE)]) == (Finding("a", UNSURE),)


@pytest.mark.parametrize(
    ("examination", "language", "text", "expected"),
    [
        ("chest_ct", "zh", "右肺上叶见结节，大小约8mm。", {("lung_nodule", Presence.PRESENT)}),
        (
            "brain_mr",
            "en",
            "No acute infarct. There is mass effect.",
            {("acute_infarct", ABSENT), ("mass_effect", Presence.PRESENT)},
        ),
        ("brain_mr", "zh", "未见急性梗死灶。", {("acute_infarct", ABSENT)}),
        (
            "abdomen_ct",
            "en",
            "There is ascites. No free air.",
            {("ascites", Presence.PRESENT), ("free_air", ABSENT)},
        ),
    ],
)
def test_each_examination_is_read_in_each_language(examination, language, text, expected):
    assert {(f.code, f.presence) for f in reader_of(examination, language)(text).findings} == expected


def test_an_unknown_examination_or_language_is_refused():
    with pytest.raises(ReportError):
        reader_of("knee_mr")
    with pytest.raises(ReportError, match="No lexicon for the language 'fr'"):
        reader_of("chest_ct", "fr")


# ---------------------------------------------------------------- scores


def test_hallucination_is_split_into_what_is_denied_and_what_is_not_mentioned():
    values = values_of([(Finding("a", ABSENT),), ()], [(Finding("a"),), (Finding("b"),)])
    assert (values["hallucination"], values["contradiction"], values["unsupported"]) == (1.0, 0.5, 0.5)


def test_three_statuses_as_computed_by_hand():
    references = [(Finding("a"), Finding("b", ABSENT)), (Finding("a", UNSURE),)]
    drafts = [(Finding("a"), Finding("b")), (Finding("a", UNSURE), Finding("b", ABSENT))]
    values = values_of(references, drafts)
    # 2 of 3 that the references state agree, of 4 that the drafts state
    assert values["three-status F1 micro"] == pytest.approx(2 * 2 / (3 + 4))
    # cells: present-present, absent-present, unsure-unsure, silent-absent
    assert values["three-status kappa"] == pytest.approx((2 / 4 - 4 / 16) / (1 - 4 / 16))


def test_crg_is_one_for_the_truth_and_a_third_for_whoever_knows_nothing():
    references = [(Finding("a"),), (), (Finding("b"),), ()]
    everything, nothing = (Finding("a"), Finding("b")), ()
    assert values_of(references, references)["CRG"] == 1.0
    assert values_of(references, [everything] * 4)["CRG"] == pytest.approx(1 / 3)
    assert values_of(references, [nothing] * 4)["CRG"] == pytest.approx(1 / 3)
    # 2 of 8 present: U = 1.5; one found, one missed, one invented: s = 1.5 - 1.5 - 1
    assert values_of(references, [(Finding("a"), Finding("b")), (), (), ()])["CRG"] == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("a", "b", "agree"),
    [(8, 9.9, True), (8, 10.1, False), (50, 55, True), (50, 56, False), (8, None, False), (None, None, True)],
)
def test_sizes_agree_within_a_tenth_or_two_millimetres(a, b, agree):
    assert sizes_agree(a, b) is agree


def test_a_missing_size_does_not_agree():
    values = values_of(
        [(Finding("a", size_mm=8.0),), (Finding("a", size_mm=8.0),)],
        [(Finding("a", size_mm=9.0),), (Finding("a"),)],
    )
    assert values["size agreement"] == 0.5
    assert values["size error"] == 1.0


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("reference", "draft", "kind"),
    [
        ("The left adrenal is thick.", "The right adrenal is thick.", "side"),
        ("No mass is seen in the spleen.", "A mass is seen in the spleen.", "denial"),
        ("A renal cyst measures 12 mm.", "A renal cyst measures 21 mm.", "size"),
        ("左侧肾上腺增粗。", "右侧肾上腺增粗。", "side"),
        ("脾脏未见肿块。", "脾脏见肿块。", "denial"),
        ("右肾囊肿，大小12mm。", "右肾囊肿，大小21mm。", "size"),
    ],
)
def test_a_sentence_that_says_otherwise_is_found_with_its_kind(reference, draft, kind):
    language = "zh" if ord(reference[0]) > 0x3000 else "en"
    (conflict,) = find_conflicts(reference, draft, language)
    assert conflict.kind == kind
    assert draft[conflict.start : conflict.end] == draft


@pytest.mark.parametrize(
    ("reference", "draft"),
    [
        ("A renal cyst measures 12 mm.", "A renal cyst measures 1.2 cm."),
        ("A renal cyst measures 12 mm.", "A renal cyst is present."),
        ("No mass is seen in the spleen.", "There is no evidence of a mass in the spleen."),
        (
            "The right lung is clear. The left lung is clear.",
            "The left lung is clear. The right lung is clear.",
        ),
        ("The right and the left kidney are small.", "Both kidneys are small."),
        ("The heart is large.", "The left adrenal is thick."),
        ("", "The left adrenal is thick."),
    ],
)
def test_other_words_for_the_same_are_no_conflict(reference, draft):
    assert find_conflicts(reference, draft) == ()


def test_template_adherence_falls_with_placeholders_units_and_impressions_of_their_own():
    read = reader_of()
    good = "Findings: There is an 8 mm nodule in the right upper lobe. Impression: Lung nodule."
    faults = ("I see an 8 mm nodule.", "There is ___.", "A nodule measuring 8 in the lung.")
    best = template_score(good, read, CHEST_CT)
    assert all(template_score(f"{good} {fault}", read, CHEST_CT) < best for fault in faults)
    assert template_score(good.replace("Lung nodule.", "Pneumothorax."), read, CHEST_CT) < best
    assert template_score(" ", read, CHEST_CT) == 0.0


# ---------------------------------------------------------------- floors


def test_the_neighbour_is_the_report_with_the_nearest_words_and_never_the_own():
    texts = [
        "a nodule in the lung",
        "an effusion on the left",
        "a nodule in one lung",
        "effusion on the left",
    ]
    assert nearest(texts, texts, apart=["a", "b", "c", "d"]) == [2, 3, 0, 1]
    # not another report of one's own patient
    assert nearest(texts, texts, apart=["a", "b", "a", "d"])[0] != 2
    assert nearest(texts, texts, apart=["a"] * 4) == [1, 0, 0, 0]
    assert nearest(["effusion"], texts) == [3]


def test_the_constant_is_long_enough_not_to_be_punished_for_brevity():
    long = "the lungs are clear and the heart is normal and there is no effusion"
    texts = ["the lungs are clear"] * 5 + [f"{long} {k}" for k in "abcd"]
    assert best_constant(texts).startswith(long)


def test_floors_are_taken_from_training_reports_where_there_are_any():
    floors = floor_texts(["x y"], ["a b", "x y z"], lambda text: (), is_train=True)
    assert floors[NEAREST] == ["x y z"]
    assert set(floors) == {"constant", "random", NEAREST}


@needs_texts
def test_a_constant_report_on_iu_xray_scores_near_016_and_is_flagged(tmp_path):
    rows = [
        json.loads(line) for line in (TEXTS / "eval_pairs/iu_xray_refs.jsonl").read_text().split("\n") if line
    ]
    rows = rows[::3]
    texts = [row["report"] for row in rows]
    constant = best_constant(texts)
    for name, drafts in (("r", texts), ("d", [constant] * len(texts))):
        lines = [
            json.dumps({"id": row["id"], "report": text}) for row, text in zip(rows, drafts, strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    options = Options(resamples=100, with_card=False)
    scores = evaluate_reports(tmp_path / "r.jsonl", tmp_path / "d.jsonl", tmp_path / "out", options=options)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["scores"]["BLEU-4"]["value"] == pytest.approx(0.155, abs=0.01)
    assert "constant" in metrics["flagged"]["BLEU-4"]
    assert metrics["verdict"]["grade"] == "bad"
    assert any("constant report" in warning for warning in metrics["warnings"])
    assert scores["findings F1 macro"].score.value < 0.05


# ---------------------------------------------------------------- calibration


@needs_texts
def test_ece_brier_and_risk_are_those_of_other_tools():
    given = json.loads((TEXTS / "eval_pairs/calibration_expected.json").read_text())
    p, y = np.array(given["p"]), np.array(given["y"])
    made = reliability("all", p, y)
    assert made.ece == pytest.approx(0.0670615, abs=1e-7)  # torchmetrics' BinaryCalibrationError
    assert made.brier == pytest.approx(0.13766616795)
    curve = risk_coverage(np.maximum(p, 1 - p), (p >= 0.5) != y)
    assert curve.aurc == pytest.approx(0.08312183218336175, abs=1e-4)  # there, equal confidences are cut
    assert curve.e_aurc == pytest.approx(0.061943985970060414, abs=1e-4)
    assert list(curve.risk_at.values()) == pytest.approx([0.075, 0.153125, 0.17894736842105263], abs=2e-3)


def test_ece_and_brier_as_computed_by_hand():
    made = reliability("all", np.array([0.1, 0.1, 0.9, 1.0]), np.array([0, 1, 1, 1]), bins=2)
    assert made.ece == pytest.approx(0.5 * 0.4 + 0.5 * 0.05)
    assert made.brier == pytest.approx((0.01 + 0.81 + 0.01 + 0) / 4)
    assert [b.count for b in made.bins] == [2, 2]


def test_only_stated_probabilities_count_and_rare_findings_get_no_number():
    made = reliabilities(
        [{"a": 0.9}, None, {"a": 0.2, "z": 0.5}], np.array([[1, 0], [1, 0], [0, 0]]), ["a", "b"]
    )
    assert [(row.name, row.count) for row in made] == [("all findings", 2)]
    assert reliabilities([None], np.zeros((1, 1)), ["a"]) == ()


def test_risk_falls_where_the_sure_are_right():
    curve = risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 1, 1]))
    assert curve.risk == pytest.approx((0, 0, 1 / 3, 1 / 2))
    assert curve.aurc == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert curve.e_aurc == pytest.approx(0)
    assert curve.risk_at[0.5] == 0


def test_equal_confidences_are_kept_together():
    assert risk_coverage(np.array([0.5, 0.5]), np.array([0, 1])).coverage == (1.0,)


# ---------------------------------------------------------------- groups and comparisons


def mean_measure(values):
    values = np.asarray(values, float)
    return Measure.of("mean", mean(values), "mean")


def test_a_group_that_is_worse_is_found_and_a_small_one_gets_no_score():
    sexes = ["F"] * 60 + ["M"] * 60 + ["O"] * 5
    values = [0.9, 0.7] * 30 + [0.4, 0.2] * 30 + [0.0] * 5
    names = [str(k) for k in range(125)]
    drawn = draw_resamples(names, "report", 200)
    rows = {
        r.group: r for r in subgroup_rows([mean_measure(values)], [{"sex": s} for s in sexes], drawn, names)
    }
    assert rows["M"].is_worse
    assert rows["M"].p == pytest.approx(1 / 1001)
    assert rows["F"].gap > 0
    assert math.isnan(rows["O"].value)
    assert math.isnan(rows["O"].p)


def test_a_field_that_varies_within_a_patient_is_tested_within_her():
    """Every patient was reconstructed with both kernels, and with one of them everything fails."""
    names = [f"p{k // 2}" for k in range(120)]
    meta = [{"kernel": "B60" if k % 2 else "B30"} for k in range(120)]
    drawn = draw_resamples(names, "patient", 200)
    for fails, p in (((0.0, 1.0), pytest.approx(1 / 1001)), ((0.5, 0.5), 1.0)):
        measure = mean_measure([fails[k % 2] for k in range(120)])
        rows = {r.group: r for r in subgroup_rows([measure], meta, drawn, names)}
        assert rows["B30"].p == p
        assert rows["B30"].is_worse == (fails == (0.0, 1.0))


def test_recall_of_what_nobody_has_is_no_number():
    codes, count = ("a", "b"), 60
    there = (Finding("a", Presence.PRESENT),)
    references = [there if k == 0 else () for k in range(count)]
    drafts = [there if k in (0, 1) else () for k in range(count)]
    measures = {m.name: m for m in finding_measures(count_findings(references, drafts, codes))}
    without = np.ones((1, count))
    without[0, 0] = 0
    assert measures["recall macro"].statistic(np.ones((1, count)))[0] == 1.0
    assert math.isnan(measures["recall macro"].statistic(without)[0])


def test_equal_probabilities_are_in_one_bin_of_equal_mass_whatever_their_order():
    p, so = np.full(300, 0.5), np.repeat([0.0, 1.0], 150)
    for order in (np.arange(300), np.random.default_rng(0).permutation(300)):
        assert reliability("a", p, so[order]).ece_equal_mass == 0.0
    apart = np.linspace(0, 1, 300)
    assert reliability("a", apart, np.zeros(300)).ece_equal_mass == pytest.approx(0.5)


def test_groups_without_a_difference_are_not_called_worse():
    names = [str(k) for k in range(80)]
    meta = [{"maker": "A" if k % 2 else "B"} for k in range(80)]
    drawn = draw_resamples(names, "report", 200)
    rows = subgroup_rows([mean_measure([0.1, 0.1, 0.9, 0.9] * 20)], meta, drawn, names)
    assert not any(row.is_worse for row in rows)


@pytest.mark.parametrize(
    ("field", "value", "group"),
    [
        ("age", "064Y", "40 to 64"),
        ("age", 65, "65 to 79"),
        ("age", "003M", "under 18"),
        ("age", "old", None),
        ("slice_mm", 1.25, "up to 1.25 mm"),
        ("slice_mm", "5", "over 2.5 mm"),
        ("prior", False, "no"),
        ("prior", "", "no"),
        ("prior", "CT of last year: no nodule.", "yes"),
        ("kernel", " B70f ", "B70f"),
        ("sex", None, None),
    ],
)
def test_values_fall_into_groups(field, value, group):
    assert group_of(field, value) == group


def test_the_better_system_is_named_and_p_is_never_zero():
    names = [str(k) for k in range(40)]
    drawn = draw_resamples(names, "report", 200)
    (row,) = compare([mean_measure([0.2] * 40)], [mean_measure([0.8] * 40)], drawn, names, trials=500)
    assert (row.a, row.b) == pytest.approx((0.2, 0.8))
    assert row.winner == "B"
    assert row.p == pytest.approx(1 / 501)
    assert row.smallest_p == pytest.approx(1 / 501)


def test_five_cases_cannot_have_a_smaller_p_than_two_of_thirtytwo():
    names = list("abcde")
    drawn = draw_resamples(names, "report", 50)
    (row,) = compare([mean_measure([0.0] * 5)], [mean_measure([1.0] * 5)], drawn, names, trials=2000)
    assert row.smallest_p == 1 / 16
    assert row.p == 1 / 16
    assert row.winner == ""


def test_a_system_against_itself_is_no_difference():
    names = list("abcdef")
    drawn = draw_resamples(names, "report", 50)
    same = [mean_measure([0.1, 0.5, 0.9] * 2)]
    (row,) = compare(same, same, drawn, names, trials=200)
    assert (row.gap, row.p, row.winner) == (0.0, 1.0, "")


# ---------------------------------------------------------------- judges


def test_a_judge_without_weights_is_skipped_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    judged = judge_reports(["No nodule."], ["A nodule."])
    assert [row.judge.key for row in judged] == [judge.key for judge in JUDGES]
    assert all("not installed" in row.skipped or "weights are not" in row.skipped for row in judged)
    assert why_not(JUDGES[0], "zh") == "it reads en only"


def test_an_unknown_judge_is_refused():
    with pytest.raises(ConfigError, match="No judge 'gpt'; there are: radgraph"):
        judge_reports(["a"], ["b"], ["gpt"])


RADEVAL = """
class RadEval:
    '''The interface of RadEval 2.2.1 (radeval/radeval.py) that evaluation.judges calls.'''
    metric_keys = ["f1radbert_ct_micro_f1"]
    def __init__(self, metrics=None, openai_api_key=None, gemini_api_key=None, per_sample=False,
                 detailed=False, show_progress=True, cache_dir=None):
        self.per_sample, self.drops = per_sample, metrics == ["green"]
        if metrics == ["ratescore"]:
            raise RuntimeError("no spaCy here")
        import RadEval.named  # as its copy of RadGraph does
    def __call__(self, refs, hyps):
        print("Using device: cpu")
        assert isinstance(refs, list) and isinstance(hyps, list) and all(refs) and all(hyps)
        values = [float(r == h) for r, h in zip(refs, hyps)]
        if self.drops:
            values = values[1:]
        return {"sample_acc": values} if self.per_sample else {"f1radbert_ct_micro_f1": 0.5}
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Where RadEval is installed, and the weights of all four lie."""
    package, cache = tmp_path / "site/radeval", tmp_path / "cache"
    for folder in (package, tmp_path / "site/RadEval-2.2.1.dist-info", cache / "radgraph/0.1.18/radgraph-xl"):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text(RADEVAL)
    (package / "named.py").write_text("")
    (tmp_path / "site/RadEval-2.2.1.dist-info/METADATA").write_text("Name: RadEval\nVersion: 2.2.1\n")
    config = {"model": {"embedder": {"token_embedders": {"bert": {"model_name": "some/encoder"}}}}}
    (cache / "radgraph/0.1.18/radgraph-xl/config.json").write_text(json.dumps(config))
    (cache / "radgraph/0.1.18/radgraph-xl/weights.th").write_bytes(b"")
    names = [name for judge in JUDGES for name in judge.weights if not name.startswith("cache:")]
    for name in (*names, "some/encoder"):
        folder = cache / "huggingface/hub" / f"models--{name.replace('/', '--')}" / "snapshots/1"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(root)]))
    return cache


def test_a_judge_runs_in_its_own_process_and_an_empty_draft_scores_nothing(machine):
    (judged,) = judge_reports(["a", "b", "c"], ["a", "", "x"], ["f1radbert_ct"])
    assert judged.skipped == ""
    assert judged.per_case == {"sample_acc": (1.0, 0.0, 0.0)}
    assert judged.values == {
        "sample_acc": pytest.approx(1 / 3),
        "f1radbert_ct_micro_f1 (of the 2 of 3 pairs with both texts)": 0.5,
    }
    assert judged.version == "RadEval 2.2.1"


def test_what_a_judge_drops_or_dies_of_is_said_and_shifts_nothing(machine):
    green, rate = judge_reports(["a", "b"], ["a", "b"], ["green", "ratescore"])
    assert green.skipped == "2 pairs went in and 1 scores came out"
    assert rate.skipped == "it failed: RuntimeError: no spaCy here"


def test_the_reason_names_the_weights_that_are_missing_and_where_they_were_sought(machine):
    radgraph = JUDGES[0]
    assert why_not(radgraph) == ""
    hub = machine / "huggingface/hub"
    (hub / "models--some--encoder/snapshots/1/model.safetensors").unlink()
    assert why_not(radgraph) == f"its weights are not on this machine: some/encoder (in {hub})"
    (machine / "radgraph/0.1.18/radgraph-xl/weights.th").unlink()
    assert why_not(radgraph).endswith(str(machine / "radgraph/0.1.18/radgraph-xl"))
