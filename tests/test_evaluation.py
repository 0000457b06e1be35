"""Scores in a world made here: a tiny language of findings, and reports written in it."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from evaluation.__main__ import main
from evaluation.decoys import lies_in
from evaluation.findings import count_findings, finding_measures, match_findings
from evaluation.floors import medoid, random_others
from evaluation.results import below, verdict_of, warnings_of
from evaluation.run import evaluate_reports
from evaluation.score import Score
from evaluation.statistics import draw_resamples, estimate, median
from evaluation.systems import Options
from mla_med.errors import ConfigError, OutputError, ReportError
from mla_med.types import Finding, Presence, Side

_TERMS = {"nodule": "lung_nodule", "effusion": "pleural_effusion", "emphysema": "emphysema"}
_SENTENCE = re.compile(
    r"(?P<no>No )?(?:(?P<side>right|left) )?(?:(?P<site>upper|lower) lobe )?"
    r"(?P<term>nodule|effusion|emphysema)(?: of (?P<size>\d+) mm)?\."
)
NODULE = "There is a right upper lobe nodule of 8 mm. No effusion. No emphysema. The airways are open."
EFFUSION = "There is a left effusion. No nodule. No emphysema. The heart is of normal size."
BOTH = "There is a left lower lobe nodule of 12 mm. There is a right effusion. No emphysema. Mild scoliosis."
EMPHYSEMA = "There is emphysema. No nodule. No effusion. The liver is unremarkable where it is seen."
NORMAL = "No nodule. No effusion. No emphysema. This is a normal examination of the chest."
WORLD = [NODULE, EFFUSION, BOTH, EMPHYSEMA, NORMAL] * 8


def fake_parse(text):
    if "gibberish" in text:
        raise ReportError("Cannot parse gibberish.")
    return tuple(
        Finding(
            _TERMS[m["term"]],
            Presence.ABSENT if m["no"] else Presence.PRESENT,
            site=f"{m['site']}_lobe" if m["site"] else None,
            side=Side(m["side"]) if m["side"] else None,
            size_mm=float(m["size"]) if m["size"] else None,
        )
        for m in _SENTENCE.finditer(text)
    )


def write_lines(path, reports, **more):
    rows = [{"id": f"s{k:03}", "report": report, **more} for k, report in enumerate(reports)]
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return path


@pytest.fixture
def evaluate(tmp_path):
    def run(references, drafts, **options):
        inputs = {name: options.pop(name) for name in ("train", "other", "allow") if name in options}
        return evaluate_reports(
            write_lines(tmp_path / "references.jsonl", references),
            write_lines(tmp_path / "drafts.jsonl", drafts),
            tmp_path / "out",
            parse=fake_parse,
            options=Options(**{"resamples": 200, **options}),
            **inputs,
        )

    return run


def value_of(measures, name, num_reports):
    statistic = next(m.statistic for m in measures if m.name == name)
    return statistic(np.ones((1, num_reports)))[0]


def swap_sides(text):
    return re.sub(r"\b(left|right)\b", lambda m: {"left": "right", "right": "left"}[m[0]], text)


def test_findings_f1_as_computed_by_hand():
    a, b = Finding("a"), Finding("b")
    references = [(a, b), (a,), (b,), (a, Finding("b", Presence.ABSENT))]
    drafts = [(a,), (b,), (b,), (a, b)]
    # a  precision 2/2  recall 2/3  F1 4/5
    # b  precision 1/3  recall 1/2  F1 2/5
    measures = finding_measures(count_findings(references, drafts, ["a", "b", "never"]))
    expected = {
        "F1 micro": 6 / 10,
        "F1 macro": (4 / 5 + 2 / 5) / 2,
        "precision micro": 3 / 5,
        "precision macro": (1 + 1 / 3) / 2,
        "recall micro": 3 / 5,
        "recall macro": (2 / 3 + 1 / 2) / 2,
        "hallucination": 2 / 5,
        "contradiction": 1 / 5,
        "omission": 2 / 5,
        "exact match": 1 / 4,
    }
    assert {name: value_of(measures, name, 4) for name in expected} == pytest.approx(expected)


def test_side_site_and_size_are_judged_on_matched_findings_only():
    references = [fake_parse(NODULE), fake_parse(BOTH), fake_parse(EFFUSION)]
    drafts = [
        fake_parse("right lower lobe nodule of 11 mm."),  # side right, site wrong, 3 mm off
        fake_parse("left lower lobe nodule of 17 mm. left effusion."),  # 5 mm off; effusion's side wrong
        fake_parse(NORMAL),
    ]
    measures = finding_measures(count_findings(references, drafts, list(_TERMS.values())))
    assert value_of(measures, "side accuracy", 3) == pytest.approx(2 / 3)
    assert value_of(measures, "site accuracy", 3) == pytest.approx(1 / 2)
    assert value_of(measures, "size error", 3) == pytest.approx(4.0)


def test_two_nodules_swapped_are_matched_by_size_not_by_side():
    reference = fake_parse("right upper lobe nodule of 6 mm. left upper lobe nodule of 20 mm.")
    draft = fake_parse("left upper lobe nodule of 6 mm. right upper lobe nodule of 20 mm.")
    assert [(r.size_mm, d.size_mm) for r, d in match_findings(reference, draft)] == [(6, 6), (20, 20)]


def test_identity_scores_full_and_clears_every_floor(evaluate):
    scores = evaluate(WORLD, WORLD)
    names = ("BLEU-1", "BLEU-4", "ROUGE-L", "findings F1 micro", "findings F1 macro", "CRG")
    for name in (*names, "side accuracy", "site accuracy", "size agreement", "exact match"):
        assert scores[name].score.value == pytest.approx(1.0, abs=1e-6), name
    for name in (
        "size error",
        "hallucination",
        "contradiction",
        "unsupported",
        "omission",
        "conflicting drafts",
    ):
        assert scores[name].score.value == 0.0
    assert any("Were the references given twice?" in said for said in warnings_of(scores))
    for name in ("BLEU-4", "findings F1 micro", "findings F1 macro", "exact match", "omission"):
        assert below(scores[name]) == ()
        assert scores[name].gaps


def test_every_floor_stands_beside_every_score_and_below_identity(evaluate):
    scores = evaluate(WORLD, WORLD[1:] + WORLD[:1])
    assert set(scores["BLEU-4"].floors) == {"constant", "normal", "random", "nearest neighbour"}
    assert set(scores["findings F1 macro"].floors) == {
        *("constant", "normal", "random", "nearest neighbour", "all positive", "all negative")
    }
    assert scores["findings F1 micro"].floors["all negative"].value == 0.0
    assert scores["CRG"].floors["all positive"].value == pytest.approx(1 / 3)
    # each report stands eight times in this world, so retrieval finds it
    assert scores["BLEU-4"].floors["nearest neighbour"].value == pytest.approx(1)
    assert scores["BLEU-4"].floors["constant"].value < 0.75


def test_swapped_sides_cost_all_side_accuracy_and_no_f1(evaluate):
    scores = evaluate(WORLD, [swap_sides(text) for text in WORLD])
    assert scores["side accuracy"].score.value == 0.0
    assert scores["findings F1 macro"].score.value == 1.0
    assert scores["exact match"].score.value == pytest.approx(2 / 5)
    assert scores["conflicting drafts"].score.value == pytest.approx(3 / 5)
    assert scores["BLEU-4"].score.value > 0.8  # which is why BLEU alone will not do


def test_constant_drafts_are_flagged_and_named_for_what_they_are(evaluate, tmp_path):
    scores = evaluate(WORLD, [NORMAL] * len(WORLD))
    assert "normal" in below(scores["findings F1 macro"])
    assert verdict_of(scores).grade == "bad"
    assert "NO: " in (tmp_path / "out/table.md").read_text()
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert "normal" in metrics["flagged"]["findings F1 macro"]
    assert (
        "Every draft is the same text: this is a constant report, a floor and no model."
        in metrics["warnings"]
    )
    assert metrics["scores"]["identical outputs"]["value"] == 1.0


def test_the_constant_can_come_from_training_reports(evaluate, tmp_path):
    train = write_lines(tmp_path / "train.jsonl", [EMPHYSEMA, EMPHYSEMA, BOTH])
    scores = evaluate(WORLD, WORLD, train=train)
    assert scores["findings recall micro"].floors["constant"].value == pytest.approx(8 / 40)
    assert "training reports for every case, 2 of 3" in scores.floors["constant"]
    assert "normal" not in scores.floors
    (leak,) = [said for said in scores.facts["leakage"] if "word for word" in said]
    assert leak.startswith("16 of 40 references stand")


@pytest.mark.parametrize("newline", ["\r", "\r\n", "\n", "\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_no_newline_in_a_report_shifts_a_pair(evaluate, newline):
    references = [NODULE.replace(". ", f".{newline}", 1), *WORLD[1:]]
    scores = evaluate(references, WORLD, resamples=5, with_card=False)
    assert scores["findings F1 macro"].score.value == 1.0
    assert scores["BLEU-4"].score.value > 0.98


def test_empty_drafts_are_refused_unless_allowed_and_shift_no_pair(evaluate):
    with pytest.raises(ReportError, match=r"1 id \('s000'\) of drafts.jsonl without a word"):
        evaluate(WORLD, ["", *WORLD[1:]])
    scores = evaluate(WORLD, ["", *WORLD[1:]], allow=["empty"])
    assert scores["findings F1 micro"].score.value == pytest.approx(2 * 39 / (39 + 40))
    assert scores.facts["empty_drafts"] == 1
    assert scores.worst[0].row.missed == ("lung_nodule",)


def test_a_draft_that_does_not_parse_states_nothing_and_is_counted(evaluate):
    scores = evaluate(WORLD, ["gibberish", *WORLD[1:]])
    assert scores.facts["drafts_not_parsed"] == 1
    assert scores["findings F1 micro"].score.value < 1


def test_drafts_in_another_order_score_the_same(tmp_path):
    references = write_lines(tmp_path / "r.jsonl", WORLD)
    drafts = write_lines(tmp_path / "d.jsonl", WORLD)
    drafts.write_text("".join(sorted(drafts.read_text().splitlines(keepends=True), reverse=True)))
    scores = evaluate_reports(
        references, drafts, tmp_path / "out", parse=fake_parse, options=Options(resamples=10, with_card=False)
    )
    assert scores["exact match"].score.value == 1.0


def test_missing_ids_fail_unless_allowed_and_then_score_as_empty(evaluate, tmp_path):
    with pytest.raises(ReportError, match=r"2 ids \('s038', 's039'\) of references.jsonl without a draft"):
        evaluate(WORLD, WORLD[:38])
    scores = evaluate(WORLD, WORLD[:38], allow=["missing"])
    assert scores.facts["coverage"] == pytest.approx(0.95)
    assert "cov:0.950" in scores["BLEU-4"].score.signature
    assert scores["findings recall micro"].score.value == pytest.approx(39 / 40)
    assert "2 of 40 drafts are missing" in (tmp_path / "out/page.html").read_text()


def test_no_resamples_and_no_place_to_write_are_errors(tmp_path, evaluate):
    with pytest.raises(ConfigError, match="0 resamples"):
        evaluate(WORLD, WORLD, resamples=0)
    with pytest.raises(ConfigError, match="The seed is -1; take 0 or more"):
        evaluate(WORLD, WORLD, seed=-1)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="Cannot write the results"):
        evaluate(WORLD[:5], WORLD[:5], resamples=5, with_card=False)


def test_same_seed_same_files_other_seed_other_intervals(evaluate, tmp_path):
    drafts = WORLD[:30] + [NORMAL] * 10
    first_scores = evaluate(WORLD, drafts)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(first) == [
        *("metrics.json", "model_card.md", "page.html", "per_case.csv", "per_finding.csv", "subgroups.csv"),
        "table.md",
    ]
    evaluate(WORLD, drafts)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    other = evaluate(WORLD, drafts, seed=1)
    assert other["BLEU-4"].score.ci95 != first_scores["BLEU-4"].score.ci95


def test_the_interval_of_a_mean_is_that_of_theory():
    hits = np.array([1.0] * 80 + [0.0] * 20)
    drawn = draw_resamples([str(k) for k in range(100)], "report", 4000, seed=3)
    low, high = estimate(lambda counts_BR: counts_BR @ hits / 100, drawn).ci95
    assert low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.015)
    assert high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.015)


def test_reports_of_one_patient_are_drawn_together():
    drawn = draw_resamples(["p", "q", "p", "r"], "patient", 50, seed=0)
    assert (drawn.counts_BR[:, 0] == drawn.counts_BR[:, 2]).all()
    assert (drawn.counts_BR[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_patient_is_named_for_all_or_none(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "a", "report": "A.", "patient": "p"}\n{"id": "b", "report": "B."}\n')
    with pytest.raises(ReportError, match=r"'b'.*without 'patient'"):
        evaluate_reports(path, path, tmp_path / "out", parse=fake_parse)


def test_one_patient_gives_no_interval_and_clears_nothing(tmp_path):
    references = write_lines(tmp_path / "r.jsonl", WORLD[:5], patient="p")
    scores = evaluate_reports(
        references, references, tmp_path / "out", parse=fake_parse, options=Options(resamples=50)
    )
    assert np.isnan(scores["BLEU-4"].score.ci95).all()
    assert below(scores["BLEU-4"]) == ("constant", "normal", "random")
    assert scores.findings[0].f1.not_cleared
    assert json.loads((tmp_path / "out/metrics.json").read_text())["scores"]["BLEU-4"]["ci95"] is None


def test_median_counts_each_value_as_often_as_its_report():
    values, reports = np.array([5.0, 1.0, 3.0]), np.array([0, 1, 1])
    counts = np.array([[1, 1], [3, 1], [4, 1], [0, 2], [0, 0], [2, 1]])
    # 1 3 5 | 1 3 5 5 5 | 1 3 5 5 5 5 | 1 1 3 3 | nothing | 1 3 5 5
    assert median(values, reports, counts) == pytest.approx([3, 5, 5, 2, np.nan, 4], nan_ok=True)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_random_draft_is_never_the_own_reference(count):
    others = random_others([str(k) for k in range(count)])
    assert sorted(others) == list(range(count))
    assert all(k != other for k, other in enumerate(others))


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1, 2), (1, 4, 1, 3), (1,) * 7 + (5,)])
def test_random_draft_is_never_another_report_of_the_same_patient(sizes):
    groups = [f"p{n}" for n, size in enumerate(sizes) for _ in range(size)]
    others = random_others(groups)
    assert sorted(others) == list(range(len(groups)))
    assert all(groups[k] != groups[other] for k, other in enumerate(others))


def test_where_one_patient_is_most_of_them_nobody_keeps_their_own():
    others = random_others(["a", "a", "a", "b"])
    assert all(k != other for k, other in enumerate(others))


def test_medoid_is_the_report_nearest_to_all():
    assert medoid(["a b c", "a b d", "a b c", "x y z"]) == "a b c"
    assert medoid([""]) == ""


def test_a_score_is_never_printed_bare():
    score = Score("BLEU-4", 21.4, (19.8, 23.1), "nrefs:1|tok:13a", 310)
    assert str(score) == "BLEU-4 21.4 [19.8, 23.1] (n=310, nrefs:1|tok:13a)"
    with pytest.raises(TypeError):
        f"{score:.1f}"


def test_metrics_and_csv_hold_what_a_reader_needs(evaluate, tmp_path):
    evaluate(WORLD, WORLD[1:] + WORLD[:1])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{64}", metrics["inputs"]["drafts"]["sha256"])
    assert metrics["bootstrap"] == {"resamples": 200, "seed": 20261123, "by": "report", "groups": 40}
    assert {"value", "ci95", "signature", "n"} <= set(metrics["scores"]["BLEU-4"])
    assert metrics["scores"]["BLEU-4"]["n"] == 40
    assert metrics["versions"]["sacrebleu"] in metrics["scores"]["BLEU-4"]["signature"]
    with (tmp_path / "out/per_finding.csv").open() as file:
        rows = {row["finding"]: row for row in csv.DictReader(file)}
    assert (rows["lung_nodule"]["in_references"], rows["lung_nodule"]["in_drafts"]) == ("16", "16")
    assert "pneumothorax" not in rows  # no report speaks of it
    with (tmp_path / "out/per_case.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert [case["id"] for case in cases] == [f"s{k:03}" for k in range(40)]
    assert cases[0]["missed"] == "lung_nodule"
    assert cases[0]["invented"] == "pleural_effusion"
    assert cases[0]["contradicted"] == "pleural_effusion"


def test_a_threshold_that_is_not_kept_is_exit_code_3(tmp_path, capsys):
    references = str(write_lines(tmp_path / "r.jsonl", WORLD[:5]))
    drafts = str(write_lines(tmp_path / "d.jsonl", WORLD[1:5] + WORLD[:1]))
    call = [references, drafts, "--out", str(tmp_path / "out"), "--resamples", "20"]
    assert main([*call, "--fail-under", "findings F1 macro=0.99", "--fail-under", "omission=0.9"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("THRESHOLD: findings F1 macro is 0")
    assert "omission" not in error
    assert main([*call, "--fail-under", "BLEU=0.1"]) == 1
    assert "SCORE_UNKNOWN: No score 'BLEU'; there are: BLEU-4" in capsys.readouterr().err
    assert main([*call, "--fail-under", "BLEU-4"]) == 1


def test_shell_says_what_was_wrong_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none"), str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == f"REPORT_INVALID: Cannot read {tmp_path}/none: No such file or directory.\n"
    )


def test_scoring_needs_no_torch():
    program = "import sys, evaluation.run; print({'torch', 'monai', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_decoy_in_the_middle_of_a_lesion_is_not_counted_as_a_decoy():
    lesion = ((0.0, 0.0, 0.0), (40.0, 40.0, 40.0))
    assert lies_in(((10.0, 10.0, 10.0), (20.0, 20.0, 20.0)), [lesion])
    assert not lies_in(((30.0, 30.0, 30.0), (60.0, 60.0, 60.0)), [lesion])
    assert not lies_in(lesion, [])
