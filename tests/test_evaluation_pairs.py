"""Two files -> pairs: whatever stands in a text, in whatever order, no pair is shifted or dropped unseen."""

import csv
import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.leakage import check_leakage, main
from evaluation.pairs import Pair, read_pairs, read_texts
from mla_med.errors import ConfigError, ReportError

CHARACTERS = ["\r", "\n", "\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\t", '"', ",", ";", "a", "é", " "]
TEXTS = st.text(st.sampled_from(CHARACTERS), max_size=12)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)


def write(path, rows):
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return path


def write_csv(path, rows):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(out.getvalue().encode())
    return path


@pytest.fixture
def pair(tmp_path):
    def run(references, drafts, allow=()):
        return read_pairs(
            write(tmp_path / "refs.jsonl", [{"id": k, "report": text} for k, text in references]),
            write(tmp_path / "drafts.jsonl", [{"id": k, "report": text} for k, text in drafts]),
            allow,
        )

    return run


TOLD = [("a", "One."), ("b", "Two."), ("c", "Three.")]


def test_pairs_are_joined_by_id_in_the_order_of_the_references(pair):
    found = pair(TOLD, [("c", "3"), ("a", "1"), ("b", "2")])
    assert found.pairs == (Pair("a", "One.", "1"), Pair("b", "Two.", "2"), Pair("c", "Three.", "3"))
    assert found.coverage.share == 1.0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_no_character_shifts_or_drops_a_pair(tmp_path_factory, texts, as_csv, random):
    folder, kind, put = (
        tmp_path_factory.mktemp("p"),
        "csv" if as_csv else "jsonl",
        write_csv if as_csv else write,
    )
    drafts = [{"id": f"s{k}", "report": draft} for k, (_, draft) in enumerate(texts)]
    random.shuffle(drafts)
    references = put(
        folder / f"r.{kind}", [{"id": f"s{k}", "report": told} for k, (told, _) in enumerate(texts)]
    )
    found = read_pairs(references, put(folder / f"d.{kind}", drafts), allow=["empty"])
    assert [(p.reference, p.draft) for p in found.pairs] == texts


@pytest.mark.parametrize(
    ("drafts", "kind", "code", "words", "kept"),
    [
        (
            [("a", "1"), ("c", "3")],
            "missing",
            "IDS_MISSING",
            "1 id ('b') of refs.jsonl without a draft",
            2 / 3,
        ),
        ([("a", "1"), ("b", " \n"), ("c", "3")], "empty", "TEXTS_EMPTY", "1 id ('b') of drafts.jsonl", 2 / 3),
        (
            [("a", "1"), ("b", "2"), ("c", "3"), ("b", "2")],
            "duplicate",
            "IDS_DUPLICATE",
            "drafts.jsonl, line 4: id 'b' stood there before (drafts.jsonl, line 2)",
            2 / 3,
        ),
        (
            [("a", "1"), ("b", "2"), ("c", "3"), ("x", "9")],
            "unknown",
            "IDS_UNKNOWN",
            "1 id ('x') of drafts.jsonl not in refs.jsonl",
            1.0,
        ),
    ],
)
def test_a_gap_is_refused_unless_allowed_and_then_counts_as_empty(pair, drafts, kind, code, words, kept):
    with pytest.raises(ReportError, match=re.escape(words)) as caught:
        pair(TOLD, drafts)
    assert caught.value.code == code
    for allow in ([kind], ["all"]):
        found = pair(TOLD, drafts, allow)
        assert [p.id for p in found.pairs] == ["a", "b", "c"]
        assert found.coverage.share == pytest.approx(kept)
        assert len(getattr(found.coverage, kind)) == 1
        assert found.drafts[1].strip() == ("2" if kind == "unknown" else "")


def test_an_allowance_covers_its_own_kind_only(pair):
    with pytest.raises(ReportError, match="without a draft"):
        pair(TOLD, [("a", "1"), ("a", "1"), ("b", "")], ["empty", "duplicate", "unknown"])


def test_a_kind_that_does_not_exist_cannot_be_allowed(pair):
    with pytest.raises(ConfigError, match="Cannot allow 'misssing' drafts; choose of missing, empty"):
        pair(TOLD, TOLD, ["misssing"])


def test_references_that_stand_twice_are_refused_whatever_is_allowed(pair):
    with pytest.raises(ReportError, match=r"refs\.jsonl, line 4: id 'a' stood there before"):
        pair([*TOLD, ("a", "One.")], TOLD, ["all"])


