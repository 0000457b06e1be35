"""The claims bench: what is met, what is missed, what is not measured, and that nothing is measured twice."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.claims.__main__ import main, rows, to_markdown
from evaluation.claims.page import draw, to_html
from evaluation.claims.row import (
    Measured,
    NotMeasured,
    Row,
    Target,
    gain,
    interval,
    run_row,
    show,
    shown,
    to_dict,
)
from evaluation.claims.second_site import best_of, steps_to
from evaluation.claims.text_adaptation import halves, ratio
from evaluation.claims.training import balanced_accuracy, cuts_of, macro_f1, teach
from evaluation.claims.world import averaged, common_codes, fine_corpus, pooled_corpus, sketch
from mla_med.corpus import read_examples, read_settings

HIGHER = Target("score", 5, "points")
FACTS = {
    "quick": False,
    "command": "x",
    "machines": [{"processor": "p", "threads": 1, "torch": "2"}],
    "seeds": [0, 1, 2],
}


def _row(measure, targets=(HIGHER,), steps=3):
    return Row(
        "a_row", "a claim", "it is measured", "a control", targets, lambda quick: {"steps": steps}, measure
    )


def _run(row, out, seeds=(0, 1, 2), quick=False):
    return run_row(row, seeds, quick, out, out / "no data", out / "no corpus")


def _values(*values):
    return lambda job: Measured({"score": values[job.seed]}, {"ours": {"score": values[job.seed]}})


# A row


def test_a_target_is_met_by_the_mean_over_seeds(tmp_path):
    met = _run(_row(_values(4.0, 6.0, 8.0)), tmp_path / "a")
    assert met.verdict == "met"
    assert met.held[0].value == 6.0
    assert met.held[0].is_unsure  # the interval reaches below 5
    assert _run(_row(_values(4.0, 5.0, 5.5)), tmp_path / "b").verdict == "missed"


def test_what_some_seed_never_reached_is_missed_in_words(tmp_path):
    target = Target("score", 5.0, missing="never reached")
    (held,) = _run(_row(_values(6.0, math.nan, 8.0), (target,)), tmp_path).held
    assert not held.is_met
    assert not held.is_unsure
    assert shown(held) == "never reached (1 of 3 seeds)"


def test_the_interval_is_that_of_student():
    low, high = interval([1.0, 2.0, 3.0])
    # t of 2 degrees of freedom 4.3027, standard error 1 / sqrt(3)
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert all(math.isnan(end) for end in interval([1.0]))


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target("a", 5), 5.0, True),
        (Target("a", 5, strictly=True), 5.0, False),
        (Target("a", 5, at_least=False), 5.0, True),
        (Target("a", 5, at_least=False, strictly=True), 5.0, False),
        (Target("a", 5, at_least=False), 5.1, False),
        (Target("a", 5), math.nan, False),
        (Target("a", 5, at_least=False), math.nan, False),
    ],
)
def test_the_bar_itself_is_enough_unless_it_has_to_be_passed_and_no_number_is_never_enough(
    target, value, met
):
    assert target.is_met(value) is met


def test_every_target_of_a_row_has_to_be_met(tmp_path):
    lower = Target("loss", 1, at_least=False)

    def measure(job):
        return Measured({"score": 9.0, "loss": 2.0}, {})

    result = _run(_row(measure, (HIGHER, lower)), tmp_path)
    assert [one.is_met for one in result.held] == [True, False]
    assert result.verdict == "missed"


def test_a_seed_that_is_done_is_not_measured_again_unless_its_sizes_change(tmp_path):
    asked = []

    def measure(job):
        asked.append(job.seed)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Measured({"score": float(job.seed)}, {"ours": {}})

    with pytest.raises(KeyboardInterrupt):
        _run(_row(measure), tmp_path)
    first = _run(_row(measure), tmp_path)
    assert asked == [0, 1, 1, 2]
    assert _run(_row(measure), tmp_path).held[0].seeds == first.held[0].seeds == (0.0, 1.0, 2.0)
    assert len(asked) == 4
    _run(_row(measure, steps=4), tmp_path)
    assert asked[4:] == [0, 1, 2]


def test_what_cannot_be_measured_says_why_and_is_not_met(tmp_path):
    def measure(job):
        raise NotMeasured("nothing to measure with")

    result = _run(_row(measure), tmp_path)
    assert (result.verdict, result.is_met) == ("not measured", False)
    words = to_markdown([result], FACTS)
    assert "not measured: nothing to measure with | not met" in words
    row = to_dict(result)
    assert row["targets"][0]["by_seed"] == []
    assert row["targets"][0]["value"] is None


def test_a_number_that_is_none_stays_none_in_json_and_counts_as_missed(tmp_path):
    result = _run(_row(_values(math.nan, 9.0, 9.0)), tmp_path)
    assert result.verdict == "missed"
    assert json.loads(json.dumps(to_dict(result)))["targets"][0]["by_seed"] == [None, 9.0, 9.0]
    assert _run(_row(_values(0, 0, 0)), tmp_path).verdict == "missed"  # from disk, the same


def test_rows_that_lie_there_whole_stand_beside_those_that_are_asked_for(tmp_path, monkeypatch, capsys):
    from dataclasses import replace

    from evaluation.claims import __main__ as bench

    kept = replace(_row(_values(1.0, 2.0, 9.0)), key="kept")
    half = replace(_row(_values(1.0, 2.0, 9.0)), key="half")
    asked = replace(_row(_values(7.0, 8.0, 9.0)), key="asked")
    monkeypatch.setattr(bench, "rows", lambda: (kept, half, asked))
    assert main(["--out", str(tmp_path), "--rows", "kept"]) == 0
    run_row(half, (0, 1), False, tmp_path, tmp_path, tmp_path)
    assert main(["--out", str(tmp_path), "--rows", "asked"]) == 0
    words = capsys.readouterr().out
    assert "`python -m evaluation.claims --rows kept asked` on " in words
    whole = json.loads((tmp_path / "claims.json").read_text())
    assert [row["key"] for row in whole["rows"]] == ["kept", "asked"]
    assert whole["facts"]["machines"] == whole["rows"][0]["machines"]
    assert whole["rows"][0]["machines"][0]["threads"] == torch.get_num_threads()


def test_the_table_and_the_page_say_missed_beside_what_was_aimed_at(tmp_path):
    results = [_run(_row(_values(1.0, 2.0, 3.0)), tmp_path)]
    words = to_markdown(results, FACTS)
    assert "score ≥ 5 points | 2 points [-0.484, 4.48] | **missed** |" in words
    pictures = draw(results, tmp_path)
    assert pictures["a_row"].stat().st_size > 2000
    page = to_html(results, FACTS, pictures)
    assert "0 met, 1 missed, 0 not measured" in page
    assert "https://" not in page
    assert 'src="data:image/png;base64,' in page


def test_numbers_are_shown_short():
    assert [show(x) for x in (1.0, 2.345678, 0.00001, 123.4, math.nan, None)] == [
        "1",
        "2.35",
        "0",
        "123",
        "–",
        "–",
    ]


# What rows count with


def test_a_cut_says_a_finding_as_often_as_it_is_there():
    logits = np.arange(10.0)[:, None]
    truth = np.array([False] * 7 + [True] * 3)[:, None]
    said = logits > cuts_of(logits, truth)
    assert said.sum() == 3
    assert macro_f1(said, truth) == 100.0
    assert balanced_accuracy(said, truth) == 100.0
    assert balanced_accuracy(~said, truth) == 0.0


def test_steps_to_a_score_are_those_of_its_first_time_and_never_is_no_number():
    curve = [[10, 20.0], [20, 35.0], [30, 30.0], [40, 35.0]]
    assert best_of(curve) == (35.0, 20)
    assert steps_to(curve, 30.0) == 20
    assert math.isnan(steps_to(curve, 36.0))
    assert gain(33.0, 30.0) == pytest.approx(10.0)
    assert math.isnan(gain(1.0, 0.0))


def test_equal_reports_are_in_one_half_and_nothing_is_lost():
    texts = [f"report {n % 30}" for n in range(60)]
    one, other = halves(texts)
    assert sorted(one + other) == sorted(texts)
    assert not set(one) & set(other)
    assert min(len(one), len(other)) > 15


def test_the_ratio_of_perplexities_has_an_interval_over_texts():
    tokens = np.full(40, 10.0)
    before = np.stack([np.linspace(20, 40, 40), tokens], 1)
    after = np.stack([np.linspace(10, 30, 40), tokens], 1)
    value, (low, high) = ratio(before, after)
    assert value == pytest.approx(math.exp(-1))
    assert low == pytest.approx(value) == pytest.approx(high)  # each text falls by as much


def test_both_arms_are_taught_with_the_same_batches_in_the_same_order():
    seen = []
    for _ in range(2):
        net = torch.nn.Linear(1, 1)
        drawn = []

        def loss_of(rng, net=net, drawn=drawn):
            drawn.append(int(rng.integers(1000)))
            return net(torch.ones(1, 1)).sum()

        teach(net, loss_of, 3, 1e-3, seed=4)
        seen.append(drawn)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 3


def test_averaged_voxels_keep_the_mean():
    hu = np.arange(64.0).reshape(4, 4, 4)
    assert averaged(hu, 2).shape == (2, 2, 2)
    assert averaged(hu, 2).mean() == hu.mean()
    assert averaged(hu, 2)[0, 0, 0] == np.mean([0, 1, 4, 5, 16, 17, 20, 21])


def test_the_sketch_of_the_quick_run_is_the_same_every_time(tmp_path):
    one, other = (sketch(tmp_path / name, "a") for name in ("one", "other"))
    assert (one / "train.jsonl").read_bytes() == (other / "train.jsonl").read_bytes()
    examples = read_examples(one, "train")
    assert set(common_codes(examples)) == {"lung_nodule", "pleural_effusion"}


def test_phantoms_that_are_not_there_are_asked_for(tmp_path):
    def measure(job):
        fine_corpus(job)

    assert "make one with python -m dapt" in _run(_row(measure), tmp_path).why_not


def test_phantoms_of_another_grid_are_averaged_or_asked_for(tmp_path):
    """A row of the packaged model wants its voxels; one that makes a model of its own takes larger ones."""
    corpus = sketch(tmp_path / "world" / "corpus", "a")

    def ask(job):
        fine_corpus(replace(job, corpus=corpus))

    why_not = _run(_row(ask), tmp_path).why_not
    assert "in voxels of 12 mm" in why_not
    assert "--corpus" in why_not

    def pool(job):
        job = replace(job, corpus=corpus, world=tmp_path / "world")
        assert pooled_corpus(job) == corpus
        pooled = pooled_corpus(job, 24.0)
        assert read_settings(pooled).spacing_mm == 24
        assert read_settings(pooled).shape == (12, 12, 12)
        (fine, *_), (coarse, *_) = read_examples(corpus, "test"), read_examples(pooled, "test")
        middle = np.load(coarse.image)[6, 6, 6]
        assert middle == pytest.approx(np.load(fine.image)[12:14, 12:14, 12:14].mean(), abs=0.51)
        place_mm = [6.0, 6.0, 6.0, 1.0]
        assert coarse.affine @ place_mm == pytest.approx(fine.affine @ [12.5, 12.5, 12.5, 1.0])
        return Measured({HIGHER.name: 6.0}, {})

    assert not _run(_row(pool), tmp_path).why_not


# The bench


def test_every_claim_of_the_articles_has_a_row():
    keys = [row.key for row in rows()]
    assert keys[:12] == [
        *("selection", "imdb", "bridge", "retrieval", "noise", "dma"),
        *("hffn", "ppt", "dapt", "dapt_packaged", "pruning", "cracks"),
    ]
    assert len(set(keys)) == len(keys)
    for row in rows():
        assert row.targets
        assert row.control


def test_a_row_that_nobody_knows_is_named(capsys, tmp_path):
    assert main(["--rows", "imdbb", "--out", str(tmp_path)]) == 1
    assert "No row 'imdbb'; there are: selection, imdb" in capsys.readouterr().err


QUICK = ("bridge", "noise", "hffn", "dma", "cracks", "ppt", "annotation")


def test_the_quick_run_measures_and_proves_nothing(capsys, tmp_path):
    """Without real texts, and with bodies of a few boxes; the rows that load the packaged model are left to
    the command."""
    threads = torch.get_num_threads()
    given = ["--quick", "--quiet", "--out", str(tmp_path), "--data", str(tmp_path / "none"), "--rows", *QUICK]
    try:
        assert main([*given, "medpix"]) == 0
    finally:
        torch.set_num_threads(threads)
    words = capsys.readouterr().out
    assert "proves nothing" in words
    whole = json.loads((tmp_path / "claims.json").read_text())
    by_key = {row["key"]: row for row in whole["rows"]}
    assert by_key["medpix"]["why_not"].startswith("No MedPix")
    for key in QUICK:
        assert by_key[key]["verdict"] in ("met", "missed")
        assert len(by_key[key]["arms"][0]) >= 2  # ours stands beside a control
        assert (tmp_path / f"{key}.png").is_file()
    assert str(Path.cwd()) not in (tmp_path / "claims.html").read_text()
