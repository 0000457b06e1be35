"""Which studies to annotate next: unsure, unlike what is labelled, unlike each other, with a reason."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from small_world import GRID, examples_in, small_model, write_corpus
from typer.testing import CliRunner

from dapt.adapt import write_model
from dapt.annotate import choose_next, entropy_bits, k_centre, read_done, to_csv
from mla_med.cli import app
from mla_med.errors import ConfigError

EAST, NORTH, SOUTH = (1.0, 0.0), (0.0, 1.0), (0.0, -1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("world") / "corpus")


@pytest.fixture(scope="module")
def model(corpus):
    return small_model(examples_in(corpus)).eval()


def test_of_equal_doubt_the_one_furthest_from_all_that_is_labelled_comes_first():
    chosen = k_centre(np.array([EAST, NORTH, SOUTH]), np.array([EAST, NORTH]), np.ones(3), 2)
    assert [row for row, _, _ in chosen] == [2, 0]
    assert chosen[0][1:] == (1.0, 0)  # a quarter turn from the first that is labelled


def test_a_study_like_one_that_was_just_chosen_waits():
    seen = np.array([EAST, (0.999, 0.0447), NORTH])
    chosen = k_centre(seen, np.zeros((0, 2)), np.array([1.0, 0.9, 0.3]), 2)
    assert [row for row, _, _ in chosen] == [0, 2]
    assert np.isnan(chosen[0][1])
    assert chosen[0][2] is None


def test_of_equal_distance_the_most_doubtful_comes_first():
    chosen = k_centre(np.array([NORTH, SOUTH]), np.array([EAST]), np.array([0.2, 0.8]), 1)
    assert chosen[0][0] == 1


def test_nothing_is_chosen_twice_even_when_all_are_alike():
    chosen = k_centre(np.array([EAST] * 4), np.array([EAST]), np.ones(4), 4)
    assert sorted(row for row, _, _ in chosen) == [0, 1, 2, 3]


def test_a_coin_has_one_bit_and_certainty_none():
    assert entropy_bits(np.array([0.5, 0.0, 1.0])) == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)


def test_each_choice_has_a_reason_and_the_table_can_be_read_again(corpus, model, tmp_path):
    train = examples_in(corpus)
    choices = choose_next(model, train[2:], train[:2], 3, GRID)
    assert [c.order for c in choices] == [1, 2, 3]
    assert len({c.id for c in choices} - {e.id for e in train[:2]}) == 3
    rows = list(csv.DictReader(io.StringIO(to_csv(choices))))
    assert all("unsure of" in row["reason"] or "sure of every" in row["reason"] for row in rows)
    assert {row["nearest"] for row in rows} <= {e.id for e in train}
    (tmp_path / "done.csv").write_text(to_csv(choices))
    assert read_done(tmp_path / "done.csv") == {c.id for c in choices}


def test_an_image_that_the_model_doubts_is_named_with_its_findings(corpus, model):
    with torch.no_grad():
        model.heads.presence.bias_FC.zero_()
    (choice,) = choose_next(model, examples_in(corpus), (), 1, GRID)
    assert "unsure of" in choice.reason
    assert 0.5 < choice.uncertainty <= 1.0


def test_a_corpus_without_images_has_nothing_to_annotate(model):
    with pytest.raises(ConfigError, match="No study with an image is left"):
        choose_next(model, (), (), 5, GRID)


def test_the_command_leaves_out_what_is_labelled_or_done(corpus, model, tmp_path):
    write_model(model, tmp_path / "model")
    lines = (corpus / "train.jsonl").read_text().splitlines()
    for n, line in enumerate(lines):
        row = json.loads(line) | ({"labels": "none", "findings": [], "boxes_mm": []} if n >= 2 else {})
        lines[n] = json.dumps(row)
    (corpus / "train.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "done.csv").write_text("id\n7\n")
    to = tmp_path / "next.csv"
    given = ["annotate-next", str(corpus), "--checkpoint", str(tmp_path / "model"), "--n", "4"]
    result = CliRunner().invoke(app, [*given, "--done", str(tmp_path / "done.csv"), "--out", str(to)])
    assert result.exit_code == 0, result.output
    assert "4 of 5 without labels, beside 3 with" in result.output
    assert read_done(to) <= {"2", "3", "4", "5", "6"}


def test_a_table_without_ids_says_so(tmp_path):
    (tmp_path / "done.csv").write_text("name\na\n")
    with pytest.raises(ConfigError, match="no column id"):
        read_done(tmp_path / "done.csv")
