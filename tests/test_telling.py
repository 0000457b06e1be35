"""What a bench found, on the screen and in files."""

from __future__ import annotations

import json
import math

from evaluation.telling import tell


def test_a_bench_prints_its_words_and_keeps_them_beside_the_values(tmp_path, capsys):
    tell("speed", "| a |\n", {"rows": [{"a": 1.5, "b": math.nan}], "most": math.inf}, tmp_path / "new")
    assert capsys.readouterr().out == "| a |\n\n"
    assert (tmp_path / "new/speed.md").read_text() == "| a |\n"
    # a reader of JSON that is strict takes it
    found = json.loads((tmp_path / "new/speed.json").read_text(), parse_constant=lambda word: 1 / 0)
    assert found == {"rows": [{"a": 1.5, "b": None}], "most": None}


def test_without_a_folder_it_only_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tell("speed", "words", {}, None)
    assert capsys.readouterr().out == "words\n"
    assert not list(tmp_path.iterdir())
