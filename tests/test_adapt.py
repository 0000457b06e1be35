"""A site's file, the chain of stages with its receipts, the control, and the page."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_world import (
    adapt_until_killed,
    examples_in,
    small_model,
    write_corpus,
)

from dapt.adapt import adapt, write_model
from dapt.deliver import DeliveryRefused, deliver, deliver_once, judge_studies
from dapt.judge import Sums
from dapt.loop import STATE, LoopConfig
from dapt.page import to_html, verdict
from dapt.report import auc, heads_of, probe, rank_of, retrieval
from dapt.site import CorporaPlan, Measured, ModelPlan, SitePlan, Stage, read_site, to_plan
from dapt.stages import archive_of, examples_of, read_shelf
from dapt.two_sites import COARSE
from mla_med.cli_adapt import EvaluationReferee, Teller
from mla_med.errors import CheckpointError, ConfigError, StudyError
from mla_med.imaging.grid import CHEST_CT
from mla_med.model.checkpoint import load_checkpoint, read_model
from mla_med.types import Presence

LOOP = LoopConfig(steps=2, lr=3e-3, log_every=1, validate_every=2, save_every=1, device="cpu")
KINDS = ("s2", "dapt", "tapt", "s3")
ELSEWHERE = ("Clear lungs, case {k}, as before.", "Solid nodule, {k} mm, right side. No fluid.")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return write_corpus(folder / "source"), write_corpus(folder / "site", 10, 6, ELSEWHERE)


@pytest.fixture(scope="module")
def start(corpora, tmp_path_factory):
    """A model that read the source's texts."""
    folder = tmp_path_factory.mktemp("start") / "model"
    write_model(small_model(examples_in(corpora[0]), modality_dropout=(0.0, 0.3)), folder)
    return folder


def _plan(corpora, start, out, **changes):
    source, site = corpora
    stages = [
        Stage(
            kind,
            "source" if kind == "s2" else "site",
            batch=2,
            accumulate=1,
            queue=6,
            shift=1,
            loop=LOOP,
        )
        for kind in KINDS
    ]
    plan = SitePlan(
        out=str(out),
        corpora=CorporaPlan(site=str(site), source=str(source), labelled=4),
        model=ModelPlan(start=str(start), extend=4),
        stages=tuple(stages),
        measured=Measured(examples=6, drafts=6, tokens=8, batch=6),
    )
    return replace(plan, **changes)


@pytest.fixture(scope="module")
def done(corpora, start, tmp_path_factory):
    """The whole chain with its control, and what was told."""
    out, told = tmp_path_factory.mktemp("adapted"), []
    plan = _plan(corpora, start, out, control=True)
    adapt(plan, told.append, EvaluationReferee())
    return plan, out, told


# The file


