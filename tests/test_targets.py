"""What the benches of speed say of their rounds: ratios within a round, spread, and whether it is enough."""

from __future__ import annotations

import argparse

import pytest

from evaluation import many, peers_draft, pruning
from evaluation.targets import Spread, Target, targets_table
from mla_med.errors import ConfigError


def test_a_ratio_is_taken_within_its_round():
    # the machine was four times as slow in the third round, for both
    assert Spread.of_ratios([10, 12, 40], [1, 1, 4]) == Spread(10, 10, 12)


def test_a_target_is_met_by_its_median():
    quick = Target("seconds", Spread(2.9, 2.0, 3.4), 3, at_most=True)
    slow = Target("faster", Spread(9.5, 9.0, 11.0), 10)
    assert quick.met
    assert not slow.met
    assert targets_table([quick, slow])[2:] == [
        "| seconds | 2.9 (2 to 3.4) | at most 3 | yes |",
        "| faster | 9.5 (9 to 11) | at least 10 | no |",
    ]


def test_a_stage_is_measured_by_the_first_of_ours_and_what_is_missing_is_said():
    done: list[str] = []
    who = [
        peers_draft.Who("a peer", peers_draft.PEER, lambda: done.append("peer")),
        peers_draft.Who("we", peers_draft.OURS, lambda: done.append("we")),
        peers_draft.Who("a stranger", peers_draft.PEER, None),
    ]
    rows = peers_draft.measure("reading", who, 2)
    assert done == ["peer", "we"] * 3
    assert rows[1].by_ours == Spread(1, 1, 1)
    assert rows[2].ms is None
    facts = {"name": "n", "sha256": "0" * 64, "shape": [2, 3], "threads": 1, "processor": "p"}
    words = peers_draft.to_markdown(rows, facts | {"torch": "2", "rounds": 2, "quick": False})
    assert "| reading | a stranger | peer | not installed | |" in words
    assert "target" not in words


def test_the_targets_of_a_draft_are_those_of_its_stages():
    ours = peers_draft.Row("transforms", "we", peers_draft.OURS, Spread(100, 90, 110), Spread(1, 1, 1))
    monai = peers_draft.Row(
        "transforms", peers_draft.MONAI, peers_draft.PEER, Spread(1200, 1100, 1300), Spread(12, 11, 13)
    )
    fresh = peers_draft.Row(
        "draft", peers_draft.FRESH, peers_draft.OURS, Spread(5200, 5100, 5300), Spread(2, 2, 2)
    )
    (faster, seconds) = peers_draft.targets_of([ours, monai, fresh])
    assert faster.met
    assert faster.measured.median == 12
    assert not seconds.met
    assert seconds.measured.median == pytest.approx(5.2)


def test_a_new_process_that_imports_what_it_may_not_fails():
    code = peers_draft._NEW_PROCESS.format(arguments=["mla-med", "--help"], without=("json",))
    assert "'json'" in code
    compile(code, "a new process", "exec")


def test_memory_that_grows_is_not_flat():
    warm = [500.0, 800.0, 1000.0, 1000.0]
    assert many.flatness([*warm, *[1000.0] * 12]) == 1.0
    assert many.flatness([1000.0 + 10 * n for n in range(100)]) > many.FLAT


def test_passes_say_studies_an_hour_and_memory():
    facts = {"studies": 4, "slices": 60, "name": "n", "sha256": "0" * 64, "backend": "onnx", "cores": 2}
    facts |= {"processor": "p", "different": 2, "refused": 0}
    passes = [many.Pass(4.0, (900.0, 950.0), 0), many.Pass(2.0, (951.0, 952.0), 0)]
    words = many.to_markdown(passes, facts)
    assert "Studies an hour, over passes: 2700 (1800 to 3600)." in words
    assert "first 900, largest 952, last 952" in words
    assert "| yes |" in words


def test_a_pruned_model_that_is_there_is_not_made_again(tmp_path):
    (tmp_path / "seed_0").mkdir()
    (tmp_path / "seed_0" / "pruned.json").write_text("{}")
    there = pruning.prune(tmp_path / "whole", tmp_path / "corpus", tmp_path / "seed_0", 0, True)
    assert there == tmp_path / "seed_0"


def test_exported_models_need_their_folder():
    given = argparse.Namespace(backend="onnx", checkpoint=None)
    with pytest.raises(ConfigError, match="mla-med export"):
        many.run(given)