def test_an_empty_reference_is_refused_unless_allowed(pair):
    with pytest.raises(ReportError, match=r"1 id \('b'\) of refs.jsonl without a word"):
        pair([("a", "One."), ("b", "")], [("a", "1"), ("b", "2")])
    found = pair([("a", "One."), ("b", "")], [("a", "1"), ("b", "2")], ["empty"])
    assert found.coverage.empty_references == ("b",)


def test_one_file_may_hold_both_texts_and_what_else_is_known_of_the_study(tmp_path):
    both = write(
        tmp_path / "both.jsonl", [{"id": 7, "ref": "One.", "pred": "1", "sex": "F", "slice_mm": 1.5}]
    )
    assert read_pairs(both, both).pairs == (Pair("7", "One.", "1", {"sex": "F", "slice_mm": 1.5}),)


def test_what_the_references_say_of_a_study_wins_over_what_the_drafts_say(tmp_path):
    references = write(tmp_path / "r.jsonl", [{"id": "a", "report": "One.", "sex": "F"}])
    drafts = write(tmp_path / "d.jsonl", [{"id": "a", "report": "1", "sex": "M", "confidences": {"x": 0.5}}])
    assert read_pairs(references, drafts).pairs[0].meta == {"sex": "F", "confidences": {"x": 0.5}}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_whatever_parts_its_fields(tmp_path, delimiter):
    path = tmp_path / "r.csv"
    path.write_text(f'\ufeffid{delimiter}report\r\na{delimiter}"One, ""two""\r\nlines; more"\r\n', newline="")
    assert read_texts(path) == ['One, "two"\r\nlines; more']


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,report\na,One, two\n", "line 2: 3 fields under 2 columns. Is a text not in quotes?"),
        ("id,text2\na,One\n", "line 2: no 'report'; it holds 'id', 'text2'"),
        ("key,report\na,One\n", "line 2: no 'id'; it holds 'key', 'report'"),
        ('id,report\na,"One\n', "not CSV"),
        ("id,report\n", "bad.csv holds no reports"),
        ("id,report,report\na,One,Two\n", "line 1: two columns are called 'report'; rename one"),
        ("case,report\na,One\n", "It may also be called study_id, study_uid, uid, accession or AccessionNo."),
        ("id,report\n ,One\n", "line 2: 'id' is empty; every report needs one of its own"),
    ],
)
def test_bad_csv_is_named_by_line(tmp_path, content, words):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(ReportError, match=re.escape(words)):
        read_pairs(path, path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"id": "a", "report": "One."}]', "is one JSON array; write one object a line, as jq -c '.[]'"),
        ("One.\n", "line 1: not JSON (Expecting value, column 1). Each line is an object like"),
        ('{"id": NaN, "report": "One."}', "line 1: 'id' must be a string, not NaN"),
        ('{"id": "a", "report": NaN}', "line 1: 'report' must be a string, not NaN"),
        ('{"id": "a", "report": "\\ud800"}', "holds half a character"),
        ('{"id": 1.0, "report": "One."}', "line 1: 'id' must be a string, not 1.0"),
    ],
)
def test_bad_lines_are_named_with_what_was_expected(tmp_path, content, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(ReportError, match=re.escape(words)):
        read_pairs(path, path)


def test_a_field_longer_than_pythons_limit_is_read(tmp_path):
    path = write_csv(tmp_path / "long.csv", [{"id": "a", "report": "word " * 50_000}])
    assert len(read_texts(path)[0]) == 250_000


def test_leakage_names_ids_patients_and_texts_that_both_files_hold(tmp_path, capsys):
    tested = write(
        tmp_path / "test.jsonl",
        [
            {"id": "1", "report": "No nodule in the lungs.", "patient": "p"},
            {"id": "2", "report": "A mass.", "patient": "q"},
        ],
    )
    trained = write(
        tmp_path / "train.jsonl",
        [{"id": "2", "report": "Clear.", "patient": "p"}, {"id": "3", "report": "no nodule in the lungs"}],
    )
    found = check_leakage(tested, trained)
    assert (found.num_same, found.share, found.common_ids, found.common_patients) == (1, 0.5, ("2",), ("p",))
    assert main([str(tested), str(trained)]) == 0
    assert "1 of 2 reports stand in the 2" in capsys.readouterr().out
    assert main([str(tmp_path / "none"), str(trained)]) == 1
