"""The page, the tables and the command: what a stranger sees who was not there when it was measured."""

import csv
import json
import re

import pytest
from typer.testing import CliRunner

from evaluation.cases import to_pieces
from evaluation.page import to_html
from evaluation.results import Piece, verdict_of
from evaluation.run import evaluate_reports
from evaluation.systems import Options

NODULE = "There is an 8 mm nodule in the right upper lobe. No pleural effusion. The heart is not enlarged."
EFFUSION = "There is a left pleural effusion. No nodule is seen. There is no emphysema."
EMPHYSEMA = "There is emphysema. No nodule is seen. No pleural effusion."
NORMAL = "No nodule is seen. No pleural effusion. There is no emphysema."
WORLD = [NODULE, EFFUSION, EMPHYSEMA, NORMAL] * 16


def write(path, reports, **more):
    rows = [
        {"id": f"s{k:03}", "report": r, **{n: v[k] for n, v in more.items()}} for k, r in enumerate(reports)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def score(tmp_path):
    def run(references, drafts, other=None, draft_more=None, **more):
        return evaluate_reports(
            write(tmp_path / "r.jsonl", references, **more),
            write(tmp_path / "d.jsonl", drafts, **(draft_more or {})),
            tmp_path / "out",
            other=write(tmp_path / "o.jsonl", other) if other else None,
            options=Options(resamples=100),
        )

    return run


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("</style>")[1]))


def test_the_page_escapes_reports_and_needs_no_network(score):
    page = to_html(score(WORLD, ["<script>alert(1)</script> & more", *WORLD[1:]]))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(?:src|href)=|https?://|url\(|@import", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("drafts", "grade", "words"),
    [
        (WORLD, "good", "Is this model any good? Yes: "),
        ([NORMAL] * 64, "bad", "Is this model any good? No: "),
        (["There is pneumothorax. " + text for text in WORLD], "mixed", "Is this model any good? Not yet: "),
    ],
)
def test_the_verdict_stands_on_top_in_one_sentence(score, drafts, grade, words):
    scores = score(WORLD, drafts)
    assert verdict_of(scores).grade == grade
    text = text_of(to_html(scores))
    assert words in text
    assert text.index(words) < text.index("Beside drafts that never saw an image") < text.index("All scores")
    assert verdict_of(scores).words.count(". ") == 0
    assert ("omission 100% [100, 100] of the findings" in text) == (grade == "bad")


def test_references_without_findings_give_no_verdict(score):
    scores = score([NORMAL] * 40, [NORMAL] * 40)
    assert verdict_of(scores).grade == "unknown"
    assert "Nobody can say: " in text_of(to_html(scores))


def test_free_text_that_the_rules_cannot_read_is_said_so(score):
    scores = score(["Brain MR: nothing of note."] * 20 + WORLD[:20], ["Nothing."] * 20 + WORLD[:20])
    assert "In 20 of 40 references no finding could be read" in text_of(to_html(scores))


def test_a_language_that_was_not_told_is_noticed(score):
    scores = score(["左侧胸腔积液。", "两肺肺气肿。"] * 4, ["左侧胸腔积液。", "两肺肺气肿。"] * 4)
    text = text_of(to_html(scores))
    assert "Nobody can say: in none of the references could a finding be read" in text
    assert "8 of 8 references hold Chinese, and were read as en" in text
    assert "Protocol coco parts words at blanks, which Chinese does not have" in text


def test_the_worst_cases_show_what_is_wrong_where_it_stands(score):
    swapped = NODULE.replace("right", "left")
    page = to_html(score(WORLD, [EFFUSION, swapped, swapped, *WORLD[3:]]))
    assert '<mark class="missed" title="lung_nodule: not in the draft">nodule</mark>' in page
    assert '<mark class="contradicted" title="pleural_effusion: the reference says absent">' in page
    assert page.count('<section class="case">') == 20


def test_a_wrong_side_is_marked_as_such(score):
    page = to_html(score(WORLD, [NODULE.replace("right", "left"), *WORLD[1:]]))
    assert '<mark class="differs" title="lung_nodule: left instead of right">nodule</mark>' in page
    assert '<mark class="conflict"' in page


