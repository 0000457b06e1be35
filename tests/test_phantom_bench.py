"""The table of an examination: what counts as found, where and how large, beside ceilings and floors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from benches import BOX, EFFUSION, LEFT_LOW, PATIENTS, RIGHT_TOP, calibration, write_checkpoint, write_corpus

from evaluation.phantom_measures import (
    Told,
    ceiling_texts,
    counts_of,
    error_measure,
    floor_texts,
    likelier_of,
    measures_of,
    text_measures,
)
from evaluation.phantom_table import bench, finding_lines, line_of, to_json, to_markdown
from evaluation.phantoms import main, names_of
from evaluation.seen import Case, crosses, holding, look
from evaluation.statistics import draw_resamples
from mla_med.corpus import read_examples
from mla_med.errors import ConfigError
from mla_med.model.calibrate import Calibration
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.config import tiny
from mla_med.model.conformal import calibration_error
from mla_med.model.mla import MLAModel
from mla_med.model.seen import of_patients
from mla_med.types import Finding, Presence, Side

CODES = ("lung_nodule", "pleural_effusion")
ONCE = np.ones((1, 3))


def _case(number, planted, stated, unsaid=(), probability=0.9, cites=True, text="No nodule. "):
    said = {f.code for f in stated}
    chance = dict.fromkeys((c for c in said if c in {f.code for f in planted}), 0.25)
    p = {code: probability if code in said else 0.1 for code in CODES}
    flags = dict.fromkeys(chance, cites)
    return Case(f"p{number}", planted, stated, frozenset(unsaid), p, flags, chance, text, text)


def _values(cases, codes=CODES) -> dict[str, float]:
    told = Told("model", calibration(codes=codes), tuple(cases))
    once = np.ones((1, len(cases)))
    return {m.name: float(m.statistic(once)[0]) for m in measures_of(told, codes, "chest_ct")}


def _nodule(size_mm=12.0, side=Side.RIGHT, site="upper_lobe") -> Finding:
    return Finding("lung_nodule", site=site, side=side, size_mm=size_mm)


def test_a_patient_whose_only_lesion_is_small_is_left_out_for_it():
    cases = [
        _case(0, (_nodule(12),), (_nodule(12),)),
        _case(1, (_nodule(5),), ()),  # missed, and smaller than 6 mm
        _case(2, (), ()),
    ]
    assert counts_of(cases, CODES).macro_f1(ONCE)[0] == pytest.approx(2 / 3)
    assert counts_of(cases, CODES, 6.0).macro_f1(ONCE)[0] == 1.0
    (nodule, effusion) = finding_lines(
        [Told("m", calibration(), tuple(cases))], CODES, draw_resamples(["a", "b", "c"], "patient", 50)
    )
    assert (nodule.num_present, nodule.too_small, nodule.f1) == (1, 1, 1.0)
    assert math.isnan(effusion.f1)  # nobody has it


def test_what_cannot_be_said_is_not_stated_but_has_a_likelier_answer():
    case = _case(0, (EFFUSION,), (), unsaid=("pleural_effusion",))
    case.probability["pleural_effusion"] = 0.7
    cases = [case, _case(1, (), ()), _case(2, (), ())]
    assert counts_of(cases, CODES).macro_f1(ONCE)[0] == 0.0
    assert likelier_of(Told("m", calibration(), tuple(cases)), CODES).macro_f1(ONCE)[0] == 1.0
    assert _values(cases)["cannot say"] == pytest.approx(1 / 6)


def test_a_side_is_right_where_a_lesion_lies_on_it_and_a_size_is_that_of_the_place():
    planted = (RIGHT_TOP, LEFT_LOW)
    values = _values([_case(0, planted, (_nodule(9.0, Side.LEFT, "lower_lobe"),))])
    assert values["side accuracy"] == values["site accuracy"] == 1.0
    assert values["size error mm, median"] == 2.0  # 7 mm lie there
    assert values["of several lesions the largest is stated first"] == 0.0
    wrong = _values([_case(0, (RIGHT_TOP,), (_nodule(9.0, Side.LEFT),))])
    assert wrong["side accuracy"] == 0.0
    assert wrong["size error mm, median"] == 3.0


def test_further_lesions_count_by_place():
    planted = (RIGHT_TOP, LEFT_LOW)
    elsewhere = _nodule(8.0, Side.RIGHT, "middle_lobe")
    values = _values([_case(0, planted, (RIGHT_TOP, LEFT_LOW, elsewhere)), _case(1, planted, (RIGHT_TOP,))])
    assert values["further lesions, recall"] == 0.5
    assert values["further lesions, precision"] == 0.5


def test_evidence_is_counted_where_a_finding_is_there_and_stated():
    cases = [_case(0, (EFFUSION,), (EFFUSION,), cites=False), _case(1, (RIGHT_TOP,), (RIGHT_TOP,))]
    values = _values([*cases, _case(2, (), (EFFUSION,))])
    assert values["first cited slice holds the lesion"] == 0.5
    assert values["a slice drawn by chance holds it"] == 0.25


def test_a_slice_holds_a_box_that_lies_between_two_slices():
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    box = ((0.0, 0.0, 22.0), (5.0, 5.0, 24.0))
    assert holding([box], affine, 5).tolist() == [False, False, True, False, False]
    assert crosses(box, [box], affine, (8, 8, 5))
    assert not crosses(box, [((0.0, 0.0, 38.0), (5.0, 5.0, 40.0))], affine, (8, 8, 5))


def test_the_calibration_error_of_a_sum_is_that_of_its_parts():
    rng = np.random.default_rng(0)
    p = rng.random((40, 3))
    present = rng.random((40, 3)) < p**2
    measure = error_measure("ECE", p, present)
    assert measure.statistic(np.ones((1, 40)))[0] == pytest.approx(calibration_error(p, present))
    half = np.arange(40) < 20
    assert measure.statistic(half[None].astype(float))[0] == pytest.approx(
        calibration_error(p[half], present[half])
    )


def test_several_checkpoints_have_a_mean_a_spread_and_each_their_value():
    perfect = [_case(0, (EFFUSION,), (EFFUSION,)), _case(1, (), ()), _case(2, (), ())]
    blind = [_case(0, (EFFUSION,), ()), _case(1, (), ()), _case(2, (), ())]
    tolds = [Told(name, calibration(codes=CODES), tuple(c)) for name, c in (("a", perfect), ("b", blind))]
    drawn = draw_resamples(["p0", "p1", "p2"], "patient", 100)
    measured = zip(*(measures_of(told, CODES, "chest_ct") for told in tolds), strict=True)
    line = line_of(next(iter(measured)), drawn)
    assert (line.value, line.each) == (0.5, (1.0, 0.0))
    assert line.spread == pytest.approx(math.sqrt(0.5))


def test_checkpoints_are_called_by_what_tells_them_apart():
    def names(*paths):
        return names_of([Path(path) for path in paths])

    assert names("/a/checkpoint") == ["checkpoint"]
    assert names("/a/checkpoint", "/b/checkpoint") == ["a", "b"]
    assert names("/a/checkpoint", "/b/model") == ["checkpoint", "model"]
    assert names("/a/b/c", "/a/b/c") == ["1: c", "2: c"]


def test_a_calibration_error_has_no_interval_as_a_resample_raises_it():
    rng = np.random.default_rng(0)
    p = rng.random((400, 5))
    measure = error_measure("ECE", p, rng.random((400, 5)) < p)
    drawn = draw_resamples([f"p{n}" for n in range(400)], "patient", 200)
    assert np.percentile(measure.statistic(drawn.counts_BR), 50) > measure.statistic(np.ones((1, 400)))[0]
    line = line_of([measure], drawn)
    assert math.isnan(line.ci95[0])
    assert math.isnan(line.ci95[1])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("benches") / "corpus")


@pytest.fixture(scope="module")
def folder(corpus):
    return write_checkpoint(corpus.parent / "checkpoint", corpus)


def test_ceilings_say_what_is_true_and_floors_what_is_not(corpus):
    examples = read_examples(corpus, "test")
    for language in ("en", "zh"):
        references = [example.reports[language] for example in examples]
        ceilings = ceiling_texts(references, [e.id for e in examples], "chest_ct", language)
        floors = floor_texts(references, None, "chest_ct", language)
        assert ceilings["ceiling: all true, usual wording"] == references
        told = Told("m", calibration(), tuple(_case(n, (), (), text=t) for n, t in enumerate(references)))
        (ours,), beside = text_measures([told], ceilings | floors, language)
        assert ours[0].statistic(ONCE)[0] == pytest.approx(1.0, abs=1e-6)
        scores = {m.name: m.statistic(ONCE)[0] for m in beside}
        assert scores["BLEU-4, ceiling: all true, another draw of wordings"] < 1
        assert 0 < scores["BLEU-4, floor: everything negative"] < 1
        assert floors["floor: a random report"] != references


def test_patients_are_seen_in_a_batch_as_they_are_alone():
    torch.manual_seed(0)
    model = MLAModel(tiny()).eval()
    images, texts = torch.rand(2, 3, 32, 32, 32), ["cough", "fever and a much longer request"]
    with torch.no_grad():
        batch, alone = model.encode(images, texts), model.encode(images[1:], texts[1:])
    one = of_patients(batch, [1])
    assert one.tokens_BSD.shape[0] == one.lesions.logits_BFN.shape[0] == 1
    torch.testing.assert_close(model.find(one).presence_logits_BF, model.find(alone).presence_logits_BF)
    torch.testing.assert_close(one.selection.keep_BN, alone.selection.keep_BN)


def test_of_what_a_draft_is_silent_nothing_is_said_where_nothing_can_be(corpus, folder, monkeypatch):
    """The draft leaves out what no report has to speak of; that is no answer."""
    unsure = ("thyroid_nodule", "pleural_effusion")

    def answer(self, code, probability):
        return (Presence.CANNOT_SAY, 0.5) if code in unsure else (Presence.ABSENT, 0.9)

    monkeypatch.setattr(Calibration, "answer", answer)
    cases, _ = look(load_checkpoint(folder), read_examples(corpus, "test"), write=False)
    assert {case.unsaid for case in cases} == {frozenset(unsure)}


def test_what_is_planted_and_what_is_said_stand_side_by_side(corpus, folder):
    checkpoint, examples = load_checkpoint(folder), read_examples(corpus, "test")
    cases, features = look(checkpoint, examples, batch=2)
    assert [case.planted for case in cases] == [tuple(findings) for findings in PATIENTS]
    assert features.shape == (3, 32)
    for case in cases:
        assert case.written.startswith("FINDINGS:")
        assert set(case.cites) == {f.code for f in case.stated} & {f.code for f in case.planted}
    again, _ = look(checkpoint, examples, batch=3)
    assert [case.written for case in again] == [case.written for case in cases]
    assert examples[0].boxes_mm["lung_nodule"][0] == tuple(map(tuple, BOX))


def test_one_command_gives_the_table_the_numbers_and_the_picture(corpus, folder, tmp_path, capsys):
    arguments = [str(corpus), "--checkpoint", str(folder), "--checkpoint", str(folder), "--resamples", "20"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    words = capsys.readouterr().out
    assert "| macro F1, lesions of 6 mm or more |" in words
    assert "| BLEU-4, floor: the best constant report |" in words
    assert "| 2: checkpoint | full |" in words  # seeds, or ablations, under each other
    values = json.loads((tmp_path / "phantoms.json").read_text(), parse_constant=pytest.fail)
    assert values["facts"]["patients"] == 3
    assert len(values["rows"][0]["each"]) == 2
    assert (tmp_path / "phantoms.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_measure_is_a_dash_and_null():
    told = Told("m", calibration(codes=CODES), (_case(0, (), ()), _case(1, (), ())))
    facts = {"examination": "chest_ct", "patients": 2, "split": "test", "cohort": 7, "language": "en"}
    found = bench([told], CODES, "chest_ct", "en", {}, facts | {"checkpoints": []}, resamples=10)
    assert "| side accuracy | – | – |" in to_markdown(found)
    rows = {row["name"]: row for row in json.loads(to_json(found))["rows"]}
    assert rows["side accuracy"]["value"] is None


def test_a_corpus_of_another_examination_is_refused(corpus, folder, tmp_path, capsys):
    about = json.loads((corpus / "corpus.json").read_text()) | {"examination": "brain_mr"}
    for name in ("test.jsonl", "train.jsonl"):
        (tmp_path / name).write_text((corpus / name).read_text())
    (tmp_path / "corpus.json").write_text(json.dumps(about))
    assert main([str(tmp_path), "--checkpoint", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "OTHER_EXAMINATION" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="train, validation, test and all"):
        read_examples(corpus, "tset")