def test_the_sample_of_the_documentation_is_a_plan():
    plan = read_site(Path(__file__).parents[1] / "docs" / "site.toml")
    assert [stage.name for stage in plan.stages] == ["dapt-site", "tapt-site", "s3-site"]
    assert plan.control
    assert plan.corpora.labelled == 64
    assert plan.stages[2].loop.stop_on == "loss"
    assert plan.controlling[0].loop.steps == 2200


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, 'out = "runs/NAME" is missing'),
        ({"out": "a", "corpora": {"sight": "b"}}, "No key 'sight' in corpora. Did you mean 'site'"),
        ({"out": "a", "corpora": {}}, "No corpus to adapt to"),
        ({"out": "a", "corpora": {"site": "b"}, "stage": [{"kind": "s4"}]}, "stage.kind is one of s1, s2"),
        ({"out": "a", "corpora": {"site": "b"}, "stage": [{"kind": "s3", "step": 3}]}, "mean 'steps'"),
        ({"out": "a", "corpora": {"site": "b"}, "stage": [{"kind": "s3", "steps": "3"}]}, "of kind int"),
        (
            {"out": "a", "corpora": {"site": "b"}, "stage": [{"kind": "s1", "corpus": "source"}]},
            "there is none",
        ),
        ({"out": "a", "corpora": {"site": "b"}, "seeds": 3}, r"as \[0, 1, 2\]"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(table, words):
    with pytest.raises(ConfigError, match=words):
        to_plan(table)


def test_without_stages_a_new_model_learns_the_source_first_and_a_trained_one_does_not():
    new = to_plan({"out": "a", "corpora": {"site": "b", "source": "c"}})
    assert [s.name for s in new.shared] == ["s1-source", "s2-source", "s3-source"]
    assert [s.name for s in new.adapting] == ["dapt-site", "tapt-site", "s3-site"]
    trained = to_plan({"out": "a", "corpora": {"site": "b", "source": "c"}, "model": {"start": "d"}})
    assert trained.shared == ()


def test_a_control_without_s3_is_refused():
    plan = to_plan({"out": "a", "corpora": {"site": "b"}, "stage": [{"kind": "dapt"}], "control": True})
    with pytest.raises(ConfigError, match="there has to be an s3"):
        _ = plan.controlling


# Who sees what


def test_an_unpaired_archive_has_images_and_texts_and_nobody_knows_which_belong_together(corpora):
    train = examples_in(corpora[1])
    archive = archive_of(train, "unpaired")
    assert sum(e.image is not None for e in archive) == sum(bool(e.reports) for e in archive) == len(train)
    assert not any(e.image is not None and e.reports for e in archive)
    assert not {e.id for e in archive if e.image} & {e.id for e in archive if e.reports}
    assert archive_of(train, "all") == train


def test_findings_are_learnt_from_the_labelled_studies_alone(corpora):
    shelf = read_shelf("site", corpora[1], CorporaPlan(site="x", labelled=4))
    assert len(shelf.labelled) == 4
    assert examples_of(Stage("s3"), shelf) == examples_of(Stage("tapt"), shelf) == shelf.labelled
    assert examples_of(Stage("dapt"), shelf) == shelf.archive
    more = read_shelf("site", corpora[1], CorporaPlan(site="x", labelled=6))
    assert {e.id for e in shelf.labelled} < {e.id for e in more.labelled}
    assert not {e.id for e in shelf.train} & {e.id for e in shelf.held_out}


# The chain


def test_every_stage_leaves_a_receipt_and_a_model(done):
    _, out, _ = done
    whole = json.loads((out / "receipts.json").read_text())
    names = [(r["arm"], r["name"]) for r in whole["receipts"]]
    assert names == [
        ("shared", "start"),
        ("shared", "s2-source"),
        ("shared", "tokens"),
        ("adapted", "dapt-site"),
        ("adapted", "tapt-site"),
        ("adapted", "s3-site"),
        ("control", "s3-site"),
    ]
    for receipt in whole["receipts"]:
        assert (out / receipt["folder"] / "model" / "model.safetensors").is_file()
        for corpus in ("site", "source"):
            measured = receipt["measured"][corpus]
            assert measured["perplexity"]["text"] > 1
            assert measured["perplexity"]["bits_per_byte"] > 0
            assert 0 <= measured["retrieval"]["image to report R@1"] <= 1
            assert 1 <= measured["rank"]["effective_rank"] <= measured["rank"]["of"]
            assert set(measured["probe"]) == {"lung_nodule"}
    trained = [r for r in whole["receipts"] if r["steps"]]
    assert [r["steps"] for r in trained] == [2, 2, 2, 2, 6]
    assert all(r["progress"]["seconds"] > 0 and r["progress"]["tokens"] > 0 for r in trained)


def test_control_and_chain_start_from_the_same_weights_and_end_after_as_many_steps(done):
    _, out, _ = done
    whole = json.loads((out / "receipts.json").read_text())
    arms = {arm: [r["steps"] for r in whole["receipts"] if r["arm"] == arm] for arm in ("adapted", "control")}
    assert sum(arms["adapted"]) == sum(arms["control"])
    scores = {row["score"]: row for row in whole["control"]}
    assert {"perplexity of the report", "findings macro F1", "BLEU-4"} <= set(scores)
    for row in scores.values():
        assert row["difference"] == pytest.approx(row["adapted"] - row["control"], abs=1e-5)
        assert row["patients"] == 6
    assert "nrefs:1" in scores["BLEU-4"]["signature"]


def test_what_was_forgotten_is_the_rise_of_the_loss_since_its_stage_ended(done):
    _, out, _ = done
    receipts = json.loads((out / "receipts.json").read_text())["receipts"]
    key = "shared/1-s2-source"
    ended, later = receipts[1]["learnt"][key], receipts[5]["learnt"][key]
    assert ended["forgotten"] == 0
    assert later["then"] == ended["now"]
    assert later["forgotten"] == pytest.approx(later["now"] - ended["now"], abs=1e-5)
    assert later["forgotten"] != 0


def test_the_labels_of_the_archive_are_not_learnt_in_dapt(done):
    _, out, _ = done
    rows = [
        json.loads(line) for line in (out / "seed-0/adapted/1-dapt-site/log.jsonl").read_text().splitlines()
    ]
    assert {"volume", "text", "contrast"} <= set(rows[0])
    assert "presence" not in rows[0]


def test_what_is_done_is_not_done_again(done):
    plan, out, _ = done
    stamps = {p: p.stat().st_mtime_ns for p in out.glob("seed-0/*/*/model/model.safetensors")}
    told = []
    adapt(plan, told.append, EvaluationReferee())
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    assert all(row.get("skipped") for row in told if row["stage"] != "checkpoint")


def test_another_plan_does_not_go_on_with_what_is_there(done):
    plan, _, _ = done
    other = replace(plan, stages=(replace(plan.stages[0], queue=7), *plan.stages[1:]))
    with pytest.raises(ConfigError, match="another plan or other data"):
        adapt(other)


def test_every_row_becomes_a_line_of_the_terminal(done):
    _, _, told = done
    teller = Teller()
    lines = [line for row in told if (line := teller._line(row))]
    assert any("receipt: perplexity" in line and "(chance" in line for line in lines)
    assert any("step 2/2" in line for line in lines)
    assert any("4 tokens added" in line for line in lines)


def test_a_start_that_reads_other_images_is_refused(corpora, start, tmp_path):
    config = json.loads((start / "config.json").read_text())
    other = tmp_path / "start"
    other.mkdir()
    for path in start.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config["preprocessing"]["spacing_mm"] = 3.0
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="reads other images"):
        adapt(_plan(corpora, other, tmp_path / "out"))


