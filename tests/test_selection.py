"""Token selection: the same weights with fewer tokens, timed side by side and scored."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from benches import EFFUSION, LEFT_LOW, RIGHT_TOP, write_checkpoint, write_corpus

from evaluation.selection import (
    SHIPPED,
    SIZES_MM,
    Timed,
    counts_at,
    faster,
    keeping,
    main,
    probabilities,
    recall_by_size,
    rows_of,
    time_shares,
)
from evaluation.speed import Watch, to_markdown
from evaluation.statistics import draw_resamples
from mla_med.corpus import read_examples
from mla_med.model.checkpoint import load_checkpoint
from mla_med.model.config import tiny
from mla_med.model.mla import MLAModel

CODES = ("lung_nodule", "pleural_effusion")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("selection") / "corpus")


@pytest.fixture(scope="module")
def folder(corpus):
    return write_checkpoint(corpus.parent / "checkpoint", corpus)


@pytest.mark.parametrize(("keep", "tokens"), [(1.0, 64), (0.5, 32), (0.3, 19), (SHIPPED, 10)])
def test_so_many_tokens_are_kept_and_the_model_is_as_it_was_again(keep, tokens):
    model = MLAModel(tiny(keep_ratio=0.7, token_budget=10)).eval()
    image = torch.rand(1, 3, 32, 32, 32)
    with torch.no_grad():
        with keeping(model, keep):
            kept = int(model.encode(image, ["cough"]).selection.keep_BN.sum())
        before = int(model.encode(image, ["cough"]).selection.keep_BN.sum())
    assert abs(kept - tokens) <= 1
    assert before == 10
    assert (model.config.keep_ratio, model.config.token_budget) == (0.7, 10)


def test_later_stages_keep_their_proportion():
    model = MLAModel(tiny(depth=2, keep_ratio=0.8, keep_stages=(0.4,))).eval()
    with keeping(model, 0.4):
        assert model.config.keep_stages == (pytest.approx(0.2),)
    assert tuple(model.config.keep_stages) == (0.4,)


def test_a_slow_round_is_slow_for_all_and_does_not_count():
    assert faster((1.0, 2.0, 10.0), (2.0, 4.0, 20.0)) == 2.0
    assert faster((1.0, 1.0, 1.0), (3.0, 3.0, 0.5)) == 3.0


def test_every_share_is_timed_in_every_round(folder):
    model = load_checkpoint(folder).model
    inputs = [
        (torch.rand(1, 3, 32, 24, 32), ["cough"], torch.ones(1, 3, dtype=torch.bool), torch.eye(4)[None])
    ]
    timed = time_shares(model, inputs, (1.0, 0.5), rounds=2)
    assert {share: len(t.fusion_s) for share, t in timed.items()} == {1.0: 2, 0.5: 2}
    assert all(t > 0 for one in timed.values() for t in (*one.fusion_s, *one.encode_s))


def test_lesions_are_sorted_by_the_size_of_the_largest(corpus):
    examples = read_examples(corpus, "test")  # nodules of 12 and 7 mm in one patient, an effusion in another
    assert examples[0].findings == (RIGHT_TOP, LEFT_LOW)
    assert examples[2].findings == (EFFUSION,)
    said = np.array([[True, False], [False, False], [False, False]])
    counted = recall_by_size(said, examples, CODES)
    assert dict(zip(SIZES_MM, counted, strict=True)) == {
        (0.0, 6.0): (0, 0),
        (6.0, 10.0): (0, 0),
        (10.0, 20.0): (1, 1),
        (20.0, math.inf): (0, 0),
    }


def test_f1_falls_where_fewer_tokens_find_less(corpus, folder):
    examples, checkpoint = read_examples(corpus, "test"), load_checkpoint(folder)
    codes = checkpoint.model.config.finding_keys
    all_right = np.zeros((3, len(codes)))
    all_right[0, codes.index("lung_nodule")] = all_right[2, codes.index("pleural_effusion")] = 0.9
    half = all_right.copy()
    half[0] = 0.0
    counts = counts_at(all_right, np.full(len(codes), 0.5), examples, codes)
    assert counts.macro_f1(np.ones((1, 3)))[0] == 1.0
    timed = {1.0: Timed((4.0, 4.0), (8.0, 8.0)), 0.5: Timed((1.0, 1.0), (4.0, 4.0))}
    drawn = draw_resamples(["a", "b", "c"], "patient", 20)
    tokens = {1.0: 100, 0.5: 50}
    whole, less = rows_of(checkpoint, examples, {1.0: all_right, 0.5: half}, tokens, 100, timed, drawn)
    assert (whole.keep, whole.lost, whole.fusion_faster) == (1.0, 0.0, 1.0)
    assert (less.lost, less.fusion_faster, less.encode_faster) == (50.0, 4.0, 2.0)
    assert (whole.recall[2], less.recall[2]) == (1.0, 0.0)


def test_every_token_kept_sees_what_the_whole_model_sees(corpus, folder):
    model = load_checkpoint(folder).model
    found, tokens, of_tokens = probabilities(model, read_examples(corpus, "test"), (1.0, 0.5))
    assert tokens[1.0] == of_tokens == 48
    assert tokens[0.5] == 24
    assert not np.array_equal(found[1.0], found[0.5])


def test_one_command_gives_the_table_and_the_picture(corpus, folder, tmp_path, capsys):
    arguments = [str(corpus), "--checkpoint", str(folder), "--rounds", "2", "--resamples", "20"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "| 0.5 | 24 of 48 |" in said
    assert "| as it drafts | 24 of 48 |" in said
    values = json.loads((tmp_path / "selection.json").read_text(), parse_constant=pytest.fail)
    assert [row["keep"] for row in values["rows"]] == ["1.0", "0.7", "0.5", "0.3", "as it drafts"]
    assert (tmp_path / "selection.png").read_bytes().startswith(b"\x89PNG")


def test_a_stage_lasts_until_the_next_and_stages_of_one_name_are_one():
    clock = iter([0.0, 1.0, 3.0, 4.0, 9.0])
    watch = Watch(lambda: next(clock))
    for step in ("headers", "volume", "headers", "documents"):
        watch(step)
    run = watch.read()
    assert run.stages_s == {"headers": 2.0, "volume": 2.0, "documents": 5.0}
    assert run.wall_s == 9.0
    facts = dict.fromkeys(("name", "sha256", "processor", "torch"), "x")
    facts |= {"slices": 300, "threads": 1, "load_s": 1.0, "loaded_mib": 1.0, "peak_mib": 2.0}
    assert "| wall | 9.00 | 9.00 |" in to_markdown([run, run], facts | {"reasons": ()})
    assert "REFUSED (NO_SERIES)" in to_markdown([run], facts | {"reasons": ("NO_SERIES",)})
