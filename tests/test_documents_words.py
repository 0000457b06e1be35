"""The page and the PDF of a Chinese draft are Chinese throughout, and those of an English one as ever."""

from __future__ import annotations

import ast
import io
import json
import re
import tomllib
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from phantom_drafts import phantom_draft
from pydicom import dcmread
from test_documents import make_draft, make_refusal, make_volume

import mla_med
from mla_med.documents import html, parts, pdf, text, words
from mla_med.documents.html import draft_to_html
from mla_med.documents.text import draft_to_text
from mla_med.documents.write import write_documents
from mla_med.report import reasons
from mla_med.types import Change, Comparison, Complaint, Gate, Presence, Prior, Reason, Side

HOUSE = Path(mla_med.__file__).parent
TEMPLATES = [parts.TEMPLATES / name for name in ("draft.html.jinja", "shared.html.jinja")]
WRITERS = [HOUSE / "documents" / f"{name}.py" for name in ("html", "pdf", "text")]
ENGLISH = Path(__file__).parent / "expected_page.json"
"""What people read on the English pages of test_documents, line by line."""

LATIN = {
    *("AI", "CT", "MR", "PACS", "PET", "HU", "UTC", "mm", "cm", "sha", "logit", "UID", "SOP Instance UID"),
    *(
        "FLAIR",
        "DWI",
        "SWI",
        "WI",
        "T",
        "R",
        "L",
        "A",
        "P",
        "S",
        "I",
    ),  # the letters are DICOM's, PS3.3 C.7.6.1.1.1
    *("mla-chest", "mla-phantom", "Rolf Reviewer"),
    *("Axial", "Topogram", "CT Axial", "CT Topogram", "MR Axial", "MR Topogram"),  # SeriesDescription
    *("CT Thorax", "Thorax", "B", "f", "I"),
}
"""What stands on a Chinese page in other letters, and has to."""