def test_a_missing_corpus_says_so(start, tmp_path):
    plan = _plan((tmp_path / "none", tmp_path / "none"), start, tmp_path / "out")
    with pytest.raises(StudyError, match=r"corpus\.json is missing"):
        adapt(plan)


def test_a_chain_killed_in_every_stage_ends_with_the_weights_of_an_unbroken_one(
    done, corpora, start, tmp_path
):
    """kill -9, from outside, in a process of its own; then again, until nothing is left to kill."""
    _, out, _ = done
    plan = _plan(corpora, start, tmp_path / "killed")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dapt.adapt"])
    for n, kind in enumerate(KINDS):
        marks = tmp_path / f"marks-{kind}"
        process = context.Process(target=adapt_until_killed, args=(plan, marks))
        process.start()
        name = plan.stages[n].name
        _wait_for(marks, name, process)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    told = []
    adapt(plan, told.append)
    assert [row["stage"] for row in told if row.get("skipped")] == [s.name for s in plan.stages[:3]]
    assert any(row.get("resumed") for row in told)
    for folder in ("shared/1-s2-source", "adapted/1-dapt-site", "adapted/2-tapt-site", "adapted/3-s3-site"):
        whole, resumed = (
            load_file(where / "seed-0" / folder / "model" / "model.safetensors")
            for where in (out, tmp_path / "killed")
        )
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), folder
        assert not (tmp_path / "killed" / "seed-0" / folder / STATE).exists()


