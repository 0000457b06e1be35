"""What gate, reader and linter say, in Chinese: every sentence that the code can write is known."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra review)")
pytest.importorskip("argon2", reason="argon2-cffi is not installed (the extra review)")

from review_site import Site, made

import mla_med
from mla_med.dicom import select
from mla_med.report import reasons
from mla_med.report.reasons import in_language
from mla_med.report.schema import SCHEMAS
from mla_med.report.style import load_style
from mla_med.types import Gate, Reason

HOUSE = Path(mla_med.__file__).parent
SAID_BY = (
    *("model/gate.py", "report/check.py", "comparison.py", "report/render.py"),
    *("dicom/select.py", "dicom/certificate.py", "dicom/volume.py", "dicom/terms.py"),
)
NOT_SHOWN = re.compile(
    r"No examination|Unknown finding code|Exchange them|Give an earlier|Give an examination|cannot be read"
    r"|^7: |Nothing says that|made by another model|Known are|No image|No phrase|No template|cannot be stated"
)
"""What stops a command, or a style that is not whole, and is on no page."""


def sentences_of(path: Path) -> set[str]:
    """What is written there as words for people, each value of it a 7."""
    found = set()
    inside = {id(v) for n in ast.walk(tree(path)) if isinstance(n, ast.JoinedStr) for v in n.values}
    for node in ast.walk(tree(path)):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(v.value) if isinstance(v, ast.Constant) else "7" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        if re.fullmatch(r"[A-Z'7][^\n]* [^\n]*[.]", text) and not NOT_SHOWN.search(text):
            found.add(text)
    return found - docstrings_of(path)


_TREES: dict[Path, ast.Module] = {}


def tree(path: Path) -> ast.Module:
    if path not in _TREES:
        _TREES[path] = ast.parse(path.read_text(encoding="utf-8"))
    return _TREES[path]


def docstrings_of(path: Path) -> set[str]:
    lone = [n.value for n in ast.walk(tree(path)) if isinstance(n, ast.Expr)]
    return {n.value for n in lone if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@pytest.mark.parametrize("name", SAID_BY)
def test_every_sentence_of_gate_reader_and_linter_has_its_chinese(name):
    said = sentences_of(HOUSE / name)
    assert len(said) > 2 or name == "comparison.py"
    unknown = [text for text in sorted(said) if text in in_language("NO_SUCH_CODE", text, "zh")]
    assert unknown == []


def test_values_are_said_in_chinese_and_numbers_stay():
    words = "The slices cover 120 mm along the patient; a whole chest needs at least 200 mm."
    assert (
        in_language("COVERAGE_TOO_SMALL", words, "zh") == "层面沿人体长轴覆盖 120 mm；完整胸部至少需 200 mm。"
    )
    words = "The sentence says left, the finding is right."
    assert in_language("SIDE", words, "zh") == "此句为左侧，征象字段为右侧。"
    words = "Pleural effusion is present and not in the impression."
    assert in_language("IMPRESSION", words, "zh") == "胸腔积液存在，但诊断印象中没有。"
    assert in_language("SIDE", words, "en") == words


def test_a_name_that_two_examinations_share_is_that_of_neither_organ():
    words = "Mass is present and not in the impression."
    assert in_language("IMPRESSION", words, "zh") == "占位存在，但诊断印象中没有。"
    named: dict[str, set[str]] = {}
    style = load_style("prose", "zh")
    for examination, wording in style.examinations.items():
        for code, term in wording.terms.items():
            named.setdefault(SCHEMAS[examination][code].term, set()).add(term)
    own = reasons._table()["zh"]["values"]
    assert [english for english, terms in named.items() if len(terms) > 1 and english not in own] == []


def test_why_a_series_was_read_is_said_in_chinese():
    words = "axial, kernel Br40d (soft), 1.5 mm, 95 slices: the only axial CT series."
    assert in_language("", words, "zh") == "轴位，重建核 Br40d（柔和），1.5 mm，95 层：唯一的轴位 CT 序列。"
    words = "FLAIR by TI 1800 ms; axial, 5 mm, 24 slices: the thinnest of 3 FLAIR series."
    assert (
        in_language("", words, "zh")
        == "FLAIR（依据：TI 1800 ms）；轴位，5 mm，24 层：3 个 FLAIR 序列中层厚最薄。"
    )
    for name, criterion in select.CRITERIA.items():
        words = f"axial, 1 mm, 9 slices: {criterion.wins} of 3 soft axial CT series."
        assert "of 3" not in in_language("", words, "zh"), name
        assert criterion.wins not in in_language("", words, "zh"), name


def test_words_that_are_not_known_stand_behind_what_their_code_means():
    assert in_language("MISSING_SLICE", "A hole of 3 mm.", "zh") == "缺层（A hole of 3 mm.）"
    assert in_language("REMARK", "No mass there.", "zh") == "No mass there."
    long = "The series is " + "; this model reads ".join("x" * 300 for _ in range(5)) + "."
    assert in_language("WRONG_MODALITY", long, "zh") == f"模态不符（{long}）"


def test_every_place_of_a_sentence_is_in_its_chinese_too():
    table = reasons._table()["zh"]
    for english, chinese in (table["say"] | table["parts"]).items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), english


# On the page


def test_gate_linter_and_errors_speak_chinese_on_the_chinese_page(tmp_path):
    site = Site(tmp_path)
    job, client = site.add(0), site.client("reader")
    client.press("/language", language="zh")
    answer = client.press(f"/drafts/{job}/sentence", version=0, number=1, text="By hand.")
    assert "此句没有可核查的内容。" in answer.text
    wrong = client.press(
        f"/drafts/{job}/finding", version=1, number=1, code="lung_nodule", presence="present", place="left x"
    )
    assert wrong.status_code == 422
    assert not re.search(r"[a-z]{4} [a-z]{4}", re.sub(r"<[^>]+>", "", wrong.text))
    reason = Reason("SLICES_TOO_THICK", "The slices are 9.0 mm apart; at most 7.0 mm.")
    draft = made(0)[1]
    other = replace(draft.provenance, study_uid="2.25.4712")
    refused = replace(
        draft, report=None, gate=Gate(False, (reason,), {}), complaints=(), prior=None, provenance=other
    )
    page = client.get(f"/drafts/{site.add(0, refused, StudyInstanceUID='2.25.4712')}").text
    assert "层间距 9.0 mm；最多 7.0 mm。" in page
    assert "at most" not in page
    assert "层厚过大" in client.get("/").text