def said_in(path: Path) -> set[str]:
    """Constants that a template or a module says to people."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".jinja":
        return set(re.findall(r'\bt\("([^"]+)"\)', source))
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    named = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "say"]
    return {v.value for c in named for v in ast.walk(c.args[0]) if isinstance(v, ast.Constant)}


@pytest.mark.parametrize("path", [*TEMPLATES, *WRITERS], ids=lambda p: p.name)
def test_everything_that_is_said_has_its_chinese(path):
    said = said_in(path)
    assert len(said) > 2
    assert [english for english in sorted(said) if english not in words.table("zh")] == []


def test_words_of_data_have_their_chinese_too():
    names = (
        *parts.RULES.values(),
        *Presence,
        *Change,
        Side.LEFT,
        Side.RIGHT,
        "both sides",
        *html.AXES,
        text.NOTICE,
    )
    names = (*names, *text.HEADINGS, *(name for name, _ in pdf.PATIENT_LINES), "image", "clinical context")
    assert [str(name) for name in names if name not in words.table("zh")] == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_no_word_of_a_template_is_said_but_through_the_table(path):
    source = path.read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>", "", source, flags=re.DOTALL)
    bare = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", " ", body, flags=re.DOTALL)
    shown = [
        *re.findall(r'(?:alt|title|aria-label|placeholder)="([^"]*)"', bare),
        *re.findall(r">([^<]*)", bare),
    ]
    assert {word for line in shown for word in re.findall(r"[A-Za-z]{2,}", line)} <= {"mm", "HU", "UTC"}


def test_a_word_has_the_same_places_in_both_languages():
    for english, chinese in words.table("zh").items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese)), english


def test_what_both_pages_say_stands_in_one_table():
    own = tomllib.loads((HOUSE / "review" / "zh.toml").read_text(encoding="utf-8"))["words"]
    # a column of the worklist is no heading of a report
    assert own.keys() & words.table("zh").keys() == {"Findings"}


def test_only_languages_that_there_are_words_for_make_a_page():
    draft = make_draft()
    german = replace(draft, report=replace(draft.report, language="../../zh"))
    assert words.page_language(german) == "en"
    assert '<html lang="en">' in draft_to_html(german, None)
    assert words.table("../../zh") == {}


# What stands on a page


def lines_of(page: str) -> list[str]:
    """What people and screen readers are told, in order."""
    body = page[page.index("<body") :]
    told = re.findall(r'(?:\b(?:alt|title|aria-label)="([^"]*)")|>([^<]+)', body)
    lines = [" ".join(unescape(attribute or inner).split()) for attribute, inner in told]
    return [line for line in lines if line]


def english_pages() -> dict[str, str]:
    volume, draft = make_volume(), make_draft()
    return {
        "draft": draft_to_html(draft, volume, "Rev^Ann"),
        "compared": draft_to_html(compared(draft), None),
        "refusal": draft_to_html(make_refusal(), volume),
    }


def compared(draft):
    nodule, *others = draft.report.findings
    (effusion,) = (f for f in others if f.code == "pleural_effusion")
    prior = Prior(
        "2.25.5",
        "20251105",
        (),
        (
            Comparison(
                *("lung_nodule", Change.INCREASED, "present now, absent then"),
                *(nodule.side, nodule.site, nodule.size_mm),
            ),
            Comparison(
                *("pleural_effusion", None, "present then; now it cannot be said"),
                *(effusion.side, effusion.site, effusion.size_mm),
            ),
        ),
    )
    evidence = replace(nodule.evidence, faithfulness_rank=0.93)
    nodule = replace(nodule, change=Change.INCREASED, evidence=evidence)
    return replace(draft, prior=prior, report=replace(draft.report, findings=(nodule, *others)))


def test_an_english_page_says_what_it_always_said():
    expected = json.loads(ENGLISH.read_text(encoding="utf-8"))
    pages = english_pages()
    assert expected.keys() == pages.keys()
    for name, page in pages.items():
        assert lines_of(page) == expected[name], name
        assert '<html lang="en">' in page


def foreign(page: str) -> set[str]:
    """Runs of Latin words outside codes and UIDs, but for those that have to be there."""
    body = re.sub(r'<(code|span class="uid"|dd class="uid")>.*?</', "</", page[page.index("<body") :])
    runs = {
        run
        for line in lines_of(body)
        for run in re.findall(r"[A-Za-z][A-Za-z-]*(?: [A-Za-z][A-Za-z-]*)*", line)
    }
    return runs - LATIN


CHINESE = (2, 3)
"""Seeds of phantom_drafts: a chest and a head."""


def chinese_draft(seed: int, folder: Path):
    """With what else a page can show: a prior, complaints, notes of the reader."""
    draft = phantom_draft(seed, folder)
    assert draft.report.language == "zh"
    chosen, scout = draft.verdicts
    certificate = replace(
        chosen.certificate,
        notes=("3 duplicate images dropped.", "The header says chest; the voxels show a head."),
        body_part_header="chest and abdomen",
        body_part_pixels="head",
        contrast_header=True,
        air_hu=-1003.0,
        lossy=True,
    )
    why = "axial, kernel Br40d (soft), 1.5 mm, 95 slices: the only axial CT series."
    reason = Reason(
        "SECONDARY_CAPTURE",
        "Series 2.25.9 is a secondary capture, a picture of a screen. Choose the original images.",
    )
    code = draft.report.findings[0].code
    return replace(
        draft,
        verdicts=(replace(chosen, certificate=certificate, why=why), replace(scout, reason=reason)),
        gate=Gate(True, scores={"lung_share": 0.3, "histogram_distance": 0.07, "feature_distance": 9.0}),
        prior=draft.prior
        and replace(
            draft.prior,
            comparisons=(Comparison(code, None, "present then and now; its extent is not measured"),),
        ),
        complaints=(
            Complaint(
                "SIDE_OF_REQUEST",
                "The request states nodule on the left, the report on the right alone.",
            ),
            Complaint(
                "INTERPRETATION",
                "The impression says nodule work up, which findings and request do not support.",
            ),
            Complaint("IMPRESSION", "Nodule is present and not in the impression."),
        ),
    )


@pytest.mark.parametrize("seed", CHINESE)
def test_the_page_of_a_chinese_draft_is_chinese(seed, tmp_path):
    page = draft_to_html(chinese_draft(seed, tmp_path), None, "Rolf^Reviewer")
    assert '<html lang="zh-Hans">' in page
    assert foreign(page) - {"Br", "d"} == set()
    assert "AI 草稿 - 不用于诊断" in page
    assert "侧别与申请单不符" in page
    assert "2025-11-05" in page or "与既往检查比较" not in page


@pytest.mark.parametrize("seed", CHINESE)
def test_the_text_of_a_chinese_draft_is_chinese_to_its_last_line(seed, tmp_path):
    draft = chinese_draft(seed, tmp_path)
    said = text.draft_to_text(draft, "Rolf^Reviewer")
    runs = set(
        re.findall(r"[A-Za-z][A-Za-z-]*(?: [A-Za-z][A-Za-z-]*)*", re.sub(r"\b[A-Z]+(_[A-Z]+)+\b", "", said))
    )
    codes = {"INTERPRETATION", "IMPRESSION", "f", "T", "Z"}
    assert {run for run in runs if not re.fullmatch("[a-f]+", run)} - LATIN - codes == set()
    assert said.startswith("AI 草稿 - 不用于诊断")
    assert "SIDE_OF_REQUEST: 申请单" in said


def test_pictures_and_facts_are_named_in_chinese():
    draft = make_draft()
    said = tuple(replace(s, text="未见异常。") for s in draft.report.sentences)
    report = replace(
        draft.report, language="zh", sentences=said, impression=said[:1], technique="胸部CT扫描。"
    )
    chosen = replace(draft.verdicts[0], certificate=replace(draft.verdicts[0].certificate, notes=()))
    draft = replace(
        draft, report=report, verdicts=(chosen,), complaints=(), modal_weights={"image": 1.0}, gate=Gate(True)
    )
    page = draft_to_html(compared(draft), make_volume())
    told = lines_of(page)
    for line in (
        "第 42/60 层，S 57.5 mm",
        "肺窗，窗位 −600，窗宽 1500",
        "纵隔窗，窗位 40，窗宽 400",
        "右侧",
        "肺上叶",
        "增大",
    ):
        assert any(line in one for one in told), line
    assert "肺结节：轴位图像及证据方框，第 42/60 层，S 57.5 mm" in told
    assert foreign(page) <= {"per slice"}


def test_the_page_of_a_refusal_is_in_the_language_that_the_draft_would_have_had(tmp_path):
    draft = phantom_draft(9, tmp_path)
    gate = Gate(False, (Reason("SLICES_TOO_THICK", "The slices are 9.0 mm apart; at most 7.0 mm."),))
    refusal = replace(draft, gate=gate, verdicts=draft.verdicts[1:])
    pages = {
        language: next(
            d.content.decode() for d in write_documents(refusal, formats=["html"], language=language)
        )
        for language in ("en", "zh")
    }
    assert "What to do next" in pages["en"]
    assert "层间距 9.0 mm；最多 7.0 mm。" in pages["zh"]
    assert foreign(pages["zh"]) == set()


@pytest.mark.parametrize("seed", [*CHINESE, 9])
def test_the_pdf_of_a_chinese_draft_is_chinese_around_the_patient(seed, tmp_path):
    pytest.importorskip("reportlab")
    pypdf = pytest.importorskip("pypdf")
    draft = phantom_draft(9, tmp_path) if seed == 9 else chinese_draft(seed, tmp_path)
    if draft.report is None:
        gate = Gate(False, (Reason("NO_SERIES", "No series of this study can be read as a volume."),))
        draft = replace(draft, gate=gate)
    (document,) = write_documents(draft, formats=["pdf"], language="zh")
    pages = io.BytesIO(dcmread(io.BytesIO(document.content)).EncapsulatedDocument)
    read = pypdf.PdfReader(pages)
    copied = "\n".join(page.extract_text() for page in read.pages)
    assert read.trailer["/Root"]["/Lang"] == "zh-Hans"
    assert copied.count("AI 草稿 - 不用于诊断") == 2 * len(read.pages)
    for english in (
        "Patient",
        "Born",
        "Sex",
        "Page",
        "Written",
        "Unverified",
        "Compared",
        "request",
        "No draft",
    ):
        assert english not in copied, english
    assert "性别: 男性" in copied or "性别: 女性" in copied


def test_the_text_of_a_chinese_draft_keeps_its_headings(tmp_path):
    draft = phantom_draft(2, tmp_path)
    assert "\n影像表现\n" in draft_to_text(draft)
    assert "\n诊断印象\n" in draft_to_text(draft)


def test_a_part_of_the_body_is_known_by_itself_and_in_a_list():
    assert reasons.value_in_language("chest, abdomen and pelvis", "zh") == "胸部、腹部、盆腔"
    assert reasons.value_in_language("chest and abdomen", "en") == "chest and abdomen"
    assert reasons.value_in_language("", "zh") == ""