# The checkpoint at the end


def test_a_site_with_too_few_known_studies_gets_no_checkpoint_and_a_reason(done):
    _, out, told = done
    (row,) = [row for row in told if row["stage"] == "checkpoint"]
    assert "Gather more studies of the site" in row["why_not"]
    assert not (out / "seed-0" / "checkpoint").exists()
    assert Teller()._line(row).startswith("seed 0: no checkpoint: 10 training and 6 validation studies")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model with room for a report, and a site with 12 patients of each kind to calibrate on."""
    corpus = write_corpus(tmp_path_factory.mktemp("large") / "site", 24, 24)
    decoder = {"n_layer": 1, "n_embd": 32, "n_inner": 64, "n_head": 4, "n_positions": 4096}
    model = small_model(examples_in(corpus), decoder=decoder)
    return model.eval(), read_shelf("site", corpus, CorporaPlan(site=str(corpus)))


def test_a_decoder_without_room_for_a_report_is_found_out(large, start, tmp_path):
    _, shelf = large
    with pytest.raises(DeliveryRefused, match=r"cannot write a report \(REPORT_TOO_LONG\)"):
        deliver(read_model(start), shelf, tmp_path / "checkpoint", "")


def test_a_calibrated_model_is_a_checkpoint_whose_gate_knows_its_site(large, tmp_path):
    model, shelf = large
    folder = deliver(model, shelf, tmp_path / "checkpoint", "s3-site")
    checkpoint = load_checkpoint(folder)
    calibration = checkpoint.calibration
    nodule = calibration.answers["lung_nodule"]
    assert (nodule.num_present, nodule.num_absent) == (12, 12)
    assert (calibration.coverage, calibration.size_repeat_mm, calibration.further_from) == (0.9, {}, {})
    seen = judge_studies(checkpoint.model, shelf.held_out, shelf.settings)
    inside = [calibration.feature_distance(f) <= calibration.feature_limit for f in seen.feature_ND]
    assert sum(inside) >= 23
    # of those with a nodule, and of those without, at least 9 of 10 keep their truth in the set
    f = checkpoint.model.config.finding_keys.index("lung_nodule")
    sets = [nodule.conforms(float(p)) for p in seen.probability_NF[:, f]]
    held = [
        conforms[0] if present else conforms[1]
        for conforms, present in zip(sets, seen.present_NF[:, f] == 1, strict=True)
    ]
    assert sum(held) >= 21
    assert "24 validation studies of the site" in (folder / "README.md").read_text()


def test_a_finding_that_nobody_knows_is_said_of_nobody(large, tmp_path):
    """Conformal sets of no examples hold both answers."""
    model, shelf = large
    some = tuple(replace(e, known=("lung_nodule",)) for e in shelf.held_out)
    folder = deliver(model, replace(shelf, held_out=some), tmp_path / "checkpoint", "s3-site")
    calibration = load_checkpoint(folder).calibration
    for code, answer in calibration.answers.items():
        if code != "lung_nodule":
            assert (answer.num_present, answer.num_absent) == (0, 0)
            assert {answer.presence(p) for p in (0.01, 0.5, 0.99)} == {Presence.CANNOT_SAY}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": None}, "holds texts alone"),
        ({"examination": "knee_mr"}, "It is not known which studies a model of 'knee_mr' may read"),
        ({"held_out": ()}, "0 validation studies have an image"),
    ],
)
def test_what_cannot_be_calibrated_says_why(large, tmp_path, change, words):
    model, shelf = large
    with pytest.raises(DeliveryRefused, match=words):
        deliver(model, replace(shelf, **change), tmp_path / "checkpoint", "")


def test_too_few_of_either_kind_are_counted(large, tmp_path):
    model, shelf = large
    few = replace(shelf, held_out=shelf.held_out[:10])
    with pytest.raises(DeliveryRefused, match=r"9 validation studies.*at most 5"):
        deliver(model, few, tmp_path / "checkpoint", "")


def test_a_checkpoint_is_made_once(large, tmp_path):
    model, shelf = large
    assert deliver_once(model, shelf, tmp_path / "checkpoint", "s3", "one") == ""
    before = (tmp_path / "checkpoint" / "checkpoint.json").stat().st_mtime_ns
    assert deliver_once(model, shelf, tmp_path / "checkpoint", "s3", "one") == ""
    assert (tmp_path / "checkpoint" / "checkpoint.json").stat().st_mtime_ns == before
    deliver_once(model, shelf, tmp_path / "checkpoint", "s3", "another")
    assert (tmp_path / "checkpoint" / "checkpoint.json").stat().st_mtime_ns > before


# Several processes


def test_two_processes_of_accelerate_launch_learn_as_one(corpora, start, tmp_path):
    """The whole command, with gloo: two processes of batch 2 are one of batch 4. With `--cpu`
    accelerate starts one process, however many are asked for."""
    _, site = corpora
    for name, batch in (("one", 4), ("two", 2)):
        (tmp_path / f"{name}.toml").write_text(
            f'out = "{tmp_path / name}"\n[model]\nstart = "{start}"\n'
            f'[corpora]\nsite = "{site}"\n[receipts]\nexamples = 4\ndrafts = 0\n'
            f'[[stage]]\nkind = "tapt"\nsteps = 2\nbatch = {batch}\naccumulate = 1\ndevice = "cpu"\n'
        )
    adapt(read_site(tmp_path / "one.toml"))
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    more = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(_free_port())]
    done = subprocess.run(
        [sys.executable, *launch, *more, "-m", "mla_med.cli_adapt", str(tmp_path / "two.toml")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (
        [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
        for stage in (tmp_path / name / "seed-0" / "adapted" / "1-tapt-site" for name in ("one", "two"))
    )
    for row in (one[0], two[0]):
        assert row["studies_per_s"] * row["seconds"] == pytest.approx(8, abs=0.01)
    assert two[0]["text"] == pytest.approx(one[0]["text"], rel=1e-4)
    assert two[0]["gradient"] == pytest.approx(one[0]["gradient"], rel=1e-3)
    assert two[1]["validation loss"] == pytest.approx(one[1]["validation loss"], rel=1e-4)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(marks: Path, stage: str, process) -> None:
    """Until the first step of the stage was logged, and its state is there."""
    until = time.monotonic() + 900
    while time.monotonic() < until and process.is_alive():
        if marks.is_file():
            for line in marks.read_text().splitlines():
                row = json.loads(line) if line.endswith("}") else {}
                if row.get("stage") == stage and row.get("step") == 2:
                    return
        time.sleep(0.005)
    raise AssertionError(f"{stage} was not reached")


# The numbers of a receipt


def test_the_effective_rank_of_equal_directions_is_their_number():
    sides = np.concatenate([np.eye(4), -np.eye(4)])
    assert rank_of(sides)["effective_rank"] == pytest.approx(4.0)
    assert rank_of(np.ones((5, 3)))["effective_rank"] == 1.0
    line = np.outer(np.arange(6.0), np.ones(3))
    assert rank_of(line)["effective_rank"] == pytest.approx(1.0, abs=1e-6)
    assert rank_of(line) | {"effective_rank": 1.0} == {"effective_rank": 1.0, "dim90": 1.0, "of": 3}


def test_retrieval_counts_equal_reports_as_right_and_chance_knows_it():
    rows = np.eye(12)
    apart = np.eye(12, dtype=bool)
    found = retrieval(rows, rows, apart)
    assert found["image to report R@1"] == found["report to image R@1"] == 1.0
    assert found["chance R@1"] == pytest.approx(1 / 12)
    assert found["chance R@10"] == pytest.approx(10 / 12)
    wrong = retrieval(rows, np.roll(rows, 1, 0), apart)
    assert wrong["image to report R@1"] == 0.0
    same = np.ones((12, 12), bool)
    assert retrieval(rows, np.roll(rows, 1, 0), same)["image to report R@1"] == 1.0
    assert retrieval(rows, rows, same)["chance R@1"] == 1.0


def test_a_probe_finds_what_is_linear_and_chance_holds_what_is_not():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5))
    truth = np.stack([(x[:, 0] > 0), rng.random(80) > 0.5, np.zeros(80)], 1).astype(float)
    rows = probe(x[:40], truth[:40], x[40:], truth[40:], ("linear", "random", "absent"))
    assert set(rows) == {"linear", "random"}  # of the third nobody has it
    assert rows["linear"]["auc"] > 0.95 > rows["linear"]["chance_high"]
    assert rows["random"]["chance_low"] <= rows["random"]["auc"] <= rows["random"]["chance_high"]


def test_an_auc_counts_ties_half_and_f1_only_what_somebody_has():
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75
    assert auc(np.zeros(4), np.array([0, 1, 0, 1])) == 0.5
    said = np.array([[0.9, 0.9], [0.1, 0.9]])
    truth = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert heads_of(said, truth, ("a", "b")) == {"macro F1": 1.0, "macro AUC": 1.0, "findings": 1}


def test_a_difference_is_better_only_if_its_interval_excludes_none():
    row = {"higher_is_better": True, "difference_ci95": [0.01, 0.2]}
    assert verdict(row) == "better"
    assert verdict(row | {"higher_is_better": False}) == "worse"
    assert verdict(row | {"difference_ci95": [-0.1, 0.2]}) == "no difference shown"
    assert verdict(row | {"difference_ci95": None}) == "no interval"


def test_intervals_are_over_patients_and_seeds_are_averaged():
    def value_of(sums):
        return sums[:, 0] / sums[:, 1]

    ours = [Sums(np.stack([np.full(60, good), np.ones(60)], 1), value_of) for good in (0.7, 0.9)]
    theirs = [Sums(np.stack([np.full(60, 0.5), np.ones(60)], 1), value_of)] * 2
    row = EvaluationReferee().compare(ours, theirs, [str(n) for n in range(60)])
    assert row["adapted"] == pytest.approx(0.8)
    assert row["difference"] == pytest.approx(0.3)
    assert row["difference_ci95"] == pytest.approx([0.3, 0.3])
    assert "by:patient" in row["resamples"]


# The page


def test_the_page_shows_every_stage_and_needs_nothing_from_elsewhere(done):
    _, out, _ = done
    page = (out / "receipts.html").read_text()
    for name in ("dapt-site", "tapt-site", "control · s3-site", "effective<br>rank", "Forgetting", "BLEU-4"):
        assert name in page
    assert "<script" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("<polyline") > 20
    assert "Clear lungs" not in page  # no report in it


def test_a_page_without_a_control_says_that_it_proves_nothing(done):
    _, out, _ = done
    whole = json.loads((out / "receipts.json").read_text())
    assert "not whether the adaptation was worth its" in to_html(whole | {"control": []})


@pytest.mark.parametrize("settings", [COARSE, CHEST_CT])
def test_a_phantom_of_a_site_is_reported_in_its_words_and_made_once(tmp_path, settings):
    from dapt.two_sites import FIRST_SEED, _make_example

    (tmp_path / "images").mkdir()
    job = (FIRST_SEED["b"], "b", tmp_path, "train", settings)
    split, line = _make_example(job)
    row = json.loads(line)
    assert split == "train"
    assert set(row["reports"]) == set(row["contexts"]) == {"zh"}
    assert "肺" in row["reports"]["zh"]
    image = tmp_path / "images" / f"{row['id']}.npy"
    assert np.load(image).shape == settings.shape
    assert len(row["findings"]) == len(row["boxes_mm"])
    before = image.stat().st_mtime_ns
    assert _make_example(job) == (split, line)
    assert image.stat().st_mtime_ns == before