def test_pieces_make_up_the_text_and_the_later_span_is_seen():
    pieces = to_pieces("abcdef", [(0, 4, "conflict", "x"), (1, 2, "right", "y"), (4, 5, "", "")])
    assert "".join(piece.text for piece in pieces) == "abcdef"
    assert pieces == [
        Piece("a", "conflict", "x"),
        Piece("b", "right", "y"),
        Piece("cd", "conflict", "x"),
        Piece("ef"),
    ]
    assert to_pieces("", []) == []


def test_probabilities_subgroups_and_a_second_system_have_their_places(score, tmp_path):
    sure = [{"lung_nodule": 0.9 if text == NODULE else 0.1} for text in WORLD]
    sexes = ["F", "M"] * 32
    scores = score(WORLD, WORLD, other=[NORMAL] * 64, draft_more={"confidences": sure}, sex=sexes)
    text = text_of(to_html(scores))
    assert "Reliability, 64 statements" in text
    assert "Risk against coverage" in text
    assert "sex: F" in text
    assert "A (these drafts) against B" in text
    assert scores.reliabilities[0].ece == pytest.approx(0.1)
    rows = {row["score"]: row for row in csv.DictReader((tmp_path / "out/comparison.csv").open())}
    assert rows["findings F1 macro"]["better"] == "A"
    assert float(rows["findings F1 macro"]["p"]) > 0
    with (tmp_path / "out/subgroups.csv").open() as file:
        assert {row["group"] for row in csv.DictReader(file)} == {"F", "M"}
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["comparison"][0]["smallest_p"] > 0
    assert metrics["calibration"][0]["count"] == 64


def test_a_probability_that_is_none_is_refused(score):
    from mla_med.errors import ReportError

    with pytest.raises(
        ReportError, match=r"'s000': the confidence of lung_nodule is 7; it must be from 0 to 1"
    ):
        score(WORLD[:4], WORLD[:4], draft_more={"confidences": [{"lung_nodule": 7}] * 4})


def test_the_model_card_block_carries_the_signature_and_the_floor(score, tmp_path):
    score(WORLD, WORLD)
    card = (tmp_path / "out/model_card.md").read_text()
    assert card.startswith("## Evaluation\n")
    assert re.search(r"\| BLEU-4 \| 1\.000 \[[^|]+\| 0\.\d+ \(\w+\) \| `[^`]*tok:[^`]+` \|", card)


def test_one_command_does_it_and_a_missed_threshold_is_exit_code_3(tmp_path):
    from mla_med.cli import app

    references, drafts = write(tmp_path / "r.jsonl", WORLD), write(tmp_path / "d.jsonl", WORLD)
    call = ["evaluate", str(references), str(drafts), "--protocol", "coco", "--resamples", "50", "--out"]
    done = CliRunner().invoke(app, [*call, str(tmp_path / "out"), "--fail-under", "findings F1 macro=0.9"])
    assert done.exit_code == 0, done.output
    assert "| BLEU-4 | 1.000" in done.output
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["scores"]["BLEU-4"]["value"] == pytest.approx(1)
    assert {"value", "ci95", "signature", "n"} <= set(metrics["scores"]["findings F1 macro"])
    done = CliRunner().invoke(app, [*call, str(tmp_path / "out"), "--fail-under", "length ratio=2"])
    assert done.exit_code == 3


def test_two_systems_have_the_values_of_their_own_tables(score):
    """CIDEr among them, whose weights hang on the number of references, and sizes, which differ in both."""
    others = [text.replace("8 mm", "13 mm") + " There is a hiatal hernia." for text in WORLD]
    a = score(WORLD, [EFFUSION, NODULE.replace("8", "12"), *WORLD[2:]], other=others)
    b = score(WORLD, others)
    for row in a.comparison:
        assert row.a == pytest.approx(a[row.score].score.value, nan_ok=True), row.score
        assert row.b == pytest.approx(b[row.score].score.value, nan_ok=True), row.score
    assert {"CIDEr", "CRG", "size error", "three-status kappa"} <= {row.score for row in a.comparison}


def test_a_draft_cannot_lower_the_floors_by_naming_what_no_reference_speaks_of(score):
    plain = score(WORLD, WORLD)
    named = score(WORLD, [f"{text} There is a pericardial effusion." for text in WORLD])
    for name in ("findings F1 micro", "CRG"):
        floors = [scores[name].floors["all positive"].value for scores in (plain, named)]
        assert floors[0] == floors[1]
    assert named["CRG"].score.value < plain["CRG"].score.value
